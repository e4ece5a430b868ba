# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import (
    MAX_INTERVAL_S,
    MODELS,
    Follower,
    NotReady,
    Watch,
    read_reasons,
)
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import (
    TritonClient,
    TritonError,
    Unreachable,
    check_url,
)

FIXTURES = Path(__file__).parent / "fixtures"
FAILED_LOG = FIXTURES / "triton_2.51_failed_models.log"


class Script:
    """A server whose state follows a fake clock: (from second, live, ready, models that are ready)."""

    url = "http://fake"

    def __init__(self, *steps: tuple[float, Any, bool, tuple[str, ...]]) -> None:
        self.steps = steps
        self.now = 0.0
        self.table: list[dict[str, Any]] | None = []
        self.index_calls = 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= MAX_INTERVAL_S
        self.now += seconds

    @property
    def step(self) -> tuple[float, Any, bool, tuple[str, ...]]:
        return [step for step in self.steps if step[0] <= self.now][-1]

    def live(self, timeout: float = 0) -> int:
        if isinstance(self.step[1], str):
            raise Unreachable(self.step[1], f"{self.url} {self.step[1]}")
        return int(self.step[1])

    def ready(self, timeout: float = 0) -> bool:
        return self.step[2]

    def model_ready(self, model: str, timeout: float = 0) -> bool:
        return model in self.step[3]

    def index(self, timeout: float = 0) -> list[dict[str, Any]] | None:
        self.index_calls += 1
        return self.table

    def follow(self, models: tuple[str, ...] = ("a", "b"), **more: Any) -> dict[str, Any]:
        return self.follower(models, **more).follow()

    def follower(self, models: tuple[str, ...] = ("a", "b"), **more: Any) -> Follower:
        return Follower(self, models, clock=self.clock, sleep=self.sleep, **more)


def states(timeline: list[dict[str, Any]]) -> list[str]:
    return [entry["state"] + (":" + entry["model"] if "model" in entry else "") for entry in timeline]


def test_every_transition_is_in_the_timeline() -> None:
    script = Script(
        (0, "refused", False, ()),
        (1, "timeout", False, ()),
        (2, 503, False, ()),
        (3, 200, False, ()),
        (4, 200, False, ("a",)),
        (5, 200, False, ("a", "b")),
        (6, 200, True, ("a", "b")),
    )
    found = script.follow()
    assert states(found["timeline"]) == [
        "refused", "unresponsive", "not_live", "live", "model_ready:a", "model_ready:b", "ready",
    ]  # fmt: skip
    for entry, second in zip(found["timeline"], (0, 1, 2, 3, 4, 5, 6)):
        assert 0 <= entry["at_s"] - second <= MAX_INTERVAL_S + 0.001
    assert found["ready_s"] == found["timeline"][-1]["at_s"]


def test_all_at_once_as_in_the_default_mode() -> None:
    found = Script((0, "refused", False, ()), (2.3, 200, True, ("a", "b"))).follow()
    assert states(found["timeline"]) == ["refused", "live", "model_ready:a", "model_ready:b", "ready"]
    assert len({entry["at_s"] for entry in found["timeline"][1:]}) == 1


def test_ready_without_the_models_is_not_ready() -> None:
    script = Script((0, 200, True, ()))
    with pytest.raises(NotReady, match="was not ready within 3 s; not ready: a .* b "):
        script.follow(timeout=3)


def test_restart_in_between_starts_over() -> None:
    found = Script((0, 200, False, ("a",)), (1, "refused", False, ()), (2, 200, True, ("a", "b"))).follow()
    assert states(found["timeline"]) == [
        "live", "model_ready:a", "refused", "live", "model_ready:a", "model_ready:b", "ready",
    ]  # fmt: skip


def test_no_models_needs_the_server_only() -> None:
    assert Script((0, 200, False, ()), (1, 200, True, ())).follow(())["ready"]


def test_something_else_on_the_port() -> None:
    with pytest.raises(NotReady, match="HTTP 404 at /v2/health/live: this is no Triton"):
        Script((0, 404, False, ())).follow()


def test_reasons_from_the_index() -> None:
    script = Script((0, 200, False, ("a",)))
    script.table = [
        {"name": "a", "version": "1", "state": "READY"},
        {
            "name": "b",
            "version": "1",
            "state": "UNAVAILABLE",
            "reason": "Internal: ValueError: no tokenizer\n\nAt:\n x",
        },
        {"name": "other", "version": "1", "state": "UNAVAILABLE", "reason": "broken too"},
        {"name": "c", "version": "1", "state": "LOADING"},
        {"name": "d"},
    ]
    with pytest.raises(NotReady) as caught:
        script.follow(("a", "b", "c", "d", "e"), timeout=3)
    assert caught.value.details["unready"] == {
        "b": "Internal: ValueError: no tokenizer",
        "c": "loading",
        "d": "never loaded; the server's log says why",
        "e": "there is no such model in the repository",
        "other": "broken too",
    }
    assert "b (Internal: ValueError: no tokenizer)" in str(caught.value) and "\n" not in str(caught.value)


