# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In-flight batching: one thread that packs all active sequences into each step of the model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import numpy as np

from .errors import RequestError
from .kv_cache import BlockPool, SequenceCache
from .model import Chunk, MixtralModel
from .sampling import Sampler, SamplingParams
from .tensors import Array

# Prompt tokens in one step: longer prompts are fed in pieces, so that sequences being decoded are not held up long.
PREFILL_TOKENS = 256


class Timing(NamedTuple):
    """Nanoseconds of the monotonic clock; 0 until it happened."""

    arrival: int = 0
    first_scheduled: int = 0
    first_token: int = 0
    last_token: int = 0


class Update(NamedTuple):
    """News of one request: the tokens since the last update, and at the end how it ended."""

    tokens: list[int]
    log_probs: list[float]
    cumulative_log_prob: float
    final: bool
    reason: Optional[str] = None
    error: Optional[str] = None
    context_logits: Optional[Array] = None
    generation_logits: Optional[list[Array]] = None
    timing: Timing = Timing()
    blocks: int = 0


@dataclass
class Request:
    """One sequence to generate. on_update is called from the scheduler's thread, at each token when streaming."""

    prompt: list[int]
    max_new_tokens: int
    on_update: Callable[[Update], None]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    end_id: Optional[int] = None
    stop_words: Sequence[Sequence[int]] = ()
    bad_words: Sequence[Sequence[int]] = ()
    streaming: bool = False
    return_log_probs: bool = False
    return_context_logits: bool = False
    return_generation_logits: bool = False
    is_cancelled: Optional[Callable[[], bool]] = None
    request_id: str = ""
    cancelled: bool = False

    def cancel(self) -> None:
        """Ask for the end of this request; its slot is free at the next step."""
        self.cancelled = True


class _Sequence:
    def __init__(self, request: Request, sampler: Sampler) -> None:
        self.request = request
        self.sampler = sampler
        self.tokens = list(request.prompt)
        self.cache: Optional[SequenceCache] = None
        self.blocks = 0
        self.arrival = time.monotonic_ns()
        self.first_scheduled = self.first_token = self.last_token = 0
        self.cumulative = 0.0
        self.unsent: list[int] = []
        self.unsent_log_probs: list[float] = []
        self.context: list[Array] = []
        self.logits: list[Array] = []

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def fed(self) -> int:
        return self.cache.length if self.cache is not None else 0

    @property
    def capacity(self) -> int:
        return len(self.request.prompt) + self.request.max_new_tokens


class Stats(NamedTuple):
    """A snapshot for the metrics."""

    active: int
    waiting: int
    scheduled: int
    context: int
    context_tokens: int
    generation: int
    paused: int
    used_blocks: int
    iterations: int


