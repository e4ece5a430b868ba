# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a long module is, in a small file that the controller reads now and then while it waits for the module.

Private to the collection. Telling must never be what stops the work: nothing here fails.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import threading
import time
from types import TracebackType
from typing import Any, Optional

EVERY_S = 1.0
# One write of this length, so that a reader sees one state and not parts of two.
LENGTH = 4096
RANK_FILE = re.compile(r"^rank\d+\.(safetensors|engine)$")


class Progress:
    """Writes the file at its first word. Without a path it does nothing."""

    def __init__(self, path: Optional[str] = None) -> None:
        self.path = path or ""
        self._fd = -1
        self._told = 0.0
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def update(
        self,
        what: Optional[str] = None,
        done: Optional[float] = None,
        total: Optional[float] = None,
        unit: Optional[str] = None,
        elapsed: Optional[float] = None,
        text: Optional[str] = None,
    ) -> None:
        """Tells what is being done and how much of it; ``unit`` is bytes, ranks, models or another plural.

        ``text`` is shown as it is, in place of the numbers. More than one word a second is not written.
        """
        if not self.path:
            return
        now = time.monotonic()
        with self._lock:
            finished = total is not None and done == total
            if self._fd != -1 and now - self._told < EVERY_S and not finished:
                return
            self._told = now
            state: dict[str, Any] = {
                "what": what, "done": done, "total": total, "unit": unit, "text": text,
                "elapsed": round(now - self._began if elapsed is None else elapsed, 1),
            }  # fmt: skip
            self._write({name: value for name, value in state.items() if value is not None})

    def _write(self, state: dict[str, Any]) -> None:
        for name in ("what", "text"):
            if name in state:
                state[name] = " ".join(str(state[name]).split())[:200]
        line = json.dumps(state, ensure_ascii=False).encode("utf-8", errors="replace").ljust(LENGTH - 1) + b"\n"
        try:
            if self._fd == -1:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self.path, flags, 0o600)
                atexit.register(self.close)
            os.pwrite(self._fd, line, 0)
        except OSError:
            self._forget()
            self.path = ""

    def close(self) -> None:
        """Removes the file."""
        with self._lock:
            if self._fd != -1:
                self._forget()
                try:
                    os.unlink(self.path)
                except OSError:
                    pass
            self.path = ""

    def _forget(self) -> None:
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        exc: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


class RankFiles:
    """While it is entered, tells how many of the ranks' files a tool has begun to write, where it writes such."""

    def __init__(self, progress: Progress, directory: str | os.PathLike[str], total: int, what: str) -> None:
        self.progress, self.directory, self.total, self.what = progress, directory, total, what
        self._ended = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> RankFiles:
        if self.progress.path:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        exc: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2 * EVERY_S)

    def look(self) -> int:
        try:
            return sum(1 for name in os.listdir(self.directory) if RANK_FILE.match(name))
        except OSError:
            return 0

    def _watch(self) -> None:
        while True:
            if self.total:
                self.progress.update(self.what, self.look(), self.total, "ranks")
            else:
                self.progress.update(self.what)
            if self._ended.wait(EVERY_S):
                return


# A module has one progress; what it calls reaches it here.
current = Progress()


def use(path: Optional[str]) -> Progress:
    """Makes the module's progress the current one; the caller closes it."""
    global current
    current = Progress(path)
    return current


def tell(what: Optional[str] = None, **how_far: Any) -> None:
    """A word of whoever does the module's work; see Progress.update."""
    current.update(what, **how_far)
