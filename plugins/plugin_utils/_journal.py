# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened in a run, one JSON line an event, in a directory of the controller.

Private to the collection. Many processes write at once, and each of them may be killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = "events.jsonl"
EVENTS = ("start", "end", "progress", "note")


class Journal:
    """Appends events to ``events.jsonl`` of a run's directory; without a directory it does nothing.

    Each event is one write to a file opened for appending, so workers of several hosts never mix their lines. A journal
    that cannot be written never stops a rollout: the first reason is kept in ``problem``.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.path = Path(directory) / NAME if directory else None
        self.problem = ""

    @classmethod
    def of(cls, task_vars: Mapping[str, Any]) -> Journal:
        """The journal of the run that a task belongs to."""
        run = task_vars.get("triton_pool_run")
        return cls(str(run.get("dir") or "") if isinstance(run, Mapping) else None)

    def event(
        self, host: str | None, pool: str | None, stage: str, event: str, outcome: str | None = None,
        at: float | None = None, **detail: Any,
    ) -> None:  # fmt: skip
        """``at`` is in seconds since 1970 on the controller's clock, now where it is not given."""
        if event not in EVENTS:
            raise ValueError("event '%s' is not known: use one of %s" % (event, ", ".join(EVENTS)))
        if self.path is None:
            return
        record = {
            "time": round(time.time() if at is None else at, 3), "host": host, "pool": pool, "stage": stage,
            "event": event, "outcome": outcome,
        }  # fmt: skip
        record.update(detail)
        kept = {name: value for name, value in record.items() if value is not None}
        line = json.dumps(kept, ensure_ascii=False, default=str) + "\n"
        try:
            _append(self.path, line.encode("utf-8", errors="replace"))
        except OSError as exc:
            self.problem = self.problem or "%s cannot be written: %s" % (self.path, exc.strerror or exc)

    def events(self) -> Iterator[dict[str, Any]]:
        """All events so far, in the order in which they were written; a line that was cut off is left out."""
        if self.path is None:
            return
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        for line in text.split("\n"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and isinstance(value.get("time"), (int, float)):
                yield value


def _append(path: Path, line: bytes) -> None:
    """One write at the end of the file, which the kernel does not mix with those of others."""
    fd = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            # A writer was stopped within its line; this one shall stand alone.
            line = b"\n" + line
        os.write(fd, line)
    finally:
        os.close(fd)
