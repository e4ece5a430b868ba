# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells how far a long module is, while Ansible waits for its end.

Private to the collection.
"""

from __future__ import annotations

import contextvars
import copy
import json
import secrets
import shlex
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal
from ansible_collections.trtllm.serving.plugins.plugin_utils._report import how_far

EVERY_S = 10.0
LONGEST = 4096
# What a step is doing, where its module does not say so itself.
DOING = {
    "drain": "draining",
    "undrain": "waiting for the balancer",
    "switch": "switching the server",
    "gate": "waiting for the models",
    "bake": "watching the errors",
    "restore": "bringing the old server back",
    "weights": "getting the weights",
    "convert": "converting",
    "build": "building the engine",
    "image": "getting the image",
    "generation": "assembling the generation",
    "surge": "starting the new server beside the old",
    "promote": "stopping the old server",
    "drop": "stopping the new server",
    "fetch": "fetching the engine",
    "publish": "publishing the engine",
}


def file_for() -> str:
    """A new file on the host for one step: nobody else knows its name."""
    return f"/tmp/.trtllm-progress-{secrets.token_hex(8)}.json"


def seconds(value: float) -> str:
    """40 s, 3 min 20 s, 2 h 05 min."""
    whole = int(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def line(host: str, stage: str, elapsed: float, told: Mapping[str, Any]) -> str:
    what = " ".join(str(told.get("what") or DOING.get(stage, stage)).split())[:200]
    return ", ".join(part for part in (f"{host}: {what}", seconds(elapsed), how_far(told)) if part)


class Watcher:
    """While it is entered, a line every few seconds, the first after the first pause: a short step costs nothing."""

    every_s = EVERY_S

    def __init__(self, action: Any, host: str, pool: str, stage: str, path: str | None, journal: Journal) -> None:
        self._action, self._host, self._pool, self._stage = action, host, pool, stage
        self._path, self._journal = path, journal
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def __enter__(self) -> Watcher:
        self._began = time.monotonic()
        # Newer Ansible keeps what a task is about in the context of its thread.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._watch,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            # One that hangs on a dead connection must not keep the step.
            self._thread.join(1.0)

    def _watch(self) -> None:
        while not self._ended.wait(self.every_s):
            told = self._look()
            if self._ended.is_set():
                return
            elapsed = time.monotonic() - self._began
            self._action._display.display(line(self._host, self._stage, elapsed, told))
            kept = {name: told.get(name) for name in ("what", "done", "total", "unit", "text")}
            self._journal.event(self._host, self._pool, self._stage, "progress", elapsed=round(elapsed, 1), **kept)

    def _look(self) -> Mapping[str, Any]:
        """What the module has told; nothing where it tells nothing or the host cannot be asked."""
        if not self._path:
            return {}
        try:
            answer = second(self._action)._low_level_execute_command(
                f"head -c {LONGEST} {shlex.quote(self._path)} 2>/dev/null", sudoable=True
            )
            told = json.loads(answer.get("stdout") or "{}")
        except Exception:  # Whatever it is, the step itself tells of it, or goes on well.
            return {}
        return told if isinstance(told, Mapping) else {}


def second(action: Any) -> Any:
    """The action with a connection of its own, for use beside the one that waits for the module."""
    other = copy.copy(action)
    other._connection = copy.copy(action._connection)
    if getattr(action._connection, "become", None) is not None:
        # It remembers the mark by which it knows its own success.
        other._connection.become = copy.copy(action._connection.become)
    return other
