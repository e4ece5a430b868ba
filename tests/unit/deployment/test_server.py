# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of a home: started, switched, taken back and stopped, and never left between two generations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _server, _server_base
from ansible_collections.trtllm.serving.plugins.module_utils._generation import UNPROVEN
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server, read_pid
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import (
    ServerError,
    previous_after,
    switch_link,
    wait_until,
)
from ansible_collections.trtllm.serving.tests.unit.deployment.conftest import Home

NOTHING = {"current": None, "previous": None}


def deploy(home: Home, generation: str) -> Server:
    server = Server(home.path)
    server.switch(generation, server.before(), 5)
    return server


def test_switch_starts_and_points(home: Home) -> None:
    one, two = home.generation("one"), home.generation("two")
    server = deploy(home, one)
    server.settle()
    assert server.running() == one and server.links() == {"current": one, "previous": None}
    first = home.started()
    deploy(home, two).settle()
    assert server.running() == two and server.links() == {"current": two, "previous": one}
    assert all(read_dead(pid) for pid in first)


def read_dead(pid: int) -> bool:
    return _server.pid_starttime(pid) is None


def test_stop_ends_both_and_removes_what_tells_of_them(home: Home) -> None:
    server = deploy(home, home.generation("one"))
    pids = home.started()
    assert server.stop(5) is True
    assert all(read_dead(pid) for pid in pids)
    assert server.running() is None and not (home.path / "run" / "triton.pid").exists()
    assert server.stop(5) is False


@pytest.mark.parametrize("name", ["triton", "supervisord"])
def test_stop_leaves_a_foreign_process_with_a_reused_pid_alone(home: Home, tmp_path: Path, name: str) -> None:
    foreign = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    try:
        (home.path / "run").mkdir()
        (home.path / "run" / (name + ".pid")).write_text("%d\n" % foreign.pid)
        server = Server(home.path)
        assert server.server_pid() is None and server.supervisor_pid() is None and server.stop(1) is False
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_a_server_whose_pid_files_are_gone_is_found_and_stopped(home: Home, tmp_path: Path) -> None:
    words = {"server_pid": ["/x/tritonserver", "60"], "supervisor_pid": ["python", "60"]}
    processes = {}
    try:
        for folder in (home.path, tmp_path):
            for name, argv in words.items():
                code = ["60", "supervisor.supervisord"] if name == "supervisor_pid" else argv[1:]
                # sh keeps its words and its place; a tail call would make it the sleep itself.
                command = [argv[0], "-c", "trap 'exit 0' TERM; sleep 60 & wait", *code]
                child = subprocess.Popen(command, executable="/bin/sh", cwd=folder, start_new_session=True)
                processes[folder, name] = child
        server = Server(home.path)
        assert server.server_pid() == processes[home.path, "server_pid"].pid
        assert server.supervisor_pid() == processes[home.path, "supervisor_pid"].pid
        assert server.stop(1) is True
        assert all(processes[home.path, name].wait(5) == 0 for name in words)
        assert all(processes[tmp_path, name].poll() is None for name in words), "another home's go on"
    finally:
        for child in processes.values():
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()


def test_servers_of_two_slots_are_told_apart_without_pid_files(home: Home) -> None:
    server = Server(home.path)
    prefix = "--backend-config=python,shm-region-prefix-name="
    words = {
        ("server_pid", "a"): ["/x/tritonserver", prefix + server.shm_prefix("a")],
        ("server_pid", "b"): ["/x/tritonserver", prefix + server.shm_prefix("b")],
        ("stub", "a"): ["/x/triton_python_backend_stub", server.shm_prefix("a") + "1"],
        ("stub", "b"): ["/x/triton_python_backend_stub", server.shm_prefix("b") + "1"],
        ("supervisor_pid", "a"): ["python", "supervisor.supervisord"],
        ("supervisor_pid", "b"): ["python", "supervisor.supervisord", "-i", _server.IDENTIFIER],
    }
    children = {}
    try:
        for key, (name, *rest) in words.items():
            command = [name, "-c", "trap 'exit 0' TERM; sleep 60 & wait", *rest]
            children[key] = subprocess.Popen(command, executable="/bin/sh", cwd=home.path, start_new_session=True)
        for (kind, slot), child in children.items():
            if kind != "stub":
                assert wait_until(lambda child=child, kind=kind, slot=slot: getattr(server, kind)(slot) == child.pid, 5)
        assert server.stop(1, "b") is True
        assert all(children[kind, "b"].wait(5) is not None for kind in ("server_pid", "stub", "supervisor_pid"))
        assert all(children[kind, "a"].poll() is None for kind in ("server_pid", "stub", "supervisor_pid"))
        assert server.alive() and not server.alive("b")
    finally:
        for child in children.values():
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()


@pytest.mark.parametrize("text", ["", "x", "-", "999999999"])
def test_pid_files_that_name_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    assert read_pid(tmp_path / "pid") is None


