# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run has done, put together from its journal and from what its hosts have registered.

Private to the collection.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import human
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal
from ansible_collections.trtllm.serving.plugins.plugin_utils._pools import FAILED, GONE

# In the order in which they happen. What else a journal names comes after these.
STAGES = (
    "image", "weights", "convert", "build", "publish", "fetch", "generation", "begin", "drain", "stop", "switch",
    "surge", "start", "load", "gpu", "smoke", "gate", "undrain", "bake", "promote", "settle", "drop", "restore",
    "balancer",
)  # fmt: skip
TROUBLE = (*FAILED, "skipped")
OPEN = "open"
LOCK = ".report.lock"
# What the steps that have parts took beside these.
REST = "rest"
SHOWN = 0.05
# Their parts say nothing more than they do themselves.
PLAIN = ("drain", "undrain", "bake")


@dataclass
class Span:
    """A stage of a host; seconds since 1970 on the controller's clock."""

    stage: str
    start: float
    end: float | None = None
    outcome: str = OPEN
    within: str = ""
    cause: str = ""
    # The last that the module has told of itself.
    told: str = ""

    @property
    def seconds(self) -> float:
        return max(0.0, (self.end if self.end is not None else self.start) - self.start)


@dataclass
class Lane:
    """A host and what became of it."""

    host: str
    pool: str
    batch: int = 0
    outcome: str = ""
    cause: str = ""
    source: str = ""
    target: str = ""
    left: str = ""
    spans: list[Span] = field(default_factory=list)

    def trouble(self) -> str:
        left = f" ({self.left})" if self.left else ""
        return f"{self.outcome}: {self.cause or 'no cause known'}{left}"

    def leaves(self) -> list[Span]:
        """The stages without those that are told by their parts."""
        whole = {id(span) for span in self.wholes()}
        return [span for span in self.spans if id(span) not in whole]

    def wholes(self) -> list[Span]:
        """The steps that have parts; what is not in these is Ansible's own time and the connection's."""
        parts = [span for span in self.spans if span.within]
        return [
            span
            for span in self.spans
            if not span.within and any(each.within == span.stage and _overlaps(each, span) for each in parts)
        ]

    def ended(self, gone: str = "") -> None:
        """The outcome of a host that came to none by the plan; why it is ``gone`` is known best by the last step."""
        last = next((span for span in reversed(self.spans) if not span.within), None)
        if last is not None and last.outcome in FAILED:
            self.outcome, self.cause = last.outcome, last.cause or gone
        elif gone:
            self.outcome, self.cause = "lost", gone

    def seconds(self) -> dict[str, float]:
        """How long each stage took in all."""
        found: dict[str, float] = {}
        for span in self.leaves():
            found[span.stage] = found.get(span.stage, 0.0) + span.seconds
        parts = sum(span.seconds for span in self.spans if span.within)
        rest = sum(span.seconds for span in self.wholes()) - parts
        if rest >= SHOWN:
            found[REST] = rest
        return {name: round(value, 3) for name, value in sorted(found.items(), key=lambda item: rank(item[0]))}

    def as_dict(self) -> dict[str, Any]:
        return {
            "host": self.host, "pool": self.pool, "batch": self.batch or None, "outcome": self.outcome or "not reached",
            "cause": self.cause, "from": self.source, "to": self.target, "left": self.left, "stages": self.seconds(),
            "spans": [
                {"stage": span.stage, "start": span.start, "end": span.end, "outcome": span.outcome,
                 "within": span.within, "cause": span.cause}
                for span in self.spans
            ],
        }  # fmt: skip


@dataclass
class Report:
    """A run: its hosts in the order of pools and batches."""

    run: str = ""
    started: float = 0.0
    ended: float = 0.0
    lanes: list[Lane] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def failures(self) -> dict[str, str]:
        """By host, in one line what became of it and why."""
        return {lane.host: lane.trouble() for lane in self.lanes if lane.outcome in TROUBLE}

    def troubles(self) -> list[tuple[str, list[str]]]:
        """What failures() says, each once, with its hosts: what stops a pool stops many."""
        found: dict[str, list[str]] = {}
        for host, said in self.failures().items():
            found.setdefault(said, []).append(host)
        return list(found.items())

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run, "started": self.started, "ended": self.ended, "notes": self.notes,
            "hosts": [lane.as_dict() for lane in self.lanes],
        }  # fmt: skip


