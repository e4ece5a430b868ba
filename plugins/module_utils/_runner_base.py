# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every runner has in common: its interface, its failures, and the log that it writes.

Private to the collection.
"""

from __future__ import annotations

import collections
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Callable, Protocol, Union

from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import describe_os_error
from ansible_collections.trtllm.serving.plugins.module_utils._lock import utc_now

PathLike = Union[str, "os.PathLike[str]"]
OnLine = Callable[[str], None]

TAIL_LINES = 200
GRACE_S = 5.0
POLL_MS = 200
CHUNK = 65536

_LINE_LIMIT = 65536
_MASK = "********"
_SECRET_NAME = re.compile(r"token(?!iz)|secret|passw|credential|api_?key|private_?key|access_?key", re.I)
_FILE_NAME = re.compile(r"_(file|path|dir)$", re.I)


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
    # Why it was ended and what to do, where the runner knows it better than the tool's own words.
    cause: str = ""
    remedy: str = ""


class Runner(Protocol):
    """Runs argv to its end, streaming what it prints to log_file.

    Raises a RunnerError, but only after nothing of the tool runs any more, so that the caller may remove what the tool
    was writing. A return code other than 0 is a result, not an exception. NoSpace and the like mean the log.

    A runner that shuts the tool in lets it see cwd and ``writes`` to write, ``reads`` to read, and nothing else. Those
    to write were made for this run, and are given to whom the tool runs as.
    """

    def sweep(self) -> None:
        """Ends what a run that was killed outright has left running. Only for the holder of the host's lock."""

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
    ) -> RunResult: ...


def secret_values(env: Mapping[str, str] | None) -> list[str]:
    """The values that must never be shown, longest first."""
    if not env:
        return []
    found = {str(value) for name, value in env.items() if _SECRET_NAME.search(name) and len(str(value)) >= 4}
    return sorted(found, key=len, reverse=True)


def secret_names(env: Mapping[str, str] | None) -> list[str]:
    """The variables that hold a secret themselves; one that names a file with it does not."""
    return sorted(
        name
        for name, value in (env or {}).items()
        if value and _SECRET_NAME.search(name) and not _FILE_NAME.search(name)
    )


def mask(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _MASK)
    return text


class LineSink:
    """Cuts a byte stream into lines, hides secrets, writes the log and keeps the last lines: bounded memory."""

    def __init__(self, fd: int, secrets: Sequence[str], on_line: OnLine | None) -> None:
        self.fd = fd
        self.secrets = [secret.encode("utf-8") for secret in secrets]
        self.keep_back = max([len(secret) for secret in self.secrets] or [0])
        self.on_line = on_line
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self.line_open = False
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
        write_all(self.fd, data)
        self.line_open = not data.endswith(b"\n")
        for line in re.split(r"[\r\n]+", data.decode("utf-8", errors="replace")):
            if line.strip():
                self.tail.append(line[:4096])
                if self.on_line is not None:
                    self.on_line(line)

    def close(self) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class LoggedRun:
    """The log of one run, from the line with the command to the line with the time it took."""

    def __init__(
        self,
        argv: Sequence[str],
        log_file: PathLike,
        env: Mapping[str, str] | None,
        on_line: OnLine | None,
    ) -> None:
        self.secrets = secret_values(env)
        self.shown = tuple(mask(str(part), self.secrets) for part in argv)
        self.path = Path(log_file)
        self.started = time.monotonic()
        self.duration_s = 0.0
        self._on_line = on_line

    def __enter__(self) -> LoggedRun:
        self._fd = _open_log(self.path)
        self.sink = LineSink(self._fd, self.secrets, self._on_line)
        try:
            self._note("{}\n# {}".format(utc_now(), " ".join(self.shown)))
        except OSError as exc:
            os.close(self._fd)
            raise describe_os_error(exc, self.path.parent) from exc
        return self

    def feed(self, data: bytes) -> None:
        """What the tool printed."""
        try:
            self.sink.feed(data)
        except OSError as exc:
            raise describe_os_error(exc, self.path.parent) from exc

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.duration_s = time.monotonic() - self.started
        try:
            self.sink.close()
            if self.sink.line_open:
                write_all(self._fd, b"\n")
            self._note(f"ended after {self.duration_s:.1f} s")
        except OSError as error:
            if kind is None:
                raise describe_os_error(error, self.path.parent) from error
        finally:
            os.close(self._fd)

    def _note(self, text: str) -> None:
        write_all(self._fd, f"# {text}\n".encode("utf-8", errors="replace"))

    def result(self, rc: int, cause: str = "", remedy: str = "") -> RunResult:
        """What to return once the run has ended."""
        return RunResult(
            self.shown, rc, round(self.duration_s, 3), str(self.path), tuple(self.sink.tail), cause, remedy
        )


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
