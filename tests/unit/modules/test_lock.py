# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _lock, _process
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


def test_holder_whose_run_has_lost_the_host_is_waited_for(tmp_path: Path) -> None:
    """A worker that outlived its controller may begin a module after that: then all of its ancestors live."""
    take(tmp_path, "run-1", os.getpid())
    first = HostLock(tmp_path, "switch").acquire()
    began = time.monotonic()
    with pytest.raises(Locked):
        HostLock(tmp_path, "mine", orphan_wait_s=5).acquire()
    assert time.monotonic() - began < 1, "its run has the host"
    take(tmp_path, "run-2", os.getpid(), take_over=True)
    ended = threading.Timer(0.3, first.release)
    ended.start()
    with HostLock(tmp_path, "mine", orphan_wait_s=5) as lock:
        assert lock.held
    ended.join()


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
    "gone",
    [{"controller_pid_starttime": 1}, {"controller_pid": 2**22 + 1}, {"controller_machine_id": "another", "ttl": -1}],
)
def test_lease_of_a_dead_run_is_taken_over_at_once(tmp_path: Path, gone: dict[str, Any]) -> None:
    take(tmp_path, "run-1", os.getpid(), **gone)
    assert RunLease(tmp_path).blocked_by("run-2") is None
    assert take(tmp_path, "run-2", os.getpid()) == {}
    assert RunLease(tmp_path).read()["run_id"] == "run-2"


@pytest.mark.parametrize("far", [{"controller_machine_id": "another"}, {"controller_pid_namespace": "pid:[1]"}])
def test_lease_of_another_machine_counts_until_it_expires(tmp_path: Path, far: dict[str, Any]) -> None:
    take(tmp_path, "run-1", 2**22 + 1, **far, ttl=100)
    message = str(RunLease(tmp_path).blocked_by("run-2"))
    assert "nothing is heard of it for 100 s" in message and "triton_pool_take_over=true" in message
    lease = RunLease(tmp_path).read()
    for expires, blocked in ((time.time() + 1, True), (time.time() - 1, False), (time.time() + 1000, False)):
        (tmp_path / "run" / "lease.json").write_text(json.dumps({**lease, "expires": expires}))
        assert (RunLease(tmp_path).blocked_by("run-2") is not None) is blocked, expires - time.time()


def test_lease_is_taken_over_when_told_to(tmp_path: Path) -> None:
    take(tmp_path, "run-1", os.getpid())
    assert take(tmp_path, "run-2", os.getpid(), take_over=True)["run_id"] == "run-1"
    assert "was deployed by another run since" not in str(RunLease(tmp_path).fenced_off("run-2"))
    assert "is being deployed by another run" in str(RunLease(tmp_path).fenced_off("run-1"))


def test_run_that_lost_the_host_stays_out(tmp_path: Path) -> None:
    assert RunLease(tmp_path).fenced_off("run-1") is None
    take(tmp_path, "run-1", os.getpid())
    assert RunLease(tmp_path).fenced_off("run-1") is None
    RunLease(tmp_path).release("run-1")
    assert RunLease(tmp_path).fenced_off("run-1") is None
    take(tmp_path, "run-2", os.getpid())
    RunLease(tmp_path).release("run-2")
    assert "was deployed by another run since this one began" in str(RunLease(tmp_path).fenced_off("run-1"))
    # It may have the host again by asking for it, and a task outside of any run is not kept from it.
    assert RunLease(tmp_path).blocked_by("run-1") is None and RunLease(tmp_path).fenced_off("") is None


def expires(home: Path) -> float:
    return float(RunLease(home).read()["expires"])


def test_lease_is_renewed_while_it_counts(tmp_path: Path) -> None:
    assert _lock.renew(tmp_path) == 0
    take(tmp_path, "run-1", os.getpid(), controller_machine_id="another", ttl=100)
    lease = RunLease(tmp_path).read()
    path = tmp_path / "run" / "lease.json"
    path.write_text(json.dumps({**lease, "expires": time.time() + 1}))
    assert _lock.renew(tmp_path) == 100 and expires(tmp_path) > time.time() + 90
    path.write_text(json.dumps({**lease, "expires": 1}))
    assert _lock.renew(tmp_path) == 0 and expires(tmp_path) == 1
    RunLease(tmp_path).release("run-1")
    assert _lock.renew(tmp_path) == 0


def test_lock_keeps_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "_RENEWAL_S", 0.02)
    take(tmp_path, "run-1", os.getpid(), ttl=100)
    with HostLock(tmp_path, "building"):
        first = expires(tmp_path)
        deadline = time.monotonic() + 10
        while expires(tmp_path) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "lease" and not ended(thread)]


def ended(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


def test_lease_is_released_by_its_run_only(tmp_path: Path) -> None:
    assert RunLease(tmp_path).release("run-1") is False
    take(tmp_path, "run-1", os.getpid())
    assert RunLease(tmp_path).release("run-2") is False and RunLease.alive(RunLease(tmp_path).read())
    assert RunLease(tmp_path).release("run-1") is True and not RunLease.alive(RunLease(tmp_path).read())
    assert RunLease(tmp_path).release("run-1") is False


def test_damaged_lease_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lease.json").write_text("{half")
    assert take(tmp_path, "run-1", os.getpid()) == {}


def leased(home: Path, pid: int, started: int | None, namespace: str) -> RunLease:
    home.mkdir(exist_ok=True)
    lease = RunLease(home)
    lease.acquire(
        "first", controller_machine_id=_process.machine_id(), controller_pid=pid, controller_pid_starttime=started,
        controller_pid_namespace=namespace, who="me@there",
    )  # fmt: skip
    return lease


def test_a_run_that_its_controller_has_seen_dead_blocks_no_host(tmp_path: Path) -> None:
    # As a host sees it whose controller is another machine: alive until it expires.
    lease = leased(tmp_path, 4194000, 1, "pid:[1]")
    assert lease.blocked_by("second") is not None
    assert lease.blocked_by("second", gone="third") is not None
    assert lease.blocked_by("second", gone="first") is None
    with pytest.raises(Locked):
        taken_by_second(lease)
    taken_by_second(lease, gone="first")
    assert lease.read()["run_id"] == "second"


def taken_by_second(lease: RunLease, gone: str = "") -> None:
    lease.acquire(
        "second", controller_machine_id="other", controller_pid=1, controller_pid_starttime=1, who="me@here", gone=gone
    )


def test_only_the_machine_of_a_run_knows_it_dead(tmp_path: Path) -> None:
    here = _process.pid_namespace()
    assert RunLease.known_dead(leased(tmp_path / "dead", 4194000, 1, here).read())
    assert not RunLease.known_dead(leased(tmp_path / "elsewhere", 4194000, 1, "pid:[1]").read())
    mine = os.getpid()
    assert not RunLease.known_dead(leased(tmp_path / "alive", mine, _process.pid_starttime(mine), here).read())
    assert not RunLease.known_dead({})
