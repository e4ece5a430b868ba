# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The health check of the server's container: what counts as failure, and when it ends the main process."""

from __future__ import annotations

import http.server
import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "roles" / "triton_serve" / "files" / "health.py"


class Triton(http.server.BaseHTTPRequestHandler):
    """Answers as the server's class attributes say."""

    ready = True
    status = 200
    reply: Any = {"text_output": "a"}

    def do_GET(self) -> None:
        self.send_response(200 if self.ready else 400)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps(self.reply).encode())

    def log_message(self, *unused: Any) -> None:
        pass


@pytest.fixture(name="triton")
def _triton() -> Iterator[Any]:
    class Own(Triton):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        Own.port = server.server_address[1]  # type: ignore[attr-defined]
        yield Own
        server.shutdown()


@pytest.fixture(name="health")
def _health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("trtllm_health", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.STATE = tmp_path / "state.json"
    module.LOG = str(tmp_path / "log")
    module.killed = []
    monkeypatch.setattr(module.os, "kill", lambda pid, number: module.killed.append((pid, number)))
    return module


@pytest.fixture(name="launch")
def _launch(triton: Any) -> dict[str, Any]:
    probe = {"model": "bls", "prompt": "?", "interval": 30, "timeout": 5, "failures": 2, "startup_timeout": 600}
    return {"ports": {"http": triton.port}, "world_size": 2, "gpus": "none", "stop_timeout": 5, "probe": probe}


def test_a_token_is_health(health: Any, launch: dict[str, Any]) -> None:
    assert health.check(launch) == 0 and health.killed == []


def test_the_main_process_is_ended_after_failures_in_a_row(
    health: Any, launch: dict[str, Any], triton: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert health.check(launch) == 0
    triton.status, triton.reply = 400, {"error": "Stub process 'bls_0_0' is not healthy."}
    assert health.check(launch) == 1 and health.killed == []
    triton.status, triton.reply = 200, {"text_output": ""}
    assert health.check(launch) == 0, "not in a row"
    triton.reply = {"error": "generate expects model to produce exactly 1 response"}
    assert health.check(launch) == 1 and health.killed == []
    assert health.check(launch) == 1 and health.killed == [(1, signal.SIGTERM)]
    assert "exactly 1 response" in capsys.readouterr().out
    log = Path(health.LOG).read_text()
    assert "health check: " in log and "ending the main process" in log
    assert health.check(launch) == 1 and len(health.killed) == 1, "it is left the time to end"
    state = json.loads(health.STATE.read_text())
    health.STATE.write_text(json.dumps({**state, "asked": state["asked"] - health.GRACE - 1}))
    assert health.check(launch) == 1 and health.killed[1:] == [(-1, signal.SIGKILL)]


def test_a_busy_server_is_alive(health: Any, launch: dict[str, Any], triton: Any) -> None:
    health.check(launch)
    triton.status, triton.reply = 503, {"error": "Exceeds maximum queue size"}
    assert [health.check(launch) for _each in range(4)] == [0] * 4 and health.killed == []


def test_a_start_is_waited_for_and_not_for_ever(health: Any, launch: dict[str, Any], triton: Any) -> None:
    triton.ready = False
    assert [health.check(launch) for _each in range(4)] == [1] * 4 and health.killed == []
    state = json.loads(health.STATE.read_text())
    health.STATE.write_text(json.dumps({**state, "since": state["since"] - 601}))
    assert health.check(launch) == 1 and health.killed == [(1, signal.SIGTERM)]


def test_what_an_earlier_start_has_found_does_not_count(health: Any, launch: dict[str, Any], triton: Any) -> None:
    health.check(launch)
    triton.status, triton.reply = 400, {"error": "x"}
    health.check(launch)
    state = json.loads(health.STATE.read_text())
    health.STATE.write_text(json.dumps({**state, "init": "another"}))
    triton.ready = False
    assert health.check(launch) == 1 and json.loads(health.STATE.read_text())["failures"] == 0
    assert health.killed == []


def test_without_a_place_for_its_state_nothing_is_ended(
    health: Any, launch: dict[str, Any], triton: Any, tmp_path: Path
) -> None:
    health.STATE = tmp_path / "missing" / "state.json"
    triton.status, triton.reply = 400, {"error": "x"}
    assert [health.check(launch) for _each in range(3)] == [1] * 3 and health.killed == []


@pytest.mark.parametrize(
    ("output", "code", "lost"),
    [
        ("GPU 0: A (UUID: GPU-1)\nGPU 1: A (UUID: GPU-2)\n", 0, ""),
        ("GPU 0: A (UUID: GPU-1)\nGPU 1: A (UUID: GPU-2)\nWARNING: infoROM is corrupted\n", 14, ""),
        ("GPU 0: A (UUID: GPU-1)\n", 0, "1 of 2 GPUs seen"),
        ("Failed to initialize NVML: Unknown Error\n", 255, "Failed to initialize NVML"),
        ("No devices were found\n", 6, "exits with 6"),
    ],
)
def test_gpus_are_counted(
    health: Any, launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, output: str, code: int, lost: str
) -> None:
    done = subprocess.CompletedProcess([], code, output.encode())
    monkeypatch.setattr(health.subprocess, "run", lambda *unused, **more: done)
    launch["gpus"] = "all"
    found = health.lost_gpus(health.wanted_gpus(launch))
    assert lost in found if lost else found == ""
    assert health.check(launch) == (1 if lost else 0)
    if lost:
        assert health.check(launch) == 1 and health.killed == [(1, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("gpus", "count"),
    [("none", 0), (0, 0), (None, 0), ("all", 2), (4, 4), ("4", 4), (["0", "1", "2"], 3), ("GPU-1", 1)],
)
def test_how_many_gpus_there_must_be(health: Any, launch: dict[str, Any], gpus: Any, count: int) -> None:
    assert health.wanted_gpus({**launch, "gpus": gpus}) == count


@pytest.mark.parametrize(("gpus", "count"), [("all", 2), (["0", "1", "2", "3"], 2), ("4", 2), ("none", 0)])
def test_in_the_second_slot_there_are_only_those_that_serve(
    health: Any, launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gpus: Any, count: int
) -> None:
    monkeypatch.setenv("TRTLLM_SLOT", "-b")
    assert health.wanted_gpus({**launch, "gpus": gpus}) == count


def test_the_server_of_rank_0_is_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "launch.json"
    path.write_text(json.dumps({"stop_timeout": 20}))
    stop = [sys.executable, "-I", str(SCRIPT), str(path), "--stop"]
    code = (
        "import signal, time; signal.signal(15, lambda *x: (time.sleep(0.5), exit(0)));"
        "print(flush=True); time.sleep(60)"
    )
    ranks = {}
    try:
        for rank in ("0", "1"):
            ranks[rank] = subprocess.Popen(
                ["/x/tritonserver", "-c", code], executable=sys.executable, env={"OMPI_COMM_WORLD_RANK": rank},
                stdout=subprocess.PIPE, cwd=tmp_path,
            )  # fmt: skip
            assert ranks[rank].stdout is not None and ranks[rank].stdout.readline()
        assert subprocess.run(stop, timeout=30, check=False, cwd=tmp_path).returncode == 0
        assert ranks["0"].wait(1) == 0 and ranks["1"].poll() is None
        assert subprocess.run(stop, timeout=30, check=False, cwd=tmp_path).returncode == 1, "there is none"
    finally:
        for process in ranks.values():
            process.kill()
            process.communicate()