def rank(stage: str) -> tuple[int, str]:
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def how_far(told: Mapping[str, Any]) -> str:
    """rank 3 of 8; 1.2 GiB of 90 GiB (1 %); 3 of 5 models."""
    done, total, unit = told.get("done"), told.get("total"), str(told.get("unit") or "")
    if told.get("text"):
        return " ".join(str(told["text"]).split())[:200]
    if not isinstance(done, (int, float)):
        return ""
    size = human if unit == "bytes" else "{:g}".format
    whole = f" of {size(total)}" if isinstance(total, (int, float)) and total > 0 else ""
    if unit == "ranks":
        return f"rank {size(done)}{whole}"
    if unit == "bytes":
        return f"{size(done)}{whole}" + (f" ({100 * done // total:.0f} %)" if whole and total else "")
    return f"{size(done)}{whole} {unit}".rstrip()


def _overlaps(part: Span, whole: Span) -> bool:
    end = whole.end if whole.end is not None else float("inf")
    return whole.start - 0.5 <= part.start <= end + 0.5


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


class _Builder:
    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self.open: dict[tuple[str, str, str], Span] = {}
        self.notes: list[str] = []
        self.order: dict[str, tuple[int, int]] = {}
        self.first = self.last = 0.0

    def lane(self, host: str, pool: str) -> Lane:
        return self.lanes.setdefault(host, Lane(host, pool))

    def add(self, event: Mapping[str, Any]) -> None:
        at, stage, kind = _number(event.get("time")), str(event.get("stage") or ""), event.get("event")
        self.first = min(self.first or at, at)
        self.last = max(self.last, at)
        pool = str(event.get("pool") or "")
        host = event.get("host")
        if not host:
            self._of_pool(pool, stage, event)
            return
        lane = self.lane(str(host), pool)
        within = str(event.get("within") or "")
        if within in PLAIN:
            return
        name = (str(host), stage, within)
        span: Span | None
        if kind == "start":
            span = Span(stage, at, within=within)
            self.open[name] = span
            lane.spans.append(span)
        elif kind == "end":
            span = self.open.pop(name) if name in self.open else None
            if span is None:
                span = Span(stage, at, within=within)
                lane.spans.append(span)
            span.end, span.outcome, span.cause = at, str(event.get("outcome") or "ok"), str(event.get("cause") or "")
        elif kind == "progress":
            span = self.open.get(name)
            if span is not None:
                span.told = how_far(event)
        elif stage == "outcome":
            self.outcome(lane, event)

    def outcome(self, lane: Lane, found: Mapping[str, Any]) -> None:
        lane.outcome, lane.cause = str(found.get("outcome") or ""), str(found.get("cause") or "")
        lane.source, lane.target = str(found.get("from") or ""), str(found.get("to") or "")
        lane.left = str(found.get("left") or "")

    def _of_pool(self, pool: str, stage: str, event: Mapping[str, Any]) -> None:
        if stage == "plan":
            self.plan(pool, event)
        elif stage == "guard" and event.get("cause"):
            self._note(str(event["cause"]))

    def plan(self, pool: str, found: Mapping[str, Any]) -> None:
        """The place of each host, and those that the plan leaves alone."""
        for number, batch in enumerate(found.get("batches") or [], 1):
            for host in batch:
                self.lane(str(host), pool).batch = number
        for host in found.get("unchanged") or []:
            lane = self.lane(str(host), pool)
            lane.outcome = lane.outcome or "unchanged"
        causes = found.get("causes")
        for host, cause in causes.items() if isinstance(causes, Mapping) else ():
            lane = self.lane(str(host), pool)
            if not lane.outcome:
                lane.ended(str(cause) or GONE)
        if found.get("stopped"):
            self._note(str(found["stopped"]))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def build(events: Iterable[Mapping[str, Any]], run: Mapping[str, Any] | None = None) -> Report:
    """The report of a journal; also of one that ends in the middle of a stage."""
    builder = _Builder()
    for event in events:
        builder.add(event)
    return finished(builder, run or {})


