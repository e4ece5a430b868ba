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
    Fleet,
    Run,
    balancer_states,
    docker,
    play,
    until,
)

pytestmark = pytest.mark.skipif(not FULL, reason="part of the whole scenario, TRTLLM_TEST_FLEET=full")
# Another one each time, so that there is something to do.
SIZES = itertools.count(200)
# Seconds that a run may take until it is where it is wanted.
PATIENCE = 400


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


@pytest.mark.parametrize("stage", ["drain", "switch", "gate", "undrain", "bake", "settle"])
def test_the_run_is_killed(fleet: Fleet, client: Any, stage: str) -> None:
    another(fleet, triton_pool_bake=2)
    old = fleet.settled("chat")
    with client.load():
        run = Run("site")
        try:
            until("%s of the second host has begun" % stage, lambda: run.saw(stage, host="chat2"), PATIENCE)
        finally:
            run.kill()
        assert "UP" in fleet.states("chat").values()
        canary = fleet.pids()["chat1"]
        play("site").succeeded()
        assert fleet.pids()["chat1"] == canary, "what was done is not done again"
    assert fleet.settled("chat") != old
