# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from typing import Any

import pytest
import requests
from ansible_collections.trtllm.serving.plugins.module_utils._smoke import SmokeError, ask
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient


def send(triton: Any, **more: Any) -> dict[str, Any]:
    params = {"model": "ensemble", "prompt": "What is the capital of France?", "max_tokens": 8, "timeout": 10, **more}
    return ask(TritonClient(triton.url, requests), params)


def test_answer(triton: Any) -> None:
    triton.open()
    found = send(triton, parameters={"temperature": 0.5, "stop_words": "x"}, expect="(?i)paris", expect_text="ari")
    assert found["text"] == "Paris" and found["model_version"] == "1" and found["ttft_s"] is None
    assert 0 < found["latency_s"] < 5 and found["tokens"] is None
    path, body = triton.requests[-1]
    assert path == "/v2/models/ensemble/generate"
    assert body == {
        "text_input": "What is the capital of France?",
        "max_tokens": 8,
        "bad_words": "",
        "stop_words": "x",
        "temperature": 0.5,
    }


def test_tokens_when_the_server_counts_them(triton: Any) -> None:
    triton.open()
    triton.answer = (200, {"text_output": "Paris", "num_output_tokens": [3]})
    assert send(triton)["tokens"] == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {"error": "generate expects model to produce exactly 1 response, use generate stream"}), "set stream"),
        ((400, {"error": "in ensemble 'ensemble', Stub process 'x' is not healthy."}), "restart the server"),
        ((404, {"error": "Request for unknown model: 'ensemble' is not found"}), "HTTP 404.*check model"),
        ((500, b"<html>oops</html>"), "HTTP 500, <html>oops"),
        ((200, {"outputs": []}), "has no text_output"),
        ((200, b"not json"), "has no text_output"),
        ((200, {"text_output": "  "}), "the answer is empty"),
    ],
)
def test_bad_answers(triton: Any, answer: Any, message: str) -> None:
    triton.open()
    triton.answer = answer
    with pytest.raises(SmokeError, match=message) as caught:
        send(triton)
    assert "\n" not in str(caught.value) and len(triton.requests) == 1


def test_empty_answer_may_be_allowed(triton: Any) -> None:
    triton.open()
    triton.answer = (200, {"text_output": ""})
    assert send(triton, allow_empty=True)["text"] == ""


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"expect": "London"}, "'Paris' does not match expect 'London'"),
        ({"expect_text": "London"}, "'Paris' does not contain expect_text 'London'"),
    ],
)
def test_unexpected_answer(triton: Any, expected: dict[str, str], message: str) -> None:
    triton.open()
    with pytest.raises(SmokeError, match=message) as caught:
        send(triton, **expected)
    assert caught.value.details["text"] == "Paris"


def test_slow_answer(triton: Any) -> None:
    triton.open()
    triton.delay_s = 0.2
    with pytest.raises(SmokeError, match="took 0.[2-9].* above max_latency_s 0.1"):
        send(triton, max_latency_s=0.1)
    assert send(triton, max_latency_s=5)["latency_s"] >= 0.2


def test_no_answer(triton: Any) -> None:
    with pytest.raises(SmokeError, match="refused the connection"):
        send(triton)
    triton.open()
    triton.delay_s = 1
    began = time.monotonic()
    with pytest.raises(SmokeError, match="did not answer within 0.3 s"):
        send(triton, timeout=0.3)
    assert time.monotonic() - began < 0.9


def test_stream(triton: Any) -> None:
    triton.open()
    triton.answer = [{"text_output": text, "model_version": "1"} for text in ("Pa", "ris", "")]
    triton.delay_s = 0.1
    found = send(triton, stream=True, expect="^Paris$")
    assert found["text"] == "Paris" and found["events"] == 3 and found["tokens"] == 2
    assert 0.1 <= found["ttft_s"] < found["latency_s"] - 0.15
    path, body = triton.requests[-1]
    assert path == "/v2/models/ensemble/generate_stream" and body["stream"] is True


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([{"text_output": "Pa"}, {"error": "Executor failed"}], "HTTP 200, Executor failed"),
        ([{"other": 1}], "an event has no text_output"),
        ([b"data: {half\n\n"], "an event that is not JSON"),
        ([], "ended without an event"),
        ((400, {"error": "Streaming is only supported if model is deployed using decoupled mode."}), "unset stream"),
        ((400, b'data: {"error": "in a stream"}\n\n'), "HTTP 400, in a stream"),
        ((404, b""), "HTTP 404, no explanation"),
    ],
)
def test_bad_streams(triton: Any, answer: Any, message: str) -> None:
    triton.open()
    triton.answer = answer
    with pytest.raises(Exception, match=message):
        send(triton, stream=True)


def test_stream_that_does_not_end(triton: Any) -> None:
    triton.open()
    triton.answer = [{"text_output": "x"}] * 50
    triton.delay_s = 0.05
    with pytest.raises(SmokeError, match="did not end its answer within 0.3 s"):
        send(triton, stream=True, timeout=0.3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"expect": "("}, "is no regular expression"),
        ({"max_tokens": 0}, "max_tokens 0 is not possible"),
        ({"max_latency_s": 0}, "max_latency_s 0 is not possible"),
        ({"timeout": -1}, "timeout -1 is not possible"),
    ],
)
def test_refused_before_anything_is_sent(triton: Any, params: dict[str, Any], message: str) -> None:
    triton.open()
    with pytest.raises(SmokeError, match=message):
        send(triton, **params)
    assert triton.requests == []


def test_module_process(triton: Any, start_module: Any) -> None:
    args = {"url": triton.url, "prompt": "hello", "expect": "Paris"}
    assert start_module("triton_generate", args, check=True).result()["skipped"]
    failed = start_module("triton_generate", args).result()
    assert failed["failed"] and "refused" in failed["msg"]
    triton.open()
    found = start_module("triton_generate", args).result()
    assert found["text"] == "Paris" and not found["changed"]
    failed = start_module("triton_generate", {**args, "expect": "London"}).result()
    assert failed["failed"] and failed["text"] == "Paris"
