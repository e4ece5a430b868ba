# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the states of HAProxy's servers for the process that follows, so that what is drained stays drained.

haproxy_state.py SOCKET CONFIG STATE_FILE

HAProxy takes a server's port from the state file even where the configuration has another one by now, so the ports of
the configuration are written in. Without an HAProxy that answers, the file stays as it is.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile

HEADER = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
    " srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state"
    " bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr"
    " srv_agent_addr srv_agent_port\n"
)


def ask(path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(b"show servers state\n")
        said = b""
        while True:
            chunk = connection.recv(65536)
            if not chunk:
                return said.decode("utf-8", "replace").rstrip("\n") + "\n"
            said += chunk


def ports_of(config: str) -> dict[tuple[str, str], str]:
    """(backend, server): port, for each server of the configuration."""
    found = {}
    section = ""
    for line in config.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not line[0].isspace():
            section = words[1] if words[0] in ("backend", "listen") and len(words) > 1 else ""
        if section and words[0] == "server" and len(words) > 2:
            port = words[2].rpartition(":")[2]
            if port.isdigit():
                found[(section, words[1])] = port
    return found


def fitting(state: str, config: str) -> str:
    """The states of servers that the configuration has, with its ports."""
    ports = ports_of(config)
    lines = []
    names: list[str] = []
    for line in state.splitlines():
        if line.startswith("#"):
            names = line[1:].split()
        fields = line.split()
        if names and len(fields) == len(names):
            row = dict(zip(names, fields))
            port = ports.get((row.get("be_name", ""), row.get("srv_name", "")))
            if port is None:
                continue
            if "srv_port" in row:
                fields[names.index("srv_port")] = port
            line = " ".join(fields)
        lines.append(line)
    return "\n".join(lines) + "\n"


def write(path: str, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix="." + os.path.basename(path), dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(argv: list[str]) -> int:
    where, config, path = argv
    try:
        state = ask(where)
    except OSError:
        state = ""
    if not state.startswith("1"):
        try:
            with open(path, encoding="utf-8") as stream:
                state = stream.read()
        except FileNotFoundError:
            state = HEADER
    with open(config, encoding="utf-8", errors="replace") as stream:
        write(path, fitting(state, stream.read()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