def test_failed_model_ends_the_waiting_early() -> None:
    script = Script((0, 200, False, ("a",)))
    script.table = [{"name": "b", "version": "1", "state": "UNAVAILABLE", "reason": "Internal: boom"}]
    with pytest.raises(NotReady, match="will not become ready: 1 models failed to load; not ready: b .Internal: boom"):
        script.follow(timeout=600)
    assert script.now < 5


@pytest.mark.parametrize(
    "entry",
    [{"state": "UNAVAILABLE", "reason": "unloaded"}, {"state": "LOADING"}, {}],
)
def test_what_may_still_come_is_waited_for(entry: dict[str, Any]) -> None:
    script = Script((0, 200, False, ("a",)), (8, 200, True, ("a", "b")))
    script.table = [{"name": "b", "version": "1", **entry}]
    assert script.follow(timeout=600)["ready_s"] >= 8


def test_nothing_is_given_up_while_something_loads() -> None:
    script = Script((0, 200, False, ("a",)), (8, 200, True, ("a", "b")))
    script.table = [
        {"name": "b", "version": "1", "state": "LOADING"},
        {"name": "old", "version": "1", "state": "UNAVAILABLE", "reason": "Internal: boom"},
    ]
    assert script.follow(timeout=600)["ready_s"] >= 8


def test_closed_repository_interface() -> None:
    script = Script((0, 200, False, ("a",)))
    script.table = None
    with pytest.raises(NotReady, match="b .not loaded yet."):
        script.follow(timeout=1)


# --- the log ----------------------------------------------------------------------------------------------------


def test_reasons_that_are_only_in_the_log() -> None:
    found = read_reasons(FAILED_LOG.read_text().splitlines())
    assert found.models == {
        "badfield": 'config.pbtxt:4:14: Message type "inference.ModelConfig" has no field named "max_batchsize".',
        "wrongname": "unexpected directory name 'wrongname' for model 'other', directory name must equal model name",
        "pyerr": "Internal: ModuleNotFoundError: No module named 'nosuchmodule'",
        "ens": "ensemble 'ens' depends on 'pyerr' which has no loaded version. Model 'pyerr' loading failed with error:"
        " version 1 is at UNAVAILABLE state: Internal: ModuleNotFoundError: No module named 'nosuchmodule'",
    }
    assert found.server == "error: creating server: Internal - failed to load all models"


def test_reasons_of_every_kind_of_faulty_configuration() -> None:
    lines = (FIXTURES / "triton_2.51_faulty_configs.log").read_text().splitlines()
    assert read_reasons(lines).models == {
        "ens_unused": "ensemble output 'zz' for ensemble ens_unused' is not used",
        "placeholder": "config.pbtxt:4:17: Expected integer, got: $",
        "ens_unknown": "ensemble ens_unknown contains models that are not available or ambiguous: nosuch",
        "nover": "at least one version must be available under the version policy of model 'nover'",
        "nobackend": "Invalid argument: unable to find backend library for backend 'tensorrtllm',"
        " try specifying runtime on the model configuration.",
        "gpu": "Invalid argument: instance group gpu_0 of model gpu has kind KIND_GPU but no GPUs are available",
        "stubexit": "Internal: Stub process 'stubexit_0' is not healthy.",
        "ens_type": "in ensemble ens_type, ensemble tensor a: inconsistent data type: TYPE_INT32 is inferred from model"
        " ens_type while TYPE_STRING is inferred from model good",
    }


def test_log_of_an_earlier_start_does_not_count() -> None:
    lines = FAILED_LOG.read_text().splitlines()
    start = 'I1122 18:00:00.000000 7 pinned_memory_manager.cc:277] "Pinned memory pool is created at ..."'
    found = read_reasons([*lines, start, 'I1122 18:00:01.000000 7 model_lifecycle.cc:472] "loading: good:1"'])
    assert found.models == {} and found.server == ""


def test_busy_port_is_read_from_the_log() -> None:
    lines = (FIXTURES / "triton_2.51_busy_port.log").read_text().splitlines()
    assert read_reasons(lines).server == "Socket '127.0.0.1:8001' already in use"


def test_index_without_reason_is_completed_from_the_log() -> None:
    script = Script((0, 200, False, ("good",)))
    script.table = [{"name": "badfield"}, {"name": "good", "version": "1", "state": "READY"}]
    with pytest.raises(NotReady) as caught:
        script.follow(("good", "badfield"), timeout=1, watch=Watch(log_file=str(FAILED_LOG)))
    assert caught.value.details["unready"]["badfield"].startswith("config.pbtxt:4:14: Message type")
    assert f"log: {FAILED_LOG}" in str(caught.value) and caught.value.details["tail"]


