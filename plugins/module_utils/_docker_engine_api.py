# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running Docker Engine: its API over the socket, its process, its unit, and what is still pending for it.

Standard library only: it is used before the Docker SDK is on the host. Private to the collection.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._daemon_config import assignments, exec_start
from ansible_collections.trtllm.serving.plugins.module_utils._lock import pid_starttime, utc_now

SOCKET = "/var/run/docker.sock"
PID_FILE = "/var/run/docker.pid"
MARKER = "/run/trtllm-docker-restart.json"
UNIT = "docker.service"
# What is known of the file that dockerd was started with, instead of a copy of it.
NO_FILE = "none"
UNKNOWN = ""

_POLL_S = 0.1


class EngineError(Exception):
    """One line that says what is wrong with the engine, and what to do."""


# --- commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    rc: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return " ".join((self.err.strip() or self.out.strip()).split())


def run(argv: Sequence[str], timeout: float = 60) -> Done:
    """A command to its end; 127 when it is not there, 124 when it took too long."""
    # Answers are read by programs: in the host's own language they would not be understood.
    env = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C"}
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout, env=env
        )
    except FileNotFoundError:
        return Done(127, "", "%s: not found" % argv[0])
    except OSError as exc:
        return Done(126, "", "%s: %s" % (argv[0], exc.strerror or exc))
    except subprocess.TimeoutExpired:
        return Done(124, "", "%s: no answer within %d s" % (" ".join(argv), timeout))
    return Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


# --- the API ------------------------------------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """Docker Engine behind its socket."""

    def __init__(self, path: str = SOCKET, timeout: float = 10) -> None:
        self.path = path
        self.timeout = timeout

    @contextlib.contextmanager
    def _response(self, target: str, timeout: float) -> Any:
        connection = _UnixConnection(self.path, timeout)
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            if answer.status != 200:
                raise EngineError("Docker Engine at %s: GET %s: %d %s" % (
                    self.path, target, answer.status, answer.read(300).decode("utf-8", "replace").strip()))  # fmt: skip
            yield answer
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise EngineError(
                "Docker Engine does not answer at %s: %s; see 'systemctl status docker'" % (self.path, reason)
            ) from exc
        finally:
            connection.close()

    def get(self, target: str) -> Any:
        with self._response(target, self.timeout) as answer:
            return json.loads(answer.read())

    def info(self) -> dict[str, Any]:
        return dict(self.get("/info"))

    def answers(self) -> bool:
        try:
            with self._response("/_ping", self.timeout):
                return True
        except EngineError:
            return False

    def wait(self, seconds: float) -> None:
        """Until it answers; EngineError after that many seconds."""
        deadline = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > deadline:
                raise EngineError("Docker Engine does not answer at %s after %d s" % (self.path, seconds))
            time.sleep(_POLL_S)

    def reloaded_since(self, since: float, seconds: float) -> dict[str, str] | None:
        """The settings that the engine says it took over by a reload, or None when it did not within that time."""
        wanted = urllib.parse.quote(json.dumps({"type": ["daemon"], "event": ["reload"]}))
        target = "/events?since=%.9f&until=%.9f&filters=%s" % (since, time.time() + seconds, wanted)
        try:
            with self._response(target, seconds + self.timeout) as answer:
                line = answer.readline()
        except EngineError:
            return None
        if not line.strip():
            return None
        attributes = (json.loads(line).get("Actor") or {}).get("Attributes") or {}
        return {str(name): str(value) for name, value in attributes.items()}


# --- the process --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A living dockerd: the id alone does not name it, ids are used again."""

    pid: int
    starttime: int
    argv: tuple[str, ...]
    executable: str


def process(pid_file: str = PID_FILE) -> Process | None:
    """The dockerd that wrote this file, while it lives."""
    try:
        pid = int(Path(pid_file).read_text("ascii").strip())
        argv = Path("/proc/%d/cmdline" % pid).read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
        executable = os.readlink("/proc/%d/exe" % pid)
    except (OSError, ValueError):
        return None
    started = pid_starttime(pid)
    # A file of before a power loss may name a process of somebody else.
    if started is None or "dockerd" not in os.path.basename(argv[0]) + os.path.basename(executable):
        return None
    return Process(pid, started, tuple(argv), executable)


