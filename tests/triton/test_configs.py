# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rendered config.pbtxt before the real Triton: its parser is the judge.

TRITONSERVER_VENV names a virtual environment with nvidia-pytriton and numpy below 2.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._pbtxt import parameter
from ansible_collections.trtllm.serving.tests.triton._small import RealTriton, venv
from ansible_collections.trtllm.serving.tests.unit.config import _render
from ansible_collections.trtllm.serving.tests.unit.config._render import CASES, LINES, MODELS

pytestmark = pytest.mark.triton

MODEL = """
class TritonPythonModel:
    def execute(self, requests):
        return [None] * len(requests)
"""


class Server(RealTriton):
    """A Triton in explicit mode, whose python and tensorrtllm backends run MODEL."""

    def __init__(self, venv: Path, folder: Path) -> None:
        super().__init__(venv, folder)
        (self.backends / "tensorrtllm").mkdir()
        (self.backends / "tensorrtllm" / "model.py").write_text(MODEL, "utf-8")
        self.url += "/v2"
        self.start("--model-control-mode", "explicit")

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