def test_stub_that_cannot_start_is_hopeless(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text("backend_stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open\n")
    script = Script((0, "refused", False, ()))
    with pytest.raises(NotReady, match="libpython3.11.so.1.0: cannot open"):
        script.follow(timeout=600, watch=Watch(log_file=str(log)))
    assert script.now < 2


# --- the process ------------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Any:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_dead_process_fails_at_once_with_the_logs_reason(tmp_path: Path, child: Any) -> None:
    (tmp_path / "pid").write_text(f"{child.pid}\n")
    script = Script((0, "refused", False, ()))
    watch = Watch(str(tmp_path / "pid"), str(FAILED_LOG))
    real = script.sleep

    def sleep(seconds: float) -> None:
        real(seconds)
        if script.now > 1 and child.poll() is None:
            child.kill()
            child.wait()

    with pytest.raises(NotReady) as caught:
        Follower(script, ("a", "badfield"), clock=script.clock, sleep=sleep, watch=watch).follow()
    assert script.now < 1.5
    assert str(caught.value).startswith(f"the server's process {child.pid} has ended; error: creating server: Internal")
    assert "badfield: config.pbtxt:4:14" in str(caught.value)
    assert caught.value.details["unready"]["a"] == "not loaded yet"


def test_already_dead(tmp_path: Path, child: Any) -> None:
    child.kill()
    child.wait()
    (tmp_path / "pid").write_text(str(child.pid))
    with pytest.raises(NotReady, match=f"process {child.pid} .in {tmp_path}/pid. has ended"):
        Script((0, "refused", False, ())).follow(watch=Watch(str(tmp_path / "pid")))


def test_pid_file_that_appears_late(tmp_path: Path, child: Any) -> None:
    watch = Watch(str(tmp_path / "pid"))
    assert watch.death() == ""
    (tmp_path / "pid").write_text("")
    assert watch.death() == ""
    (tmp_path / "pid").write_text(str(child.pid))
    assert watch.death() == ""
    child.kill()
    # A zombie serves nothing, whether or not somebody has collected it.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert "has ended" in watch.death()


def test_stale_pid_file_is_ignored(tmp_path: Path, child: Any) -> None:
    child.kill()
    child.wait()
    (tmp_path / "pid").write_text(str(child.pid))
    os.utime(tmp_path / "pid", (1000, 1000))
    assert Watch(str(tmp_path / "pid"), since=2000).death() == ""
    assert Watch(str(tmp_path / "pid"), since=500).death() != ""


def test_process_that_was_started_again(tmp_path: Path, child: Any) -> None:
    (tmp_path / "pid").write_text(str(child.pid))
    watch = Watch(str(tmp_path / "pid"))
    assert watch.death() == ""
    (tmp_path / "pid").write_text(str(os.getpid()))
    child.kill()
    child.wait()
    assert watch.death() == f"the server's process {child.pid} has ended and was started again as pid {os.getpid()}"


# --- over HTTP --------------------------------------------------------------------------------------------------


def test_real_server_from_refused_to_ready(triton: Any) -> None:
    triton.models = dict.fromkeys(MODELS, True)
    threading.Timer(0.3, triton.open).start()
    found = Follower(TritonClient(triton.url, requests), timeout=10).follow()
    assert states(found["timeline"])[0] == "refused" and states(found["timeline"])[-1] == "ready"
    assert 0.2 < found["ready_s"] < 3


def test_readiness_is_noticed_within_a_tenth_of_a_second(triton: Any) -> None:
    triton.open()
    lags = []
    for wait in (0.21, 0.27, 0.24):
        triton.models = dict.fromkeys(MODELS, False)
        became: list[float] = []

        def become(became: list[float] = became) -> None:
            triton.models = dict.fromkeys(MODELS, True)
            became.append(time.monotonic())

        timer = threading.Timer(wait, become)
        timer.start()
        Follower(TritonClient(triton.url, requests), timeout=10).follow()
        lags.append(time.monotonic() - became[0])
        timer.join()
    assert statistics.median(lags) < 0.1, lags


def test_server_that_accepts_and_says_nothing() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(1)
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(NotReady, match="was not ready within 0.4 s"):
            Follower(TritonClient(url, requests), timeout=0.4).follow()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://h", "http://", "http://user:pw@h:1", "http://h:99999", "http://h/?q=1"]
)
def test_bad_url(url: str) -> None:
    with pytest.raises(TritonError) as caught:
        check_url(url)
    assert "pw" not in str(caught.value)


def test_module_process(triton: Any, start_module: Any, tmp_path: Path) -> None:
    args = {"url": triton.url + "/", "timeout": 0.2, "watch": {"pid_file": str(tmp_path / "pid")}}
    looked = start_module("triton_ready", args, check=True).result()
    assert not looked["ready"] and not looked.get("failed") and states(looked["timeline"]) == ["refused"]
    assert set(looked["unready"]) == set(MODELS)
    failed = start_module("triton_ready", args).result()
    assert failed["failed"] and "was not ready within 0.2 s" in failed["msg"] and "refused" in failed["msg"]
    triton.models = dict.fromkeys(MODELS, True)
    triton.open()
    found = start_module("triton_ready", args).result()
    assert found["ready"] and not found["changed"] and found["timeline"][-1]["state"] == "ready"


def test_module_without_requests(start_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requests.py").write_text("raise ImportError('no requests here')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, args in (("triton_ready", {}), ("triton_generate", {"prompt": "x"})):
        failed = start_module(name, args).result()
        assert failed["failed"] and "requests" in failed["msg"] and "required" in failed["msg"]
