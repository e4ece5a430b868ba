# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run leaves on a host before anything there is switched, and whether it may.

Private to the collection.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from ansible_collections.trtllm.serving.plugins.module_utils._generation import STAGED
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LockError, RunLease, utc_now
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server
from ansible_collections.trtllm.serving.plugins.module_utils._server_state import read_record, write_record


def fence(home: Path, run: str) -> None:
    """A run that lost the host to another one must not change what that one has made of it."""
    refusal = RunLease(home).fenced_off(run) if run else None
    if refusal is not None:
        raise LockError(refusal)


def runs(home: Path, params: Mapping[str, Any], generation: str) -> bool:
    """Whether a server process of this generation is there, whatever it answers."""
    if params["runtime"] == "docker":
        # Only with a container; what runs without one does not wait for it.
        from ansible_collections.trtllm.serving.plugins.module_utils._docker_server import DockerServer

        return DockerServer(home, params["container"]).running() == generation
    return Server(home).running() == generation


def stage(home: Path, generation: str, run: str) -> bool:
    """Says on the host what was assembled last, for a rollout without an assembly; whether that was news."""
    if read_record(home, STAGED).get("id") == generation:
        return False
    write_record(home, STAGED, {"id": generation, "run": run, "since": utc_now()})
    return True


def give_back(home: Path, run: str) -> bool:
    """Gives a host back that needs nothing more of this run."""
    return bool(run) and RunLease(home).release(run)
