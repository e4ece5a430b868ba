# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real Triton with a few models of a few lines, as it is started in production, counters included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.tests.demo._site import free_ports


def venv() -> Path:
    name = os.environ.get("TRITONSERVER_VENV")
    if not name:
        pytest.skip("TRITONSERVER_VENV is not set: no tritonserver to ask")
    # Links are made to what is in it, from elsewhere.
    return Path(name).absolute()


class RealTriton:
    """A real tritonserver on ports of its own, with Python's backend, and what more its command line is given."""

    def __init__(self, venv: Path, folder: Path) -> None:
        # A TRITONSERVER_VENV without a server is a broken set-up, not a reason to skip.
        site = next(venv.glob("lib/python3.*/site-packages"))
        self.triton = site / "pytriton" / "tritonserver"
        self.backends, self.models, self.log = folder / "backends", folder / "models", folder / "log"
        shutil.copytree(self.triton / "backends" / "python", self.backends / "python")
        stub = "triton_python_backend_stub"
        minor = site.parent.name[len("python") :]
        (self.backends / "python" / stub).symlink_to(self.triton / "python_backend_stubs" / minor / stub)
        self.models.mkdir()
        self.http, self.grpc, self.counters = free_ports(3)
        self.url, self.metrics = f"http://127.0.0.1:{self.http}", f"http://127.0.0.1:{self.counters}"
        libraries = [site / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        self.environment = {
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "LC_ALL": "C.UTF-8",
        }

    def start(self, *options: str) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(self.triton / "bin" / "tritonserver"),
                    *("--model-repository", str(self.models), "--backend-directory", str(self.backends)),
                    *("--exit-timeout-secs", "5", *options),
                    *("--http-address", "127.0.0.1", "--http-port", str(self.http)),
                    *("--grpc-address", "127.0.0.1", "--grpc-port", str(self.grpc)),
                    *("--metrics-address", "127.0.0.1", "--metrics-port", str(self.counters)),
                    *("--backend-config", f"python,shm-region-prefix-name=trtllm_test_{os.getpid()}_"),
                ],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # A server that was killed leaves its shared memory behind.
        for left in Path("/dev/shm").glob(f"trtllm_test_{os.getpid()}_*"):
            left.unlink(missing_ok=True)


class Small(RealTriton):
    """models: name -> config.pbtxt, and model.py or None."""

    def __init__(self, venv: Path, folder: Path, models: Mapping[str, tuple[str, str | None]]) -> None:
        super().__init__(venv, folder)
        for name, (config, code) in models.items():
            (self.models / name / "1").mkdir(parents=True)
            (self.models / name / "config.pbtxt").write_text(config, "utf-8")
            if code is not None:
                (self.models / name / "1" / "model.py").write_text(code, "utf-8")
        self.start("--disable-auto-complete-config")
        self.pid_file = folder / "pid"
        self.pid_file.write_text(str(self.process.pid))
