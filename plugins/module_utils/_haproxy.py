# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's runtime API: what a server's state is, and how it is changed.

Private to the collection. Standard library only: it runs with the balancer's own Python.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

ANSWER_S = 5.0
# A reload puts another process behind the socket; for a moment nobody may listen.
CONNECT_S = 3.0

# Bits of srv_admin_state, from HAProxy's include/haproxy/server-t.h. Maintenance by the configuration (0x04) is only
# a note of where the forced one came from.
MAINT = 0x01 | 0x02 | 0x20 | 0x40
DRAIN = 0x08 | 0x10
# srv_op_state: stopped, starting (slowstart), running, stopping.
UP = (1, 2)
STATES = ("ready", "drain", "maint")
NAME = re.compile(r"[A-Za-z0-9_.:-]+")


class HaproxyError(Exception):
    """One line that says what is wrong and what to do."""


class Silent(HaproxyError):
    """Nothing answers at the socket."""


@dataclass(frozen=True)
class Server:
    """One server of a backend, as the process behind the socket sees it."""

    backend: str
    name: str
    address: str
    port: int
    admin: int
    op: int
    backend_id: int
    # From show stat.
    sessions: int = 0
    queued: int = 0
    status: str = ""
    check: str = ""
    check_said: str = ""

    @property
    def state(self) -> str:
        if self.admin & MAINT:
            return "maint"
        return "drain" if self.admin & DRAIN else "ready"

    @property
    def busy(self) -> int:
        return self.sessions + self.queued

    @property
    def usable(self) -> bool:
        """New requests may go to it."""
        return self.state == "ready" and self.op in UP

    @property
    def healthy(self) -> bool:
        """Its last health check has passed, or it has none.

        A server that comes out of maintenance counts as up unseen; HAProxy then says "UP 1/3" until it has looked.
        DRAIN is a weight of 0 here, which is its operator's.
        """
        if self.state != "ready" or self.op not in UP:
            return False
        passed = self.check.lstrip("* ").startswith(("L4OK", "L6OK", "L7OK", "PROCOK"))
        return self.status == "no check" or (self.status in ("UP", "DRAIN") and passed)

    @property
    def said(self) -> str:
        """What the health check says, for a message."""
        words = [self.status or "unknown", self.check.lstrip("* "), self.check_said]
        return " ".join(word for word in words if word)


def endpoint_of(text: str) -> tuple[socket.AddressFamily, str, int]:
    """What the option socket names: a path, or an address with a port in HAProxy's own spelling."""
    for prefix in ("unix@", "unix://"):
        if text.startswith(prefix):
            text = text[len(prefix) :]
    if text.startswith("/"):
        return socket.AF_UNIX, text, 0
    family = socket.AF_UNSPEC
    for prefix, named in (("ipv4@", socket.AF_INET), ("ipv6@", socket.AF_INET6), ("tcp@", socket.AF_UNSPEC)):
        if text.startswith(prefix):
            text, family = text[len(prefix) :], named
            break
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise HaproxyError(
            f"socket {text!r} is neither a path nor an address: write /run/haproxy/admin.sock or ipv4@10.0.0.5:9999"
        )
    return family, host, int(port)


