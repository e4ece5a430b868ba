# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a new server may get requests: its models are ready, it answers, it has its GPUs; and whether it stays so.

Private to the collection.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils import _gate_metrics
from ansible_collections.trtllm.serving.plugins.module_utils._gate_metrics import CountersLost, percent
from ansible_collections.trtllm.serving.plugins.module_utils._gate_settings import complete, label, prompt_problems
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import Follower, NotReady, Watch
from ansible_collections.trtllm.serving.plugins.module_utils._server_log import cause_of
from ansible_collections.trtllm.serving.plugins.module_utils._smoke import SmokeError, ask
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient, TritonError

# The longest sleep between two looks at whether the server is alive, or the work still wanted.
_SLICE_S = 0.25
# A process that is killed closes its sockets some time before it has ended.
_DYING_S = 1.0
# Failures that must have been counted before a bake is ended early.
_SURE = 5
_TAIL_SHOWN = 20
# What is known of an answer that was not as it should be.
_KEPT = ("text", "latency_s", "ttft_s", "status")


class GateFailed(TritonError):
    """The gate stays shut; what is known is in ``details``."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class Stages:
    """The parts of the gate with the time that each took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.done: list[dict[str, Any]] = []

    def now(self) -> float:
        return self._clock() - self._began

    def add(self, name: str, begun: float) -> None:
        self.done.append({"name": name, "offset_s": round(begun, 3), "seconds": round(self.now() - begun, 3)})


# --- smoke prompts ----------------------------------------------------------------------------------------------


def check_prompts(prompts: Sequence[Mapping[str, Any]]) -> None:
    problems = prompt_problems(prompts)
    if problems:
        raise GateFailed("; ".join(problems))


