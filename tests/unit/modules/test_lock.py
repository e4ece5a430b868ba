# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _lock
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, Locked, LockError, RunLease

HOLDER = (
    "import sys, time\n"
    "from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock\n"
    "lock = HostLock(sys.argv[1], 'convert_checkpoint 0123').acquire()\n"
    "print('held', flush=True)\n"
    "sys.stdin.readline()\n"
    "lock.mark_stopping()\n"
    "print('stopping', flush=True)\n"
    "time.sleep(float(sys.argv[2]))\n"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Any]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "0.5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_busy_fails_at_once_and_names_the_holder(tmp_path: Path, holder: Any) -> None:
    began = time.monotonic()
    with pytest.raises(Locked) as caught:
        HostLock(tmp_path, "mine").acquire()
    assert time.monotonic() - began < 1
    text = str(caught.value)
    assert f"pid {holder.pid} (convert_checkpoint 0123, since 20" in text and f"'kill {holder.pid}'" in text
    assert caught.value.holder["pid"] == holder.pid


def test_holder_that_is_stopping_is_waited_for(tmp_path: Path, holder: Any) -> None:
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "stopping\n"
    with HostLock(tmp_path, "mine") as lock:
        assert lock.held


def test_holder_whose_caller_is_gone_is_waited_for(tmp_path: Path, holder: Any) -> None:
    path = tmp_path / ".lock"
    record = json.loads(path.read_text())
    record["ancestors"] = [[record["ancestors"][0][0], 1]]
    path.write_text(json.dumps(record))
    began = time.monotonic()
    with pytest.raises(Locked):
        HostLock(tmp_path, "mine", orphan_wait_s=0.3).acquire()
    assert time.monotonic() - began >= 0.3


def test_lock_of_a_killed_holder_is_free(tmp_path: Path, holder: Any) -> None:
    holder.kill()
    holder.wait()
    with HostLock(tmp_path, "mine") as lock:
        assert lock.held
        assert json.loads((tmp_path / ".lock").read_text())["what"] == "mine"
    assert (tmp_path / ".lock").read_text() == ""


def test_unusable_home(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="nowhere does not exist: create it"):
        HostLock(tmp_path / "nowhere", "mine").acquire()
    (tmp_path / ".lock").symlink_to("/etc/passwd")
    with pytest.raises(LockError):
        HostLock(tmp_path, "mine").acquire()


# --- the lease --------------------------------------------------------------------------------------------------


def take(home: Path, run_id: str, pid: int, **more: Any) -> dict[str, Any]:
    return RunLease(home).acquire(
        run_id,
        **{
            "controller_machine_id": _lock.machine_id(),
            "controller_pid": pid,
            "controller_pid_starttime": _lock.pid_starttime(pid),
            "who": "someone",
            **more,
        },
    )


def test_lease_of_a_living_run_is_respected(tmp_path: Path) -> None:
    assert take(tmp_path, "run-1", os.getpid()) == {}
    with pytest.raises(Locked, match=f"pid {os.getpid()} .someone, since .* or stop it with 'kill {os.getpid()}'"):
        take(tmp_path, "run-2", os.getppid())
    assert "another run" in str(RunLease(tmp_path).blocked_by("run-2"))
    assert RunLease(tmp_path).blocked_by("run-1") is None
    since = RunLease(tmp_path).read()["since"]
    assert take(tmp_path, "run-1", os.getpid()) == {} and RunLease(tmp_path).read()["since"] == since


@pytest.mark.parametrize(
    "gone", [{"controller_pid_starttime": 1}, {"controller_machine_id": "another"}, {"controller_pid": 2**22 + 1}]
)
def test_lease_of_a_dead_or_unseen_run_is_taken_over(tmp_path: Path, gone: dict[str, Any]) -> None:
    take(tmp_path, "run-1", os.getpid(), **gone)
    assert take(tmp_path, "run-2", os.getpid())["run_id"] == "run-1"
    assert RunLease(tmp_path).read()["run_id"] == "run-2"


def test_lease_is_released_by_its_run_only(tmp_path: Path) -> None:
    assert RunLease(tmp_path).release("run-1") is False
    take(tmp_path, "run-1", os.getpid())
    assert RunLease(tmp_path).release("run-2") is False and RunLease(tmp_path).read()
    assert RunLease(tmp_path).release("run-1") is True and not (tmp_path / "run" / "lease.json").exists()


def test_damaged_lease_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lease.json").write_text("{half")
    assert take(tmp_path, "run-1", os.getpid()) == {}
