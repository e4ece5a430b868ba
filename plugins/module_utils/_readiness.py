# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows a Triton server through its start, and says why a model or the whole server does not come up.

Private to the collection.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Protocol

from ansible_collections.trtllm.serving.plugins.module_utils._lock import pid_starttime
from ansible_collections.trtllm.serving.plugins.module_utils._server_log import (
    HOPELESS,
    LogReasons,
    cause_of,
    read_reasons,
    this_start,
    tidy,
)
from ansible_collections.trtllm.serving.plugins.module_utils._tool_errors import tail_of
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import PROBE_S, TritonError, Unreachable

# The models of upstream's inflight_batcher_llm repository.
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")

FIRST_INTERVAL_S = 0.02
MAX_INTERVAL_S = 0.05
_GROWTH = 1.5
# How often the costlier looks are taken: the log of a server that does not listen, the index of one that does.
_LOOK_S = 0.5
# How long a model must have been reported as failed before waiting is given up.
_SETTLED_S = 2.0
_TAIL_SHOWN = 20


class Probe(Protocol):
    """What is asked of a server; TritonClient has it."""

    url: str

    def live(self, timeout: float = ...) -> int: ...

    def ready(self, timeout: float = ...) -> bool: ...

    def model_ready(self, model: str, timeout: float = ...) -> bool: ...

    def index(self, timeout: float = ...) -> list[dict[str, Any]] | None: ...


