# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HAProxy's runtime API and a drain, with answers that were recorded of HAProxy 2.6."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _haproxy, _haproxy_drain, _haproxy_workers
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import HaproxyError, Runtime, Silent, find
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy_drain import Change, Expired

STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port
3 chat 1 h1 127.0.0.1 2 {admin} 1 1 1 6 3 4 6 0 0 0 - 18001 - 0 0 - - 0
3 chat 2 h2 127.0.0.1 0 0 1 1 1 8 2 0 6 0 0 0 - 18002 - 0 0 - - 0
5 embed 1 h3 10.0.0.3 2 0 1 1 1 6 3 4 6 0 0 0 - 8000 - 0 0 - - 0
"""  # noqa: E501
HEAD = "# pxname,svname,qcur,qmax,scur,status,weight,check_status,last_chk,"
INFO = "Name: HAProxy\nVersion: 2.6.12\nPid: 0\n"


class Spoken(Runtime):
    """The socket's side as data."""

    def __init__(self) -> None:
        super().__init__("/run/haproxy/admin.sock")
        self.admin, self.sessions, self.queued = 0, 0, 0
        self.status, self.check = "UP", "L7OK"
        self.told: list[str] = []
        self.before: Callable[[str], None] = lambda command: None

    def ask(self, command: str, patience: float = 0.0) -> str:
        self.before(command)
        if command == "show servers state":
            return STATE.format(admin=self.admin).rstrip("\n")
        if command == "show stat 3 4 -1":
            h1 = "chat,h1,%d,0,%d,%s,1,%s,," % (self.queued, self.sessions, self.status, self.check)
            return '%s\n%s\nchat,h2,0,0,0,DOWN,1,L7STS,"Not found, or so",' % (HEAD, h1)
        if command == "show info":
            return INFO
        self.told.append(command)
        self.admin = {"ready": 0, "drain": 8, "maint": 1}[command.split()[-1]]
        return ""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.steps: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.steps:
            self.steps.pop(0)()


@pytest.fixture
def runtime() -> Spoken:
    return Spoken()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def change(runtime: Runtime, clock: Clock, **more: Any) -> Change:
    return Change(runtime, "chat", "h1", timeout=10, interval=1, clock=clock, sleep=clock.sleep, **more)


@pytest.mark.parametrize(
    ("admin", "state"),
    # 4 is the configuration's "disabled", and stays when a server is made ready.
    [(0, "ready"), (4, "ready"), (8, "drain"), (16, "drain"), (1, "maint"), (5, "maint"), (2, "maint"), (9, "maint")],
)
def test_state_is_read_from_the_bits(runtime: Spoken, admin: int, state: str) -> None:
    runtime.admin = admin
    assert find(runtime, "chat", "h1")[0].state == state


def test_figures_belong_to_their_server(runtime: Spoken) -> None:
    runtime.sessions, runtime.queued = 3, 2
    first, servers = find(runtime, "chat", "h1")
    assert (first.sessions, first.queued, first.busy, first.port, first.address) == (3, 2, 5, 18001, "127.0.0.1")
    assert [each.name for each in servers] == ["h1", "h2"]
    assert servers[1].said == "DOWN L7STS Not found, or so" and not servers[1].usable


@pytest.mark.parametrize(
    ("status", "check", "healthy"),
    [("UP", "L7OK", True), ("UP", "* L7OK", True), ("UP 1/3", "L7OK", False), ("UP", "", False), ("UP", "INI", False),
     ("UP", "L7STS", False), ("no check", "", True), ("DRAIN", "L4OK", True)],
)  # fmt: skip
def test_health_is_believed_only_after_a_check(runtime: Spoken, status: str, check: str, healthy: bool) -> None:
    runtime.status, runtime.check = status, check
    assert find(runtime, "chat", "h1")[0].healthy is healthy


@pytest.mark.parametrize(
    ("text", "family", "where"),
    [("/run/a.sock", socket.AF_UNIX, ("/run/a.sock", 0)), ("unix@/run/a.sock", socket.AF_UNIX, ("/run/a.sock", 0)),
     ("ipv4@10.0.0.5:9999", socket.AF_INET, ("10.0.0.5", 9999)), ("ipv6@[::1]:9999", socket.AF_INET6, ("::1", 9999)),
     ("lb.example:9999", socket.AF_UNSPEC, ("lb.example", 9999))],
)  # fmt: skip
def test_socket_is_a_path_or_an_address(text: str, family: int, where: tuple[str, int]) -> None:
    found = _haproxy.endpoint_of(text)
    assert (found[0], found[1:]) == (family, where)


@pytest.mark.parametrize("text", ["", "admin.sock", "ipv4@10.0.0.5", "ipv4@:9999", "lb:0", "lb:70000", "lb:x"])
def test_socket_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(HaproxyError, match="neither a path nor an address"):
        _haproxy.endpoint_of(text)


def test_drain_waits_for_sessions_and_for_the_queue(runtime: Spoken, clock: Clock) -> None:
    runtime.sessions, runtime.queued = 1, 1
    clock.steps = [lambda: setattr(runtime, "sessions", 0), lambda: setattr(runtime, "queued", 0)]
    result = change(runtime, clock).drain()
    assert result["changed"] and result["waited_s"] == 2 and runtime.told == ["set server chat/h1 state drain"]


def test_expired_drain_knows_what_it_did(runtime: Spoken, clock: Clock) -> None:
    runtime.sessions = 2
    known: dict[str, Any] = {}
    with pytest.raises(Expired, match="2 running and 0 queued requests after 10 s") as caught:
        change(runtime, clock, result=known).drain()
    assert known["changed"] and known["expired"] and known["before_state"] == "ready" and "\n" not in str(caught.value)
    assert change(runtime, clock).drain("continue")["expired"]


