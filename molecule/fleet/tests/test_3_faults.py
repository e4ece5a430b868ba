# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts, balancers and controllers that die at a bad moment; no request fails for it, and a second run finishes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.trtllm.serving.tests.fleet.fleet import (
    FULL,
    HOME,
    NAME,
    PATIENCE,
    Fleet,
    Run,
    balancer_states,
    docker,
    killed,
    play,
    until,
)

pytestmark = pytest.mark.skipif(not FULL, reason="part of the whole scenario, TRTLLM_TEST_FLEET=full")
# Another one each time, so that there is something to do.
SIZES = itertools.count(200)


def another(fleet: Fleet, **more: Any) -> None:
    fleet.configure(chat={"triton_serve_max_queue_size": next(SIZES), **more})


@pytest.fixture(autouse=True)
def _whole_again(fleet: Fleet) -> Iterator[None]:
    """A test that failed must not make the others fail."""
    yield
    for host in fleet.hosts:
        docker("start", fleet.container(host), check=False)


def state(host: str) -> str:
    return dict(balancer_states())[host]


def test_a_host_dies_in_its_batch(fleet: Fleet, client: Any) -> None:
    old = fleet.settled("chat")
    another(fleet)
    with client.load():
        run = Run("site")
        try:
            until("the second host is out", lambda: state("chat2") != "UP" and state("chat1") == "UP", PATIENCE)
            until("it is stopped", lambda: not fleet.on("chat2", "pgrep", "-x", "tritonserver", check=False), PATIENCE)
        finally:
            docker("kill", fleet.container("chat2"))
        recap = run.wait().failed("chat2")
        new = fleet.generation("chat1")
        assert new != old
        assert {fleet.generation(host) for host in fleet.pools["chat"][2:]} == {old}, "the budget of no lost host"
        assert "Traceback" not in recap.output
        docker("start", fleet.container("chat2"))
        play("site").succeeded()
    assert fleet.settled("chat") == new


def test_a_host_that_is_dead_before_is_told_and_nobody_is_touched(fleet: Fleet, client: Any) -> None:
    another(fleet)
    pids = fleet.pids("chat")
    with client.load(perfect=False):
        docker("kill", fleet.container("chat3"))
        play("site").failed("chat3")
        pids.pop("chat3")
        assert {host: fleet.pids("chat")[host] for host in pids} == pids
    docker("start", fleet.container("chat3"))
    with client.load():
        play("site").succeeded()
    fleet.settled("chat")


def test_the_balancers_socket_is_gone(fleet: Fleet, client: Any) -> None:
    another(fleet)
    pids = fleet.pids()
    with client.load():
        docker("exec", NAME + "-lb", "mv", "/run/haproxy/admin.sock", "/run/haproxy/away.sock")
        try:
            play("site").failed("admin.sock")
        finally:
            docker("exec", NAME + "-lb", "mv", "/run/haproxy/away.sock", "/run/haproxy/admin.sock")
        assert fleet.pids() == pids
        play("site").succeeded()
    fleet.settled("chat")


def test_the_builder_dies(fleet: Fleet, client: Any) -> None:
    """Large enough that there is a build to die in; the next of its kind takes over, and there is one conversion."""
    model = {"seed": 5, "hidden": 256, "inter": 512, "layers": 16}
    another(
        fleet, mixtral_engine_weights_options=model, mixtral_engine_weights_revision="seed-5",
        mixtral_engine_distribution="shared", mixtral_engine_shared_path="/srv/shared", triton_pool_max_failures=1,
    )  # fmt: skip
    before = {host: set(fleet.on(host, "ls", HOME + "/checkpoints").split()) for host in fleet.pools["chat"]}
    with client.load(perfect=False):
        run = Run("site")
        try:
            converting = ("pgrep", "-f", "convert_checkpoint.py")
            until("the builder converts", lambda: fleet.on("chat1", *converting, check=False), PATIENCE)
        finally:
            docker("kill", fleet.container("chat1"))
        run.wait().failed("chat1")
        rest = [host for host in fleet.pools["chat"] if host != "chat1"]
        assert len({fleet.generation(host) for host in rest}) == 1
        converted = [host for host in rest if set(fleet.on(host, "ls", HOME + "/checkpoints").split()) - before[host]]
        assert len(converted) == 1, converted
    docker("start", fleet.container("chat1"))
    with client.load():
        play("site").succeeded()
    fleet.settled("chat")


# Each run first finishes what the one before has left, or it would not come to the host at which it is killed itself.
CHAINS = {
    "drain, switch, gate, undrain": [("drain", "chat1"), ("switch", "chat2"), ("gate", "chat3"), ("undrain", "chat4")],
    "bake, settle, begin": [("bake", "chat1"), ("settle", "chat2"), ("begin", "chat3")],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_runs_are_killed_while_they_roll_out(fleet: Fleet, client: Any, chain: list[tuple[str, str]]) -> None:
    old = fleet.settled("chat")
    another(fleet, triton_pool_bake=2)
    done: dict[str, str] = {}
    with client.load():
        for stage, host in chain:
            killed(stage, host)
            assert "UP" in fleet.states("chat").values()
            assert {name: fleet.pids()[name] for name in done} == done, "what was done is not done again"
            before = fleet.pools["chat"][: fleet.pools["chat"].index(host)]
            done = {name: pid for name, pid in fleet.pids().items() if name in before}
        play("site").succeeded()
        assert {name: fleet.pids()[name] for name in done} == done, "what was done is not done again"
    assert fleet.settled("chat") != old


def test_runs_are_killed_while_they_prepare(fleet: Fleet, client: Any) -> None:
    """Nothing is out of service for it, and what is half-made is made again."""
    pids = fleet.pids()
    fleet.configure(chat={
        "mixtral_engine_weights_options": {"seed": 6, "hidden": 256, "inter": 512, "layers": 8},
        "mixtral_engine_weights_revision": "seed-6",
    })  # fmt: skip
    with client.load():
        for stage in ("weights", "convert", "build", "generation"):
            killed(stage, "chat1")
            assert fleet.pids() == pids
            assert set(fleet.states("chat").values()) == {"UP"}
        play("site").succeeded()
    fleet.settled("chat")
