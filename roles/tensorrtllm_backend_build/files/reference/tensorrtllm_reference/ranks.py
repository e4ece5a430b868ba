# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks above 0 under mpirun. Rank 0 computes for all; the others hold their place as upstream's workers do.

A worker looks at its own part of the engine, never becomes ready, and ends its server when the leader has ended.
When a worker dies, mpirun ends the whole job.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping as StringMapping
from pathlib import Path
from typing import Optional

from . import gpu
from .engine_file import EngineFile, EngineFileError
from .errors import EngineError
from .mapping import Mapping
from .runtime import check_release, check_world_size, read_engine_config

RANK = "OMPI_COMM_WORLD_RANK"
_POLL = 0.2
# mpirun starts all ranks within moments.
_LEADER_WAIT = 30.0

Process = tuple[int, str]


def rank_of(environment: StringMapping[str, str]) -> int:
    try:
        return int(environment.get(RANK, "0"))
    except ValueError:
        return 0


def check(directory: Path, release: str, rank: int, environment: StringMapping[str, str]) -> None:
    """EngineError when this rank could not be served."""
    config = read_engine_config(directory)
    check_release(directory, str(config["version"]), release)
    mapping = Mapping.from_dict(config["pretrained_config"].get("mapping") or {})
    check_world_size(mapping.tp_size, mapping.pp_size, environment)
    path = directory / f"rank{rank}.engine"
    try:
        engine = EngineFile(path)
        check_release(path, engine.release, release)
        gpu.check(path, engine.gpu, gpu.find(), rank)
    except EngineFileError as exc:
        raise EngineError(str(exc)) from exc
    except gpu.CudaError as exc:
        raise EngineError(f"[TensorRT-LLM][ERROR] {exc}") from exc


def _stat(pid: int) -> Optional[tuple[int, str]]:
    """(parent, start time) of a living process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else (int(fields[1]), fields[19])


def _is_leader(pid: int) -> bool:
    try:
        return b"OMPI_COMM_WORLD_RANK=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def find_leader(server: int) -> Optional[Process]:
    """The server of rank 0: a child of the same mpirun."""
    own = _stat(server)
    if own is None:
        return None
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found = _stat(int(entry))
            if found is not None and found[0] == own[0] and _is_leader(int(entry)):
                return int(entry), found[1]
    return None


def alive(process: Process) -> bool:
    found = _stat(process[0])
    return found is not None and found[1] == process[1]


def follow(server: int) -> None:
    """Returns when the leader of this server's job has ended, or never was."""
    deadline = time.monotonic() + _LEADER_WAIT
    leader = find_leader(server)
    while leader is None and time.monotonic() < deadline:
        time.sleep(_POLL)
        leader = find_leader(server)
    while leader is not None and alive(leader):
        time.sleep(_POLL)


def serve(directory: Path, release: str, rank: int) -> None:
    """The life of a worker: never returns while its leader lives, and ends its server after it."""
    check(directory, release, rank, os.environ)
    server = os.getppid()
    follow(server)
    os.kill(server, signal.SIGTERM)
    # The server ends this process too.
    while True:
        time.sleep(_POLL)
