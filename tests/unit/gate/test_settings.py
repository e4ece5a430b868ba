# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the gate's settings is refused on the controller."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.filter.release import serve_problems
from ansible_collections.trtllm.serving.plugins.module_utils._gate_settings import DEFAULTS, gate_problems
from ansible_collections.trtllm.serving.plugins.modules.triton_gate import SPEC

GOOD = {"prompt": "What?"}


def test_module_and_controller_know_the_same_keys_and_defaults() -> None:
    options = SPEC["prompts"]["options"]
    assert list(options) == list(DEFAULTS)
    for name, option in options.items():
        assert (option.get("default") or None) == (DEFAULTS[name] or None), name


@pytest.mark.parametrize(
    "prompt",
    [
        GOOD,
        {**GOOD, "name": "capital", "pattern": "(?i)paris", "max_latency_s": 2.5, "model": "tensorrt_llm_bls"},
        # As ansible-core before 2.19 makes of a template: numbers as text, nothing as an empty string.
        {**GOOD, "max_tokens": "16", "pattern": "", "expect": "", "max_latency_s": "0", "stream": "false"},
        # Nulls, as in YAML: the defaults.
        dict.fromkeys(DEFAULTS) | GOOD,
        {**GOOD, "max_tokens": 1, "allow_empty": True, "parameters": {"top_k": 1}, "timeout": 3},
    ],
)
def test_good(prompt: dict[str, Any]) -> None:
    assert gate_problems([prompt]) == []


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({}, "'number 1' has no prompt"),
        ({"prompt": ""}, "has no prompt"),
        ({**GOOD, "name": "a", "expected": "x"}, "'a' has 'expected', which nothing reads: use name, prompt,"),
        ({**GOOD, "expect": "a", "pattern": "b"}, "has both expect and pattern"),
        ({**GOOD, "expect": True}, "has expect True, which is not a string"),
        ({**GOOD, "pattern": "(a"}, "pattern '(a', which is no regular expression"),
        ({**GOOD, "max_tokens": 0}, "max_tokens 0: give a whole number from 1"),
        ({**GOOD, "max_tokens": "many"}, "max_tokens 'many'"),
        ({**GOOD, "max_latency_s": -1}, "max_latency_s -1: give seconds, 0 for no limit"),
        ({**GOOD, "timeout": 0}, "timeout 0: give seconds above 0"),
        ({**GOOD, "stream": "maybe"}, "stream 'maybe': give true or false"),
        ({**GOOD, "parameters": [1]}, "parameters [1]: write a dictionary"),
        ("text", "'text', which is no prompt"),
    ],
)
def test_bad_prompt(prompt: Any, said: str) -> None:
    problems = gate_problems([prompt])
    assert len(problems) == 1 and said in problems[0] and "\n" not in problems[0]
    assert problems[0].startswith("triton_serve_smoke_prompts")


def test_prompts_are_a_list_with_one_name_each() -> None:
    assert "is not a list of prompts" in gate_problems("What?")[0]
    assert "is not a list of prompts" in gate_problems(GOOD)[0]
    assert gate_problems([]) == []
    assert "two prompts named 'a'" in gate_problems([{**GOOD, "name": "a"}, {**GOOD, "name": "a"}])[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"bake": -1}, "triton_serve_bake -1 is no time"),
        ({"bake": "soon"}, "triton_serve_bake 'soon'"),
        ({"max_error_ratio": 1.5}, "triton_serve_bake_max_error_ratio 1.5 is no share"),
        ({"max_error_ratio": "1%"}, "triton_serve_bake_max_error_ratio '1%'"),
        ({"min_requests": -1, "bake": 5}, "triton_serve_bake_min_requests -1"),
        ({"min_requests": 10}, "triton_serve_bake_min_requests is 10, and triton_serve_bake is 0"),
    ],
)
def test_bad_bake(more: dict[str, Any], said: str) -> None:
    problems = gate_problems([GOOD], **more)
    assert len(problems) == 1 and said in problems[0]


@pytest.mark.parametrize(
    ("model", "variable"), [("ensemble", "triton_serve_decoupled"), ("tensorrt_llm_bls", "triton_serve_bls_decoupled")]
)
def test_stream_of_a_model_that_sends_none(model: str, variable: str) -> None:
    prompt = {**GOOD, "model": model, "stream": True}
    assert gate_problems([prompt], decoupled={variable: True}) == []
    problems = gate_problems([prompt], decoupled={variable: False})
    assert len(problems) == 1 and f"no stream while {variable} is false" in problems[0]
    assert gate_problems([{**prompt, "stream": False}], decoupled={variable: False}) == []


def test_role_is_told() -> None:
    problems = serve_problems("1.1.0", {"http_port": 8000}, 30, 60, gate={"prompts": [{}], "bake": 0})
    assert len(problems) == 1 and "has no prompt" in problems[0]
