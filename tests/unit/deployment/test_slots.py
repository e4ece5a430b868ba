# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two servers on one host, a rollout that is told from others, and what is left when it is cut off anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _server_actions, _server_base
from ansible_collections.trtllm.serving.plugins.module_utils import _server_state as state
from ansible_collections.trtllm.serving.plugins.module_utils._generation import make, plan
from ansible_collections.trtllm.serving.plugins.module_utils._lock import RunLease
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server, pid_starttime
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import ServerError
from ansible_collections.trtllm.serving.tests.unit.deployment.conftest import Home, Run

ARGV = ["tritonserver", "--http-port=8000", "--grpc-port=8001", "--metrics-port=8002", "--http-address=127.0.0.1"]
EMBEDDED = {"argv": ARGV, "probe": {"url": "http://127.0.0.1:8000", "model": "m"}}
CONTAINER = {"ports": {"http": 8000, "grpc": 8001, "metrics": 8002}, "surge_port_offset": "50"}


def launched(home: Home, text: str, **more: Any) -> str:
    """A generation that says how it is launched."""
    files = {"launch.json": json.dumps({**EMBEDDED, "text": text, **more})}
    wanted = plan(home.path, files, {"engine": "e"})
    make(wanted)
    return wanted.id


def serve(home: Home, generation: str) -> Server:
    server = Server(home.path)
    server.switch(generation, server.before(), 5)
    server.settle()
    return server


def act(server: Server, name: str, generation: str = "current", check: bool = False, **more: Any) -> dict[str, Any]:
    params = {
        "generation": generation, "slot": "auto", "rollback": False, "run": "", "restart": False, "before": None,
        "reason": "", "images": False, "keep": 3, "stop_timeout": 5, **more,
    }  # fmt: skip
    return _server_actions.ACTIONS[name](server, params, check)


def pids(server: Server) -> dict[str, tuple[int | None, int | None]]:
    return {slot: (server.supervisor_pid(slot), server.server_pid(slot)) for slot in state.SLOTS}


# --- what is known ---


@pytest.mark.parametrize("launch", [EMBEDDED, CONTAINER])
def test_ports_of_a_slot(launch: dict[str, Any], tmp_path: Path) -> None:
    offset = int(launch.get("surge_port_offset", 100))
    assert state.ports_of(launch, "a") == {"http": 8000, "grpc": 8001, "metrics": 8002}
    second = {"http": 8000 + offset, "grpc": 8001 + offset, "metrics": 8002 + offset}
    assert state.ports_of(launch, "b") == second
    assert state.active_ports(tmp_path, launch) == state.ports_of(launch, "a")
    state.point_slot(tmp_path, "b")
    assert state.active_ports(tmp_path, launch) == second


def test_where_a_slot_is_asked(tmp_path: Path) -> None:
    assert state.url_of(EMBEDDED, "a") == "http://127.0.0.1:8000" == state.active_url(tmp_path, EMBEDDED)
    assert state.url_of(EMBEDDED, "b") == "http://127.0.0.1:8100"
    assert state.url_of({"probe": {"url": "http://[::1]:8000"}}, "b") == "http://[::1]:8100"
    assert state.url_of({}, "a") is None and state.url_of({"probe": {}}, "b") is None
    state.point_slot(tmp_path, "b")
    assert state.active_url(tmp_path, EMBEDDED) == "http://127.0.0.1:8100"


def test_the_slot_changes_with_the_generation(tmp_path: Path) -> None:
    assert state.active_slot(tmp_path) == "a"
    state.point_slot(tmp_path, "a")
    assert not (tmp_path / "run").exists(), "the first slot needs no record"
    _server_base.switch_link(tmp_path, "current", "one")
    state.point_slot(tmp_path, "b", "two")
    assert state.active_slot(tmp_path) == "a"
    _server_base.switch_link(tmp_path, "current", "two")
    assert state.active_slot(tmp_path) == "b"
    state.point_slot(tmp_path, "b")
    _server_base.switch_link(tmp_path, "current", "three")
    assert state.active_slot(tmp_path) == "b"
    state.point_slot(tmp_path, "a", "four")
    assert state.active_slot(tmp_path) == "b"
    _server_base.switch_link(tmp_path, "current", "four")
    assert state.active_slot(tmp_path) == "a"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"slot": 3}', '{"slot": "c"}'])
def test_a_record_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slot.json").write_text(text)
    (tmp_path / "run" / "rollout.json").write_text(text)
    assert state.active_slot(tmp_path) == "a" and not state.read_rollout(tmp_path).get("target")


