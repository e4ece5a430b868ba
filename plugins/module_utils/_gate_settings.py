# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new server is asked before it gets requests, and what is wrong with such questions before any is sent.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

DEFAULTS: dict[str, Any] = {
    "name": "",
    "prompt": None,
    "model": "ensemble",
    "max_tokens": 16,
    "expect": "",
    "pattern": "",
    "max_latency_s": 0.0,
    "stream": False,
    "parameters": {},
    "allow_empty": False,
    "timeout": 120.0,
}
# Which model sends several responses only when the role deploys it so.
_DECOUPLED = {"ensemble": "triton_serve_decoupled", "tensorrt_llm": "triton_serve_decoupled",
              "tensorrt_llm_bls": "triton_serve_bls_decoupled"}  # fmt: skip
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none", "")


def label(prompt: Mapping[str, Any], number: int) -> str:
    """What a prompt is called: its name, or its place in the list."""
    return str(prompt.get("name") or "") or f"number {number}"


def complete(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt with a default in place of what is left out, or null."""
    return {**DEFAULTS, **{key: value for key, value in prompt.items() if value is not None}}


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(str(value))
    except ValueError:
        return None


def _truth(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None


def _prompt_problems(given: Mapping[str, Any], what: str) -> Iterable[str]:
    prompt = complete(given)
    unknown = [str(key) for key in given if key not in DEFAULTS]
    if unknown:
        yield f"{what} has {', '.join(map(repr, unknown))}, which nothing reads: use {', '.join(DEFAULTS)}"
    if not isinstance(prompt.get("prompt"), str) or not prompt["prompt"]:
        yield f"{what} has no prompt: give the text that is sent"
    if prompt.get("expect") and prompt.get("pattern"):
        yield f"{what} has both expect and pattern: keep the exact text, or the regular expression"
    for name in ("expect", "pattern"):
        value = prompt.get(name)
        if isinstance(value, (bool, Mapping, list)):
            yield f"{what} has {name} {value!r}, which is not a string: quote it"
    try:
        re.compile(str(prompt.get("pattern") or ""))
    except re.error as exc:
        yield f"{what} has pattern {prompt['pattern']!r}, which is no regular expression ({exc}): correct it"
    tokens = _number(prompt["max_tokens"])
    if tokens is None or tokens < 1 or tokens != int(tokens):
        yield f"{what} has max_tokens {prompt['max_tokens']!r}: give a whole number from 1"
    for name, least in (("max_latency_s", 0.0), ("timeout", 0.001)):
        seconds = _number(prompt[name])
        if seconds is None or seconds < least:
            yield f"{what} has {name} {prompt[name]!r}: give seconds{', 0 for no limit' if not least else ' above 0'}"
    for name in ("stream", "allow_empty"):
        if _truth(prompt[name]) is None:
            yield f"{what} has {name} {prompt[name]!r}: give true or false"
    if not isinstance(prompt["parameters"], Mapping):
        yield f"{what} has parameters {prompt['parameters']!r}: write a dictionary of further fields of the request"


def prompt_problems(prompts: Any, variable: str = "prompts") -> list[str]:
    """One line for each prompt that cannot be asked."""
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Iterable):
        return [f"{variable} {prompts!r} is not a list of prompts: write [{{prompt: text}}]"]
    problems: list[str] = []
    names: set[str] = set()
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, Mapping):
            problems.append(f"{variable} has {prompt!r}, which is no prompt: write {{prompt: text}}")
            continue
        name = label(prompt, number)
        problems += _prompt_problems(prompt, f"{variable}, {name!r}")
        if name in names:
            problems.append(f"{variable} has two prompts named {name!r}: give each its own name")
        names.add(name)
    return problems


def gate_problems(
    prompts: Any,
    bake: Any = 0,
    max_error_ratio: Any = 0.01,
    min_requests: Any = 0,
    decoupled: Mapping[str, Any] | None = None,
) -> list[str]:
    """One line for each setting of the gate that cannot be; decoupled holds the role's variables of that kind."""
    problems = prompt_problems(prompts, "triton_serve_smoke_prompts")
    seconds, ratio, least = _number(bake), _number(max_error_ratio), _number(min_requests)
    if seconds is None or seconds < 0:
        problems.append(f"triton_serve_bake {bake!r} is no time: give seconds, 0 for no bake")
    if ratio is None or not 0 <= ratio <= 1:
        problems.append(f"triton_serve_bake_max_error_ratio {max_error_ratio!r} is no share: give a number from 0 to 1")
    if least is None or least < 0 or least != int(least):
        problems.append(f"triton_serve_bake_min_requests {min_requests!r}: give a whole number, 0 for any")
    elif least and seconds == 0:
        problems.append(
            f"triton_serve_bake_min_requests is {min_requests}, and triton_serve_bake is 0, so that no request would"
            " be seen: give the bake a time, or drop the number"
        )
    if problems:
        return problems
    for number, prompt in enumerate(prompts, 1):
        variable = _DECOUPLED.get(str(prompt.get("model", "ensemble")))
        if _truth(prompt.get("stream", False)) and variable and _truth((decoupled or {}).get(variable, True)) is False:
            problems.append(
                f"triton_serve_smoke_prompts, {label(prompt, number)!r}: model {prompt.get('model', 'ensemble')} sends"
                f" no stream while {variable} is false: set that to true, or drop stream"
            )
    return problems
