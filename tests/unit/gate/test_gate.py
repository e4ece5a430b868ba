# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate of a new server: ready, answering, with its GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.trtllm.serving.plugins.module_utils._gate import GateFailed, ask_prompts, pass_gate
from ansible_collections.trtllm.serving.plugins.module_utils._gate_gpu import judge, look
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import MODELS, Watch
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient

PROMPT = {"name": "capital", "prompt": "What is the capital of France?"}
H100 = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)\n"


def ask(triton: Any, *prompts: dict[str, Any]) -> list[dict[str, Any]]:
    return ask_prompts(TritonClient(triton.url, requests), prompts)


def gate(triton: Any, *prompts: dict[str, Any], **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"timeout": 5.0, "watch": Watch(), **more}
    return pass_gate(TritonClient(triton.url, requests), MODELS, prompts, **settings)


# --- prompts ----------------------------------------------------------------------------------------------------


def test_prompts_in_their_order_over_one_connection(triton: Any) -> None:
    found = ask(
        triton, PROMPT, {"prompt": "More?", "model": "tensorrt_llm_bls", "max_tokens": 3, "parameters": {"top_k": 1}}
    )
    assert [answer["name"] for answer in found] == ["capital", "number 2"]
    assert all(answer["ok"] and answer["text"] == " Paris" for answer in found)
    assert [path for path, _body in triton.asked] == [
        "/v2/models/ensemble/generate", "/v2/models/tensorrt_llm_bls/generate",
    ]  # fmt: skip
    assert triton.asked[0][1]["max_tokens"] == 16 and triton.asked[1][1]["top_k"] == 1
    assert len(triton.connections) == 1


def test_what_is_null_has_its_default(triton: Any) -> None:
    nothing = {"name": None, "model": None, "max_tokens": None, "expect": None, "parameters": None, "timeout": None}
    assert ask(triton, {**nothing, "prompt": "Well?"})[0]["name"] == "number 1"
    assert triton.asked[0][1]["max_tokens"] == 16


@pytest.mark.parametrize("more", [{"expect": "Paris"}, {"expect": " Paris\n"}, {"pattern": "^ P.ris$"}, {}])
def test_answer_as_it_should_be(triton: Any, more: dict[str, Any]) -> None:
    assert ask(triton, {**PROMPT, **more})[0]["ok"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        # Exact is exact: a longer answer that begins well is another answer.
        ({"expect": "Par"}, "the answer 'Paris' is not 'Par'"),
        ({"expect": "paris"}, "the answer 'Paris' is not 'paris'"),
        ({"pattern": "^Paris"}, "the answer 'Paris' does not match pattern '^Paris'"),
    ],
)
def test_answer_not_as_it_should_be(triton: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(GateFailed) as caught:
        ask(triton, {**PROMPT, "name": "first"}, {**PROMPT, **more})
    assert said in str(caught.value) and "smoke prompt 'capital'" in str(caught.value)
    assert "\n" not in str(caught.value)
    answers = caught.value.details["answers"]
    assert [answer["ok"] for answer in answers] == [True, False] and answers[1]["text"] == " Paris"


def test_first_failure_is_the_last_question(triton: Any) -> None:
    with pytest.raises(GateFailed):
        ask(triton, {**PROMPT, "expect": "no"}, {**PROMPT, "name": "second"})
    assert len(triton.asked) == 1


def test_late_answer(triton: Any) -> None:
    triton.delay_s = 0.15
    assert ask(triton, {**PROMPT, "max_latency_s": 0})[0]["latency_s"] >= 0.15
    with pytest.raises(GateFailed, match="above max_latency_s 0.05"):
        ask(triton, {**PROMPT, "max_latency_s": 0.05})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, {"error": "Stub process 'tensorrt_llm_0_0' is not healthy."}), "the model's process has crashed"),
        # Triton may send an error with status 200.
        ((200, {"error": "something"}), "HTTP 200, something"),
        ((200, {"text_output": ""}), "the answer is empty"),
        ((200, {"other": 1}), "the answer has no text_output"),
        ((200, b"<html>"), "the answer has no text_output"),
    ],
)
def test_what_is_not_well_formed(triton: Any, answer: Any, said: str) -> None:
    triton.answer = answer
    with pytest.raises(GateFailed, match=said):
        ask(triton, PROMPT)


def test_empty_answer_where_one_is_allowed(triton: Any) -> None:
    triton.answer = (200, {"text_output": ""})
    assert ask(triton, {**PROMPT, "allow_empty": True})[0]["ok"]


