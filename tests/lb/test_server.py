# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Module haproxy_server before a real HAProxy."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

from _balancer import Load, Request, wait_for


def held(fleet: Any, count: int = 2, **body: Any) -> list[Request]:
    """Requests that run on both hosts of the pool."""
    found = [Request(fleet.front["chat"], hold=True, **body) for _each in range(count)]
    wait_for(lambda: fleet.servers["gpu1"].running and fleet.servers["gpu2"].running, "the requests did not begin")
    return found


class Background(threading.Thread):
    def __init__(self, call: Any) -> None:
        super().__init__(daemon=True)
        self.call, self.result = call, {}
        self.start()

    def run(self) -> None:
        self.result = self.call()

    def done(self) -> Any:
        self.join(60)
        return self.result


def test_drain_waits_for_the_last_request(fleet: Any, lb: Any) -> None:
    requests = held(fleet)
    drain = Background(lambda: lb.server("gpu1", "drained", timeout=30))
    wait_for(lambda: lb.states()["gpu1"] == "drain", "the drain did not begin")
    # No new request goes there, and the running one is waited for.
    before = len(fleet.servers["gpu1"].asked)
    others = [Request(fleet.front["chat"]) for _each in range(8)]
    for each in others:
        each.join(20)
    assert [each.text for each in others] == ['{"text_output": "gpu2"}'] * 8
    assert drain.is_alive() and len(fleet.servers["gpu1"].asked) == before
    fleet.servers["gpu1"].go.set()
    result = drain.done()
    assert not result.get("failed"), result
    assert (result["before_state"], result["state"], result["sessions"]) == ("ready", "drain", 0) and result["changed"]
    assert result["stages"][0]["seconds"] == result["waited_s"] > 0
    assert result["diff"]["before"] == "ready\n" and result["diff"]["after"] == "drain\n"
    fleet.servers["gpu2"].go.set()
    for each in requests:
        each.join(20)
        assert each.status == 200 and not each.problem


def test_drain_that_takes_too_long_fails_and_leaves_word(fleet: Any, lb: Any) -> None:
    requests = held(fleet)
    result = lb.server("gpu1", "drained", timeout=0.5)
    assert result["failed"]
    assert "chat/gpu1" in result["msg"] and "still has 1 running and 0 queued requests after 0.5 s" in result["msg"]
    assert "\n" not in result["msg"]
    # Enough to undo it.
    assert (result["changed"], result["before_state"]) == (True, "ready")
    assert lb.states()["gpu1"] == "drain"
    for server in fleet.servers.values():
        server.go.set()
    for each in requests:
        each.join(20)
        assert each.status == 200


def test_drain_that_takes_too_long_may_go_on(fleet: Any, lb: Any) -> None:
    held(fleet)
    result = lb.server("gpu1", "drained", timeout=0.3, on_timeout="continue")
    assert not result.get("failed") and result["expired"] and result["sessions"] == 1
    assert "1 requests still" in str(result["warnings"])


def test_second_drain_and_second_ready_change_nothing(lb: Any) -> None:
    assert lb.server("gpu1", "drained")["changed"]
    again = lb.server("gpu1", "drained")
    assert (again["changed"], again["before_state"]) == (False, "drain")
    assert lb.server("gpu1", "ready", expect_healthy=True)["changed"]
    again = lb.server("gpu1", "ready", expect_healthy=True)
    assert (again["changed"], again["before_state"], again["health"]) == (False, "ready", again["health"])
    assert again["health"].startswith("UP L7OK")


def test_maintenance_of_an_operator_is_not_touched_by_a_drain(lb: Any) -> None:
    assert lb.server("gpu1", "maint")["changed"]
    result = lb.server("gpu1", "drained")
    assert (result["changed"], result["before_state"], result["state"]) == (False, "maint", "maint")


def test_ready_waits_for_the_health_check(fleet: Any, lb: Any) -> None:
    lb.server("gpu1", "maint")
    fleet.servers["gpu1"].ready["ensemble"] = False
    # A server that comes out of maintenance counts as up until its first check; that is not believed.
    result = lb.server("gpu1", "ready", expect_healthy=True, timeout=1.5)
    assert result["failed"] and "is not up" in result["msg"] and "L7STS" in result["msg"], result
    fleet.servers["gpu1"].ready["ensemble"] = True
    result = lb.server("gpu1", "ready", expect_healthy=True, timeout=10)
    assert not result.get("failed"), result
    assert lb.up("gpu1")


def test_names_that_do_not_exist_are_answered_with_those_that_do(lb: Any) -> None:
    result = lb.server("gpu9", "drained")
    assert result["failed"] and "'gpu9'" in result["msg"] and "gpu1, gpu2" in result["msg"]
    result = lb.server("gpu1", "drained", backend="chats")
    assert result["failed"] and "'chats'" in result["msg"] and "chat, embed" in result["msg"]
    result = lb.server("gpu1; shutdown sessions server chat/gpu2", "drained")
    assert result["failed"] and "cannot be a name" in result["msg"]
    assert lb.states() == {"gpu1": "ready", "gpu2": "ready"}


