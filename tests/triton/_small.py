# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real Triton with a few models of a few lines, as it is started in production, counters included."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest


def venv() -> Path:
    name = os.environ.get("TRITONSERVER_VENV")
    if not name:
        pytest.skip("TRITONSERVER_VENV is not set: no tritonserver to ask")
    # Links are made to what is in it, from elsewhere.
    return Path(name).absolute()


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _unused in range(count)]
    try:
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in taken]
    finally:
        for each in taken:
            each.close()


class Small:
    """models: name -> config.pbtxt, and model.py or None."""

    def __init__(self, venv: Path, folder: Path, models: Mapping[str, tuple[str, str | None]]) -> None:
        site = next(venv.glob("lib/python3.*/site-packages"))
        triton = site / "pytriton" / "tritonserver"
        backends, self.log, self.pid_file = folder / "backends", folder / "log", folder / "pid"
        shutil.copytree(triton / "backends" / "python", backends / "python")
        stub = "triton_python_backend_stub"
        minor = site.parent.name[len("python") :]
        (backends / "python" / stub).symlink_to(triton / "python_backend_stubs" / minor / stub)
        for name, (config, code) in models.items():
            (folder / "models" / name / "1").mkdir(parents=True)
            (folder / "models" / name / "config.pbtxt").write_text(config, "utf-8")
            if code is not None:
                (folder / "models" / name / "1" / "model.py").write_text(code, "utf-8")
        http, grpc, metrics = free_ports(3)
        self.url, self.metrics = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{metrics}"
        libraries = [site / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(triton / "bin" / "tritonserver"),
                    *("--model-repository", str(folder / "models"), "--backend-directory", str(backends)),
                    *("--disable-auto-complete-config", "--exit-timeout-secs", "5"),
                    *("--http-address", "127.0.0.1", "--http-port", str(http)),
                    *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc)),
                    *("--metrics-address", "127.0.0.1", "--metrics-port", str(metrics)),
                    *("--backend-config", f"python,shm-region-prefix-name=trtllm_test_{os.getpid()}_"),
                ],
                env={
                    "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
                    "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
                    "LC_ALL": "C.UTF-8",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid_file.write_text(str(self.process.pid))

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