def ask_prompts(
    client: TritonClient, prompts: Sequence[Mapping[str, Any]], check: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """Asks each in its order over one session; the answers. GateFailed at the first that is not as it should be."""
    answers: list[dict[str, Any]] = []
    for number, given in enumerate(prompts, 1):
        if check is not None:
            check()
        prompt = complete(given)
        name = label(prompt, number)
        params = {
            **prompt,
            "expect": None,
            "exact": prompt["expect"],
            "max_latency_s": prompt["max_latency_s"] or None,
        }
        try:
            answer = ask(client, params)
        except SmokeError as exc:
            failed: dict[str, Any] = {"name": name, "ok": False}
            failed.update((key, exc.details[key]) for key in _KEPT if key in exc.details)
            raise GateFailed(f"smoke prompt {name!r}: {exc}", answers=[*answers, failed]) from exc
        except TritonError as exc:
            raise GateFailed(f"smoke prompt {name!r}: {exc}", answers=[*answers, {"name": name, "ok": False}]) from exc
        answers.append(
            {
                "name": name,
                "ok": True,
                "model": prompt["model"],
                "text": answer["text"],
                "latency_s": answer["latency_s"],
                "ttft_s": answer["ttft_s"],
                "tokens": answer["tokens"],
            }
        )
    return answers


# --- gate -------------------------------------------------------------------------------------------------------


def pass_gate(
    client: TritonClient,
    models: Sequence[str],
    prompts: Sequence[Mapping[str, Any]],
    *,
    timeout: float,
    watch: Watch,
    look_gpu: Callable[[], dict[str, Any] | None] | None = None,
    check: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ready, answering, with its GPUs. GateFailed, with what was found until then, otherwise."""
    check_prompts(prompts)
    stages = Stages()
    result: dict[str, Any] = {"ready": False, "answers": [], "gpu": {}, "stages": stages.done}

    def tick() -> None:
        if check is not None:
            check()
        if progress is not None:
            progress(follower.models_ready, len(models))

    follower = Follower(client, models, timeout=timeout, watch=watch, check=tick)
    try:
        found = follower.follow()
    except NotReady as exc:
        stages.add("load", 0.0)
        raise GateFailed(str(exc), **{**result, **exc.details}) from exc
    stages.add("load", 0.0)
    result.update(ready=True, ready_s=found["ready_s"], timeline=found["timeline"])
    begun = stages.now()
    try:
        result["answers"] = ask_prompts(client, prompts, check)
    except GateFailed as exc:
        stages.add("smoke", begun)
        raise GateFailed(_with_death(str(exc), watch), **{**result, **exc.details, "tail": tail(watch)}) from exc
    if prompts:
        stages.add("smoke", begun)
    if look_gpu is not None:
        begun = stages.now()
        try:
            result["gpu"] = look_gpu() or {}
        except GateFailed as exc:
            stages.add("gpu", begun)
            raise GateFailed(str(exc), **{**result, **exc.details}) from exc
        if result["gpu"]:
            stages.add("gpu", begun)
    return result


def _with_death(what: str, watch: Watch) -> str:
    """A server that died while it answered is the cause of whatever else was seen."""
    death = watch.death()
    lines = watch.latest() if death else []
    return "; ".join(part for part in (death, cause_of(lines) if lines else "", what) if part)


# --- bake -------------------------------------------------------------------------------------------------------


class Bake:
    """Some seconds of real requests, judged by the server's own counters."""

    def __init__(
        self,
        client: TritonClient,
        metrics: TritonClient,
        models: Sequence[str],
        *,
        seconds: float,
        max_error_ratio: float = 0.01,
        interval: float = 5.0,
        min_requests: int = 0,
        watch: Watch | None = None,
        prompts: Sequence[Mapping[str, Any]] = (),
        check: Callable[[], None] | None = None,
        progress: Callable[[float, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if seconds < 0 or interval <= 0 or not 0 <= max_error_ratio <= 1 or min_requests < 0:
            raise GateFailed(
                f"bake of {seconds:g} s, interval {interval:g} s, max_error_ratio {max_error_ratio:g}, min_requests"
                f" {min_requests} is not possible: give seconds from 0, an interval above 0, a ratio from 0 to 1"
            )
        self.client, self.metrics, self.models = client, metrics, list(models)
        self.seconds, self.interval = seconds, interval
        self.max_error_ratio, self.min_requests = max_error_ratio, min_requests
        self.watch, self.prompts = watch or Watch(), prompts
        self._check, self._progress = check, progress
        self._clock, self._sleep = clock, sleep
        self._stages = Stages(clock)
        self._tallies: dict[str, _gate_metrics.Tally] = {}

    def result(self) -> dict[str, Any]:
        bake: dict[str, Any] = {"seconds": round(self._stages.now(), 3), "requests": 0, "failures": 0, "ratio": 0.0}
        if self._tallies:
            asked = [self._tallies[model] for model in _gate_metrics.entries(self.models)]
            model = _gate_metrics.worst(self._tallies)
            bake.update(
                requests=sum(tally.requests for tally in asked),
                failures=self._tallies[model].failures,
                ratio=round(self._tallies[model].ratio, 6),
                model=model,
                models={name: tally.as_dict() for name, tally in self._tallies.items()},
            )
        return {"bake": bake, "answers": [], "stages": self._stages.done}

    def run(self) -> dict[str, Any]:
        check_prompts(self.prompts)
        try:
            first = self._read("at its start")
            while True:
                left = self.seconds - self._stages.now()
                self._wait(min(self.interval, max(0.0, left)))
                self._look(first)
                if left <= self.interval:
                    break
                self._give_up_early()
            self._judge()
            answers = ask_prompts(self.client, self.prompts, self._check)
        except GateFailed as exc:
            self._stages.add("bake", 0.0)
            raise GateFailed(
                _with_death(str(exc), self.watch), **{**self.result(), **exc.details, "tail": tail(self.watch)}
            ) from exc
        self._stages.add("bake", 0.0)
        return {**self.result(), "answers": answers}

    def _wait(self, seconds: float) -> None:
        until = self._clock() + seconds
        while True:
            if self._check is not None:
                self._check()
            if self._progress is not None:
                self._progress(min(self._stages.now(), self.seconds), self.seconds)
            death = self.watch.death()
            if death:
                raise GateFailed("the server died during the bake, %.0f s after its start" % self._stages.now())
            left = until - self._clock()
            if left <= 0:
                return
            self._sleep(min(_SLICE_S, left))

    def _read(self, when: str) -> _gate_metrics.Counters:
        try:
            return _gate_metrics.read(self.metrics)
        except TritonError as exc:
            self._wait(_DYING_S)
            raise GateFailed(
                f"the bake cannot be judged {when}: {exc}; open the server's metrics, or set the bake to 0 s"
            ) from exc

    def _look(self, first: _gate_metrics.Counters) -> None:
        """One look at models and counters in the course of the bake."""
        try:
            self.client.live()
        except TritonError as exc:
            words = "the server fell silent %.0f s into the bake: %s" % (self._stages.now(), exc)
            self._wait(_DYING_S)
            raise GateFailed(words) from exc
        found = Follower(self.client, self.models, watch=self.watch).look()
        if not found["ready"]:
            reasons = ", ".join(f"{model} ({reason})" for model, reason in found["unready"].items())
            words = "not ready any more %.0f s into the bake: %s" % (self._stages.now(), reasons or "the server itself")
            self._wait(_DYING_S)
            raise GateFailed(words)
        now = self._read("after %.0f s" % self._stages.now())
        try:
            self._tallies = _gate_metrics.between(first, now, self.models)
        except CountersLost as exc:
            raise GateFailed(f"during the bake, {exc}") from exc
        except TritonError as exc:
            raise GateFailed(f"the bake cannot be judged: {exc}") from exc

    def _too_many(self) -> str:
        """The model with too many failures, in words; empty when there is none."""
        model = _gate_metrics.worst(self._tallies) if self._tallies else ""
        if not model or self._tallies[model].ratio <= self.max_error_ratio:
            return ""
        tally = self._tallies[model]
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.reasons.items())
        cause = cause_of(self.watch.latest())
        return (
            f"bake: {tally.failures} of {tally.requests} requests of model {model} failed ({percent(tally.ratio)};"
            f" {reasons}), above max_error_ratio {percent(self.max_error_ratio)}"
            + (f"; {cause}" if cause else "")
            + (f"; log: {self.watch.log_name}" if self.watch.log_name else "; see the server's log")
        )

    def _give_up_early(self) -> None:
        """Ends a bake that is lost even if no further request fails at the pace so far."""
        words = self._too_many()
        if not words:
            return
        tally = self._tallies[_gate_metrics.worst(self._tallies)]
        expected = tally.requests * self.seconds / max(self._stages.now(), 0.001)
        if tally.failures >= _SURE and tally.failures > self.max_error_ratio * expected:
            raise GateFailed(f"{words} (ended after {self._stages.now():.0f} of {self.seconds:g} s)")

    def _judge(self) -> None:
        words = self._too_many()
        if words:
            raise GateFailed(words)
        requests = self.result()["bake"]["requests"]
        if requests < self.min_requests:
            raise GateFailed(
                f"bake: {requests} requests in {self.seconds:g} s, below min_requests {self.min_requests}: see whether"
                " the load balancer sends any, bake longer, or lower the number"
            )


def tail(watch: Watch) -> list[str]:
    return watch.latest()[-_TAIL_SHOWN:]
