# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Triton server's own counters say about the requests of some seconds.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient, TritonError

SUCCESS = "nv_inference_request_success"
FAILURE = "nv_inference_request_failure"
# The client went away: nothing that the server did wrong.
CANCELED = "CANCELED"
# The models that clients ask; the others are asked by these.
ENTRIES = ("ensemble", "tensorrt_llm_bls")
_TIMEOUT_S = 5.0

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Counters:
    """Requests since the server's start: by model those answered, and by model and reason those not answered."""

    success: dict[str, float] = field(default_factory=dict)
    failure: dict[str, dict[str, float]] = field(default_factory=dict)


def parse(text: str) -> Counters:
    """Triton's page of metrics; a model's versions are added up. TritonError when it has no counters of requests."""
    found = Counters()
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None or match["name"] not in (SUCCESS, FAILURE):
            continue
        labels = dict(_LABEL.findall(match["labels"] or ""))
        model = labels.get("model", "")
        try:
            value = float(match["value"])
        except ValueError:
            raise TritonError(f"the metrics hold {line[:200]!r}, which is no number") from None
        if match["name"] == SUCCESS:
            found.success[model] = found.success.get(model, 0.0) + value
        else:
            reasons = found.failure.setdefault(model, {})
            reason = labels.get("reason", "OTHER")
            reasons[reason] = reasons.get(reason, 0.0) + value
    if not found.success:
        raise TritonError(f"the metrics have no {SUCCESS}: this is no Triton, or its metrics are switched off")
    return found


def read(client: TritonClient) -> Counters:
    reply = client.get("/metrics", _TIMEOUT_S)
    if reply.status != 200:
        raise TritonError(f"{client.url}/metrics answers HTTP {reply.status}: correct metrics_url")
    return parse(reply.text)


@dataclass
class Tally:
    """The requests of one model in the time that was looked at."""

    requests: int = 0
    failures: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.failures / self.requests if self.requests else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {"requests": self.requests, "failures": self.failures, "ratio": round(self.ratio, 6)}


class CountersLost(TritonError):
    """The counters no longer say anything about the time since the first look."""


def _grown(model: str, what: str, first: float, last: float | None) -> int:
    if last is None:
        raise CountersLost(f"the counters of model {model} are gone: the server was started again with other models")
    if last < first:
        raise CountersLost(
            f"{what} of model {model} went back from {first:g} to {last:g}: the server was started again"
        )
    return int(last - first)


def between(first: Counters, last: Counters, models: Iterable[str]) -> dict[str, Tally]:
    """Requests and failures of each model from one look to another. CountersLost when the server has restarted.

    Triton counts a request that a client gave up as CANCELED only where it noticed that, and the same request as OTHER
    in the ensemble around it; those are taken off again.
    """
    found: dict[str, Tally] = {}
    cancelled = 0
    for model in sorted(set(first.success) | set(first.failure)):
        was = first.failure.get(model, {})
        now = last.failure.get(model, {})
        good = _grown(model, SUCCESS, first.success.get(model, 0.0), last.success.get(model))
        reasons = {
            reason: _grown(model, FAILURE, was.get(reason, 0.0), now.get(reason))
            for reason in sorted(set(was) | set(now))
        }
        cancelled += reasons.pop(CANCELED, 0)
        bad = sum(reasons.values())
        found[model] = Tally(good + bad, bad, {reason: count for reason, count in reasons.items() if count})
    whole = found.get("ensemble")
    if whole is not None and cancelled:
        taken = min(cancelled, whole.reasons.get("OTHER", 0))
        whole.requests -= taken
        whole.failures -= taken
        if taken:
            whole.reasons["OTHER"] -= taken
            whole.reasons = {reason: count for reason, count in whole.reasons.items() if count}
    missing = [model for model in models if model not in found]
    if missing:
        raise TritonError(f"the metrics have no requests of model {', '.join(missing)}: see which models are loaded")
    return {model: found[model] for model in models}


def entries(models: Sequence[str]) -> list[str]:
    """The models that clients ask, of these."""
    return [model for model in ENTRIES if model in models] or list(models)


def worst(tallies: Mapping[str, Tally]) -> str:
    """The model with the highest share of failures; of equal ones the first that clients ask."""
    order = [*entries(list(tallies)), *tallies]
    return max(tallies, key=lambda model: (tallies[model].ratio, -order.index(model)))


def percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"
