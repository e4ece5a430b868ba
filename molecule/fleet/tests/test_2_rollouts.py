# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes of one pool under load: each request is answered, one host is out at a time, the other pool is left alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.trtllm.serving.tests.fleet.fleet import (
    EPHEMERAL,
    FULL,
    HOME,
    RUNS,
    Fleet,
    Watch,
    balancer_states,
    killed,
    play,
)

MODEL = {"mixtral_engine_weights_options": {"seed": 2}, "mixtral_engine_weights_revision": "seed-2"}
# Another engine, which this test spoils.
POISON = {"mixtral_engine_weights_options": {"seed": 3}, "mixtral_engine_weights_revision": "seed-3"}


@contextmanager
def undisturbed(fleet: Fleet, client: Any, *changing: str) -> Iterator[Any]:
    """Under load without a failure, at most one host of these pools out at once, canary first, no other touched."""
    before = fleet.pids()
    with client.load() as load, Watch(fleet) as watch:
        yield load
    after = fleet.pids()
    for pool, hosts in fleet.pools.items():
        if pool in changing:
            assert watch.fewest[pool] >= len(hosts) - 1, watch.fewest
            out = [host for host in watch.out if host in hosts]
            assert out == sorted(out), "not in the order of the batches: %s" % out
        else:
            assert [before[host] for host in hosts] == [after[host] for host in hosts], "pool %s was touched" % pool
            assert watch.fewest[pool] == len(hosts), watch.fewest


def checkpoints(fleet: Fleet, host: str) -> set[str]:
    return set(fleet.on(host, "ls", HOME + "/checkpoints", HOME + "/engines").split())


def test_a_new_model(fleet: Fleet, client: Any) -> None:
    old = fleet.settled("chat")
    fleet.configure(chat=MODEL)
    with undisturbed(fleet, client, "chat") as load:
        play("site").succeeded()
        texts = load.texts("chat")
        load.more(30)
    assert fleet.settled("chat") != old
    assert len(load.texts("chat")) == 2 and len(texts) == 2, "the new model answers something else"
    assert len(load.texts("embed")) == 1


def test_a_setting(fleet: Fleet, client: Any) -> None:
    old, made = fleet.settled("chat"), checkpoints(fleet, "chat1")
    fleet.configure(chat={**MODEL, "triton_serve_max_queue_size": 64})
    with undisturbed(fleet, client, "chat") as load:
        play("site").succeeded()
    assert fleet.settled("chat") != old
    assert checkpoints(fleet, "chat1") == made, "nothing is converted or built for a setting"
    assert len(load.texts("chat")) == 1


def test_nothing_to_do(fleet: Fleet, client: Any) -> None:
    with undisturbed(fleet, client):
        recap = play("site").succeeded()
    assert not recap.changed, recap.output


def test_rollback_of_the_pool_by_a_controller_that_knows_nothing(fleet: Fleet, client: Any) -> None:
    shutil.rmtree(RUNS)
    shutil.rmtree(EPHEMERAL / "ansible", ignore_errors=True)
    newer, older = fleet.settled("chat"), fleet.generation("chat1", "previous")
    assert newer != older
    made = checkpoints(fleet, "chat1")
    with undisturbed(fleet, client, "chat"):
        play("rollback", "--limit", "chat").succeeded()
        assert fleet.settled("chat") == older
        pids = fleet.pids("chat")
        play("rollback", "--limit", "chat").succeeded()
        assert fleet.pids("chat") == pids, "rolled back already"
    assert checkpoints(fleet, "chat1") == made


def test_a_poisoned_engine_stops_at_the_canary(fleet: Fleet, client: Any) -> None:
    serving = fleet.settled("chat")
    fleet.configure(chat=POISON)
    before = set(fleet.on("chat1", "ls", HOME + "/engines").split())
    with undisturbed(fleet, client, "chat"):
        play("prepare").succeeded()
        new = set(fleet.on("chat1", "ls", HOME + "/engines").split()) - before
        assert len(new) == 1, new
        # Whole in number, name, size and time, and spoilt within.
        spoil = (
            "import os,sys; path=sys.argv[1]; seen=os.stat(path); f=open(path,'r+b'); f.write(b'x'*4096); f.close();"
            " os.utime(path,ns=(seen.st_atime_ns,seen.st_mtime_ns))"
        )
        for host in fleet.pools["chat"]:
            fleet.on(host, "python3", "-c", spoil, "%s/engines/%s/rank0.engine" % (HOME, *new))
        others = {host: pid for host, pid in fleet.pids("chat").items() if host != "chat1"}
        recap = play("redeploy").failed("chat1")
        assert {host: pid for host, pid in fleet.pids("chat").items() if host != "chat1"} == others
    assert fleet.settled("chat") == serving
    assert "Traceback" not in recap.output
    for host in fleet.pools["chat"]:
        fleet.on(host, "rm", "-rf", "%s/engines/%s" % (HOME, *new))
    fleet.configure(chat=MODEL)
    with undisturbed(fleet, client, "chat"):
        play("site").succeeded()
    assert fleet.settled("chat") == serving


@pytest.mark.skipif(not FULL, reason="part of the whole scenario, TRTLLM_TEST_FLEET=full")
def test_a_surge_takes_no_host_out(fleet: Fleet, client: Any) -> None:
    """To the second place of each host, and back to the first; also after a surge to elsewhere that broke off."""
    hosts, surge = fleet.pools["embed"], {"triton_pool_strategy": "surge"}
    fleet.configure(chat=MODEL, embed=surge)
    play("balancer").succeeded()
    others: dict[str, str] = {}
    for size, serving, spare in ((140, "-b", ""), (141, "", "-b")):
        old = {fleet.generation(host) for host in hosts}
        with client.load(), Watch(fleet) as watch:
            if not serving:
                # The old server has been drained, and is not given up yet.
                baking = {**surge, "triton_serve_cancellation_check_period_ms": 150, "triton_pool_bake": 5}
                fleet.configure(chat=MODEL, embed=baking)
                killed("bake", hosts[0])
            fleet.configure(chat=MODEL, embed={**surge, "triton_serve_cancellation_check_period_ms": size})
            play("site").succeeded()
            others = others or fleet.pids("chat")
        assert watch.fewest["embed"] == len(hosts), watch.fewest
        states = dict(balancer_states())
        assert {states[host + serving] for host in hosts} == {"UP"}, states
        assert "UP" not in {states[host + spare] for host in hosts}, states
        new = {fleet.generation(host) for host in hosts}
        assert len(new) == 1 and new != old
        for host in hosts:
            assert len(fleet.on(host, "pgrep", "-x", "tritonserver").split()) == 1, "the old server has ended"
    assert fleet.pids("chat") == others
    fleet.configure(chat=MODEL)
    with client.load():
        play("balancer").succeeded()
        play("site").succeeded()
    fleet.settled("embed")


@pytest.fixture(autouse=True, scope="module")
def _as_it_was(fleet: Fleet) -> Iterator[None]:
    yield
    fleet.configure()
