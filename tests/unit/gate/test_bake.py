# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that gets requests, judged by its own counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
from ansible_collections.trtllm.serving.plugins.module_utils._gate import Bake, GateFailed
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import MODELS, Watch
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient


class Clock:
    """Time that passes only while the bake sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def bake(triton: Any, clock: Clock | None = None, **more: Any) -> Bake:
    clock = clock or Clock()
    client = TritonClient(triton.url, requests)
    settings: dict[str, Any] = {"seconds": 30.0, **more}
    return Bake(client, client, MODELS, clock=clock, sleep=clock.sleep, **settings)


def each_look(
    success: int = 0, failure: int = 0, model: str = "ensemble", reason: str = "OTHER"
) -> Callable[[Any], None]:
    def add(triton: Any) -> None:
        # The first look is where the bake begins.
        if triton.looks > 1:
            triton.counters.success[model] += success
            triton.counters.failure[model, reason] += failure

    return add


def test_good_bake(triton: Any) -> None:
    triton.at_look = each_look(success=100)
    seen: list[tuple[float, float]] = []
    clock = Clock()
    found = bake(triton, clock, progress=lambda *told: seen.append(told), prompts=[{"prompt": "Well?"}]).run()
    assert clock.now == 30.0 and triton.looks == 7
    assert found["bake"]["requests"] == 600 and found["bake"]["failures"] == 0 and found["bake"]["ratio"] == 0
    assert found["bake"]["seconds"] == 30.0 and set(found["bake"]["models"]) == set(MODELS)
    assert found["stages"][0]["name"] == "bake"
    assert [answer["ok"] for answer in found["answers"]] == [True] and len(triton.asked) == 1
    assert seen[0] == (0.0, 30.0) and seen[-1] == (30.0, 30.0)


def test_what_happened_before_the_bake_does_not_count(triton: Any) -> None:
    triton.counters.failure["ensemble", "BACKEND"] = 1000
    triton.at_look = each_look(success=10)
    assert bake(triton).run()["bake"]["failures"] == 0


def test_a_few_failures_below_the_bound(triton: Any) -> None:
    triton.at_look = each_look(success=199, failure=1)
    found = bake(triton, max_error_ratio=0.01).run()["bake"]
    assert found["failures"] == 6 and found["ratio"] == 0.005 and found["model"] == "ensemble"


def test_too_many_failures(triton: Any) -> None:
    triton.at_look = lambda triton: each_look(success=97, failure=3)(triton) if triton.looks == 7 else None
    with pytest.raises(GateFailed) as caught:
        bake(triton).run()
    said = str(caught.value)
    assert said.startswith("bake: 3 of 100 requests of model ensemble failed (3 %; OTHER 3), above max_error_ratio 1 %")
    assert "\n" not in said and caught.value.details["bake"]["ratio"] == 0.03


def test_inner_model_that_fails_is_not_diluted_by_the_others(triton: Any) -> None:
    def add(triton: Any) -> None:
        each_look(success=10000, model="postprocessing")(triton)
        each_look(success=98, failure=2, model="tensorrt_llm", reason="BACKEND")(triton)

    triton.at_look = add
    with pytest.raises(GateFailed, match="requests of model tensorrt_llm failed .2 %; BACKEND"):
        bake(triton).run()


def test_client_that_gave_up_does_not_count(triton: Any) -> None:
    triton.at_look = each_look(success=10, failure=10, model="postprocessing", reason="CANCELED")
    assert bake(triton).run()["bake"]["failures"] == 0


def test_a_lost_bake_is_ended_early(triton: Any) -> None:
    triton.at_look = each_look(failure=50)
    clock = Clock()
    with pytest.raises(GateFailed, match="ended after 10 of 600 s"):
        bake(triton, clock, seconds=600.0).run()
    assert clock.now == 10.0


def test_a_bake_that_may_still_be_good_is_not(triton: Any) -> None:
    def add(triton: Any) -> None:
        # Six of a hundred in the first moments; then all is well, and in the whole it is 0.1 %.
        each_look(success=94 if triton.looks == 2 else 500, failure=6 if triton.looks == 2 else 0)(triton)

    triton.at_look = add
    assert bake(triton, seconds=60.0, max_error_ratio=0.01).run()["bake"]["failures"] == 6


def test_one_failure_ends_nothing_early(triton: Any) -> None:
    triton.at_look = lambda triton: each_look(failure=1)(triton) if triton.looks == 2 else each_look(200)(triton)
    assert bake(triton).run()["bake"]["failures"] == 1


@pytest.mark.parametrize(("least", "good"), [(0, True), (10, True), (11, False)])
def test_least_number_of_requests(triton: Any, least: int, good: bool) -> None:
    triton.at_look = lambda triton: (
        each_look(success=10, model="tensorrt_llm_bls")(triton) if triton.looks == 2 else None
    )
    if good:
        assert bake(triton, min_requests=least).run()["bake"]["requests"] == 10
    else:
        with pytest.raises(GateFailed, match="10 requests in 30 s, below min_requests 11"):
            bake(triton, min_requests=least).run()


def test_server_that_was_started_again(triton: Any) -> None:
    triton.counters.success["ensemble"] = 50
    triton.at_look = lambda triton: triton.counters.success.update(ensemble=3) if triton.looks == 3 else None
    with pytest.raises(GateFailed, match="during the bake, .*went back from 50 to 3: the server was started again"):
        bake(triton).run()


@pytest.mark.parametrize("looks", [1, 3])
def test_counters_that_cannot_be_read(triton: Any, looks: int) -> None:
    def close(triton: Any) -> None:
        if triton.looks == looks:
            triton.metrics_status = 404

    triton.at_look = close
    when = "at its start" if looks == 1 else "after 10 s"
    with pytest.raises(GateFailed, match=f"the bake cannot be judged {when}: .*HTTP 404.*open the server's metrics"):
        bake(triton).run()


def test_model_without_counters(triton: Any) -> None:
    del triton.counters.success["ensemble"]
    triton.counters.failure = {}
    with pytest.raises(GateFailed, match="the metrics have no requests of model ensemble"):
        bake(triton).run()


def test_server_that_falls_silent(triton: Any) -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > 7:
            triton.close()

    client = TritonClient(triton.url, requests)
    metrics = TritonClient(triton.url, requests)
    with pytest.raises(GateFailed, match="the server fell silent 10 s into the bake"):
        # A connection that is kept alive would outlive the listener.
        Bake(client, metrics, MODELS, seconds=30.0, clock=clock, sleep=lambda s: (sleep(s), client.close())[0]).run()


def test_server_that_dies(triton: Any) -> None:
    clock = Clock()

    class Dying(Watch):
        def death(self) -> str:
            return "the server's process 7 has ended" if clock.now > 6 else ""

    with pytest.raises(GateFailed, match="^the server's process 7 has ended; the server died during the bake, 6 s"):
        bake(triton, clock, watch=Dying()).run()
    # At once, not at the next look at the counters.
    assert clock.now < 7


def test_model_that_is_lost(triton: Any) -> None:
    triton.at_look = lambda triton: triton.models.update(tensorrt_llm=triton.looks < 2)
    with pytest.raises(GateFailed, match="not ready any more 10 s into the bake: tensorrt_llm"):
        bake(triton).run()


def test_model_that_answers_no_more(triton: Any) -> None:
    """Health endpoints and, without requests, the counters stay green."""
    triton.answer = (400, {"error": "Stub process 'tensorrt_llm_0_0' is not healthy."})
    with pytest.raises(GateFailed, match="smoke prompt 'number 1'.*has crashed") as caught:
        bake(triton, prompts=[{"prompt": "Well?"}]).run()
    assert caught.value.details["bake"]["requests"] == 0 and not caught.value.details["answers"][0]["ok"]


def test_no_time_at_all(triton: Any) -> None:
    assert bake(triton, seconds=0.0).run()["bake"]["requests"] == 0


@pytest.mark.parametrize("more", [{"seconds": -1.0}, {"interval": 0.0}, {"max_error_ratio": 2.0}, {"min_requests": -1}])
def test_settings_that_cannot_be(triton: Any, more: dict[str, Any]) -> None:
    with pytest.raises(GateFailed, match="is not possible: give seconds"):
        bake(triton, **more)


def test_module_process(triton: Any, run_gate: Callable[..., dict[str, Any]]) -> None:
    triton.at_look = each_look(success=10)
    args = {"state": "bake", "url": triton.url, "metrics_url": triton.url + "/"}
    found = run_gate({**args, "bake": {"seconds": 0.3, "interval": 0.1}})
    assert found["bake"]["requests"] >= 20 and not found["changed"]
    triton.at_look = each_look(success=1, failure=1)
    found = run_gate({**args, "bake": {"seconds": 0.3, "interval": 0.1, "max_error_ratio": 0.4}})
    assert found["failed"] and "of model ensemble failed (50 %" in found["msg"]
    assert found["stages"][0]["name"] == "bake"