def test_a_rollout_keeps_its_beginning(tmp_path: Path) -> None:
    assert state.read_rollout(tmp_path) == {} and state.end_rollout(tmp_path) is False
    assert state.begin_rollout(tmp_path, "r1", "one") is True
    since = state.read_rollout(tmp_path)["since"]
    (tmp_path / "run" / "rollout.json").write_text(json.dumps({"run": "r1", "target": "one", "since": "earlier"}))
    assert since != "earlier" and state.begin_rollout(tmp_path, "r2", "two") is True
    assert state.read_rollout(tmp_path) == {"run": "r2", "target": "two", "since": "earlier"}
    assert state.begin_rollout(tmp_path, "r2", "two") is False
    assert state.end_rollout(tmp_path) is True and state.read_rollout(tmp_path) == {}


# --- a surge ---


def test_a_surge_leaves_the_old_server_alone_until_it_is_promoted(home: Home) -> None:
    old, new = launched(home, "old"), launched(home, "new")
    server = serve(home, old)
    first = pids(server)["a"]
    found = act(server, "surged", new)
    assert found == {"changed": True, "generation": new, "slot": "b"}
    assert _server_actions.place(server, found) == {
        "slot": "b", "url": "http://127.0.0.1:8100", "http_port": 8100, "metrics_port": 8102,
    }  # fmt: skip
    assert pids(server)["a"] == first and None not in pids(server)["b"]
    assert server.running() == old and server.surged() == new and server.slot == "a"
    assert server.links() == {"current": old, "previous": None} and state.read_surge(home.path)["generation"] == new
    second = pids(server)["b"]
    assert act(server, "surged", new)["changed"] is False and pids(server)["b"] == second, "one that waits is kept"
    found = act(server, "promoted", new)
    assert found["changed"] and _server_actions.place(server, found)["url"] == "http://127.0.0.1:8100"
    assert server.slot == "b" and server.running() == new and server.surged() is None
    assert server.links() == {"current": new, "previous": old} and pids(server) == {"a": (None, None), "b": second}
    assert state.read_surge(home.path) == {} and json.loads((home.path / "run" / "slot.json").read_text()) == {
        "slot": "b"
    }
    assert act(server, "promoted", new)["changed"] is False
    assert [line["stage"] for line in home.ledger()] == ["surge", "promote"]


def test_what_was_surged_is_dropped(home: Home) -> None:
    old, new = launched(home, "old"), launched(home, "new")
    server = serve(home, old)
    first = pids(server)["a"]
    act(server, "surged", new)
    found = act(server, "dropped", reason="no answer")
    assert found == {"changed": True, "generation": old} and _server_actions.place(server, found)["http_port"] == 8000
    assert pids(server) == {"a": first, "b": (None, None)} and server.links() == {"current": old, "previous": None}
    assert act(server, "dropped")["changed"] is False
    assert home.ledger()[-1]["outcome"] == "dropped" and home.ledger()[-1]["reason"] == "no answer"


def test_the_next_surge_goes_back_to_the_first_slot(home: Home) -> None:
    one, two, three = (launched(home, text) for text in ("one", "two", "three"))
    server = serve(home, one)
    for generation, slot in ((two, "b"), (three, "a")):
        act(server, "surged", generation)
        act(server, "promoted", generation)
        assert server.slot == slot and server.running() == generation
    assert server.links() == {"current": three, "previous": two}


def test_a_switch_in_place_stays_in_its_slot(home: Home) -> None:
    one, two = launched(home, "one"), launched(home, "two")
    server = serve(home, one)
    act(server, "surged", two)
    act(server, "promoted", two)
    before = server.before()
    found = act(server, "started", one)
    assert found["changed"] and server.slot == "b" and server.running() == one
    assert _server_actions.place(server, found)["http_port"] == 8100
    assert act(server, "restored", before=before)["generation"] == two
    assert server.slot == "b" and server.running() == two
    # Stopped and started again, as after a restart of the host.
    act(server, "stopped")
    assert not server.alive() and server.slot == "b"
    assert act(server, "started")["changed"] and server.running() == two and pids(server)["a"] == (None, None)
    # By name into the other one.
    assert act(server, "started", slot="b")["changed"] is False
    assert act(server, "started", slot="a")["changed"] and server.slot == "a" and server.running() == two


def test_another_surge_replaces_one_that_was_cut_off(home: Home) -> None:
    one, two, three = (launched(home, text) for text in ("one", "two", "three"))
    server = serve(home, one)
    act(server, "surged", two)
    first = pids(server)["b"][1]
    assert act(server, "surged", three)["changed"] and server.surged() == three
    assert first is not None and pid_starttime(first) is None and server.running() == one


def test_what_never_passed_its_gate_is_not_what_served_before_a_surge(home: Home) -> None:
    one, two, three = (launched(home, text) for text in ("one", "two", "three"))
    server = serve(home, one)
    # Its run broke off before the gate.
    act(server, "started", two)
    act(server, "surged", three)
    act(server, "promoted", three)
    assert server.links() == {"current": three, "previous": one} and not server.switching()


