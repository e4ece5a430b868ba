# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run leaves on a host before anything there is switched, and what it may do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _staging
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LockError, RunLease, machine_id, pid_starttime
from ansible_collections.trtllm.serving.tests.unit.deployment.conftest import Home


def lease(home: Path, run: str, **more: Any) -> None:
    pid = os.getpid()
    given = {"controller_machine_id": machine_id(), "controller_pid": pid, "who": "somebody"}
    RunLease(home).acquire(run, **{**given, "controller_pid_starttime": pid_starttime(pid), **more})


def test_what_was_assembled_last_is_told_once(home: Home) -> None:
    assert _staging.stage(home.path, "one", "run-1")
    first = (home.path / "run" / "staged.json").read_text()
    assert json.loads(first)["id"] == "one" and json.loads(first)["run"] == "run-1"
    assert not _staging.stage(home.path, "one", "run-2")
    assert (home.path / "run" / "staged.json").read_text() == first
    assert _staging.stage(home.path, "two", "run-2")


def test_a_host_is_given_back_by_the_run_that_has_it(home: Home) -> None:
    lease(home.path, "run-1")
    assert not _staging.give_back(home.path, "") and not _staging.give_back(home.path, "run-2")
    assert _staging.give_back(home.path, "run-1") and not _staging.give_back(home.path, "run-1")


def test_a_run_that_lost_the_host_assembles_nothing(home: Home) -> None:
    lease(home.path, "run-1")
    _staging.fence(home.path, "run-1")
    _staging.fence(home.path, "")
    lease(home.path, "run-2", take_over=True)
    with pytest.raises(LockError, match="is being deployed by another run"):
        _staging.fence(home.path, "run-1")


def test_whether_a_server_of_a_generation_is_there(home: Home) -> None:
    generation = home.generation("x")
    assert not _staging.runs(home.path, {"runtime": "embedded"}, generation)