def test_set_that_got_no_answer_counts_as_a_change(runtime: Spoken, clock: Clock) -> None:
    def lose(command: str) -> None:
        if command.startswith("set"):
            raise Silent("gone")

    runtime.before = lose
    known: dict[str, Any] = {}
    with pytest.raises(Silent):
        change(runtime, clock, result=known).drain()
    assert known["changed"]


def test_silence_is_borne_for_a_while_only(runtime: Spoken, clock: Clock) -> None:
    runtime.sessions = 1

    def silent(command: str) -> None:
        if clock.now >= 1:
            raise Silent("nobody is there")

    runtime.before = silent
    # Whoever goes on in spite of requests does not go on in spite of silence.
    with pytest.raises(Silent):
        change(runtime, clock).drain("continue")
    assert clock.now > _haproxy_drain.SILENCE_S
    runtime.before = lambda command: None
    runtime.admin, clock.now = 0, 0.0

    def short(command: str) -> None:
        if 1 <= clock.now < 5:
            raise Silent("a restart")

    runtime.before = short
    clock.steps = [lambda: None] * 6 + [lambda: setattr(runtime, "sessions", 0)]
    assert change(runtime, clock).drain()["state"] == "drain"


def test_drain_that_is_lost_is_set_again(runtime: Spoken, clock: Clock) -> None:
    runtime.sessions = 1
    clock.steps = [lambda: setattr(runtime, "admin", 0), lambda: setattr(runtime, "sessions", 0)]
    assert change(runtime, clock).drain()["reasserted"] == 1
    assert runtime.told == ["set server chat/h1 state drain"] * 2


def test_maintenance_that_begins_meanwhile_is_not_taken_back(runtime: Spoken, clock: Clock) -> None:
    runtime.sessions = 1
    clock.steps = [lambda: setattr(runtime, "admin", 1), lambda: setattr(runtime, "sessions", 0)]
    assert change(runtime, clock).drain()["state"] == "maint"
    assert runtime.told == ["set server chat/h1 state drain"]


def test_state_file_is_replaced_as_a_whole(runtime: Spoken, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "servers"
    path.write_text("1\n", "ascii")
    path.chmod(0o640)
    change(runtime, clock, state_file=str(path)).drain()
    assert path.read_text("ascii") == STATE.format(admin=8) and path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A socket that answers every question with the same bytes."""
    listeners = []

    def listen(answer: bytes) -> str:
        path = str(tmp_path / ("s%d" % len(listeners)))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return path

    yield listen
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"Permission denied\n\n", "'level admin'"), (b"Unknown command: 'show servers'\n", "not its master socket"),
     (b"2\n# be_id\n", "not version 1")],
)  # fmt: skip
def test_other_answers_are_explained(answering: Callable[[bytes], str], answer: bytes, words: str) -> None:
    with pytest.raises(HaproxyError, match=words) as caught:
        Runtime(answering(answer)).servers()
    assert "\n" not in str(caught.value)


def test_refusal_of_a_state_is_told(answering: Callable[[bytes], str]) -> None:
    with pytest.raises(HaproxyError, match="refused 'set server chat/h1 state drain': No such server"):
        Runtime(answering(b"No such server.\n\n")).set_state("chat", "h1", "drain")


def _process(proc: Path, pid: int, parent: int, name: str, inodes: list[int], tcp: list[str]) -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "net").mkdir()
    (proc / str(pid) / "stat").write_text("%d (%s) S %d 1 1\n" % (pid, name, parent))
    (proc / str(pid) / "net" / "tcp").write_text("head\n" + "".join(line + "\n" for line in tcp))
    for number, inode in enumerate(inodes):
        (proc / str(pid) / "fd" / str(number)).symlink_to("socket:[%d]" % inode)


def _tcp(remote: str, state: str, inode: int) -> str:
    return "0: 0100007F:1F40 %s %s 00000000:00000000 00:00000000 00000000 0 0 %d 1" % (remote, state, inode)


def test_connections_of_old_workers_are_counted_and_of_nobody_else(tmp_path: Path) -> None:
    here = "0100007F:4651"  # 127.0.0.1:18001
    table = [
        _tcp(here, "01", 11), _tcp(here, "01", 12), _tcp(here, "01", 13), _tcp(here, "06", 14),
        _tcp("0100007F:4652", "01", 15), _tcp(here, "01", 16),
    ]  # fmt: skip
    _process(tmp_path, 100, 1, "haproxy", [], table)
    _process(tmp_path, 101, 100, "haproxy", [11], table)
    _process(tmp_path, 99, 100, "haproxy", [12, 14, 15], table)
    _process(tmp_path, 98, 100, "curl", [13], table)
    _process(tmp_path, 200, 1, "haproxy", [], table)
    _process(tmp_path, 201, 200, "haproxy", [16], table)
    assert _haproxy_workers.leaving(101, "127.0.0.1", 18001, tmp_path) == 1
    assert _haproxy_workers.leaving(101, "127.0.0.1", 18002, tmp_path) == 1
    assert _haproxy_workers.leaving(101, "127.0.0.1", 18003, tmp_path) == 0
    # On another machine, or of another name.
    assert _haproxy_workers.leaving(98, "127.0.0.1", 18001, tmp_path) == 0
    assert _haproxy_workers.leaving(7, "127.0.0.1", 18001, tmp_path) == 0
