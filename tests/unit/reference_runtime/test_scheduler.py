# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In-flight batching: order, limits, ends, cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensorrtllm_reference.errors import RequestError
from tensorrtllm_reference.sampling import SamplingParams
from tensorrtllm_reference.scheduler import Request

Make = Callable[..., Any]


class Gate:
    """A model whose steps wait for permission, and that records what each step packed."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config, self.cache_layout = model.config, model.cache_layout
        self.steps: list[list[int]] = []
        self._permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def new_cache(self, capacity: int) -> Any:
        return self._model.new_cache(capacity)

    def forward(self, chunks: Any, all_logits: Any = ()) -> Any:
        self.steps.append([len(chunk.tokens) for chunk in chunks])
        self.entered.release()
        assert self._permits.acquire(timeout=20)
        return self._model.forward(chunks, all_logits)

    def allow(self, steps: int = 10_000) -> None:
        self._permits.release(steps)


@pytest.fixture
def gate(model: Any) -> Any:
    return Gate(model)


def test_batched_is_single(scheduler: Make, inbox: Any, prompts: Any, greedy: Any, gate: Any) -> None:
    running = scheduler(model=gate)
    boxes = [inbox() for _ in prompts]
    for prompt, box in zip(prompts, boxes):
        running.submit(Request(prompt, 12, box.put))
    gate.allow()
    for prompt, box in zip(prompts, boxes):
        assert box.wait().reason == "length"
        assert box.tokens == greedy(prompt, 12)
    assert max(len(step) for step in gate.steps) == 4, "sequences were not batched"
    assert running.pool.used_blocks == 0


def test_streaming_sends_each_token(scheduler: Make, inbox: Any, prompts: Any, greedy: Any) -> None:
    box = inbox()
    scheduler().submit(Request(prompts[1], 6, box.put, streaming=True))
    box.wait()
    assert [len(update.tokens) for update in box.updates] == [1] * 6
    assert box.tokens == greedy(prompts[1], 6)


def test_more_than_the_batch_waits(scheduler: Make, inbox: Any, prompts: Any, gate: Any) -> None:
    running = scheduler(model=gate, max_batch_size=2)
    boxes = [inbox() for _ in range(3)]
    for box, count in zip(boxes, (2, 30, 2)):
        running.submit(Request(prompts[1], count, box.put))
    assert gate.entered.acquire(timeout=20)
    while running.stats().active + running.stats().waiting < 3:
        pass
    gate.allow()
    boxes[0].wait()
    boxes[2].wait()
    assert not boxes[1].updates, "the third sequence did not join while the second was still being decoded"
    boxes[1].wait()
    assert max(len(step) for step in gate.steps) == 2


def test_blocks_bound_the_batch(scheduler: Make, inbox: Any, prompts: Any, gate: Any) -> None:
    """Two sequences of 2 blocks do not fit into 3: the second waits for the first."""
    running = scheduler(3, model=gate)
    boxes = [inbox(), inbox()]
    for box in boxes:
        running.submit(Request(prompts[2], 10, box.put))
    gate.allow()
    for box in boxes:
        box.wait()
    assert max(len(step) for step in gate.steps) == 1
    with pytest.raises(RequestError, match="needs 4 KV cache blocks for 12 input tokens and 40 output tokens, and the "
                                           "whole cache has 3 of 16 tokens"):
        running.submit(Request(prompts[2], 40, boxes[0].put))


def test_max_utilization_pauses_and_resumes(scheduler: Make, inbox: Any, prompts: Any, greedy: Any, gate: Any) -> None:
    """Both are admitted although not both can end; the younger is paused, and still gives the same tokens."""
    running = scheduler(4, model=gate, reserve_all=False)
    boxes = [inbox(), inbox()]
    for box in boxes:
        running.submit(Request(prompts[2], 40, box.put))
    gate.allow()
    for box in boxes:
        assert box.wait().reason == "length"
        assert box.tokens == greedy(prompts[2], 40)
    assert running.stats().paused > 0
    assert max(len(step) for step in gate.steps) == 2
    assert running.pool.used_blocks == 0


def test_long_prompts_are_fed_in_pieces(
    scheduler: Make, inbox: Any, prompts: Any, greedy: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorrtllm_reference.scheduler.PREFILL_TOKENS", 8)
    running = scheduler(model=gate)
    first, second = inbox(), inbox()
    running.submit(Request(prompts[1], 20, first.put))
    running.submit(Request(prompts[5], 4, second.put))
    gate.allow()
    first.wait()
    second.wait()
    assert second.tokens == greedy(prompts[5], 4)
    assert max(sum(step) for step in gate.steps) <= 9
    assert any(1 in step and max(step) > 1 for step in gate.steps), "decoding stood still during the prefill"


def test_end_id_is_not_part_of_the_output(scheduler: Make, inbox: Any, prompts: Any, greedy: Any) -> None:
    expected = greedy(prompts[1], 8)
    end = next(token for token in expected if expected.index(token) >= 2)
    box = inbox()
    scheduler().submit(Request(prompts[1], 8, box.put, end_id=end))
    assert box.wait().reason == "end_id"
    assert box.tokens == expected[: expected.index(end)]


def test_stop_words_end_with_the_word(scheduler: Make, inbox: Any, prompts: Any, greedy: Any) -> None:
    expected = greedy(prompts[1], 8)
    box = inbox()
    scheduler().submit(Request(prompts[1], 8, box.put, stop_words=[[9999], expected[2:4]]))
    assert box.wait().reason == "stop_words"
    assert box.tokens == expected[:4]


def test_stop_words_in_the_prompt_do_not_count(scheduler: Make, inbox: Any, prompts: Any, greedy: Any) -> None:
    expected = greedy(prompts[1], 3)
    box = inbox()
    scheduler().submit(Request(prompts[1], 3, box.put, stop_words=[[prompts[1][-1], expected[0]]]))
    assert box.wait().reason == "length"


def test_bad_words_and_min_tokens_reach_the_sampler(scheduler: Make, inbox: Any, prompts: Any, greedy: Any) -> None:
    expected = greedy(prompts[1], 2)
    box, held = inbox(), inbox()
    running = scheduler()
    running.submit(Request(prompts[1], 2, box.put, bad_words=[[expected[0]]]))
    running.submit(Request(prompts[1], 4, held.put, SamplingParams(min_tokens=4), end_id=expected[0]))
    box.wait()
    assert box.tokens[0] != expected[0]
    assert held.wait().reason == "length"


def test_log_probs_and_logits(scheduler: Make, inbox: Any, model: Any, prompts: Any) -> None:
    box = inbox()
    scheduler().submit(Request(prompts[2], 5, box.put, return_log_probs=True, return_context_logits=True,
                               return_generation_logits=True))
    last = box.wait()
    from tensorrtllm_reference.model import Chunk

    sequence = prompts[2] + box.tokens
    whole = model.forward([Chunk(model.new_cache(len(sequence)), np.array(sequence))], [True])[0]
    length = len(prompts[2])
    assert np.allclose(last.context_logits, whole[:length], atol=1e-3)
    assert np.allclose(np.stack(last.generation_logits), whole[length - 1 : -1], atol=1e-3)
    wide = whole[length - 1 : -1].astype(np.float64)
    expected = wide[range(5), box.tokens] - np.log(np.exp(wide).sum(axis=1))
    assert box.log_probs == pytest.approx(expected, abs=1e-3)
    assert last.cumulative_log_prob == pytest.approx(expected.sum(), abs=1e-3)


def test_cancelled_while_running_frees_the_slot(scheduler: Make, inbox: Any, prompts: Any, gate: Any) -> None:
    running = scheduler(model=gate, max_batch_size=1)
    cancelled = threading.Event()
    box, following = inbox(), inbox()
    running.submit(Request(prompts[1], 50, box.put, streaming=True, is_cancelled=cancelled.is_set))
    running.submit(Request(prompts[1], 2, following.put))
    gate.allow(2)
    box.next()
    box.next()
    assert gate.entered.acquire(timeout=20)
    cancelled.set()
    gate.allow()
    assert box.wait().reason == "cancelled"
    assert following.wait().reason == "length"
    assert len(box.tokens) <= 4
    assert running.pool.used_blocks == 0


def test_cancelled_while_waiting(scheduler: Make, inbox: Any, prompts: Any, gate: Any) -> None:
    running = scheduler(model=gate, max_batch_size=1)
    box, waiting = inbox(), inbox()
    running.submit(Request(prompts[1], 4, box.put))
    running.submit(Request(prompts[1], 4, waiting.put, request_id="second"))
    assert gate.entered.acquire(timeout=20)
    assert running.cancel("second")
    assert not running.cancel("third")
    gate.allow()
    assert waiting.wait().reason == "cancelled"
    assert waiting.tokens == []
    assert box.wait().reason == "length"


def test_a_receiver_that_fails_frees_its_slot(scheduler: Make, inbox: Any, prompts: Any) -> None:
    logged: list[str] = []
    running = scheduler(max_batch_size=1, log=logged.append)

    def broken(update: Any) -> None:
        raise RuntimeError("gone")

    box = inbox()
    running.submit(Request(prompts[1], 50, broken, streaming=True))
    running.submit(Request(prompts[1], 2, box.put))
    assert box.wait().reason == "length"
    assert logged[0] == "a response could not be sent: RuntimeError: gone"
    assert len(logged) == 2, "it went on after the first failure"


def test_a_failing_step_fails_its_requests_only(
    scheduler: Make, inbox: Any, prompts: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = scheduler()
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda *_: 1 / 0)
        box = inbox()
        running.submit(Request(prompts[1], 2, box.put))
        assert box.wait().error == "the forward pass failed: ZeroDivisionError: division by zero"
    after = inbox()
    running.submit(Request(prompts[1], 2, after.put))
    assert after.wait().reason == "length"


def test_stop_ends_everything(scheduler: Make, inbox: Any, prompts: Any, gate: Any) -> None:
    running = scheduler(model=gate, max_batch_size=1)
    boxes = [inbox(), inbox()]
    for box in boxes:
        running.submit(Request(prompts[1], 40, box.put))
    assert gate.entered.acquire(timeout=20)
    stopper = threading.Thread(target=running.stop)
    stopper.start()
    gate.allow()
    for box in boxes:
        assert box.wait().error == "the model is being unloaded"
    stopper.join()
    with pytest.raises(RequestError, match="unloaded"):
        running.submit(Request(prompts[1], 1, boxes[0].put))


def test_stats_and_failing_metrics(scheduler: Make, inbox: Any, prompts: Any) -> None:
    seen: list[Any] = []
    logged: list[str] = []
    running = scheduler(on_stats=seen.append, stats_period=0.0)
    box = inbox()
    running.submit(Request(prompts[1], 3, box.put))
    box.wait()
    running.stop()
    assert any(stats.active == 1 and stats.used_blocks == 1 for stats in seen)
    assert seen[-1].active == 0 and seen[-1].used_blocks == 0

    def broken(stats: Any) -> None:
        raise ValueError("no metrics")

    faulty = scheduler(on_stats=broken, stats_period=0.0, log=logged.append)
    again = inbox()
    faulty.submit(Request(prompts[1], 3, again.put))
    assert again.wait().reason == "length"
    assert logged == ["metrics could not be updated: ValueError: no metrics"]