def test_refusals(home: Home) -> None:
    one, two = launched(home, "one"), launched(home, "two")
    server = serve(home, one)
    with pytest.raises(ServerError, match="slot a of .* is in service: .* only start in slot b"):
        act(server, "surged", two, slot="a")
    with pytest.raises(ServerError, match="generation %s does not run beside .*there runs nothing" % two):
        act(server, "promoted", two)
    (home.path / "generations" / two / "supervisord.conf").write_text("[supervisord]\n")
    with pytest.raises(ServerError, match="%s is of an earlier version .* only in the first slot" % two):
        act(server, "surged", two)
    assert not server.alive("b") and server.running() == one


# --- cut off ---


def break_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, count: int) -> None:
    """The controller is gone after so many calls: the next one never happens."""
    whole: Callable[..., Any] = getattr(module, name)
    calls: list[Any] = []

    def limited(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > count:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, name, limited)


@pytest.mark.parametrize(
    ("name", "count", "promoted"),
    [("switch_link", 0, False), ("switch_link", 1, False), ("end_surge", 0, True), ("stop", 0, True)],
)
def test_a_promotion_happens_as_a_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, count: int, promoted: bool
) -> None:
    old, new = launched(home, "old"), launched(home, "new")
    server = serve(home, old)
    act(server, "surged", new, run="r")
    places = {"switch_link": _server_base, "end_surge": state, "stop": Server}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        break_at(patch, places[name], name, count)
        act(server, "promoted", new)
    assert server.running() == (new if promoted else old) == server.links()["current"]
    assert server.slot == ("b" if promoted else "a") and server.alive("a") and server.alive("b")
    assert state.read_rollout(home.path)["target"] == new
    # The same run again.
    assert act(server, "surged", new)["changed"] is False
    assert act(server, "promoted", new)["changed"]
    assert server.running() == new and not server.alive("a") and server.links() == {"current": new, "previous": old}
    act(server, "settled", new)
    assert home.ledger()[-1]["stage"] == "gate"
    assert state.read_rollout(home.path) == {} and json.loads((home.path / "run" / "slot.json").read_text()) == {
        "slot": "b"
    }


@pytest.mark.parametrize("name", ["started", "settled", "stopped"])
def test_what_a_surge_has_left_beside_the_server_is_ended(home: Home, name: str) -> None:
    old, new = launched(home, "old"), launched(home, "new")
    server = serve(home, old)
    first = pids(server)["a"]
    act(server, "surged", new)
    assert act(server, "started", check=True)["changed"] is True
    found = act(server, name)
    assert found["changed"] and not server.alive("b") and state.read_surge(home.path) == {}
    assert pids(server)["a"] == (first if name != "stopped" else (None, None))
    assert act(server, name)["changed"] is False


