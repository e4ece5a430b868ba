# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps two runs apart: a lock for one task on one host, and a lease for one whole run.

Private to the collection.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._lease import (
    LEASE_NAME,
    Locked,
    LockError,
    PathLike,
    RunLease,
    open_error,
    read_json,
    renew,
    write_json,
)
from ansible_collections.trtllm.serving.plugins.module_utils._process import (
    ancestors,
    machine_id,
    pid_namespace,
    pid_starttime,
    utc_now,
)

__all__ = [
    "LEASE_NAME", "LOCK_NAME", "HostLock", "LockError", "Locked", "RunLease", "ancestors", "machine_id",
    "pid_namespace", "pid_starttime", "renew", "utc_now",
]  # fmt: skip

LOCK_NAME = ".lock"

# How long a lock whose holder is already going away is waited for.
ORPHAN_WAIT_S = 10.0
# A holder writes its name right after it has taken the lock; until then the file says nothing.
_UNNAMED_WAIT_S = 0.5
_POLL_S = 0.05
# How often the run's lease is renewed at least while a lock is held.
_RENEWAL_S = 60.0


def _is_orphan(holder: Mapping[str, Any]) -> bool:
    """Whether the run behind the holder is visibly gone: then the holder is cleaning up, or dead."""
    if holder.get("host") != socket.gethostname():
        return False
    if holder.get("stopping"):
        return True
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    if pid_starttime(pid) != holder.get("starttime"):
        return True
    ancestors = holder.get("ancestors")
    if not isinstance(ancestors, list):
        return False
    return any(
        isinstance(entry, list) and len(entry) == 2 and pid_starttime(int(entry[0])) != entry[1] for entry in ancestors
    )


def _describe(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "a process that did not write its name"
    where = "" if holder.get("host") in (None, socket.gethostname()) else " on host {}".format(holder["host"])
    return "pid {}{} ({}, since {})".format(
        holder.get("pid", "?"),
        where,
        holder.get("what", "unknown work"),
        holder.get("since", "?"),
    )


class HostLock:
    """``with HostLock(home, "building engine 0123"):`` one at a time below this home.

    A busy lock raises Locked at once; only when its holder's run is visibly gone is it waited for: its processes have
    ended, or another run has the host's lease by now.
    """

    def __init__(self, home: PathLike, what: str, *, orphan_wait_s: float = ORPHAN_WAIT_S) -> None:
        self.path = Path(home) / LOCK_NAME
        self.what = what
        self.orphan_wait_s = orphan_wait_s
        self._run = ""
        self._fd: int | None = None
        self._end = threading.Event()

    @property
    def held(self) -> bool:
        return self._fd is not None

    def acquire(self) -> HostLock:
        try:
            fd = os.open(str(self.path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as exc:
            raise open_error(self.path, exc) from exc
        try:
            self._take(fd)
            self._fd = fd
            self._run = self._leased_to()
            self._write(stopping=False)
        except BaseException:
            self._fd = None
            os.close(fd)
            raise
        self._keep_lease()
        return self

    def _keep_lease(self) -> None:
        """A task may take longer than the run's lease lasts: it is kept as long as the lock is."""
        home = self.path.parent
        ttl = renew(home)
        if not ttl:
            return
        end = self._end = threading.Event()

        def keep() -> None:
            while not end.wait(min(ttl / 3.0, _RENEWAL_S)):
                renew(home)

        threading.Thread(target=keep, name="lease", daemon=True).start()

    def _take(self, fd: int) -> None:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            except OSError as exc:
                raise LockError(f"{self.path} cannot be locked: {exc.strerror or exc}") from exc
            holder = read_json(fd)
            if not holder:
                patience = min(_UNNAMED_WAIT_S, self.orphan_wait_s)
            else:
                gone = _is_orphan(holder) or self._has_lost_the_host(holder)
                patience = self.orphan_wait_s if gone else 0.0
            if time.monotonic() - started >= patience:
                pid = holder.get("pid", "PID")
                raise Locked(
                    f"{self.path.parent} is in use by {_describe(holder)}:"
                    f" wait until it ends, or stop it with 'kill {pid}', and run again",
                    holder,
                )
            time.sleep(_POLL_S)

    def _has_lost_the_host(self, holder: Mapping[str, Any]) -> bool:
        """Whether the holder's run had the host's lease, and has it no more: its controller may live elsewhere."""
        run = holder.get("run")
        return bool(run) and self._leased_to() != run

    def _leased_to(self) -> str:
        return str(RunLease(self.path.parent).read().get("run_id") or "")

    def _write(self, *, stopping: bool) -> None:
        if self._fd is None:
            return
        pid = os.getpid()
        holder = {
            "pid": pid,
            "starttime": pid_starttime(pid),
            "ancestors": ancestors(pid),
            "host": socket.gethostname(),
            "what": self.what,
            "since": utc_now(),
            # As it was when the lock was taken: meanwhile another run may have got the host.
            "run": self._run,
            "stopping": stopping,
        }
        try:
            write_json(self._fd, holder)
        except OSError as exc:
            # The name only helps others; on a full disk a server must still be stopped and removed.
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise open_error(self.path, exc) from exc

    def mark_stopping(self) -> None:
        """Tells a run that comes meanwhile that this one is only cleaning up."""
        self._write(stopping=True)

    def release(self) -> None:
        if self._fd is None:
            return
        self._end.set()
        fd, self._fd = self._fd, None
        try:
            os.ftruncate(fd, 0)
        except OSError:
            pass
        os.close(fd)

    def __enter__(self) -> HostLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