def test_socket_that_is_not_there(fleet: Any, lb: Any) -> None:
    for socket, word in (
        (str(fleet.folder / "none.sock"), "no HAProxy answers"),
        ("ipv4@127.0.0.1:%d" % fleet.spare_ports[0], "no HAProxy answers"),
        ("ipv4@127.0.0.1", "neither a path nor an address"),
        ("run/admin.sock", "neither a path nor an address"),
    ):
        result = lb.server("gpu1", "drained", socket=socket)
        assert result["failed"] and word in result["msg"], result
        assert socket.partition("@")[2] in result["msg"] and "\n" not in result["msg"]


def test_others_that_must_stay_up(fleet: Any, lb: Any) -> None:
    result = lb.server("gpu1", "drained", min_up=2)
    assert result["failed"] and "1 other servers" in result["msg"] and "gpu2" in result["msg"]
    assert lb.states()["gpu1"] == "ready"
    fleet.servers["gpu2"].ready["tensorrt_llm"] = False
    wait_for(lambda: not lb.up("gpu2"), "gpu2 is still up")
    result = lb.server("gpu1", "drained", min_up=1)
    assert result["failed"] and "0 other servers" in result["msg"]
    # Nothing is lost with one that is down itself.
    assert lb.server("gpu2", "drained", min_up=2)["changed"] and lb.states()["gpu2"] == "drain"


def test_check_mode_only_looks(lb: Any) -> None:
    state_file = lb.state_file.read_text("ascii")
    result = lb.server("gpu1", "drained", check_mode=True)
    assert (result["changed"], result["before_state"]) == (True, "ready")
    assert lb.server("gpu1", "drained", check_mode=True, min_up=5)["failed"]
    assert lb.states()["gpu1"] == "ready" and lb.state_file.read_text("ascii") == state_file
    assert not lb.server("gpu1", "query")["changed"]


def test_drain_survives_a_reload_by_somebody_else(lb: Any) -> None:
    lb.server("gpu1", "drained")
    lb.server("gpu2", "maint")
    lb.reload()
    assert lb.states() == {"gpu1": "drain", "gpu2": "maint"}
    lb.server("gpu1", "ready")
    lb.reload()
    assert lb.states() == {"gpu1": "ready", "gpu2": "maint"}


def test_drain_that_a_reload_has_lost_is_set_again(fleet: Any, lb: Any) -> None:
    requests = held(fleet, hold_long=True)
    drain = Background(lambda: lb.server("gpu1", "drained", timeout=30))
    wait_for(lambda: lb.states()["gpu1"] == "drain", "the drain did not begin")
    wait_for(lambda: re.search(r" gpu1 \S+ \d+ 8 ", lb.state_file.read_text("ascii")), "the drain was not kept")
    lb.state_file.write_text("1\n", "ascii")
    old = lb.worker
    lb.reload()
    wait_for(lambda: lb.states()["gpu1"] == "drain", "the drain was not set again")
    # The request is still running, in a process that no socket leads to any more.
    time.sleep(1)
    assert drain.is_alive() and fleet.servers["gpu1"].running == 1 and lb.worker != old
    fleet.servers["gpu1"].go.set()
    result = drain.done()
    assert not result.get("failed") and result["reasserted"] == 1, result
    assert fleet.servers["gpu1"].running == 0
    fleet.servers["gpu2"].go.set()
    for each in requests:
        each.join(20)
        assert each.status == 200, each.problem


def test_requests_of_the_process_before_a_reload_count(fleet: Any, lb: Any) -> None:
    requests = held(fleet)
    lb.reload()
    result = lb.server("gpu1", "drained", timeout=0.5)
    assert result["failed"] and "1 connections of processes from before a reload" in result["msg"], result
    for server in fleet.servers.values():
        server.go.set()
    assert not lb.server("gpu1", "drained", timeout=20).get("failed")
    for each in requests:
        each.join(20)
        assert each.status == 200


def test_state_file_that_cannot_be_written_is_told(fleet: Any, lb: Any) -> None:
    result = lb.server("gpu1", "drained", state_file=str(fleet.folder / "none" / "state"))
    assert result["failed"] and "cannot be kept" in result["msg"] and result["changed"]


def test_a_balancer_that_stays_away_while_it_is_waited_for(fleet: Any, lb: Any) -> None:
    """A restart is no failure; the module goes on where HAProxy is again."""
    held(fleet)
    drain = Background(lambda: lb.server("gpu1", "drained", timeout=30))
    wait_for(lambda: lb.states()["gpu1"] == "drain", "the drain did not begin")
    hidden = lb.socket.with_name("hidden")
    lb.socket.rename(hidden)
    time.sleep(1.0)
    hidden.rename(lb.socket)
    for server in fleet.servers.values():
        server.go.set()
    assert not drain.done().get("failed")


def test_rolling_drains_lose_no_request(fleet: Any, lb: Any) -> None:
    load = Load(fleet.front["chat"])
    try:
        for name in ("gpu1", "gpu2", "gpu1", "gpu2"):
            assert not lb.server(name, "drained", timeout=30).get("failed")
            port = fleet.servers[name].port
            fleet.servers[name].stop()
            fleet.servers[name] = type(fleet.servers[name])(name, port).start()
            result = lb.server(name, "ready", expect_healthy=True, timeout=30)
            assert not result.get("failed"), result
        wait_for(lambda: load.answered > 200, "there is no load")
    finally:
        load.stop()
    assert load.failures == [] and load.answered > 200
