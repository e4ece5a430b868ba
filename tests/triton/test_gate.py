# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The gate and the bake before the real Triton: its health endpoints and its counters are the judge."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.trtllm.serving.plugins.module_utils._gate import Bake, GateFailed, pass_gate
from ansible_collections.trtllm.serving.plugins.module_utils._gate_metrics import read
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import Watch
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient
from ansible_collections.trtllm.serving.tests.triton._small import Small, venv

pytestmark = pytest.mark.triton

# Says what it was asked in capitals; an error, or its own end, when it is asked for that.
MODEL = """
import os
import numpy
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0].decode()
            if text == "die":
                os._exit(1)
            if text == "fail":
                responses.append(pb.InferenceResponse(error=pb.TritonError("as was wished")))
                continue
            output = numpy.array([text.upper().encode()], dtype=object)
            responses.append(pb.InferenceResponse([pb.Tensor("text_output", output)]))
        return responses
"""
CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
OUTER = """
platform: "ensemble"
max_batch_size: 0
input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling { step [ { model_name: "inner" model_version: -1
  input_map { key: "text_input" value: "text_input" } output_map { key: "text_output" value: "text_output" } } ] }
"""
MODELS = ["ensemble", "inner"]
PROMPT = {"name": "capitals", "prompt": "hello", "expect": "HELLO", "max_latency_s": 10}


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[Small]:
    server = Small(venv(), tmp_path, {"inner": (CONFIG, MODEL), "ensemble": (OUTER, None)})
    try:
        yield server
    finally:
        server.stop()


def gate(server: Small, *prompts: dict[str, Any]) -> dict[str, Any]:
    watch = Watch(str(server.pid_file), str(server.log))
    return pass_gate(TritonClient(server.url, requests), MODELS, prompts, timeout=60, watch=watch)


def ask(server: Small, text: str) -> int:
    body = json.dumps({"text_input": text}).encode()
    try:
        with urllib.request.urlopen(f"{server.url}/v2/models/ensemble/generate", body, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def bake(server: Small, during: Callable[[], None], **more: Any) -> dict[str, Any]:
    """A bake, in whose course something happens once it has begun."""
    begun = threading.Event()
    done: list[BaseException | None] = []

    def work() -> None:
        begun.wait(20)
        try:
            during()
            done.append(None)
        except BaseException as exc:
            done.append(exc)

    other = threading.Thread(target=work)
    other.start()
    try:
        return Bake(
            TritonClient(server.url, requests), TritonClient(server.metrics, requests), MODELS,
            **{
                "seconds": 3.0, "interval": 0.2, "watch": Watch(str(server.pid_file), str(server.log)),
                "progress": lambda done, total: begun.set(), **more,
            },
        ).run()  # fmt: skip
    finally:
        other.join()
        assert done == [None], done


def test_gate_from_start_to_answer(server: Small) -> None:
    found = gate(server, PROMPT)
    assert found["timeline"][-1]["state"] == "ready" and found["answers"][0]["text"] == "HELLO"
    assert [stage["name"] for stage in found["stages"]] == ["load", "smoke"]
    counted = read(TritonClient(server.metrics, requests))
    assert counted.success == {"ensemble": 1, "inner": 1}
    assert set(counted.failure["ensemble"]) == {"BACKEND", "CANCELED", "OTHER", "REJECTED"}


def test_model_that_answers_wrong_or_dies(server: Small) -> None:
    with pytest.raises(GateFailed, match="smoke prompt 'capitals': .*the answer 'HELLO' is not 'HELLO!'"):
        gate(server, {**PROMPT, "expect": "HELLO!"})
    with pytest.raises(GateFailed, match="smoke prompt 'capitals': .*is not healthy.*has crashed"):
        gate(server, {**PROMPT, "prompt": "die"})


def test_bake_counts_requests_and_failures(server: Small) -> None:
    gate(server, PROMPT)
    before = read(TritonClient(server.metrics, requests)).success["ensemble"]

    def load() -> None:
        codes = [ask(server, "x") for _unused in range(40)]
        assert codes == [200] * 40

    found = bake(server, load, min_requests=40, prompts=[PROMPT])
    assert found["bake"]["requests"] == 40 and found["bake"]["failures"] == 0 and before == 1
    assert found["answers"][0]["ok"]

    def some_fail() -> None:
        assert sorted({ask(server, "fail" if number % 4 == 0 else "x") for number in range(40)}) == [200, 400]

    with pytest.raises(GateFailed, match=r"requests of model (ensemble|inner) failed .*above max_error_ratio 1 %"):
        bake(server, some_fail)
    assert bake(server, lambda: None)["bake"]["requests"] == 0


def test_bake_sees_the_model_crash_that_health_does_not(server: Small) -> None:
    gate(server, PROMPT)

    def crash() -> None:
        assert ask(server, "die") != 200

    with pytest.raises(GateFailed):
        bake(server, crash)
    # No request in this one: only the question at the end sees it.
    with pytest.raises(GateFailed, match="has crashed"):
        bake(server, lambda: None, seconds=0.5, prompts=[PROMPT])


def test_bake_sees_the_server_die(server: Small) -> None:
    gate(server, PROMPT)
    with pytest.raises(GateFailed, match=rf"the server's process {server.process.pid} (\(in .*\) )?has ended"):
        bake(server, lambda: os.kill(server.process.pid, signal.SIGKILL), seconds=60.0)
