# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host behind two balancers: out of both or out of none, and back only where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _balancer import Request, wait_for


@pytest.fixture(scope="module")
def pair(fleets: Callable[..., Any]) -> Any:
    fleet = fleets({"chat": ["gpu1", "gpu2"]}, ["lb1", "lb2"])
    fleet.deploy()
    return fleet


@pytest.fixture
def drain(pair: Any) -> Iterator[Callable[..., str]]:
    pair.hosts["gpu1"]["triton_serve_haproxy"] = [
        {"host": name, "socket": str(each.socket), "state_file": str(each.state_file)}
        for name, each in pair.balancers.items()
    ]

    def run(*arguments: str, **settings: Any) -> str:
        pair.hosts["gpu1"].update(settings)
        said: str = pair.play(Path(__file__).parent / "drain.yml", *arguments)
        return said

    yield run
    for server in pair.servers.values():
        server.go.set()
    for lb in pair.balancers.values():
        lb.variables = {}
        lb.say("set server chat/gpu1 state ready")
        wait_for(lambda lb=lb: lb.up("gpu1"), "gpu1 is not up again")
    wait_for(lambda: not any(server.running for server in pair.servers.values()), "requests still run")
    for server in pair.servers.values():
        server.go.clear()


def states(pair: Any) -> list[str]:
    return [lb.states()["gpu1"] for lb in pair.balancers.values()]


def test_out_of_both_and_back(pair: Any, drain: Callable[..., str]) -> None:
    said = drain("-e", "then=stay")
    assert "DRAINED ready ready" in said and states(pair) == ["drain", "drain"]
    assert "DRAINED drain drain" in drain("-e", "unfinished=yes") and states(pair) == ["ready", "ready"]


def test_balancer_that_is_gone_is_found_before_anything_is_drained(pair: Any, drain: Callable[..., str]) -> None:
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": pair.spare_ports[0]}
    for gone, word in ((nowhere, "lb2 (for gpu1)"), ({}, "no HAProxy answers")):
        pair.balancers["lb2"].variables = gone
        hidden = pair.balancers["lb2"].socket.with_name("hidden")
        pair.balancers["lb2"].socket.rename(hidden)
        try:
            said = drain()
        finally:
            hidden.rename(pair.balancers["lb2"].socket)
        told = next(line for line in said.splitlines() if "TOLD" in line)
        assert word in told and "DRAINED" not in said, said
        assert states(pair) == ["ready", "ready"]
        assert " unreachable=0 " in said


def test_drain_that_fails_on_one_is_undone_on_the_other(pair: Any, drain: Callable[..., str]) -> None:
    """A request by way of the second balancer does not end."""
    requests = [Request(pair.front["chat"], host="127.0.0.2", hold=True) for _each in range(2)]
    wait_for(lambda: pair.servers["gpu1"].running, "the request did not begin")
    said = drain(triton_serve_drain_timeout=1)
    told = next(line for line in said.splitlines() if "TOLD" in line)
    assert "still has 1 running" in told and "DRAINED" not in said, said
    assert states(pair) == ["ready", "ready"]
    for server in pair.servers.values():
        server.go.set()
    for each in requests:
        each.join(20)
        assert each.status == 200
    assert "DRAINED" in drain(triton_serve_drain_timeout=30)


def test_what_its_operator_has_drained_stays_so(pair: Any, drain: Callable[..., str]) -> None:
    pair.balancers["lb2"].say("set server chat/gpu1 state maint")
    assert "DRAINED ready maint" in drain()
    assert states(pair) == ["ready", "maint"]


def test_what_its_operator_has_drained_counts_for_those_that_must_serve(pair: Any, drain: Callable[..., str]) -> None:
    """The plan asks the hosts, and each of them answers."""
    plan = {"triton_pool_plan": {"pools": {"chat": {"min_available": 1}}}}
    pair.balancers["lb2"].say("set server chat/gpu2 state drain")
    try:
        said = " ".join(drain(**plan).split())
        refused = "TOLD chat/gpu1 is not drained: 0 other servers of the backend are up (none), and 1 must stay"
        assert refused in said and "DRAINED" not in said, said
        assert states(pair) == ["ready", "ready"]
        assert "DRAINED ready ready" in drain("-e", "spared="), "one that has failed leaves anyway"
        pair.hosts["gpu1"]["triton_serve_haproxy"][1]["min_up"] = 0
        assert "DRAINED ready ready" in drain()
    finally:
        del pair.hosts["gpu1"]["triton_pool_plan"]
        pair.balancers["lb2"].say("set server chat/gpu2 state ready")
        wait_for(lambda: pair.balancers["lb2"].up("gpu2"), "gpu2 is not up again")


def test_check_mode_changes_nothing(pair: Any, drain: Callable[..., str]) -> None:
    said = drain("--check", "--diff")
    assert "DRAINED ready ready" in said and "+drain" in said
    assert states(pair) == ["ready", "ready"]