class NotReady(TritonError):
    """The server did not become ready; what is known about it is in ``details``."""

    def __init__(self, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.details = dict(details)


# --- the process ------------------------------------------------------------------------------------------------


class Watch:
    """A server process named by a pid file, and the log that it writes. Either may be missing, and appear late."""

    one_start = False

    def __init__(self, pid_file: str | None = None, log_file: str | None = None, since: float | None = None) -> None:
        self.pid_file = pid_file
        self.log_file = log_file
        self.log_name = log_file
        self.since = since
        self._seen: tuple[int, int] | None = None

    def _read(self) -> int | None:
        """The pid in the file; None when there is none, or it is of an earlier start."""
        if not self.pid_file:
            return None
        try:
            if self.since is not None and os.stat(self.pid_file).st_mtime < self.since:
                return None
            return int(Path(self.pid_file).read_text(encoding="ascii").split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def death(self) -> str:
        """What became of the process when it no longer runs; empty while it runs or is not known yet."""
        pid = self._read()
        if self._seen is not None:
            old, started = self._seen
            if pid_starttime(old) != started:
                after = f" and was started again as pid {pid}" if pid not in (None, old) else ""
                return f"the server's process {old} has ended{after}"
            if pid is None or pid == old:
                return ""
        if pid is None:
            return ""
        begun = pid_starttime(pid)
        if begun is None:
            # It may have been replaced between the two looks.
            if self._read() != pid:
                return ""
            return f"the server's process {pid} (in {self.pid_file}) has ended"
        self._seen = (pid, begun)
        return ""

    def lines(self) -> list[str]:
        return tail_of(self.log_file) if self.log_file else []

    def latest(self) -> list[str]:
        """The lines of this start."""
        return self.lines() if self.one_start else this_start(self.lines())

    def reasons(self, lines: Sequence[str]) -> LogReasons:
        return read_reasons(lines, self.one_start)


# --- following --------------------------------------------------------------------------------------------------


def _index_reasons(index: Sequence[Mapping[str, Any]] | None) -> dict[str, tuple[str, str]]:
    """model -> (state, reason) from the repository index; the state is empty for a model never loaded."""
    table: dict[str, tuple[str, str]] = {}
    for entry in index or []:
        name = str(entry.get("name", ""))
        state = str(entry.get("state") or "")
        # Of several versions the one that is ready counts.
        if name and table.get(name, ("", ""))[0] != "READY":
            table[name] = (state, tidy(str(entry.get("reason") or "")))
    return table


class Follower:
    """One start of a server, followed until every model is ready."""

    def __init__(
        self,
        client: Probe,
        models: Sequence[str] = MODELS,
        *,
        timeout: float = 600.0,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.client = client
        self.models = list(models)
        self.timeout = timeout
        self.watch = watch or Watch()
        self.timeline: list[dict[str, Any]] = []
        self._clock = clock
        self._sleep = sleep
        self._check = check
        self._began = clock()
        self._models_ready: set[str] = set()
        self._failed_since: float | None = None
        self._next_look = 0.0
        self._last_trouble = ""

    def _now(self) -> float:
        return self._clock() - self._began

    @property
    def models_ready(self) -> int:
        return len(self._models_ready)

    def _state(self) -> str:
        """The state of the server that was noted last."""
        states = [entry["state"] for entry in self.timeline if "model" not in entry]
        return str(states[-1]) if states else ""

    def _note(self, state: str, model: str | None = None) -> None:
        """One line in the timeline for each change of state; a model's line is its own."""
        if model is None and self._state() == state:
            return
        entry: dict[str, Any] = {"state": state, "at_s": round(self._now(), 3)}
        if model is not None:
            entry["model"] = model
        self.timeline.append(entry)

    def probe(self, budget: float = PROBE_S) -> bool:
        """One look at the server; True when it and every model are ready."""
        budget = max(0.05, min(PROBE_S, budget))
        try:
            status = self.client.live(budget)
            if status in (401, 403, 404):
                raise NotReady(
                    f"{self.client.url} answers HTTP {status} at /v2/health/live: this is no Triton, or its health"
                    " interface is closed; correct url",
                    self.details(),
                )
            if status != 200:
                self._last_trouble = f"HTTP {status} at /v2/health/live"
                self._note("not_live")
                return False
            if not self._listening():
                self._models_ready.clear()
                self._note("live")
            for model in self.models:
                if self.client.model_ready(model, budget):
                    if model not in self._models_ready:
                        self._models_ready.add(model)
                        self._note("model_ready", model)
                else:
                    self._models_ready.discard(model)
            if len(self._models_ready) == len(self.models) and self.client.ready(budget):
                self._note("ready")
                return True
        except Unreachable as exc:
            self._last_trouble = str(exc)
            self._note("refused" if exc.kind == "refused" else "unresponsive")
        return False

    def _listening(self) -> bool:
        return self._state() in ("live", "ready")

    def unready(self) -> dict[str, str]:
        """Each model that is not ready, with the reason as far as the server's index or log gives one."""
        table: dict[str, tuple[str, str]] = {}
        if self._listening():
            try:
                table = _index_reasons(self.client.index(PROBE_S))
            except Unreachable:
                table = {}
        log = self.watch.reasons(self.watch.lines()).models
        names = [model for model in self.models if model not in self._models_ready]
        names += [
            model
            for model, (state, reason) in sorted(table.items())
            if model not in self.models and state == "UNAVAILABLE" and reason != "unloaded"
        ]
        result: dict[str, str] = {}
        for model in names:
            state, reason = table.get(model, ("", ""))
            if not reason or reason == "unloaded":
                reason = log.get(model) or reason
            if not reason and model in table:
                reason = state.lower() if state else "never loaded; the server's log says why"
            elif not reason and table:
                reason = "there is no such model in the repository"
            result[model] = reason or "not loaded yet"
        return result

    def _hopeless(self) -> str:
        """A failure that waiting will not cure; looked for now and then only."""
        if self._now() < self._next_look:
            return ""
        self._next_look = self._now() + _LOOK_S
        if not self._listening():
            for line in self.watch.latest():
                match = HOPELESS.search(line)
                if match:
                    return match[0].strip()
            return ""
        try:
            table = _index_reasons(self.client.index(PROBE_S))
        except Unreachable:
            return ""
        states = [state for state, _reason in table.values()]
        failed = [
            model
            for model, (state, reason) in table.items()
            if state == "UNAVAILABLE" and reason and reason != "unloaded"
        ]
        if not failed or "LOADING" in states:
            self._failed_since = None
            return ""
        if self._failed_since is None:
            self._failed_since = self._now()
            return ""
        return f"{len(failed)} models failed to load" if self._now() - self._failed_since >= _SETTLED_S else ""

    def details(self) -> dict[str, Any]:
        return {"timeline": self.timeline, "waited_s": round(self._now(), 3)}

    def _give_up(self, what: str) -> NotReady:
        unready = self.unready()
        details = {**self.details(), "unready": unready}
        lines = self.watch.lines()
        parts = [what]
        if not self._listening():
            reasons = self.watch.reasons(lines)
            if reasons.server:
                parts.append(reasons.server)
            known = reasons.models
            details["unready"] = {model: known.get(model, "not loaded yet") for model in self.models} | known
            if known:
                parts.append(", ".join(f"{model}: {reason}" for model, reason in known.items()))
            cause = cause_of(self.watch.latest()) if lines else ""
            if cause:
                parts.append(cause)
            elif not known and not reasons.server and self._last_trouble:
                parts.append(self._last_trouble)
        elif unready:
            parts.append("not ready: " + ", ".join(f"{model} ({reason})" for model, reason in unready.items()))
        else:
            parts.append("all models are ready, yet /v2/health/ready is not")
        if lines:
            details["tail"] = self.watch.latest()[-_TAIL_SHOWN:]
        if self.watch.log_name:
            details["log_file"] = self.watch.log_name
            parts.append(f"log: {self.watch.log_name}")
        return NotReady("; ".join(parts), details)

    def follow(self) -> dict[str, Any]:
        """Waits until the server and every model are ready. NotReady when the time is up or there is no hope."""
        interval = FIRST_INTERVAL_S
        while True:
            if self._check is not None:
                self._check()
            if self.probe(self.timeout - self._now()):
                return {
                    "ready": True,
                    "timeline": self.timeline,
                    "ready_s": round(self._now(), 3),
                    "unready": {},
                }
            death = self.watch.death()
            if death:
                raise self._give_up(death)
            hopeless = self._hopeless()
            if hopeless:
                raise self._give_up(f"{self.client.url} will not become ready: {hopeless}")
            left = self.timeout - self._now()
            if left <= 0:
                raise self._give_up(f"{self.client.url} was not ready within {self.timeout:g} s")
            self._sleep(min(interval, left))
            interval = min(MAX_INTERVAL_S, interval * _GROWTH)

    def look(self) -> dict[str, Any]:
        """One look, without waiting and without failing."""
        try:
            ready = self.probe()
        except NotReady as exc:
            return {"ready": False, "timeline": self.timeline, "unready": dict.fromkeys(self.models, str(exc))}
        return {
            "ready": ready,
            "timeline": self.timeline,
            "unready": {} if ready else self.unready(),
        }
