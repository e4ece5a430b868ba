# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a host's servers besides the generations: the two slots, a surge, and a rollout under way.

A host has two places for a server, slots a and b, with ports of their own. One of them is active; the other is free but
for the time of a surge, in which the next generation starts there beside the old one.

Private to the collection.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import hand_over
from ansible_collections.trtllm.serving.plugins.module_utils._lock import utc_now

SLOTS = ("a", "b")
# How far the ports of slot b are above those of slot a, where launch.json does not say.
PORT_OFFSET = 100
_SLOT = "slot.json"
_SURGE = "surge.json"
_ROLLOUT = "rollout.json"
_PORT = re.compile(r"^--(http|grpc|metrics)-port=(\d+)$")


# --- the records, below home/run ---


def read_record(home: Path, name: str) -> Dict[str, Any]:
    """A record below home/run; empty when there is none that can be read."""
    try:
        value = json.loads((home / "run" / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_record(home: Path, name: str, record: Mapping[str, Any]) -> None:
    """Writes a record whole or not at all, on the disk before anything that it tells of is done."""
    folder = home / "run"
    if not folder.is_dir():
        folder.mkdir(mode=0o750)
        hand_over(folder, home)
    partial = folder / (".%s.partial" % name)
    fd = os.open(str(partial), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    hand_over(partial, home)
    os.rename(str(partial), str(folder / name))
    fd = os.open(str(folder), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_record(home: Path, name: str) -> bool:
    try:
        (home / "run" / name).unlink()
    except FileNotFoundError:
        return False
    return True


# --- a rollout of this host ---


def read_rollout(home: Path) -> Dict[str, Any]:
    """The rollout of this host that is not finished: run, target, since; empty when there is none."""
    return read_record(home, _ROLLOUT)


def begin_rollout(home: Path, run: str, target: Optional[str]) -> bool:
    """Records that this host is going to be switched, before it is drained; whether that was not known yet."""
    found = read_rollout(home)
    record = {"run": run, "target": target, "since": found.get("since") or utc_now()}
    if found == record:
        return False
    write_record(home, _ROLLOUT, record)
    return True


def end_rollout(home: Path) -> bool:
    return remove_record(home, _ROLLOUT)


# --- slots ---


def other(slot: str) -> str:
    return "a" if slot == "b" else "b"


def suffix(slot: str) -> str:
    """What the names of a slot's files, processes and container end with."""
    return "-b" if slot == "b" else ""


def active_slot(home: Path) -> str:
    """The slot whose server is the host's."""
    record = read_record(home, _SLOT)
    slot = "b" if record.get("slot") == "b" else "a"
    generation = record.get("when")
    if generation is None:
        return slot
    try:
        current: Optional[str] = os.path.basename(os.readlink(str(home / "current")))
    except OSError:
        current = None
    return slot if current == generation else other(slot)


def point_slot(home: Path, slot: str, when: Optional[str] = None) -> None:
    """Makes a slot the active one: now, or at the moment that home/current names the generation ``when``.

    So one rename, that of home/current, changes generation and slot at once.
    """
    record = {"slot": slot} if when is None else {"slot": slot, "when": when}
    found = read_record(home, _SLOT)
    if found != record and (found or record != {"slot": "a"}):
        write_record(home, _SLOT, record)


def read_surge(home: Path) -> Dict[str, Any]:
    """The generation that was started beside the old one, and not promoted yet: generation, slot, since."""
    record = read_record(home, _SURGE)
    return record if record.get("slot") == other(active_slot(home)) else {}


def begin_surge(home: Path, generation: str, slot: str) -> None:
    write_record(home, _SURGE, {"generation": generation, "slot": slot, "since": utc_now()})


def end_surge(home: Path) -> bool:
    return remove_record(home, _SURGE)


def server_record(slot: str) -> str:
    """Below home/run: what the server in a slot was started from."""
    return "server%s.json" % suffix(slot)


# --- ports ---


def shift(launch: Mapping[str, Any], slot: str) -> int:
    return int(launch.get("surge_port_offset", PORT_OFFSET)) if slot == "b" else 0


def ports_of(launch: Mapping[str, Any], slot: str) -> Dict[str, int]:
    """The ports that a generation's server has on the host in a slot: http, grpc and metrics, as far as given."""
    given = launch.get("ports")
    if isinstance(given, Mapping):
        base = {str(name): int(port) for name, port in given.items()}
    else:
        matches = (_PORT.match(str(word)) for word in launch.get("argv") or [])
        base = {match.group(1): int(match.group(2)) for match in matches if match}
    return {name: port + shift(launch, slot) for name, port in base.items()}


def active_ports(home: Path, launch: Mapping[str, Any]) -> Dict[str, int]:
    """The ports that a generation's server has in the slot that is active."""
    return ports_of(launch, active_slot(home))


def url_of(launch: Mapping[str, Any], slot: str) -> Optional[str]:
    """Where a generation's server is asked in a slot; None where its launch.json has no question."""
    url = (launch.get("probe") or {}).get("url")
    if not url:
        return None
    place, colon, port = str(url).rpartition(":")
    return "%s%s%d" % (place, colon, int(port) + shift(launch, slot)) if port.isdigit() else str(url)


def active_url(home: Path, launch: Mapping[str, Any]) -> Optional[str]:
    """Where a generation's server is asked in the slot that is active."""
    return url_of(launch, active_slot(home))
