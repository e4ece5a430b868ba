# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choosing tokens, and the tensor format of stop and bad words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tensorrtllm_reference.errors import RequestError
from tensorrtllm_reference.sampling import Sampler, SamplingParams
from tensorrtllm_reference.words import from_tensor, to_tensor

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))


def draws(count: int = 400, logits: Any = LOGITS, prompt: tuple[int, ...] = (), **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(**params), list(prompt), len(logits))
    return [sampler.choose(logits, list(prompt), number)[0] for number in range(count)]


def test_greedy_is_the_default() -> None:
    assert set(draws()) == {0}
    assert set(draws(temperature=5.0)) == {0}
    assert set(draws(top_k=1, top_p=0.9)) == {0}
    assert set(draws(top_k=3, temperature=0.0)) == {0}


def test_top_k_keeps_k_tokens() -> None:
    assert set(draws(top_k=2)) == {0, 1}
    assert set(draws(top_k=3)) == {0, 1, 2}


def test_top_p_keeps_the_nucleus() -> None:
    assert set(draws(top_p=0.4)) == {0}
    assert set(draws(top_p=0.7)) == {0, 1}
    assert set(draws(top_p=1.0)) == {0, 1, 2, 3, 4}
    # Of the two tokens of top_k, with 2/3 and 1/3 of their sum, the first is a nucleus of 0.6.
    assert set(draws(top_k=2, top_p=0.6)) == {0}


def test_draws_follow_the_probabilities() -> None:
    found = np.bincount(draws(4000, top_p=1.0), minlength=5) / 4000
    assert np.abs(found - np.exp(LOGITS)).max() < 0.03
    hot = np.bincount(draws(4000, top_p=1.0, temperature=2.0), minlength=5) / 4000
    expected = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    assert np.abs(hot - expected).max() < 0.03


def test_seed() -> None:
    assert draws(50, top_p=1.0, seed=5) == draws(50, top_p=1.0, seed=5)
    assert draws(50, top_p=1.0, seed=5) != draws(50, top_p=1.0, seed=6)
    assert draws(50, top_p=1.0) == draws(50, top_p=1.0, seed=0)


def test_repetition_penalty_counts_the_prompt() -> None:
    logits = np.array([2.0, 1.5, -1.0], np.float32)
    assert draws(1, logits, (0,), repetition_penalty=2.0) == [1]
    # Negative logits are multiplied: a penalty never makes a token likelier.
    assert draws(1, np.array([-1.0, -1.5], np.float32), (0,), repetition_penalty=2.0) == [1]
    assert draws(3, logits, (), repetition_penalty=2.0) == [0, 1, 0]


def test_presence_and_frequency_penalty() -> None:
    logits = np.array([2.0, 1.5, 1.2], np.float32)
    assert draws(1, logits, (0,), presence_penalty=0.6) == [1]
    assert draws(1, logits, (0, 0, 1), presence_penalty=0.4) == [0]
    assert draws(1, logits, (0, 0, 1), frequency_penalty=0.45) == [2]


def test_min_tokens_holds_the_end_id_back() -> None:
    sampler = Sampler(SamplingParams(min_tokens=2), [], 5, end_id=0)
    assert [sampler.choose(LOGITS, [], number)[0] for number in range(3)] == [1, 1, 0]


def test_bad_words() -> None:
    sampler = Sampler(SamplingParams(), [], 5, bad_words=[[0], [4, 1]])
    assert sampler.choose(LOGITS, [], 0)[0] == 1
    assert sampler.choose(LOGITS, [3, 4], 2)[0] == 2
    assert sampler.choose(LOGITS, [4, 3], 2)[0] == 1


def test_log_probs() -> None:
    assert Sampler(SamplingParams(), [], 5).choose(LOGITS, [], 0)[1] == 0.0
    sampler = Sampler(SamplingParams(), [], 5, log_probs=True)
    assert sampler.choose(LOGITS, [], 0)[1] == pytest.approx(np.log(0.5), abs=1e-6)
    warm = Sampler(SamplingParams(temperature=2.0, top_p=0.1), [], 5, log_probs=True)
    expected = LOGITS[0] / 2 - np.log(np.exp(LOGITS / 2).sum())
    assert warm.choose(LOGITS, [], 0)[1] == pytest.approx(expected, abs=1e-6)
    among = Sampler(SamplingParams(top_k=2, seed=1), [], 5, log_probs=True, normalize_log_probs=True)
    token, value = among.choose(LOGITS, [], 0)
    assert value == pytest.approx(np.log([2 / 3, 1 / 3][token]), abs=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, r"top_p is 1\.5; it must be between 0 and 1"),
        ({"temperature": -0.5}, r"temperature is -0\.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"min_tokens": -2}, "min_tokens is -2"),
    ],
)
def test_bad_values(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**params)


def test_words_format() -> None:
    tensor = to_tensor([[[5], [7, 8]], []])
    assert tensor.tolist() == [[[5, 7, 8], [1, 3, -1]], [[0, 0, 0], [-1, -1, -1]]]
    assert from_tensor(tensor[0], "w") == [[5], [7, 8]]
    assert from_tensor(tensor[1], "w") == []
    assert to_tensor([[]]).shape == (1, 2, 1)


@pytest.mark.parametrize(("tensor", "message"), [
    ([[1, 2]], r"shape \[1, 2\]"), ([[1, 2], [2, 1]], "word end 1 after 2"), ([[1, 2], [3, -1]], "word end 3 after 0"),
])
def test_bad_words_tensor(tensor: list[list[int]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        from_tensor(np.array(tensor), "stop_words_list")
