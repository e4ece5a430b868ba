# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking a server out of a backend and putting it back, so that no request is lost.

Private to the collection.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import (
    HaproxyError,
    Runtime,
    Server,
    Silent,
    find,
)
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy_workers import leaving

# The state of HAProxy that each state of the module stands for.
WANTED = {"drained": "drain", "ready": "ready", "maint": "maint"}
# How long the socket may stay silent while something is awaited: a restart takes longer than a reload.
SILENCE_S = 15.0


class Expired(HaproxyError):
    """What was awaited did not come in time."""


def write_beside(path: str, text: str) -> None:
    """The file as a whole, or not at all; it keeps its owner and mode."""
    folder = os.path.dirname(path) or "."
    handle, temporary = tempfile.mkstemp(prefix=".%s." % os.path.basename(path), dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            old = os.stat(path)
            os.chmod(temporary, old.st_mode & 0o7777)
            os.chown(temporary, old.st_uid, old.st_gid)
        except FileNotFoundError:
            os.chmod(temporary, 0o644)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@dataclass
class Change:
    """One server of one balancer on its way to a state. What is known so far is there after a failure too."""

    runtime: Runtime
    backend: str
    server: str
    timeout: float = 120.0
    interval: float = 0.2
    state_file: str = ""
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    result: dict[str, Any] = field(default_factory=dict)

    def look(self) -> tuple[Server, list[Server]]:
        server, others = find(self.runtime, self.backend, self.server)
        self._note(server)
        return server, others

    def _note(self, server: Server) -> None:
        self.result.setdefault("changed", False)
        self.result.setdefault("server", server.name)
        self.result.setdefault("before_state", server.state)
        self.result.update(
            state=server.state, sessions=server.sessions, queued=server.queued, health=server.said,
            address="%s:%d" % (server.address, server.port),
        )  # fmt: skip

    def query(self) -> dict[str, Any]:
        self.look()
        return self._done(self.clock())

    def predict(self, state: str, min_up: int = 0) -> dict[str, Any]:
        """Check mode: what would be done, with the refusals that there would be."""
        server, others = self.look()
        if self._to_do(server, state):
            self._spare(server, others, state, min_up)
            self.result["changed"] = True
        return self._done(self.clock())

    def drain(self, on_timeout: str = "fail", min_up: int = 0) -> dict[str, Any]:
        """No new request, and the running ones have ended. One that is in maintenance has left more than that."""
        begun = self.clock()
        server, others = self.look()
        if self._to_do(server, "drained"):
            self._spare(server, others, "drained", min_up)
            self._set("drain")
        self._save()
        try:
            self._await(begun, self._drained, "drain")
        except Expired:
            self.result["expired"] = True
            self._done(begun)
            if on_timeout == "fail":
                raise
        return self._done(begun)

    def ready(self, expect_healthy: bool) -> dict[str, Any]:
        begun = self.clock()
        server, _others = self.look()
        if self._to_do(server, "ready"):
            self._set("ready")
        self._save()
        if expect_healthy:
            self._await(begun, self._healthy, "ready")
        return self._done(begun)

    def maint(self, min_up: int = 0) -> dict[str, Any]:
        begun = self.clock()
        server, others = self.look()
        if self._to_do(server, "maint"):
            self._spare(server, others, "maint", min_up)
            self._set("maint")
        self._save()
        return self._done(begun)

    def _to_do(self, server: Server, state: str) -> bool:
        if state == "drained":
            return server.state == "ready"
        return server.state != WANTED[state]

    def _spare(self, server: Server, others: list[Server], state: str, min_up: int) -> None:
        if not server.usable:
            return  # nothing is lost with it
        left = [each.name for each in others if each.usable and each.name != self.server]
        if len(left) < min_up:
            raise HaproxyError(
                f"{self.backend}/{self.server} is not {WANTED[state]}ed: {len(left)} other servers of the backend are "
                f"up ({', '.join(left) or 'none'}), and {min_up} must stay: bring others up first"
            )

    def _set(self, state: str) -> None:
        # Before the answer: whoever undoes a failure must know that it may have happened.
        self.result["changed"] = True
        self.runtime.set_state(self.backend, self.server, state)

    def _save(self) -> None:
        if not self.state_file:
            return
        try:
            write_beside(self.state_file, self.runtime.servers_state())
        except OSError as exc:
            raise HaproxyError(
                f"servers' states cannot be kept in {self.state_file} ({exc.strerror or exc}): a reload of HAProxy "
                "would forget the drain; make its directory, or become a user who may write there"
            ) from exc

    def _drained(self, server: Server) -> str:
        """What is still awaited; nothing when the server is drained."""
        awaited = []
        if server.sessions or server.queued:
            awaited.append(f"{server.sessions} running and {server.queued} queued requests")
        info = self.runtime.info()
        old = leaving(int(info.get("Pid") or 0), server.address, server.port)
        self.result["old_sessions"] = old
        if old:
            awaited.append(f"{old} connections of processes from before a reload")
        return f"still has {' and '.join(awaited)}" if awaited else ""

    def _healthy(self, server: Server) -> str:
        return "" if server.healthy else f"is not up; its health check says: {server.said}"

    def _await(self, begun: float, waiting_for: Callable[[Server], str], state: str) -> None:
        """Polls until nothing is awaited. A state that a reload has lost is set again."""
        silent_since: float | None = None
        while True:
            try:
                server, _others = self.look()
                if server.state == "ready" if state == "drain" else server.state != state:
                    self._set(state)
                    self._save()
                    self.result["reasserted"] = self.result.get("reasserted", 0) + 1
                    server, _others = self.look()
                awaited = waiting_for(server)
                silent_since = None
            except Silent:
                now = self.clock()
                silent_since = now if silent_since is None else silent_since
                # What was not seen has not expired: nobody may go on as if only requests were left.
                if now - silent_since > SILENCE_S or now - begun > self.timeout + SILENCE_S:
                    raise
                self.check()
                self.sleep(self.interval)
                continue
            if not awaited:
                return
            self.check()
            if self.clock() - begun > self.timeout:
                hint = (
                    "let it end, raise the timeout, or have what is left cut off by on_timeout=continue"
                    if state == "drain"
                    else "see that the balancer reaches it there, and that the check asks for models that it has"
                )
                raise Expired(
                    f"{self.backend}/{self.server} at {self.runtime.where} {awaited} after {self.timeout:g} s: {hint}"
                )
            self.sleep(self.interval)

    def _done(self, begun: float) -> dict[str, Any]:
        self.result["waited_s"] = round(self.clock() - begun, 3)
        return self.result