def test_stream(triton: Any) -> None:
    triton.answer = [{"text_output": "Par"}, {"text_output": "is"}]
    found = ask(triton, {**PROMPT, "stream": True, "expect": "Paris"})[0]
    assert found["text"] == "Paris" and found["ttft_s"] is not None and found["tokens"] == 2
    assert triton.asked[0][0].endswith("/generate_stream") and triton.asked[0][1]["stream"] is True
    triton.answer = [{"text_output": "Par"}, {"error": "cut off"}]
    with pytest.raises(GateFailed, match="cut off"):
        ask(triton, {**PROMPT, "stream": True})
    triton.answer = []
    with pytest.raises(GateFailed, match="the stream ended without an event"):
        ask(triton, {**PROMPT, "stream": True})


def test_settings_are_judged_before_anything_is_sent(triton: Any) -> None:
    with pytest.raises(GateFailed, match="prompts, 'capital' has both expect and pattern"):
        gate(triton, {**PROMPT, "expect": "a", "pattern": "b"})
    assert not triton.asked


# --- gate -------------------------------------------------------------------------------------------------------


def test_stages_of_a_gate_that_opens(triton: Any) -> None:
    seen: list[tuple[int, int]] = []
    found = gate(
        triton, PROMPT, look_gpu=lambda: {"count": 2, "names": ["x"]}, progress=lambda *told: seen.append(told)
    )
    assert found["ready"] and found["timeline"][-1]["state"] == "ready" and found["ready_s"] >= 0
    assert [stage["name"] for stage in found["stages"]] == ["load", "smoke", "gpu"]
    for before, after in zip(found["stages"], found["stages"][1:]):
        assert after["offset_s"] >= before["offset_s"] + before["seconds"] - 0.002
    assert found["gpu"]["count"] == 2 and seen[0][1] == len(MODELS)


def test_no_gpu_is_asked_for(triton: Any) -> None:
    found = gate(triton, look_gpu=lambda: None)
    assert found["gpu"] == {} and [stage["name"] for stage in found["stages"]] == ["load"]


def test_model_that_never_loads(triton: Any) -> None:
    triton.models["tensorrt_llm"] = False
    with pytest.raises(GateFailed, match="was not ready within 0.3 s; not ready: tensorrt_llm") as caught:
        gate(triton, PROMPT, timeout=0.3)
    details = caught.value.details
    assert not details["ready"] and "tensorrt_llm" in details["unready"]
    assert [stage["name"] for stage in details["stages"]] == ["load"] and not triton.asked


def test_wrong_answer_keeps_what_was_found_until_then(triton: Any) -> None:
    with pytest.raises(GateFailed) as caught:
        gate(triton, {**PROMPT, "expect": "London"}, look_gpu=lambda: pytest.fail("looked nevertheless"))
    details = caught.value.details
    assert details["ready"] and details["timeline"] and not details["answers"][0]["ok"]
    assert [stage["name"] for stage in details["stages"]] == ["load", "smoke"]


def test_server_that_dies_of_the_question(triton: Any, tmp_path: Path) -> None:
    """The death is the cause; that no answer came is its consequence."""
    (tmp_path / "pid").write_text(str(os.getpid()))

    class Dying(Watch):
        dead = ""

        def death(self) -> str:
            return self.dead

    watch = Dying(str(tmp_path / "pid"))

    def check() -> None:
        if triton.asked:
            watch.dead = "the server's process 7 has ended"

    triton.answer = (500, {"error": "no"})
    with pytest.raises(GateFailed, match="^smoke prompt"):
        gate(triton, PROMPT, watch=watch, check=check)
    watch.dead = ""

    def die(*unused: Any) -> str:
        return "the server's process 7 has ended" if triton.asked else ""

    watch.death = die  # type: ignore[method-assign]
    with pytest.raises(GateFailed, match="^the server's process 7 has ended; smoke prompt 'capital'"):
        gate(triton, PROMPT, watch=watch)


# --- GPU --------------------------------------------------------------------------------------------------------


def test_gpus_that_are_there() -> None:
    assert judge(0, H100, container="c", count=2, name="NVIDIA H100 80GB HBM3") == {
        "count": 2, "names": ["NVIDIA H100 80GB HBM3"],
    }  # fmt: skip
    assert judge(0, H100, container="c")["count"] == 2


