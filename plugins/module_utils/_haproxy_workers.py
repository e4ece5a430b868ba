# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What HAProxy's processes from before a reload still do for a server.

They serve their last requests to the end, and no runtime API speaks of them any more: only the kernel knows.
Private to the collection.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

ESTABLISHED = "01"


def _kernel_address(address: str, port: int) -> set[str]:
    """The address as /proc/net/tcp and tcp6 write it: words in the byte order of the machine."""
    written = set()
    order = "<" if sys.byteorder == "little" else ">"

    def words(packed: bytes) -> str:
        numbers = struct.unpack("%s%dI" % (order, len(packed) // 4), packed)
        return "".join("%08X" % number for number in numbers) + ":%04X" % port

    try:
        packed = socket.inet_pton(socket.AF_INET, address)
        written.add(words(packed))
        written.add(words(b"\0" * 10 + b"\xff\xff" + packed))
    except OSError:
        try:
            written.add(words(socket.inet_pton(socket.AF_INET6, address)))
        except OSError:
            pass
    return written


def connections(proc: Path, pid: int, address: str, port: int) -> set[str]:
    """Inodes of the established connections to that address, in the network that the process is in."""
    wanted = _kernel_address(address, port)
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / str(pid) / "net" / name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[3] == ESTABLISHED and fields[2] in wanted:
                found.add(fields[9])
    return found


def _parent(proc: Path, pid: int) -> int | None:
    """The parent of a process that is an HAProxy; None for any other."""
    try:
        head, _closing, tail = (proc / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")
    except OSError:
        return None
    if head.partition("(")[2] != "haproxy":
        return None
    return int(tail.split()[1])


def _sockets(proc: Path, pid: int) -> set[str]:
    found: set[str] = set()
    folder = proc / str(pid) / "fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(folder / name)
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def leaving(pid: int, address: str, port: int, proc: Path = Path("/proc")) -> int:
    """Connections to the server that siblings of this worker hold: those that a reload has sent to their end.

    0 also where that cannot be known: HAProxy runs on another machine or as another user, or without a master.
    """
    master = _parent(proc, pid)
    if master is None or master <= 1:
        return 0
    inodes = connections(proc, pid, address, port)
    if not inodes:
        return 0
    siblings = [
        each for each in (int(name) for name in os.listdir(proc) if name.isdecimal())
        if each not in (pid, master) and _parent(proc, each) == master
    ]  # fmt: skip
    return sum(len(inodes & _sockets(proc, each)) for each in siblings)