def test_a_generation_that_never_passed_does_not_count_as_one_that_served(home: Home) -> None:
    one, two, three = (home.generation(text) for text in ("one", "two", "three"))
    deploy(home, one).settle()
    server = deploy(home, two)
    # Its run broke off before the gate.
    assert server.before() == {"current": one, "previous": None}
    deploy(home, three)
    assert server.links() == {"current": three, "previous": one}
    assert server.before() == {"current": one, "previous": None}
    server.settle()
    assert server.before() == {"current": three, "previous": one}
    assert not server.switching()


def test_restore_goes_back_to_what_served(home: Home) -> None:
    one, two = home.generation("one"), home.generation("two")
    deploy(home, one).settle()
    server = Server(home.path)
    before = server.before()
    deploy(home, two)
    assert server.restore(before, 5) == one
    assert server.running() == one and server.links() == {"current": one, "previous": None}
    assert not server.switching()


def test_restore_without_a_generation_before_leaves_nothing_in_service(home: Home) -> None:
    server = deploy(home, home.generation("one"))
    assert server.restore(NOTHING, 5) is None
    assert server.running() is None and server.links() == NOTHING


def test_restore_leaves_the_same_generation_running(home: Home) -> None:
    one = home.generation("one")
    server = deploy(home, one)
    server.settle()
    before = server.before()
    deploy(home, one)
    pids = home.started()[2:]
    assert server.restore(before, 5) == one
    assert not any(read_dead(pid) for pid in pids) and len(home.started()) == 4


def test_restore_of_a_broken_generation_stops_nothing(home: Home) -> None:
    one, two = home.generation("one"), home.generation("two")
    deploy(home, one).settle()
    server = deploy(home, two)
    (home.path / "generations" / one / "manifest.json").unlink()
    with pytest.raises(ServerError, match="generation %s is not complete" % one):
        server.restore({"current": one, "previous": None}, 5)
    assert server.running() == two


def test_a_supervisor_that_refuses_says_why(home: Home) -> None:
    one = home.generation("one")
    (home.path / "refuse").write_text("")
    with pytest.raises(ServerError, match="refused to start: Error: Cannot open an HTTP server"):
        deploy(home, one)


def test_names_are_resolved(home: Home) -> None:
    one = home.generation("one")
    server = Server(home.path)
    with pytest.raises(ServerError, match="has no previous generation: deploy first"):
        server.resolve("previous")
    home.link(current=one)
    assert server.resolve("current") == one == server.resolve(one)
    with pytest.raises(ServerError, match="generation 0123 is not complete .*deploy again"):
        server.resolve("0123")
    assert server.known("previous") and server.known(one) and not server.known("0123")
    (home.path / "generations" / one / "manifest.json").unlink()
    assert not server.known(one) and not server.known("current")


@pytest.mark.parametrize(
    ("before", "generation", "expected"),
    [
        ((None, None), "a", None),
        (("a", None), "b", "a"),
        (("a", "c"), "a", "c"),
        (("a", "b"), "b", "a"),
    ],
)
def test_previous(before: tuple[str, str], generation: str, expected: str) -> None:
    assert previous_after({"current": before[0], "previous": before[1]}, generation) == expected


def test_links_are_switched_in_one_step(tmp_path: Path) -> None:
    (tmp_path / ".current.partial").symlink_to("left behind")
    switch_link(tmp_path, "current", "a")
    switch_link(tmp_path, "current", "b")
    assert os.readlink(tmp_path / "current") == "generations/b"
    assert sorted(os.listdir(tmp_path)) == ["current"]
    switch_link(tmp_path, "current", None)
    switch_link(tmp_path, "current", None)
    assert os.listdir(tmp_path) == []


def test_only_what_the_collection_made_is_removed(home: Home) -> None:
    home.link(current=home.generation("one"))
    (home.path / "mine").write_text("")
    server = Server(home.path)
    assert server.own() == [] == server.remove(), "nothing was ever deployed here"
    (home.path / ".lock").write_text("")
    assert server.remove() == ["current", "generations", "venv"]
    assert sorted(os.listdir(home.path)) == [".lock", "mine"]


def test_ledger_has_a_line_for_each_event(home: Home) -> None:
    server = Server(home.path)
    server.ledger("switch", "a", "started", 1.23456, before=None)
    server.ledger("restore", None, "failed a", 0.0, reason="ü\nx")
    first, second = home.ledger()
    assert first["seconds"] == 1.235 and first["stage"] == "switch" and "before" not in first
    assert second["generation"] is None and second["reason"] == "ü\nx"
    assert (home.path / "ledger.jsonl").stat().st_mode & 0o777 == 0o640


def test_the_record_of_a_switch_is_there_before_the_server_is_stopped(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = home.generation("one"), home.generation("two")
    deploy(home, one).settle()
    seen = []
    monkeypatch.setattr(
        Server, "stop", lambda self, timeout, slot=None: seen.append(json.loads((home.path / UNPROVEN).read_text()))
    )
    with pytest.raises(OSError):
        full = OSError(28, "full")
        monkeypatch.setattr(_server_base, "switch_link", lambda *unused: (each for each in ()).throw(full))
        deploy(home, two)
    assert seen == [{"generation": two, "before": {"current": one, "previous": None}}]


def test_wait_until_gives_up() -> None:
    assert wait_until(lambda: True, 0.0) and not wait_until(lambda: False, 0.0)
