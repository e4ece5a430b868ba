# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rendered config.pbtxt before the real Triton: its parser is the judge.

TRITONSERVER_VENV names a virtual environment with nvidia-pytriton and numpy below 2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._pbtxt import parameter
from ansible_collections.trtllm.serving.tests.triton._small import free_ports, venv
from ansible_collections.trtllm.serving.tests.unit.config import _render
from ansible_collections.trtllm.serving.tests.unit.config._render import CASES, LINES, MODELS

pytestmark = pytest.mark.triton

MODEL = """
class TritonPythonModel:
    def execute(self, requests):
        return [None] * len(requests)
"""


class Server:
    """A Triton in explicit mode, whose python and tensorrtllm backends run MODEL."""

    def __init__(self, venv: Path, folder: Path) -> None:
        # A TRITONSERVER_VENV without a server is a broken set-up, not a reason to skip.
        site = next(venv.glob("lib/python3.*/site-packages"))
        triton = site / "pytriton" / "tritonserver"
        backends, self.models, self.log = folder / "backends", folder / "models", folder / "log"
        shutil.copytree(triton / "backends" / "python", backends / "python")
        minor = site.parent.name[len("python") :]
        stub = "triton_python_backend_stub"
        (backends / "python" / stub).symlink_to(triton / "python_backend_stubs" / minor / stub)
        (backends / "tensorrtllm").mkdir()
        (backends / "tensorrtllm" / "model.py").write_text(MODEL, "utf-8")
        self.models.mkdir()
        http, grpc, metrics = free_ports(3)
        self.url = f"http://127.0.0.1:{http}/v2"
        libraries = [site / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(triton / "bin" / "tritonserver"),
                    *("--model-repository", str(self.models), "--backend-directory", str(backends)),
                    *("--model-control-mode", "explicit", "--exit-timeout-secs", "5", "--allow-metrics", "false"),
                    *("--http-address", "127.0.0.1", "--http-port", str(http)),
                    *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc), "--metrics-port", str(metrics)),
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

    def wait_live(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health/live", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, self.tail()
                assert time.monotonic() < deadline, self.tail()
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-4000:]

    def put(self, model: str, text: str) -> None:
        folder = self.models / model
        (folder / "1").mkdir(parents=True, exist_ok=True)
        if model not in ("ensemble", "tensorrt_llm"):
            (folder / "1" / "model.py").write_text(MODEL, "utf-8")
        (folder / "config.pbtxt").write_text(text, "utf-8")

    def load(self, model: str) -> None:
        request = urllib.request.Request(f"{self.url}/repository/models/{model}/load", data=b"{}")
        try:
            with urllib.request.urlopen(request, timeout=60):
                return
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{model}: {error.read().decode()}\n{self.tail()}") from error

    def config(self, model: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/models/{model}/config", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[Server]:
    server = Server(venv(), tmp_path)
    try:
        server.wait_live()
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("line", LINES)
def test_triton_takes_all_five_models(server: Server, line: str, case: str) -> None:
    values = _render.variables(**CASES[case])
    for model in MODELS:
        server.put(model, _render.render(line, model, **CASES[case]))
    for model in MODELS:
        server.load(model)

    configs = {model: server.config(model) for model in MODELS}
    for model, config in configs.items():
        assert config["max_batch_size"] == values["triton_serve_max_batch_size"], model
    strings = {model: {k: v["string_value"] for k, v in configs[model]["parameters"].items()} for model in MODELS}
    for model in ("preprocessing", "postprocessing"):
        assert strings[model]["tokenizer_dir"] == values["triton_serve_tokenizer_dir"]
    assert strings["tensorrt_llm"]["gpt_model_path"] == values["triton_serve_engine_dir"]
    assert strings["tensorrt_llm"]["batch_scheduler_policy"] == values["triton_serve_batch_scheduler_policy"]
    for model in MODELS:
        for key, value in values.get(f"triton_serve_{model}_parameters", {}).items():
            assert strings[model][key] == parameter(value)
    decoupled = {model: configs[model].get("model_transaction_policy", {}).get("decoupled", False) for model in MODELS}
    assert decoupled["tensorrt_llm"] is decoupled["ensemble"] is values["triton_serve_decoupled"]
    assert decoupled["tensorrt_llm_bls"] is values["triton_serve_bls_decoupled"]


def test_triton_refuses_what_the_parser_refuses(server: Server) -> None:
    """The set-up can fail: an unfilled placeholder is refused, and the log says where."""
    server.put("preprocessing", _render.render("1.1.0", "preprocessing").replace("size: 64", "size: ${x}", 1))
    with pytest.raises(AssertionError, match="Expected integer, got: \\$"):
        server.load("preprocessing")