class Scheduler:
    """Runs a model for many requests at once.

    At most max_batch_size sequences are active, and none without KV blocks; the others wait in order of arrival.
    reserve_all takes a sequence's blocks for its whole length when it is admitted (guaranteed_no_evict). Otherwise
    blocks are taken as it grows, and when none is left the youngest sequence is paused and its tokens are computed
    again later (max_utilization).
    """

    def __init__(
        self, model: MixtralModel, pool: BlockPool, *, max_batch_size: int, step_tokens: Optional[int] = None,
        reserve_all: bool = True, normalize_log_probs: bool = False, cancellation_period: float = 0.1,
        stats_period: float = 0.1, on_stats: Optional[Callable[[Stats], None]] = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self._model = model
        self.pool = pool
        self.max_batch_size = max_batch_size
        self._step_tokens = step_tokens
        self._reserve_all = reserve_all
        self._normalize = normalize_log_probs
        self._cancellation_period = cancellation_period
        self._stats_period = stats_period
        self._on_stats = on_stats
        self._log = log
        self._waiting: deque[_Sequence] = deque()
        self._active: list[_Sequence] = []
        self._condition = threading.Condition()
        self._stopping = False
        self._iterations = 0
        self._last_step = (0, 0, 0, 0)
        self._paused = 0
        self._next_cancellation = self._next_stats = 0.0
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; RequestError when it can never be run."""
        total = len(request.prompt) + request.max_new_tokens
        need = self.pool.blocks_for(total)
        if need > self.pool.total_blocks:
            raise RequestError(
                f"the request needs {need} KV cache blocks for {len(request.prompt)} input tokens and "
                f"{request.max_new_tokens} output tokens, and the whole cache has {self.pool.total_blocks} of "
                f"{self.pool.tokens_per_block} tokens: ask for fewer tokens, or give the KV cache more memory"
            )
        sampler = Sampler(
            request.sampling, request.prompt, self._model.config.vocab_size, end_id=request.end_id,
            bad_words=request.bad_words, log_probs=request.return_log_probs, normalize_log_probs=self._normalize,
        )
        with self._condition:
            if self._stopping:
                raise RequestError("the model is being unloaded")
            self._waiting.append(_Sequence(request, sampler))
            self._condition.notify()

    def cancel(self, request_id: str) -> bool:
        """Cancel the requests with this id; False when there is none."""
        with self._condition:
            found = [s for s in (*self._active, *self._waiting) if s.request.request_id == request_id]
            for sequence in found:
                sequence.request.cancel()
            return bool(found)

    def stats(self) -> Stats:
        with self._condition:
            scheduled, context, context_tokens, generation = self._last_step if self._active else (0, 0, 0, 0)
            return Stats(
                len(self._active), len(self._waiting), scheduled, context, context_tokens, generation, self._paused,
                self.pool.used_blocks, self._iterations,
            )

    def stop(self) -> None:
        """End every request with an error, and the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                idle = not self._waiting and not self._active
            if idle:
                self._report(force=True)
            with self._condition:
                while not self._waiting and not self._active and not self._stopping:
                    self._condition.wait()
                if self._stopping:
                    break
            self._drop_cancelled()
            self._admit()
            if self._active:
                self._step()
            self._report()
        for sequence in [*self._active, *self._waiting]:
            self._finish(sequence, "error", "the model is being unloaded")

    def _report(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._on_stats is not None and (force or now >= self._next_stats):
            self._next_stats = now + self._stats_period
            try:
                self._on_stats(self.stats())
            except Exception as exc:  # Metrics must never stop the serving.
                self._log(f"metrics could not be updated: {type(exc).__name__}: {exc}")
                self._on_stats = None

    def _drop_cancelled(self) -> None:
        now = time.monotonic()
        ask = now >= self._next_cancellation
        if ask:
            self._next_cancellation = now + self._cancellation_period
        with self._condition:
            everyone = [*self._active, *self._waiting]
        for sequence in everyone:
            request = sequence.request
            if not request.cancelled and ask and request.is_cancelled is not None:
                request.cancelled = request.is_cancelled()
            if request.cancelled:
                self._finish(sequence, "cancelled")

    def _admit(self) -> None:
        with self._condition:
            while self._waiting and len(self._active) < self.max_batch_size:
                sequence = self._waiting[0]
                tokens = sequence.capacity if self._reserve_all else len(sequence.tokens) + 1
                blocks = self.pool.blocks_for(tokens)
                if not self.pool.take(blocks):
                    break
                self._waiting.popleft()
                sequence.blocks = blocks
                sequence.cache = self._model.new_cache(sequence.capacity)
                sequence.first_scheduled = sequence.first_scheduled or time.monotonic_ns()
                self._active.append(sequence)

    def _grow(self, sequence: _Sequence) -> bool:
        """Blocks for the sequence's tokens, pausing younger sequences when there are none; False: it was paused."""
        need = self.pool.blocks_for(len(sequence.tokens)) - sequence.blocks
        while need > 0 and not self.pool.take(need):
            youngest = max(self._active, key=lambda s: s.arrival)
            self._release(youngest)
            with self._condition:
                self._active.remove(youngest)
                self._waiting.appendleft(youngest)
            self._paused += 1
            if youngest is sequence:
                return False
        sequence.blocks += max(0, need)
        return True

    def _plan(self) -> list[tuple[_Sequence, int]]:
        """The sequences of the next step, and how many tokens of each."""
        for sequence in list(self._active):
            if sequence in self._active:
                self._grow(sequence)
        decoding = [(s, 1) for s in self._active if len(s.tokens) - s.fed == 1]
        budget = PREFILL_TOKENS
        if self._step_tokens is not None:
            budget = max(1, min(budget, self._step_tokens - len(decoding)))
        plan = list(decoding)
        for sequence in self._active:
            missing = len(sequence.tokens) - sequence.fed
            if missing > 1 and budget > 0:
                plan.append((sequence, min(missing, budget)))
                budget -= plan[-1][1]
        return plan

    def _step(self) -> None:
        plan = self._plan()
        chunks, all_logits = [], []
        for sequence, count in plan:
            assert sequence.cache is not None
            begin = sequence.fed
            chunks.append(Chunk(sequence.cache, np.array(sequence.tokens[begin : begin + count], np.int64)))
            all_logits.append(sequence.request.return_context_logits and begin < len(sequence.request.prompt)
                              and sequence.generated == 0)
        try:
            results = self._model.forward(chunks, all_logits)
        except Exception as exc:  # One step's failure must not end the thread, and with it all later requests.
            for sequence, _count in plan:
                self._finish(sequence, "error", f"the forward pass failed: {type(exc).__name__}: {exc}")
            return
        self._iterations += 1
        prompts = [count for sequence, count in plan if count > 1 or sequence.generated == 0]
        self._last_step = (len(plan), len(prompts), sum(prompts), len(plan) - len(prompts))
        for (sequence, _count), whole, logits in zip(plan, all_logits, results):
            if whole:
                sequence.context.append(logits)
            if sequence.fed == len(sequence.tokens):
                self._advance(sequence, logits[-1])

    def _advance(self, sequence: _Sequence, logits: Array) -> None:
        request = sequence.request
        token, log_prob = sequence.sampler.choose(logits, sequence.tokens, sequence.generated)
        sequence.last_token = time.monotonic_ns()
        sequence.first_token = sequence.first_token or sequence.last_token
        if token == request.end_id:
            # The end id is not part of the output, as upstream.
            self._finish(sequence, "end_id")
            return
        sequence.tokens.append(token)
        sequence.unsent.append(token)
        sequence.cumulative += log_prob
        sequence.unsent_log_probs.append(log_prob)
        if request.return_generation_logits:
            sequence.logits.append(logits.copy())
        if self._stopped(sequence):
            self._finish(sequence, "stop_words")
        elif sequence.generated >= request.max_new_tokens:
            self._finish(sequence, "length")
        elif request.streaming:
            self._send(sequence, final=False)

    @staticmethod
    def _stopped(sequence: _Sequence) -> bool:
        """Whether the output ends with a stop word; words that begin in the prompt do not count."""
        for word in sequence.request.stop_words:
            if len(word) <= sequence.generated and sequence.tokens[-len(word) :] == list(word):
                return True
        return False

    def _send(
        self, sequence: _Sequence, *, final: bool, reason: Optional[str] = None, error: Optional[str] = None
    ) -> None:
        timing = Timing(sequence.arrival, sequence.first_scheduled, sequence.first_token, sequence.last_token)
        context = np.concatenate(sequence.context) if sequence.context else None
        update = Update(
            sequence.unsent, sequence.unsent_log_probs, sequence.cumulative, final, reason, error, context,
            sequence.logits if sequence.request.return_generation_logits else None, timing, sequence.blocks,
        )
        sequence.unsent, sequence.unsent_log_probs, sequence.logits, sequence.context = [], [], [], []
        try:
            sequence.request.on_update(update)
        except Exception as exc:  # The receiver cannot be told, but the slot must be freed.
            self._log(f"a response could not be sent: {type(exc).__name__}: {exc}")
            sequence.request.cancel()

    def _release(self, sequence: _Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = 0
        sequence.cache = None

    def _finish(self, sequence: _Sequence, reason: str, error: Optional[str] = None) -> None:
        blocks = sequence.blocks
        with self._condition:
            if sequence in self._active:
                self._active.remove(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)
        self._release(sequence)
        sequence.blocks = blocks
        self._send(sequence, final=True, reason=reason, error=error)
        sequence.blocks = 0
