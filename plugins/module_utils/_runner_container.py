# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a tool in a container of its own, which is gone when the run is.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import give_to, human, owner_of
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError, size_bytes
from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import (
    CHUNK,
    GRACE_S,
    POLL_MS,
    LoggedRun,
    NotStarted,
    OnLine,
    PathLike,
    RunnerError,
    RunResult,
    TimedOut,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner_cancel import Cancellation
from ansible_collections.trtllm.serving.plugins.module_utils._runner_settings import ContainerSettings, refuse_secrets

ROLE = "tool"

# One stream for both outputs, so that their order is kept; the shell is replaced by the tool.
_SHELL = ("/bin/sh", "-c", 'exec "$@" 2>&1', "sh")
_SHELL_FAILED = re.compile(r"^\S*sh: (?:line )?\d+: (?:exec: )?(.*)$")
# HOME because the service user has none in the image, USER because some packages ask for a name.
_ENVIRONMENT = {"HOME": "/tmp", "USER": "trtllm", "LOGNAME": "trtllm", "PYTHONUNBUFFERED": "1"}
_TMPFS = {"/tmp": "rw,exec,nosuid,nodev,mode=1777"}
_FRAME = 8
_QUIET_S = 2.0


class Lost(RunnerError):
    """The engine that ran the container is gone."""


class ContainerRunner:
    """Runs a tool in a container that sees nothing but what the tool needs, and no network."""

    def __init__(
        self,
        settings: ContainerSettings,
        home: PathLike,
        tool: str,
        key: str = "",
        cancellation: Cancellation | None = None,
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        self.settings = settings
        self.home = str(home)
        self.tool = tool
        self.key = key
        self.cancellation = cancellation
        self.grace_s = grace_s
        self._client: Any = None
        self._pid = 0

    @property
    def client(self) -> Any:
        if self._client is None:
            client = _containers.connect()
            url = str(client.api.base_url)
            if url != "http+docker://localhost" and not url.startswith("http://"):
                raise ContainerError(
                    f"the Docker Engine at {url} is not this host's own, whose paths the tool needs: unset DOCKER_HOST"
                )
            self._client = client
        return self._client

    def sweep(self) -> None:
        """Removes the containers of tools that worked below this home: only one may at a time, and it is this run."""
        for container in _containers.ours(self.client, self.home, ROLE):
            _containers.remove(container)

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
            try:
                container = self._create(argv, env or {}, cwd, reads, writes)
            except ContainerError as exc:
                raise NotStarted(str(exc)) from exc
            try:
                rc, happened = self._follow(container, log, timeout)
            except _containers.sdk("docker.errors").NotFound as exc:
                raise Lost("the container was removed while the tool ran: see who did, and run again") from exc
            except _containers.failures() as exc:
                raise Lost(_containers.explain(exc, "the Docker daemon went away while the tool ran")) from exc
            finally:
                self._end(container)
        said = _SHELL_FAILED.match(log.sink.tail[-1]) if rc in (126, 127) and log.sink.tail else None
        if said is not None:
            raise NotStarted(
                f"{argv[0]} cannot be started in {self.settings.image} ({said.group(1)}):"
                " check the path, and that the image is of this release"
            )
        return log.result(rc, *self._why(rc, happened))

    def _why(self, rc: int, happened: set[str]) -> tuple[str, str]:
        """Why the container ended as it did and what to do, where the engine knows."""
        limit = self.settings.memory
        if "oom" in happened and rc:
            at = f"at its memory limit of {human(size_bytes(limit))}" if limit != "" else "for want of memory"
            return f"the container was killed {at} (OOMKilled)", self._more_memory()
        if rc not in (137, 143):
            return "", ""
        if "kill" in happened:
            return (
                f"the container was killed (signal {rc - 128}) by another's request",
                "'docker kill', 'docker stop' or a stop of the daemon: see 'journalctl -u docker', and run again",
            )
        return (
            f"the tool was killed (signal {rc - 128}), and the engine was not asked to",
            f"the kernel does that for want of memory: see 'dmesg'; {self._more_memory()}",
        )

    def _more_memory(self) -> str:
        if self.settings.memory == "":
            return "the host's memory ran out: lower workers, or use a host with more memory"
        return "raise container.memory, or lower workers"

    # --- making ---------------------------------------------------------------------------------------------------

    def _create(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: PathLike | None,
        reads: Sequence[PathLike],
        writes: Sequence[PathLike],
    ) -> Any:
        settings = self.settings
        refuse_secrets(env, "environment")
        if not settings.image:
            raise ContainerError("container.image is empty: give the image_id that tensorrtllm_backend_build registers")
        client = self.client
        user = self._user()
        writable = [str(path) for path in (*writes, *([cwd] if cwd is not None else ()))]
        self._give(writable, user)
        environment = {**_ENVIRONMENT, **settings.environment, **{name: str(value) for name, value in env.items()}}
        requests = _containers.device_requests(client, settings.gpus, settings.device_policy)
        if not requests:
            # An engine whose default runtime is NVIDIA's would else give what the image asks for.
            environment.setdefault("NVIDIA_VISIBLE_DEVICES", "void")
        limits: dict[str, Any] = {}
        if settings.shm_size != "":
            limits["shm_size"] = size_bytes(settings.shm_size)
        if settings.memory != "":
            limits["mem_limit"] = limits["memswap_limit"] = size_bytes(settings.memory)
        try:
            return client.containers.create(
                settings.image,
                name=f"trtllm-{self.tool}-{secrets.token_hex(4)}",
                entrypoint=list(_SHELL),
                command=[str(part) for part in argv],
                user=user,
                working_dir=None if cwd is None else str(cwd),
                environment=environment,
                labels=_containers.labels(self.home, ROLE, tool=self.tool, key=self.key),
                mounts=self._mounts(writable, [str(path) for path in reads]),
                network_mode="none",
                init=True,
                cap_drop=["ALL"],
                security_opt=_containers.security_options(client),
                read_only=True,
                tmpfs=dict(_TMPFS),
                ulimits=_containers.ulimits(settings.ulimits),
                device_requests=requests,
                log_config=_containers.sdk("docker.types").LogConfig(type="none"),
                **limits,
            )
        except _containers.failures() as exc:
            raise ContainerError(
                _containers.explain(exc, f"no container can be made of image {settings.image}")
            ) from exc

    def _user(self) -> str:
        if self.settings.user:
            return _containers.user_ids(self.settings.user)
        owner = owner_of(self.home) or (os.geteuid(), os.getegid())
        return f"{owner[0]}:{owner[1]}"

    @staticmethod
    def _give(writable: Sequence[str], user: str) -> None:
        """What the tool writes into must belong to whom it runs as."""
        uid, gid = (int(part) for part in user.split(":"))
        for path in writable:
            give_to(path, (uid, gid))
            if os.geteuid() not in (0, uid):
                raise ContainerError(
                    f"container.user {user} cannot write what uid {os.geteuid()} makes: leave user out, or run as root"
                )

    def _mounts(self, writable: Sequence[str], reads: Sequence[str]) -> list[Any]:
        """The output and the working directory to write, the inputs to read, each at its own path."""
        own = [_containers.parse_volume(text) for text in self.settings.volumes]
        taken = {entry["Target"] for entry in own}
        found = []
        for path in writable:
            if path not in taken:
                found.append(_containers.mount(path, read_only=False))
                taken.add(path)
        for path in sorted(set(_containers.with_link_targets(reads))):
            if not any(path == other or path.startswith(f"{other}/") for other in taken):
                found.append(_containers.mount(path))
                taken.add(path)
        return [*found, *own]

    # --- running --------------------------------------------------------------------------------------------------

    def _follow(self, container: Any, log: LoggedRun, timeout: float | None) -> tuple[int, set[str]]:
        deadline = log.started + timeout if timeout else None
        began = int(time.time()) - 1
        # Attached before it starts: nothing else keeps what it prints.
        stream = container.attach_socket(params={"stdout": 1, "stderr": 1, "stream": 1})
        try:
            try:
                container.start()
            except _containers.failures() as exc:
                raise NotStarted(
                    _containers.explain(exc, f"the container of image {self.settings.image} cannot be started")
                ) from exc
            self._pid = int(_containers.state(container).get("Pid") or 0)
            for data in self._output(container, stream, deadline, timeout):
                log.feed(data)
        finally:
            _hang_up(stream)
        pause = 0.01
        while True:
            state = _containers.state(container)
            if not state.get("Running"):
                rc = int(state.get("ExitCode", -1))
                return rc, {"oom"} if state.get("OOMKilled") else self._happened(container, rc, began)
            # It closed its output early and goes on, or is about to end.
            self._check(deadline, timeout)
            time.sleep(pause)
            pause = min(pause * 2, 0.5)

    def _happened(self, container: Any, rc: int, began: int) -> set[str]:
        """What the engine noted of a container that was killed: its state can miss that memory was the reason."""
        if rc not in (137, 143):
            return set()
        events = self.client.events(
            since=began, until=int(time.time()) + 1, filters={"container": container.id}, decode=True
        )
        return {str(event.get("Action", "")).split(":", maxsplit=1)[0] for event in events}

    def _check(self, deadline: float | None, timeout: float | None) -> None:
        if self.cancellation is not None:
            self.cancellation.check()
        if deadline is not None and time.monotonic() >= deadline:
            raise TimedOut(f"did not end within {timeout:g} s: raise timeout, or see why it is slow")

    def _output(self, container: Any, stream: Any, deadline: float | None, timeout: float | None) -> Iterator[bytes]:
        """What the container prints, until it closes its output or has ended."""
        handle = stream.fileno()
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        frames = _Frames()
        heard = time.monotonic()
        while True:
            if poller.poll(POLL_MS):
                try:
                    data = os.read(handle, CHUNK)
                except BlockingIOError:
                    continue
                if not data:
                    return
                heard = time.monotonic()
                yield from frames.feed(data)
            elif time.monotonic() - heard > _QUIET_S:
                # A silent tool and an engine that has lost it look alike from here.
                if not _containers.state(container).get("Running"):
                    return
                heard = time.monotonic()
            self._check(deadline, timeout)

    # --- ending ---------------------------------------------------------------------------------------------------

    def _end(self, container: Any) -> None:
        """Ends and removes the container; without an engine, at least its processes."""
        try:
            if _containers.state(container).get("Running"):
                container.kill(signal="SIGTERM")
                until = time.monotonic() + self.grace_s
                while time.monotonic() < until and _containers.state(container).get("Running"):
                    time.sleep(0.05)
        except _containers.failures():
            pass  # Gone, or removed the hard way now.
        try:
            _containers.remove(container)
        except ContainerError:
            _kill_container(self._pid, str(container.id))


def _hang_up(stream: Any) -> None:
    """Ends the attachment for the engine too, which else waits for us to read before it lets the container end."""
    with contextlib.suppress(OSError):
        end = socket.socket(fileno=os.dup(stream.fileno()))
        try:
            end.shutdown(socket.SHUT_RDWR)
        finally:
            end.close()
    stream.close()


class _Frames:
    """Takes the engine's framing off the stream: one byte for which output, three of nothing, four of length."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._rest += data
        while self._rest:
            if not self._left:
                if len(self._rest) < _FRAME:
                    return
                self._left = int.from_bytes(self._rest[4:_FRAME], "big")
                self._rest = self._rest[_FRAME:]
            piece, self._rest = self._rest[: self._left], self._rest[self._left :]
            self._left -= len(piece)
            if piece:
                yield piece


def _kill_container(pid: int, container_id: str) -> None:
    """Kills the first process of a container, and with it all others, when it can be told to be of that container."""
    if pid <= 1:
        return
    try:
        if container_id in Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace"):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
