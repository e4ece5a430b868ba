# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the work at hand is still wanted.

Private to the collection.
"""

from __future__ import annotations

import os
import select
import signal
import stat
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils._lock import ancestors, pid_starttime
from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import Cancelled


class Cancellation:
    """Whether this module should stop: a signal came, or the controller that reads its result is gone.

    Signals are only noted, never raised from their handler, so that no half-done step is cut anywhere: every long
    loop calls check(), which raises Cancelled.
    """

    def __init__(
        self,
        *,
        watch_fd: int | None = 1,
        watch_parent: bool = True,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self.watch_fd = watch_fd if watch_fd is not None and _can_hang_up(watch_fd) else None
        self._parent = os.getppid() if watch_parent else None
        self._controllers = _controllers() if watch_parent else []
        self._signal: int | None = None
        self._lost: str | None = None
        self._old: dict[int, Any] = {}
        self._on_stop = on_stop
        self._told = False

    def __enter__(self) -> Cancellation:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def on_stop(self, callback: Callable[[], None] | None) -> None:
        """What to call once, as soon as the wish to stop is seen."""
        self._on_stop = callback

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = number

    def reason(self) -> str | None:
        if self._signal is None and self._lost is None:
            if self._parent is not None and os.getppid() != self._parent:
                self._lost = "the process that started this task is gone"
            elif any(pid_starttime(pid) != started for pid, started in self._controllers):
                self._lost = "the controller was killed"
            elif self.watch_fd is not None:
                poller = select.poll()
                poller.register(self.watch_fd, 0)
                if poller.poll(0):
                    self._lost = "the controller closed the connection"
        why = self._lost
        if self._signal is not None:
            why = f"received {signal.Signals(self._signal).name}"
        if why is not None and not self._told:
            self._told = True
            if self._on_stop is not None:
                self._on_stop()
        return why

    def check(self) -> None:
        why = self.reason()
        if why is not None:
            raise Cancelled(f"stopped: {why}")


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", errors="replace").split("\0")
    except OSError:
        return []


def _controllers() -> list[tuple[int, int]]:
    """(pid, start time) of an ansible process above us that forked the worker which runs this task.

    When it is killed outright, its worker stays and reads on, although nobody waits for the result. A worker is
    known by having its parent's command line.
    """
    chain = ancestors(os.getpid())
    found = []
    for (worker, _started), parent in zip(chain, chain[1:]):
        words = _words(parent[0])
        if words == _words(worker) and any(os.path.basename(word).startswith("ansible") for word in words[:4]):
            found.append(parent)
    return found


def _can_hang_up(fd: int) -> bool:
    """Only pipes and sockets tell their writer that nobody reads any more."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
