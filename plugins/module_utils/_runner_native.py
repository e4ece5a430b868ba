# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a tool as a child process.

Private to the collection.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import (
    CHUNK,
    GRACE_S,
    POLL_MS,
    LoggedRun,
    NotStarted,
    OnLine,
    PathLike,
    RunResult,
    TimedOut,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner_cancel import Cancellation

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None


def _parents() -> dict[int, int]:
    """pid -> parent pid of every process, zombies left out."""
    table: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        if len(fields) > 1 and fields[0] not in ("Z", "X"):
            table[int(entry)] = int(fields[1])
    return table


def _below(table: Mapping[int, int], roots: set[int]) -> set[int]:
    """The roots that live, and everything below them."""
    found: set[int] = set(roots)
    grew = True
    while grew:
        more = {pid for pid, parent in table.items() if parent in found and pid not in found}
        found |= more
        grew = bool(more)
    return {pid for pid in found if pid in table}


def _kill(pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


class NativeRunner:
    """Runs a tool as a child process of this module, in a session of its own."""

    def __init__(self, cancellation: Cancellation | None = None, *, grace_s: float = GRACE_S) -> None:
        self.cancellation = cancellation
        self.grace_s = grace_s
        self._others: set[int] = set()

    def sweep(self) -> None:
        """Nothing to do: the kernel ends a tool with its module."""

    def run(
        self,
        argv: Sequence[str],
        *,
        log_file: PathLike,
        env: Mapping[str, str] | None = None,
        cwd: PathLike | None = None,
        timeout: float | None = None,
        on_line: OnLine | None = None,
        reads: Sequence[PathLike] = (),
        writes: Sequence[PathLike] = (),
    ) -> RunResult:
        if self.cancellation is not None:
            self.cancellation.check()
        with LoggedRun(argv, log_file, env, on_line) as log:
            prctl = _prctl()
            self._others = {pid for pid, parent in _parents().items() if parent == os.getpid()}
            if prctl is not None:
                # Grandchildren that outlive their parent then become ours, where they can be found and ended.
                prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                proc = self._start(argv, env, cwd, prctl)
                try:
                    rc = self._follow(proc, log, log.started + timeout if timeout else None, timeout or 0.0)
                except BaseException:
                    self._end(proc)
                    raise
                finally:
                    if proc.stdout is not None:
                        proc.stdout.close()
            finally:
                if prctl is not None:
                    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return log.result(rc)

    @staticmethod
    def _start(
        argv: Sequence[str], env: Mapping[str, str] | None, cwd: PathLike | None, prctl: Callable[..., int] | None
    ) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def in_child() -> None:
            # Also when this module is killed without a chance to clean up must the tool not go on.
            if prctl is not None:
                prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(127)

        environ = dict(os.environ)
        environ.setdefault("PYTHONUNBUFFERED", "1")
        environ.update({name: str(value) for name, value in (env or {}).items()})
        try:
            return subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=None if cwd is None else str(cwd),
                env=environ,
                start_new_session=True,
                preexec_fn=in_child,
                bufsize=0,
            )
        except OSError as exc:
            missing = exc.filename if exc.filename is not None else argv[0]
            raise NotStarted(
                f"{missing} cannot be started ({exc.strerror or exc}): check the path and that it is executable"
            ) from exc

    def _follow(self, proc: subprocess.Popen[bytes], log: LoggedRun, deadline: float | None, timeout: float) -> int:
        if proc.stdout is None:
            raise AssertionError("the process was started with a pipe")
        out = proc.stdout.fileno()
        poller = select.poll()
        poller.register(out, select.POLLIN)
        exited_at: float | None = None
        reading = True
        while reading:
            if poller.poll(POLL_MS):
                data = os.read(out, CHUNK)
                if data:
                    log.feed(data)
                else:
                    reading = False
            if self.cancellation is not None:
                self.cancellation.check()
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimedOut(f"did not end within {timeout:g} s: raise timeout, or see why it is slow")
            if reading and proc.poll() is not None:
                # The tool has ended while something that it left behind keeps its output open.
                exited_at = exited_at if exited_at is not None else now
                reading = now - exited_at < 1.0
        while proc.poll() is None:
            # It closed its output early and goes on.
            if self.cancellation is not None:
                self.cancellation.check()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimedOut(f"did not end within {timeout:g} s: raise timeout, or see why it is slow")
            time.sleep(POLL_MS / 4000.0)
        rc = proc.wait()
        self._end(proc)
        return rc

    def _end(self, proc: subprocess.Popen[bytes]) -> None:
        """Ends everything that the tool started: its process group, its descendants, and orphans that came to us."""
        seen: set[int] = set()
        for number, patience in ((signal.SIGTERM, self.grace_s), (signal.SIGKILL, 5.0)):
            living = self._family(proc)
            if not living:
                break
            _kill(living, number)
            until = time.monotonic() + patience
            while living and time.monotonic() < until:
                seen |= living
                time.sleep(0.02)
                proc.poll()
                living = self._family(proc)
        proc.poll()
        # Orphans taken over as subreaper have nobody else to wait for them.
        for pid in seen - {proc.pid}:
            try:
                os.waitpid(pid, os.WNOHANG)
            except OSError:
                pass

    def _family(self, proc: subprocess.Popen[bytes]) -> set[int]:
        table = _parents()
        roots = {pid for pid, parent in table.items() if parent == os.getpid()} - self._others
        for pid in table:
            try:
                if os.getpgid(pid) == proc.pid:
                    roots.add(pid)
            except OSError:
                pass
        return _below(table, roots)