# --- the unit -----------------------------------------------------------------------------------------------------


def systemd() -> bool:
    return os.path.isdir("/run/systemd/system")


@dataclass(frozen=True)
class Unit:
    """docker.service as systemd has it loaded."""

    argv: tuple[str, ...] = ()
    enabled: bool = False
    active: bool = False
    exists: bool = False


def unit(name: str = UNIT) -> Unit:
    if not systemd():
        return Unit()
    wanted = "ExecStart,Environment,EnvironmentFiles,ActiveState,UnitFileState,LoadState"
    shown = assignments_of(run(["systemctl", "show", name, "-p", wanted]).out)
    environment = assignments("\n".join(shown.get("Environment", "").split()))
    for entry in shown.get("EnvironmentFiles", "").split(" (ignore_errors=")[0].split():
        with contextlib.suppress(OSError):
            environment.update(assignments(Path(entry).read_text("utf-8", "replace")))
    return Unit(
        argv=tuple(exec_start(shown.get("ExecStart", ""), environment)),
        enabled=shown.get("UnitFileState") in ("enabled", "enabled-runtime", "alias"),
        active=shown.get("ActiveState") in ("active", "reloading"),
        exists=shown.get("LoadState") == "loaded",
    )


def assignments_of(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {pair[0]: pair[2] for pair in pairs}


def command_line(running: Process | None, loaded: Unit) -> list[str]:
    """What dockerd is and will be started with."""
    return [*(running.argv if running is not None else ()), *(loaded.argv[1:] if running is not None else loaded.argv)]


def journal_error(since: float) -> str:
    """dockerd's own last complaint, where there is a journal."""
    if not systemd():
        return ""
    done = run(["journalctl", "-u", UNIT, "--since", "@%d" % since, "-n", "50", "-o", "cat", "--no-pager"], 10)
    lines = [line.strip() for line in done.out.splitlines()]
    bad = [line for line in lines if "level=error" in line or "level=fatal" in line or "failed to start daemon" in line
           or "unable to configure" in line]  # fmt: skip
    return bad[-1] if bad else ""


# --- what is pending ----------------------------------------------------------------------------------------------


@dataclass
class Pending:
    """What the running dockerd does not follow yet; worth nothing once that very process has ended."""

    pid: int = 0
    starttime: int = 0
    reasons: list[str] = field(default_factory=list)
    reload: list[str] = field(default_factory=list)
    # The path of a copy of the file with which this dockerd was started, or NO_FILE, or UNKNOWN.
    before: str = UNKNOWN
    since: str = ""


def read_pending(path: str, running: Process | None) -> Pending | None:
    """What is pending for this dockerd; None when nothing is, or when it was restarted since."""
    if running is None:
        return None
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        pending = Pending(**{name: data[name] for name in Pending.__dataclass_fields__ if name in data})
    except (OSError, ValueError, TypeError):
        return None
    if (pending.pid, pending.starttime) != (running.pid, running.starttime):
        return None
    return pending if pending.reasons or pending.reload else None


def write_pending(path: str, pending: Pending | None) -> None:
    if pending is None or not (pending.reasons or pending.reload):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    pending.since = pending.since or utc_now()
    write_file(path, json.dumps(asdict(pending), indent=1) + "\n", 0o600)


def write_file(path: str, text: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Beside, synced, then renamed: there is the old file or the new one at any moment."""
    partial = "%s.partial" % path
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(stream.fileno(), *owner)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def reasons_of(pending: Pending | None) -> list[str]:
    return list(pending.reasons) if pending is not None else []


def socket_of(host: str, environment: Mapping[str, str]) -> str:
    """The path of a unix:// address, of DOCKER_HOST, or the usual one."""
    address = host or environment.get("DOCKER_HOST", "") or "unix://" + SOCKET
    if not address.startswith("unix://"):
        raise EngineError("Docker Engine's address is '%s', wanted is unix:///PATH: set docker_nvidia_host" % address)
    return address[len("unix://") :]
