# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host belongs to one run at a time: its lease.

Private to the collection.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Union

from ansible_collections.trtllm.serving.plugins.module_utils._process import (
    machine_id,
    pid_namespace,
    pid_starttime,
    utc_now,
)

PathLike = Union[str, "os.PathLike[str]"]

LEASE_NAME = "run/lease.json"
# Seconds that a lease counts after its run was last heard of on the host.
TTL_S = 900.0
# A clock that was set back must not make a lease last for ever.
_CLOCK_SLACK_S = 300.0


class LockError(Exception):
    """The lock or the lease could not be used at all (directory missing, read-only, not ours)."""


class Locked(LockError):
    """Somebody else holds it. ``holder`` is what the holder wrote about itself."""

    def __init__(self, message: str, holder: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.holder: dict[str, Any] = dict(holder)


def open_error(path: Path, exc: OSError) -> LockError:
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


def read_json(fd: int) -> dict[str, Any]:
    try:
        data = os.pread(fd, 65536, 0)
        value = json.loads(data.decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(fd: int, value: Mapping[str, Any]) -> None:
    data = json.dumps(value, sort_keys=True).encode("utf-8") + b"\n"
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))


class RunLease:
    """One run at a time on a host, from its first task to its last, across many module calls.

    It is a record, not a lock: nothing holds a file open between tasks. Whether its run still lives is known where the
    controller is this very machine. Of another one it counts until it expires by this host's clock, and every call of
    the run that changes something here puts that off.
    """

    def __init__(self, home: PathLike) -> None:
        self.path = Path(home) / LEASE_NAME

    def read(self) -> dict[str, Any]:
        """The record as it is, also of a run that has given the host back; empty when there is none."""
        try:
            fd = os.open(str(self.path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return {}
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            return read_json(fd)
        except OSError:
            return {}
        finally:
            os.close(fd)

    @staticmethod
    def _here(lease: Mapping[str, Any]) -> bool:
        namespace = lease.get("controller_pid_namespace")
        return lease.get("controller_machine_id") == machine_id() and namespace in (None, "", pid_namespace())

    @classmethod
    def alive(cls, lease: Mapping[str, Any]) -> bool:
        """Whether the run of a lease has to be reckoned with."""
        pid, expires = lease.get("controller_pid"), lease.get("expires")
        if not lease or lease.get("released"):
            return False
        if cls._here(lease):
            if not isinstance(pid, int):
                return False
            started = pid_starttime(pid)
            return started is not None and started == lease.get("controller_pid_starttime")
        if not isinstance(expires, (int, float)):
            return False
        left = expires - time.time()
        return 0 < left <= float(lease.get("ttl") or TTL_S) + _CLOCK_SLACK_S

    @classmethod
    def known_dead(cls, lease: Mapping[str, Any]) -> bool:
        """Whether the run of a lease is seen to be gone, which only the machine that it ran on can see."""
        return bool(lease) and cls._here(lease) and not cls.alive(lease)

    @staticmethod
    def holder(lease: Mapping[str, Any]) -> str:
        return "pid {} ({}, since {})".format(*(lease.get(name, "?") for name in ("controller_pid", "who", "since")))

    def blocked_by(self, run_id: str, gone: str = "") -> str | None:
        """The message with which acquire would refuse this run now; None when it would not. Writes nothing.

        ``gone`` is a run that its own machine, the controller, has seen to be gone; a host cannot see that.
        """
        return self._refusal(self.read(), run_id, gone)

    def fenced_off(self, run_id: str) -> str | None:
        """Why this run may no longer change the host: another one has had it since; None when it may.

        A run that has no lease is not known, and only blocked by one that is alive.
        """
        lease = self.read()
        refusal = self._refusal(lease, run_id)
        if refusal is not None or not run_id or not lease or lease.get("run_id") == run_id:
            return refusal
        return (
            f"{self.path.parent.parent} was deployed by another run since this one began: {self.holder(lease)};"
            f" run again to see what it has left"
        )

    def _refusal(self, lease: Mapping[str, Any], run_id: str, gone: str = "") -> str | None:
        if lease.get("run_id") in (run_id, gone or run_id) or not self.alive(lease):
            return None
        pid = lease.get("controller_pid")
        what = f"{self.path.parent.parent} is being deployed by another run: {self.holder(lease)};"
        if self._here(lease):
            return f"{what} wait until it ends, or stop it with 'kill {pid}'"
        # By this host's clock.
        left = max(1, round(float(lease["expires"]) - time.time()))
        return (
            f"{what} wait until it ends, or until nothing is heard of it for {left} s; when it is surely dead, take the"
            " host over with -e triton_pool_take_over=true"
        )

    def acquire(
        self,
        run_id: str,
        *,
        controller_machine_id: str,
        controller_pid: int,
        controller_pid_starttime: int | None,
        who: str,
        controller_pid_namespace: str = "",
        ttl: float = TTL_S,
        take_over: bool = False,
        gone: str = "",
    ) -> dict[str, Any]:
        """Takes or keeps the lease; returns the living one that it replaced (empty when none). Locked when refused."""
        record = {
            "run_id": run_id,
            "controller_machine_id": controller_machine_id,
            "controller_pid": controller_pid,
            "controller_pid_starttime": controller_pid_starttime,
            "controller_pid_namespace": controller_pid_namespace,
            "who": who,
            "since": utc_now(),
            "ttl": ttl,
            "expires": round(time.time() + ttl, 3),
        }

        def change(fd: int) -> dict[str, Any]:
            old = read_json(fd)
            refusal = self._refusal(old, run_id, gone)
            if refusal is not None and not take_over:
                raise Locked(refusal, old)
            if old.get("run_id") == run_id:
                record["since"] = old.get("since", record["since"])
            write_json(fd, record)
            os.fsync(fd)
            return old if refusal is not None else {}

        try:
            self.path.parent.mkdir(mode=0o750, exist_ok=True)
        except OSError as exc:
            raise open_error(self.path.parent, exc) from exc
        return self._locked(change, os.O_CREAT)

    def renew(self) -> float:
        """Puts off the end of a lease that still counts, whosever it is; the seconds that it then has, 0 without one.

        Whoever changes something on a host that is leased does so for the run that has it.
        """
        kept: list[float] = []

        def change(fd: int) -> dict[str, Any]:
            lease = read_json(fd)
            if lease and not lease.get("released") and (self._here(lease) or self.alive(lease)):
                ttl = float(lease.get("ttl") or TTL_S)
                write_json(fd, {**lease, "expires": round(time.time() + ttl, 3)})
                kept.append(ttl)
            return {}

        try:
            self._locked(change, 0)
        except (LockError, ValueError, TypeError):
            return 0.0
        return kept[0] if kept else 0.0

    def release(self, run_id: str) -> bool:
        """Gives the lease back; False when this run does not hold it (any more).

        Its name stays: so a run that was cut off and comes back sees that another one has had the host meanwhile.
        """

        def change(fd: int) -> dict[str, Any]:
            old = read_json(fd)
            if old.get("run_id") != run_id or old.get("released"):
                return {}
            write_json(fd, {**old, "released": utc_now()})
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
                raise open_error(self.path, exc) from exc
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
                        raise open_error(self.path, exc) from exc
            finally:
                os.close(fd)


def renew(home: PathLike) -> float:
    """For what runs long on a host: see RunLease.renew."""
    return RunLease(home).renew()
