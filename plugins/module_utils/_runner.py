# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one of upstream's tools to its end, or to the end of whoever asked for it.

Callers depend on the Runner interface only: where the tool runs is the runner's business.
Private to the collection.
"""

from __future__ import annotations

import collections
import ctypes
import os
import re
import select
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Callable, Protocol, Union

from ansible_collections.trtllm.serving.plugins.module_utils._lock import ancestors, pid_starttime, utc_now

PathLike = Union[str, "os.PathLike[str]"]
OnLine = Callable[[str], None]

TAIL_LINES = 200
GRACE_S = 5.0

_POLL_MS = 200
_CHUNK = 65536
_LINE_LIMIT = 65536
_MASK = "********"
_SECRET_NAME = re.compile(r"token|secret|passw|credential|api_?key|private_?key|access_?key", re.I)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class RunnerError(Exception):
    """The tool could not be run to its end."""


class NotStarted(RunnerError):
    """The tool could not be started: not there, or not executable."""


class Cancelled(RunnerError):
    """Whoever asked for this run is gone or wants it stopped; every process of the tool has ended."""


class TimedOut(RunnerError):
    """The tool took longer than allowed; every process of it has ended."""


@dataclass(frozen=True)
class RunResult:
    argv: tuple[str, ...]
    rc: int
    duration_s: float
    log_file: str
    tail: tuple[str, ...]


class Runner(Protocol):
    """Runs argv to its end, streaming what it prints to log_file.

    Raises NotStarted, Cancelled or TimedOut, each only after nothing of the tool runs any more, so that the caller
    may remove what the tool was writing. A return code other than 0 is a result, not an exception.
    """

    def run(
        self,
        argv: Sequence[str],
        *,
        log_file: PathLike,
        env: Mapping[str, str] | None = None,
        cwd: PathLike | None = None,
        timeout: float | None = None,
        on_line: OnLine | None = None,
    ) -> RunResult: ...


def secret_values(env: Mapping[str, str] | None) -> list[str]:
    """The values that must never be shown, longest first."""
    if not env:
        return []
    found = {str(value) for name, value in env.items() if _SECRET_NAME.search(name) and len(str(value)) >= 4}
    return sorted(found, key=len, reverse=True)


def mask(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _MASK)
    return text


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


class _LineSink:
    """Cuts a byte stream into lines, hides secrets, writes the log and keeps the last lines: bounded memory."""

    def __init__(self, fd: int, secrets: Sequence[str], on_line: OnLine | None) -> None:
        self.fd = fd
        self.secrets = [secret.encode("utf-8") for secret in secrets]
        self.keep_back = max([len(secret) for secret in self.secrets] or [0])
        self.on_line = on_line
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        self._rest += data
        end = max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r")) + 1
        if end == 0 and len(self._rest) > _LINE_LIMIT + self.keep_back:
            # A line without an end: pass it on in pieces, cut where no secret can straddle the cut.
            end = len(self._rest) - self.keep_back
            for secret in self.secrets:
                at = self._rest.rfind(secret, max(0, end - len(secret)))
                if 0 <= at < end:
                    end = at
        if end:
            self._emit(self._rest[:end])
            self._rest = self._rest[end:]

    def _emit(self, data: bytes) -> None:
        for secret in self.secrets:
            data = data.replace(secret, _MASK.encode("ascii"))
        _write_all(self.fd, data)
        for line in re.split(r"[\r\n]+", data.decode("utf-8", errors="replace")):
            if line.strip():
                self.tail.append(line[:4096])
                if self.on_line is not None:
                    self.on_line(line)

    def close(self) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class NativeRunner:
    """Runs a tool as a child process of this module, in a session of its own."""

    def __init__(self, cancellation: Cancellation | None = None, *, grace_s: float = GRACE_S) -> None:
        self.cancellation = cancellation
        self.grace_s = grace_s
        self._others: set[int] = set()

    def run(
        self,
        argv: Sequence[str],
        *,
        log_file: PathLike,
        env: Mapping[str, str] | None = None,
        cwd: PathLike | None = None,
        timeout: float | None = None,
        on_line: OnLine | None = None,
    ) -> RunResult:
        if self.cancellation is not None:
            self.cancellation.check()
        secrets = secret_values(env)
        shown = tuple(mask(str(part), secrets) for part in argv)
        path = Path(log_file)
        started = time.monotonic()
        log = self._open_log(path)
        try:
            _write_all(log, ("# {}\n# {}\n".format(utc_now(), " ".join(shown))).encode("utf-8", errors="replace"))
            sink = _LineSink(log, secrets, on_line)
            prctl = _prctl()
            self._others = {pid for pid, parent in _parents().items() if parent == os.getpid()}
            if prctl is not None:
                # Grandchildren that outlive their parent then become ours, where they can be found and ended.
                prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            proc = self._start(argv, env, cwd, prctl)
            try:
                rc = self._follow(proc, sink, started + timeout if timeout else None, timeout or 0.0)
            except BaseException:
                self._end(proc)
                raise
            finally:
                if proc.stdout is not None:
                    proc.stdout.close()
                if prctl is not None:
                    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
                sink.close()
                duration = time.monotonic() - started
                _write_all(log, (f"# ended after {duration:.1f} s\n").encode("ascii"))
        finally:
            os.close(log)
        return RunResult(shown, rc, round(duration, 3), str(path), tuple(sink.tail))

    @staticmethod
    def _open_log(path: Path) -> int:
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            fd = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            os.fchmod(fd, 0o640)
        except OSError as exc:
            raise NotStarted(
                f"the log {path} cannot be written ({exc.strerror or exc}):"
                f" choose a directory that uid {os.geteuid()} may write"
            ) from exc
        return fd

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

    def _follow(self, proc: subprocess.Popen[bytes], sink: _LineSink, deadline: float | None, timeout: float) -> int:
        if proc.stdout is None:
            raise AssertionError("the process was started with a pipe")
        out = proc.stdout.fileno()
        poller = select.poll()
        poller.register(out, select.POLLIN)
        exited_at: float | None = None
        reading = True
        while reading:
            if poller.poll(_POLL_MS):
                data = os.read(out, _CHUNK)
                if data:
                    sink.feed(data)
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
            time.sleep(_POLL_MS / 4000.0)
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
