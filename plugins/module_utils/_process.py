# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes and machines, told apart by more than a number or a name.

Private to the collection.
"""

from __future__ import annotations

import os
import socket
from datetime import datetime, timezone
from pathlib import Path


def utc_now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def pid_starttime(pid: int) -> int | None:
    """The start time of a live process in clock ticks since boot; None when there is no such process.

    A process id alone does not name a process: ids are used again. A zombie counts as gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name may hold spaces and parentheses: fields are counted from its closing one.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X", "x"):
        return None
    return int(fields[19])


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def ancestors(pid: int) -> list[tuple[int, int]]:
    """(pid, start time) of every ancestor below init, nearest first."""
    chain: list[tuple[int, int]] = []
    parent = _parent_of(pid)
    while parent is not None and parent > 1 and len(chain) < 64:
        started = pid_starttime(parent)
        if started is None:
            break
        chain.append((parent, started))
        parent = _parent_of(parent)
    return chain


def machine_id() -> str:
    """What tells this machine from others, and this boot from earlier ones where there is no machine id."""
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            text = Path(name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if text:
            return text
    return socket.gethostname()


def pid_namespace() -> str:
    """In which process ids mean the same; machines made of one image may share even their machine id."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