def test_a_switch_after_a_promotion_that_was_cut_off_keeps_the_slot(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, third = (launched(home, text) for text in ("old", "new", "third"))
    server = serve(home, old)
    act(server, "surged", new)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        break_at(patch, state, "end_surge", 0)
        # Its record still waits for current.
        patch.setattr(state, "point_slot", lambda *args, whole=state.point_slot: whole(*args) if len(args) > 2 else 0)
        act(server, "promoted", new)
    assert json.loads((home.path / "run" / "slot.json").read_text()) == {"slot": "b", "when": new}
    act(server, "started", third)
    assert server.slot == "b" and server.running() == third and not server.alive("a")


# --- a rollout ---


def test_a_rollout_is_recorded_before_anything_and_until_it_is_settled(home: Home) -> None:
    one, two = launched(home, "one"), launched(home, "two")
    server = serve(home, one)
    found = act(server, "intended", two, run="r")
    assert found == {"changed": False, "generation": one}
    record = state.read_rollout(home.path)
    assert (record["run"], record["target"]) == ("r", two) and server.running() == one
    act(server, "started", two, run="r")
    assert state.read_rollout(home.path) == record
    act(server, "restored", before={"current": one, "previous": None}, run="r")
    assert state.read_rollout(home.path) == record, "it may still be drained"
    act(server, "settled", one, run="r")
    assert state.read_rollout(home.path) == {}
    assert [line["stage"] for line in home.ledger()] == ["switch", "restore"], "no gate was passed"
    act(server, "started", two, run="r")
    act(server, "settled", run="r")
    assert home.ledger()[-1]["stage"] == "gate" and home.ledger()[-1]["generation"] == two
    act(server, "settled", run="r")
    assert len(home.ledger()) == 4


def test_a_switch_without_a_drain_is_recorded_too(home: Home) -> None:
    one = launched(home, "one")
    server = Server(home.path)
    act(server, "started", one, run="r")
    assert state.read_rollout(home.path)["target"] == one
    act(server, "settled", one, run="r")
    act(server, "started", one, run="r")
    assert state.read_rollout(home.path) == {}, "nothing was switched"


def test_a_second_rollback_changes_nothing(home: Home) -> None:
    one, two, three = (launched(home, text) for text in ("one", "two", "three"))
    server = serve(home, one)
    serve(home, two)
    assert act(server, "started", "previous", rollback=True)["changed"]
    act(server, "settled")
    assert server.running() == one and server.links() == {"current": one, "previous": one}
    assert act(server, "started", "previous", rollback=True) == {"changed": False, "generation": one}
    # Forward again.
    serve(home, two)
    assert server.links() == {"current": two, "previous": one}
    # To a named one, and what its gate did not let pass.
    serve(home, three)
    before = server.before()
    act(server, "started", one, rollback=True)
    assert server.links() == {"current": one, "previous": one} and server.before() == before
    act(server, "restored", before=before)
    assert server.running() == three and server.links() == {"current": three, "previous": two}
    # Beside the old server.
    act(server, "surged", two)
    act(server, "promoted", two, rollback=True)
    assert server.links() == {"current": two, "previous": two}


def lease(home: Path, run: str, pid: int) -> None:
    from ansible_collections.trtllm.serving.plugins.module_utils._lock import machine_id

    RunLease(home).acquire(
        run,
        controller_machine_id=machine_id(),
        controller_pid=pid,
        controller_pid_starttime=pid_starttime(pid),
        who="w",
    )


@pytest.mark.parametrize("name", ["intended", "started", "surged", "promoted", "dropped", "settled", "restored"])
def test_a_run_that_lost_the_host_is_refused(module: Run, home: Home, name: str) -> None:
    one, two = launched(home, "one"), launched(home, "two")
    server = serve(home, one)
    server.surge(two, 5)
    before, files = pids(server), sorted(os.listdir(home.path / "run"))
    lease(home.path, "another", os.getpid())
    answer = module(
        "triton_server", home=str(home.path), state=name, generation=two, run="mine", stop_timeout=5,
        before={"current": None, "previous": None},
    )  # fmt: skip
    assert answer["failed"] and "another run" in answer["msg"] and "\n" not in answer["msg"]
    assert pids(server) == before and sorted({*os.listdir(home.path / "run")} - {"lease.json"}) == files
    # It need not be alive: what it has done is not known to this one.
    if name == "settled":
        RunLease(home.path).release("another")
        answer = module("triton_server", home=str(home.path), state=name, run="mine")
        assert answer["failed"] and "another run" in answer["msg"]
    assert "failed" not in module("triton_server", home=str(home.path), state="stopped", run="mine", stop_timeout=5)


def test_settled_gives_the_host_back(module: Run, home: Home) -> None:
    one = launched(home, "one")
    lease(home.path, "mine", os.getpid())
    where = {"home": str(home.path), "stop_timeout": 5, "run": "mine"}
    answer = module("triton_server", **where, generation=one)
    assert answer["changed"] and (answer["slot"], answer["url"]) == ("a", "http://127.0.0.1:8000")
    assert (answer["http_port"], answer["metrics_port"]) == (8000, 8002)
    assert [stage["name"] for stage in answer["stages"]] == ["stop", "start"]
    assert all(0 <= stage["offset_s"] and stage["seconds"] <= answer["duration_s"] for stage in answer["stages"])
    assert not module("triton_server", **where, state="settled", check=True)["released"]
    assert module("triton_server", **where, state="settled")["released"] is True
    assert RunLease(home.path).blocked_by("next") is None
    assert not (home.path / "run" / "rollout.json").exists()


def test_check_mode_of_a_surge(module: Run, home: Home) -> None:
    one, two = launched(home, "one"), launched(home, "two")
    where = {"home": str(home.path), "stop_timeout": 5}
    for name in ("surged", "promoted", "intended"):
        answer = module("triton_server", **where, state=name, generation="0123", check=True)
        assert "failed" not in answer and answer["changed"] is (name != "intended"), answer
    server = serve(home, one)
    answer = module("triton_server", **where, state="surged", generation=two, check=True)
    assert answer["changed"] and answer["slot"] == "b" and answer["http_port"] == 8100
    assert answer["diff"]["after"] == two + "\n"
    assert not module("triton_server", **where, state="dropped", check=True)["changed"]
    assert not server.alive("b")
    module("triton_server", **where, state="surged", generation=two)
    for name in ("promoted", "dropped"):
        assert module("triton_server", **where, state=name, generation=two, check=True)["changed"]
        assert server.surged() == two and server.slot == "a"
