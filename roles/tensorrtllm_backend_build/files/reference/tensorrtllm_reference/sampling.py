# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choosing the next token: penalties, temperature, top_k, top_p and bad words, in upstream's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from .errors import RequestError
from .tensors import Array

# Upstream's kernels look at this many candidates at most.
MAX_TOP_K = 1024


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks for. None or the default means "not given".

    As upstream: neither top_k nor top_p gives greedy decoding; top_p alone samples from the whole nucleus.
    The same seed gives the same tokens here; they are not the tokens that a GPU draws for that seed.
    """

    top_k: Optional[int] = None
    top_p: Optional[float] = None
    temperature: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        def check(good: bool, name: str, value: object, rule: str) -> None:
            if not good:
                raise RequestError(f"{name} is {value}; it must be {rule}")

        check(self.top_k is None or self.top_k >= 0, "top_k", self.top_k, "0 (no limit) or more")
        check(self.top_p is None or 0.0 <= self.top_p <= 1.0, "top_p", self.top_p, "between 0 and 1")
        check(0.0 <= self.temperature < float("inf"), "temperature", self.temperature, "0 or more")
        check(0.0 < self.repetition_penalty < float("inf"), "repetition_penalty", self.repetition_penalty,
              "greater than 0")
        check(np.isfinite(self.presence_penalty), "presence_penalty", self.presence_penalty, "a finite number")
        check(np.isfinite(self.frequency_penalty), "frequency_penalty", self.frequency_penalty, "a finite number")
        check(self.min_tokens >= 0, "min_tokens", self.min_tokens, "0 or more")

    @property
    def candidates(self) -> int:
        """How many of the likeliest tokens take part; 0 is all of them."""
        top_k, top_p = self.top_k or 0, self.top_p or 0.0
        if self.temperature == 0.0 or (top_k == 0 and top_p == 0.0):
            return 1
        return min(top_k, MAX_TOP_K)

    @property
    def nucleus(self) -> float:
        return self.top_p or 1.0

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Sampler:
    """The sampling state of one request."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], vocab_size: int, *, end_id: Optional[int] = None,
        bad_words: Sequence[Sequence[int]] = (), log_probs: bool = False, normalize_log_probs: bool = False,
    ) -> None:
        self.params = params
        self._end_id = end_id if end_id is not None and 0 <= end_id < vocab_size else None
        self._bad_words = [list(word) for word in bad_words]
        self._log_probs = log_probs
        self._normalize = normalize_log_probs
        self._random = None if params.candidates == 1 else np.random.default_rng(params.seed)
        # Penalties count the prompt's tokens too, as upstream's do.
        self._counts = np.bincount(prompt, minlength=vocab_size) if params.penalises else None

    def choose(self, logits: Array, tokens: Sequence[int], generated: int) -> tuple[int, float]:
        """The next token and its log probability (0.0 unless log_probs).

        tokens is the sequence so far, prompt included, of which `generated` tokens were made here. The log
        probability is that of the whole vocabulary after penalties and temperature; with normalize_log_probs that
        among the candidates of top_k and top_p.
        """
        adjusted = self._adjust(logits, tokens, generated)
        candidates = self.params.candidates
        if candidates == 1:
            token = int(adjusted.argmax())
            picked, total = 1.0, 1.0
        else:
            token, picked, total = self._draw(adjusted, candidates)
        if self._counts is not None:
            self._counts[token] += 1
        if not self._log_probs:
            return token, 0.0
        if self._normalize:
            return token, float(np.log(picked / total))
        shifted = adjusted - adjusted.max()
        return token, float(shifted[token] - np.log(np.exp(shifted, dtype=np.float64).sum()))

    def _adjust(self, logits: Array, tokens: Sequence[int], generated: int) -> Array:
        params = self.params
        result = logits
        if params.temperature not in (0.0, 1.0):
            result = result / np.float32(params.temperature)
        if self._counts is not None:
            result = result.copy() if result is logits else result
            seen = np.flatnonzero(self._counts)
            values = result[seen]
            penalty = np.float32(params.repetition_penalty)
            values = np.where(values < 0, values * penalty, values / penalty)
            values -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * self._counts[seen]
            result[seen] = values
        banned = self._banned(tokens, generated)
        if banned:
            result = result.copy() if result is logits else result
            result[banned] = -np.inf
        return result

    def _banned(self, tokens: Sequence[int], generated: int) -> list[int]:
        banned = [self._end_id] if self._end_id is not None and generated < self.params.min_tokens else []
        for word in self._bad_words:
            head = len(word) - 1
            if head == 0 or list(tokens[-head:]) == word[:head]:
                banned.append(word[-1])
        return banned

    def _draw(self, logits: Array, candidates: int) -> tuple[int, float, float]:
        assert self._random is not None
        if 0 < candidates < len(logits):
            kept = np.argpartition(-logits, candidates - 1)[:candidates]
        else:
            kept = np.arange(len(logits))
        order = kept[np.lexsort((kept, -logits[kept]))]
        weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64))
        running = np.cumsum(weights)
        size = int(np.searchsorted(running, self.params.nucleus * running[-1])) + 1
        size = min(size, len(order))
        drawn = int(np.searchsorted(running[:size], self._random.random() * running[size - 1], side="right"))
        drawn = min(drawn, size - 1)
        return int(order[drawn]), float(weights[drawn]), float(running[size - 1])
