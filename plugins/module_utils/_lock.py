# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps two runs apart: a lock for one task on one host, and a lease for one whole run.

Private to the collection.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Union

PathLike = Union[str, "os.PathLike[str]"]

LOCK_NAME = ".lock"
LEASE_NAME = "run/lease.json"

# How long a lock whose holder is already going away is waited for.
ORPHAN_WAIT_S = 10.0
# A holder writes its name right after it has taken the lock; until then the file says nothing.
_UNNAMED_WAIT_S = 0.5
_POLL_S = 0.05


class LockError(Exception):
    """The lock or the lease could not be used at all (directory missing, read-only, not ours)."""


class Locked(LockError):
    """Somebody else holds it. ``holder`` is what the holder wrote about itself."""

    def __init__(self, message: str, holder: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.holder: dict[str, Any] = dict(holder)


def utc_now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def pid_starttime(pid: int) -> int | None:
    """The start time of a live process in clock ticks since boot; None when there is no such process.

    A process id alone does not name a process: ids are used again. A zombie counts as gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name may hold spaces and parentheses: fields are counted from its closing one.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X", "x"):
        return None
    return int(fields[19])


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def ancestors(pid: int) -> list[tuple[int, int]]:
    """(pid, start time) of every ancestor below init, nearest first."""
    chain: list[tuple[int, int]] = []
    parent = _parent_of(pid)
    while parent is not None and parent > 1 and len(chain) < 64:
        started = pid_starttime(parent)
        if started is None:
            break
        chain.append((parent, started))
        parent = _parent_of(parent)
    return chain


def machine_id() -> str:
    """What tells this machine from others, and this boot from earlier ones where there is no machine id."""
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            text = Path(name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if text:
            return text
    return socket.gethostname()


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


def _open_error(path: Path, exc: OSError) -> LockError:
    parent = path.parent
    if exc.errno == errno.ENOENT:
        return LockError(f"{parent} does not exist: create it, or correct trtllm_home")
    if exc.errno == errno.EROFS:
        return LockError(f"{parent} is on a read-only file system: remount it, or choose another trtllm_home")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return LockError(
            f"{path} cannot be written by uid {os.geteuid()}: give it to the service user, or run as its owner"
        )
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return LockError(f"{parent}: no space left on the file system: free some")
    return LockError(f"{path} cannot be opened: {exc.strerror or exc}")


class HostLock:
    """``with HostLock(home, "building engine 0123"):`` one at a time below this home.

    A busy lock raises Locked at once; only when its holder's run is visibly gone is it waited for.
    """

    def __init__(self, home: PathLike, what: str, *, orphan_wait_s: float = ORPHAN_WAIT_S) -> None:
        self.path = Path(home) / LOCK_NAME
        self.what = what
        self.orphan_wait_s = orphan_wait_s
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def acquire(self) -> HostLock:
        try:
            fd = os.open(str(self.path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as exc:
            raise _open_error(self.path, exc) from exc
        try:
            self._take(fd)
            self._fd = fd
            self._write(stopping=False)
        except BaseException:
            self._fd = None
            os.close(fd)
            raise
        return self

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
            holder = _read_json(fd)
            if not holder:
                patience = min(_UNNAMED_WAIT_S, self.orphan_wait_s)
            else:
                patience = self.orphan_wait_s if _is_orphan(holder) else 0.0
            if time.monotonic() - started >= patience:
                pid = holder.get("pid", "PID")
                raise Locked(
                    f"{self.path.parent} is in use by {_describe(holder)}:"
                    f" wait until it ends, or stop it with 'kill {pid}', and run again",
                    holder,
                )
            time.sleep(_POLL_S)

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
            "stopping": stopping,
        }
        try:
            _write_json(self._fd, holder)
        except OSError as exc:
            # The name only helps others; on a full disk a server must still be stopped and removed.
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _open_error(self.path, exc) from exc

    def mark_stopping(self) -> None:
        """Tells a run that comes meanwhile that this one is only cleaning up."""
        self._write(stopping=True)

    def release(self) -> None:
        if self._fd is None:
            return
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


def _read_json(fd: int) -> dict[str, Any]:
    try:
        data = os.pread(fd, 65536, 0)
        value = json.loads(data.decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(fd: int, value: Mapping[str, Any]) -> None:
    data = json.dumps(value, sort_keys=True).encode("utf-8") + b"\n"
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)


class RunLease:
    """One run at a time on a host, from its first task to its last, across many module calls.

    It is a record, not a lock: nothing holds a file open between tasks. So another run is refused only while the
    controller process that took the lease can be seen alive, which needs the controller to be this very machine;
    in every other case the newer run takes the lease over.
    """

    def __init__(self, home: PathLike) -> None:
        self.path = Path(home) / LEASE_NAME

    def read(self) -> dict[str, Any]:
        """The present lease; empty when there is none."""
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    @staticmethod
    def _alive(lease: Mapping[str, Any]) -> bool:
        pid = lease.get("controller_pid")
        if lease.get("controller_machine_id") != machine_id() or not isinstance(pid, int):
            return False
        started = pid_starttime(pid)
        return started is not None and started == lease.get("controller_pid_starttime")

    def blocked_by(self, run_id: str) -> str | None:
        """The message with which acquire would refuse this run now; None when it would not. Writes nothing."""
        lease = self.read()
        return self._refusal(lease, run_id)

    def _refusal(self, lease: Mapping[str, Any], run_id: str) -> str | None:
        if not lease or lease.get("run_id") == run_id or not self._alive(lease):
            return None
        pid, who, since = (lease.get(name, "?") for name in ("controller_pid", "who", "since"))
        return (
            f"{self.path.parent.parent} is being deployed by another run: pid {pid} ({who}, since {since});"
            f" wait until it ends, or stop it with 'kill {pid}'"
        )

    def acquire(
        self,
        run_id: str,
        *,
        controller_machine_id: str,
        controller_pid: int,
        controller_pid_starttime: int | None,
        who: str,
    ) -> dict[str, Any]:
        """Takes or keeps the lease; returns the lease that it replaced (empty when none). Locked when refused."""
        record = {
            "run_id": run_id,
            "controller_machine_id": controller_machine_id,
            "controller_pid": controller_pid,
            "controller_pid_starttime": controller_pid_starttime,
            "who": who,
            "since": utc_now(),
        }

        def change(fd: int) -> dict[str, Any]:
            old = _read_json(fd)
            refusal = self._refusal(old, run_id)
            if refusal is not None:
                raise Locked(refusal, old)
            if old.get("run_id") == run_id:
                record["since"] = old.get("since", record["since"])
            _write_json(fd, record)
            os.fsync(fd)
            return {} if old.get("run_id") == run_id else old

        try:
            self.path.parent.mkdir(mode=0o750, exist_ok=True)
        except OSError as exc:
            raise _open_error(self.path.parent, exc) from exc
        return self._locked(change, os.O_CREAT)

    def release(self, run_id: str) -> bool:
        """Gives the lease back; False when this run does not hold it (any more)."""

        def change(fd: int) -> dict[str, Any]:
            old = _read_json(fd)
            if old.get("run_id") != run_id:
                return {}
            os.unlink(str(self.path))
            return old

        try:
            return bool(self._locked(change, 0))
        except LockError:
            if not self.path.exists():
                return False
            raise

    def _locked(self, change: Callable[[int], dict[str, Any]], flags: int) -> dict[str, Any]:
        while True:
            try:
                fd = os.open(str(self.path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o640)
            except OSError as exc:
                raise _open_error(self.path, exc) from exc
            try:
                # Held for the few lines of change() only, so this wait is short.
                fcntl.flock(fd, fcntl.LOCK_EX)
                try:
                    same = os.stat(str(self.path)).st_ino == os.fstat(fd).st_ino
                except FileNotFoundError:
                    same = False
                if same:
                    try:
                        return change(fd)
                    except OSError as exc:
                        raise _open_error(self.path, exc) from exc
            finally:
                os.close(fd)