class Runtime:
    """Questions to one HAProxy, each over a connection of its own, as the runtime API wants it."""

    def __init__(self, where: str, check: Callable[[], None] = lambda: None) -> None:
        self.where = where
        self.endpoint = endpoint_of(where)
        self._check = check

    def _connect(self) -> socket.socket:
        family, host, port = self.endpoint
        if family == socket.AF_UNIX:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(ANSWER_S)
            try:
                connection.connect(host)
            except BaseException:
                connection.close()
                raise
            return connection
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        return socket.create_connection((str(address[0]), port), ANSWER_S)

    def _once(self, command: str) -> str:
        said = b""
        with self._connect() as connection:
            connection.sendall(command.encode("utf-8") + b"\n")
            deadline = time.monotonic() + ANSWER_S
            while True:
                chunk = connection.recv(65536)
                if not chunk:
                    return said.decode("utf-8", "replace").strip("\n")
                said += chunk
                if time.monotonic() > deadline:
                    raise socket.timeout("no end of the answer")

    def ask(self, command: str, patience: float = CONNECT_S) -> str:
        deadline = time.monotonic() + patience
        while True:
            try:
                answer = self._once(command)
                break
            except OSError as exc:
                # Rights do not change by waiting.
                if isinstance(exc, PermissionError) or time.monotonic() > deadline:
                    raise Silent(self._why(exc)) from exc
            self._check()
            time.sleep(0.1)
        if answer.startswith("Permission denied"):
            raise HaproxyError(
                f"{self.where} may not '{command.split(None, 2)[0]}': its stats socket needs 'level admin'"
            )
        if answer.startswith("Unknown command"):
            raise HaproxyError(
                f"what answers at {self.where} does not know '{command}': "
                "give the stats socket of an HAProxy 2.2 or newer, not its master socket"
            )
        return answer

    def _why(self, exc: OSError) -> str:
        reason = exc.strerror or str(exc) or type(exc).__name__
        if isinstance(exc, PermissionError):
            return f"{self.where}: {reason}; become a user who may write to HAProxy's stats socket"
        return f"no HAProxy answers at {self.where} ({reason}); see that it runs, and has a 'stats socket' there"

    def info(self) -> dict[str, str]:
        pairs = (line.partition(":") for line in self.ask("show info").splitlines())
        return {name.strip(): value.strip() for name, colon, value in pairs if colon}

    def servers_state(self) -> str:
        """The text of a server state file."""
        text = self.ask("show servers state")
        if not text.startswith("1"):
            first = text.partition("\n")[0]
            raise HaproxyError(f"{self.where} gives servers' states in another form: {first[:80]!r} and not version 1")
        return text + "\n"

    def servers(self) -> list[Server]:
        """Every server of every backend."""
        found = []
        names: list[str] = []
        for line in self.servers_state().splitlines():
            if line.startswith("#"):
                names = line[1:].split()
                continue
            fields = dict(zip(names, line.split()))
            if "srv_admin_state" in fields:
                port = fields.get("srv_port", "0")
                found.append(
                    Server(
                        backend=fields["be_name"],
                        name=fields["srv_name"],
                        address=fields["srv_addr"],
                        port=int(port) if port.isdecimal() else 0,
                        admin=int(fields["srv_admin_state"]),
                        op=int(fields["srv_op_state"]),
                        backend_id=int(fields["be_id"]),
                    )
                )
        return found

    def backend(self, name: str) -> list[Server]:
        """The servers of one backend, with what they are doing; [] when there is no such backend."""
        known = [server for server in self.servers() if server.backend == name]
        if not known:
            return []
        rows: dict[str, dict[str, str]] = {}
        names: list[str] = []
        # Only this backend's servers: a balancer may have thousands.
        for line in self.ask("show stat %d 4 -1" % known[0].backend_id).splitlines():
            if line.startswith("#"):
                names = line[1:].strip().split(",")
                continue
            row = dict(zip(names, _fields(line)))
            if row.get("pxname") == name:
                rows[row.get("svname", "")] = row
        return [_with_figures(server, rows.get(server.name)) for server in known]

    def set_state(self, backend: str, server: str, state: str) -> None:
        said = self.ask("set server %s/%s state %s" % (backend, server, state))
        if said:
            raise HaproxyError(f"{self.where} refused 'set server {backend}/{server} state {state}': {said}")


def _fields(line: str) -> list[str]:
    """One line of CSV; a health check's words may be quoted and hold commas."""
    return [part.strip('"') for part in re.findall(r'("[^"]*"|[^,]*)(?:,|$)', line)]


def _with_figures(server: Server, row: dict[str, str] | None) -> Server:
    if row is None:
        raise HaproxyError(f"HAProxy has no figures for server {server.backend}/{server.name}: look at 'show stat'")
    return Server(
        backend=server.backend,
        name=server.name,
        address=server.address,
        port=server.port,
        admin=server.admin,
        op=server.op,
        backend_id=server.backend_id,
        sessions=int(row.get("scur") or 0),
        queued=int(row.get("qcur") or 0),
        status=row.get("status", ""),
        check=row.get("check_status", ""),
        check_said=row.get("last_chk", ""),
    )


def find(runtime: Runtime, backend: str, server: str) -> tuple[Server, list[Server]]:
    """The server and all of its backend. HaproxyError with the names that there are."""
    for what, name in (("backend", backend), ("server", server)):
        if not NAME.fullmatch(name):
            raise HaproxyError(f"{what} {name!r} cannot be a name in HAProxy: use letters, digits and _ . : -")
    servers = runtime.backend(backend)
    if not servers:
        known = sorted({each.backend for each in runtime.servers()})
        raise HaproxyError(
            f"{runtime.where} has no backend {backend!r} with servers, but {', '.join(known) or 'none at all'}: "
            "name one of them"
        )
    for each in servers:
        if each.name == server:
            return each, servers
    raise HaproxyError(
        f"backend {backend!r} of {runtime.where} has no server {server!r}, but "
        f"{', '.join(each.name for each in servers)}: name one of them"
    )