def finished(builder: _Builder, run: Mapping[str, Any]) -> Report:
    pools = list(dict.fromkeys(lane.pool for lane in builder.lanes.values()))
    # Those that are in no batch last: they were left alone, or lost before.
    last = len(builder.lanes) + 1
    lanes = sorted(builder.lanes.values(), key=lambda lane: (pools.index(lane.pool), lane.batch or last))
    for lane in lanes:
        lane.spans.sort(key=lambda span: span.start)
        # A run whose hosts have all failed has come to no plan.
        if not lane.outcome and not lane.batch:
            lane.ended()
    started = _number(run.get("started")) or builder.first
    return Report(str(run.get("id") or ""), started, max(builder.last, started), lanes, builder.notes)


def of_run(
    events: Iterable[Mapping[str, Any]],
    run: Mapping[str, Any],
    plan: Mapping[str, Any],
    outcomes: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> Report:
    """The report at the end of a run: what hosts have registered stands above the journal, which may be missing.

    ``outcomes`` has the pool of every host of the play and its ``triton_serve_outcome``.
    """
    builder = _Builder()
    for event in events:
        builder.add(event)
    for name, pool in (plan.get("pools") or {}).items():
        builder.plan(str(name), pool)
    for host, (name, found) in outcomes.items():
        lane = builder.lane(host, name)
        if found.get("outcome"):
            builder.outcome(lane, found)
        move = ((plan.get("pools") or {}).get(name) or {}).get("moves", {}).get(host) or {}
        lane.source = lane.source or str(move.get("from") or "")
        lane.target = lane.target or str(move.get("to") or "")
    return finished(builder, run)


# --- as a table ---


def _cells(lane: Lane, stages: Iterable[str]) -> list[str]:
    took = lane.seconds()
    return [
        lane.host, lane.pool, lane.source or "-", lane.target or "-", lane.outcome or "not reached",
        *("%.1f" % took[stage] if stage in took else "-" for stage in stages),
    ]  # fmt: skip


def table(report: Report) -> list[str]:
    """Lines for a terminal: a row a host, then the causes, each in one line."""
    took = [lane.seconds() for lane in report.lanes]
    # What shows as 0.0 everywhere only takes room.
    stages = sorted({stage for each in took for stage, value in each.items() if value >= SHOWN}, key=rank)
    rows = [["host", "pool", "from", "to", "outcome", *stages]] + [_cells(lane, stages) for lane in report.lanes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = len(rows[0]) - len(stages)
    lines = [
        "  ".join(
            cell.rjust(width) if column >= numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    lines += ["%s: %s" % (", ".join(hosts), said) for said, hosts in report.troubles()]
    lines += ["%s: %s" % (lane.host, lane.cause) for lane in report.lanes if lane.cause and lane.outcome not in TROUBLE]
    return lines + report.notes


# --- as files ---


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also when two hosts end at the same moment."""
    fd, partial = tempfile.mkstemp(prefix=".%s." % path.name, dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(partial, 0o640)
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def write(report: Report, directory: str | os.PathLike[str]) -> Path:
    """report.json, report.jsonl and report.html below the directory; the page's path. OSError when it cannot be."""
    from ansible_collections.trtllm.serving.plugins.plugin_utils import _report_page

    parent = Path(directory)
    rows = [{"run": report.run, **lane.as_dict()} for lane in report.lanes]
    _write(parent / "report.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _write(parent / "report.json", json.dumps(report.as_dict(), ensure_ascii=False, indent=1) + "\n")
    _write(parent / "report.html", _report_page.page(report, time.time()))
    return parent / "report.html"


def so_far(task_vars: Mapping[str, Any]) -> str:
    """Writes the report of the run that a task belongs to, as far as it has come; why it could not, or nothing.

    A run that is killed leaves the last of these. Workers take turns, so that none of them goes back behind another.
    """
    journal = Journal.of(task_vars)
    if journal.path is None:
        return ""
    run, plan = task_vars.get("triton_pool_run"), task_vars.get("triton_pool_plan")
    directory = journal.path.parent
    try:
        fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            events = journal.events()
            write(
                of_run(events, run if isinstance(run, Mapping) else {}, plan if isinstance(plan, Mapping) else {}, {}),
                directory,
            )
        finally:
            os.close(fd)
    except OSError as exc:
        return f"the report cannot be written to {directory}: {exc.strerror or exc}"
    return ""
