# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One prompt to a served model, and whether the answer is what was expected.

Private to the collection.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Callable
from urllib.parse import quote

from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import (
    Reply,
    TritonClient,
    TritonError,
    Unreachable,
)

_SHOWN = 200

_HINTS = (
    (r"is not healthy", "the model's process has crashed and is not restarted: restart the server"),
    (r"exactly 1 response", "the model is decoupled: set stream"),
    (r"decoupled", "the model is not deployed decoupled: unset stream, or deploy it decoupled"),
    (r"unknown model|is not found", "check model, and with triton_ready that it is loaded"),
    (r"expected (?:optional )?input|missing|Unable to parse|unexpected inference input", "check parameters"),
    (r"max_input_len|exceeds|too long|larger than", "shorten the prompt or max_tokens, or build a larger engine"),
)


class SmokeError(TritonError):
    """The prompt was not answered as expected; what is known is in ``details``."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


def shown(text: str) -> str:
    """A piece of an answer on one line."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= _SHOWN else flat[:_SHOWN] + "...")


def _failed(what: str, reply_error: str, status: int, **details: Any) -> SmokeError:
    said = " ".join(reply_error.split())[:500] or "no explanation"
    hint = next((f" ({hint})" for pattern, hint in _HINTS if re.search(pattern, reply_error)), "")
    return SmokeError(f"{what}: HTTP {status}, {said}{hint}", status=status, error=said, **details)


def check_answer(
    text: str, expect: str | None, expect_text: str | None, exact: str | None = None, pattern: str | None = None
) -> list[str]:
    """exact is compared without the white space around it: tokenizers differ in it."""
    problems = []
    if pattern and not re.search(pattern, text):
        problems.append(f"the answer {shown(text)} does not match pattern {pattern!r}")
    if exact and text.strip() != exact.strip():
        problems.append(f"the answer {shown(text)} is not {shown(exact)}")
    if expect and not re.search(expect, text):
        problems.append(f"the answer {shown(text)} does not match expect {expect!r}")
    if expect_text and expect_text not in text:
        problems.append(f"the answer {shown(text)} does not contain expect_text {expect_text!r}")
    return problems


def check_params(params: Mapping[str, Any]) -> None:
    """SmokeError for what can be seen to be wrong before anything is sent."""
    try:
        re.compile(params.get("expect") or "")
    except re.error as exc:
        raise SmokeError(f"expect {params['expect']!r} is no regular expression ({exc}): correct it") from exc
    for name in ("timeout", "max_latency_s"):
        if params.get(name) is not None and params[name] <= 0:
            raise SmokeError(f"{name} {params[name]:g} is not possible: give seconds above 0")
    if params["max_tokens"] < 1:
        raise SmokeError(f"max_tokens {params['max_tokens']} is not possible: give a whole number from 1")


def _token_count(answer: Mapping[str, Any]) -> int | None:
    value = answer.get("num_output_tokens")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def ask(
    client: TritonClient, params: Mapping[str, Any], clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Sends the prompt once; returns text, latency and what else is known. SmokeError otherwise."""
    check_params(params)
    model = str(params["model"])
    stream = bool(params.get("stream"))
    what = f"model {model} at {client.url} did not answer the prompt"
    payload: dict[str, Any] = {
        "text_input": params["prompt"],
        "max_tokens": params["max_tokens"],
        "bad_words": "",
        "stop_words": "",
        **({"stream": True} if stream else {}),
        **(params.get("parameters") or {}),
    }
    path = f"/v2/models/{quote(model, safe='')}/" + ("generate_stream" if stream else "generate")
    began = clock()
    try:
        outcome = (_ask_stream if stream else _ask_once)(client, path, payload, float(params["timeout"]), what, clock)
    except Unreachable as exc:
        raise SmokeError(
            f"{what}: {exc}; see with triton_ready whether the server is up", latency_s=round(clock() - began, 3)
        ) from exc
    outcome["latency_s"] = round(clock() - began, 3)
    if not outcome["text"].strip() and not params.get("allow_empty"):
        raise SmokeError(f"{what}: the answer is empty; raise max_tokens, or check the tokenizer", **outcome)
    wanted = [params.get(name) for name in ("expect", "expect_text", "exact", "pattern")]
    problems = check_answer(outcome["text"], *wanted)
    bound = params.get("max_latency_s")
    if bound is not None and outcome["latency_s"] > bound:
        problems.append(
            f"the answer took {outcome['latency_s']:g} s, above max_latency_s {bound:g}: see what else the host does,"
            " or raise the bound"
        )
    if problems:
        raise SmokeError(f"model {model} at {client.url}: {'; '.join(problems)}", **outcome)
    return outcome


def _ask_once(
    client: TritonClient, path: str, payload: Any, timeout: float, what: str, clock: Callable[[], float]
) -> dict[str, Any]:
    reply: Reply = client.post(path, payload, timeout)
    answer = reply.json()
    # An error may come with status 200, so the status alone says nothing.
    if reply.error or reply.status != 200:
        raise _failed(what, reply.error or reply.text, reply.status)
    if not isinstance(answer, Mapping) or not isinstance(answer.get("text_output"), str):
        raise SmokeError(f"{what}: the answer has no text_output: {shown(reply.text)}", status=reply.status)
    return {
        "text": answer["text_output"],
        "ttft_s": None,
        "tokens": _token_count(answer),
        "events": 1,
        "model_version": str(answer.get("model_version", "")),
    }


def _ask_stream(
    client: TritonClient, path: str, payload: Any, timeout: float, what: str, clock: Callable[[], float]
) -> dict[str, Any]:
    began = clock()
    parts: list[str] = []
    first: float | None = None
    version = ""
    for status, event in client.events(path, payload, timeout):
        if event.get("error") or status != 200:
            raise _failed(what, str(event.get("error") or ""), status, text="".join(parts), events=len(parts))
        text = event.get("text_output")
        if not isinstance(text, str):
            raise SmokeError(f"{what}: an event has no text_output: {shown(str(event))}", text="".join(parts))
        if first is None:
            first = clock() - began
        parts.append(text)
        version = str(event.get("model_version", version))
    if first is None:
        raise SmokeError(f"{what}: the stream ended without an event; look into the server's log")
    return {
        "text": "".join(parts),
        "ttft_s": round(first, 3),
        "tokens": sum(1 for part in parts if part),
        "events": len(parts),
        "model_version": version,
    }