@pytest.mark.parametrize(
    ("rc", "output", "more", "said"),
    [
        (0, H100, {"count": 4}, "GPU of container c: the container sees 2 of 4 GPUs"),
        (0, "", {}, "sees 0 of 1 GPUs"),
        (255, "Failed to initialize NVML: Unknown Error", {"count": 1}, "has lost its GPUs"),
        (127, "exec: nvidia-smi: executable file not found", {}, "nvidia-smi is not there"),
        (124, "", {}, "gave no answer in time"),
        (0, H100.replace("H100 80GB HBM3", "L40S", 1), {"name": "NVIDIA H100 80GB HBM3"}, "it sees NVIDIA L40S, and"),
    ],
)
def test_gpus_that_are_not(rc: int, output: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(GateFailed) as caught:
        judge(rc, output, container="c", **more)
    assert said in str(caught.value) and "\n" not in str(caught.value)


class Engine:
    """The part of Docker's SDK that is used: nvidia-smi -L inside a container."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.timeout = 60.0
        self.asked: list[Any] = []
        self.api = self

    def exec_create(self, container: str, argv: list[str]) -> dict[str, str]:
        self.asked.append((container, argv))
        return {"Id": "1"}

    def exec_start(self, run: str) -> bytes:
        return self.output.encode()

    def exec_inspect(self, run: str) -> dict[str, int]:
        return {"ExitCode": 0}


@pytest.mark.parametrize(
    ("gpus", "count", "good"),
    [("all", 2, True), ("all", 3, False), (2, 8, True), ("3", 1, False), (["0", "1"], 1, True), ("0,1,2", 1, False)],
)
def test_gpus_that_the_container_was_given(gpus: Any, count: int, good: bool) -> None:
    pytest.importorskip("docker")
    engine = Engine(H100)
    wanted = {"required": True, "container": "c", "gpus": gpus, "count": count}

    def connect() -> Engine:
        return engine

    if good:
        assert look(connect, wanted) == {"count": 2, "names": ["NVIDIA H100 80GB HBM3"]}
    else:
        with pytest.raises(GateFailed):
            look(connect, wanted)
    assert engine.asked == [("c", ["nvidia-smi", "-L"])] and engine.timeout == 60.0


@pytest.mark.parametrize("wanted", [{}, {"required": False}, {"required": True, "container": "c", "gpus": "none"}])
def test_no_gpu_no_look(wanted: dict[str, Any]) -> None:
    def connect() -> Any:
        raise AssertionError("Docker was asked")

    assert look(connect, wanted) is None


def test_no_container_to_look_into() -> None:
    with pytest.raises(GateFailed, match="name the container"):
        look(lambda: None, {"required": True})


# --- the module -------------------------------------------------------------------------------------------------


def test_module_process(triton: Any, run_gate: Callable[..., dict[str, Any]]) -> None:
    found = run_gate({"url": triton.url, "prompts": [{**PROMPT, "expect": "Paris"}]})
    assert found["ready"] and not found["changed"] and found["text"] == " Paris"
    found = run_gate({"url": triton.url, "prompts": [{**PROMPT, "expect": "London"}]})
    assert found["failed"] and found["ready"] and "is not 'London'" in found["msg"]
    found = run_gate({"url": triton.url, "state": "smoke", "prompts": [PROMPT]})
    assert found["text"] == " Paris" and "timeline" not in found


def test_progress_is_told_while_models_load(triton: Any, start_gate: Callable[..., Any], tmp_path: Path) -> None:
    triton.models["ensemble"] = False
    path = tmp_path / "progress.json"
    gate_process = start_gate({"url": triton.url, "timeout": 20, "progress": str(path)})
    deadline = time.monotonic() + 20
    told: dict[str, Any] = {}
    while time.monotonic() < deadline and told.get("done") != len(MODELS) - 1:
        if path.exists():
            with contextlib.suppress(ValueError):
                told = json.loads(path.read_text())
        time.sleep(0.02)
    assert told["done"] == len(MODELS) - 1 and told["total"] == len(MODELS) and told["unit"] == "models"
    triton.models["ensemble"] = True
    assert gate_process()["ready"]
    assert not path.exists()


def test_smoke_asks_the_place_that_is_in_service(
    triton: Any, run_gate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    port = int(triton.url.rpartition(":")[2])
    generation = tmp_path / "generations" / "aaaa"
    generation.mkdir(parents=True)
    (generation / "launch.json").write_text(json.dumps({"argv": [f"--http-port={port - 100}"], "port_offset": 100}))
    (tmp_path / "current").symlink_to("generations/aaaa")
    (tmp_path / "run").mkdir()
    args = {"url": f"http://127.0.0.1:{port - 100}", "state": "smoke", "home": str(tmp_path), "prompts": [PROMPT]}
    assert run_gate(args)["failed"]
    (tmp_path / "run" / "slot.json").write_text('{"slot": "b"}')
    assert run_gate(args)["text"] == " Paris"
    # Nothing is deployed there: the URL as it was given.
    assert run_gate({**args, "url": triton.url, "home": str(tmp_path / "none")})["text"] == " Paris"


def test_check_mode_looks_once_and_asks_nothing(triton: Any, run_gate: Callable[..., dict[str, Any]]) -> None:
    triton.models["ensemble"] = False
    for state in ("gate", "smoke", "bake"):
        found = run_gate({"url": triton.url, "state": state, "prompts": [PROMPT]}, check=True)
        assert not found.get("failed") and not found["ready"] and "ensemble" in found["unready"]
    assert not triton.asked and not triton.looks
