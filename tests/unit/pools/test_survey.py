# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a plan takes from Ansible's variables, and what it refuses because of them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.plugin_utils._pools import Pool, PoolError, lay_out
from ansible_collections.trtllm.serving.plugins.plugin_utils._survey import Fleet, target_of

A, B, C = "a" * 16, "b" * 16, "c" * 16


def host(current: str | None = A, previous: str | None = C, **more: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {"current": current, "previous": previous, "ready": current is not None, "unfinished": None}
    seen["staged"] = {"id": B}
    given = {name[1:]: more.pop(name) for name in list(more) if name.startswith("_")}
    return {"triton_serve_preflight": {"host": {**seen, **given}}, **more}


def fleet(hosts: dict[str, dict[str, Any]], asked: list[str] | None = None, alive: list[str] | None = None) -> Fleet:
    asked = list(hosts) if asked is None else asked
    variables = {
        "hostvars": hosts, "inventory_hostname": asked[0], "ansible_play_hosts_all": asked,
        "ansible_play_hosts": asked if alive is None else alive,
    }  # fmt: skip
    return Fleet(variables, list(hosts))


def planned(found: Fleet, target: str = "new") -> Pool:
    (pool,) = found.pools("planned", target)
    assert lay_out(pool) == []
    return pool


def moves(pool: Pool) -> dict[str, tuple[str | None, str | None, str]]:
    return {name: (move["from"], move["to"], move["why"]) for name, move in pool.as_dict()["moves"].items()}


def test_what_was_assembled_decides() -> None:
    hosts = {
        "h1": host(triton_serve_generation={"id": B, "serving": False, "reason": ""}),
        "h2": host(B, triton_serve_generation={"id": B, "serving": True}),
        "h3": host(B, triton_serve_generation={"id": B, "serving": False, "reason": "a part was put back"}),
        "h4": host(B, triton_serve_generation={"id": B, "serving": False}),
        "h5": host(None, triton_serve_generation={"id": None, "serving": False}),
    }
    pool = planned(fleet(hosts))
    assert pool.unchanged == ["h2"]
    assert moves(pool) == {
        "h1": (A, B, "new generation"),
        "h3": (B, B, "a part was put back"),
        "h4": (B, B, "does not serve"),
        "h5": (None, None, "new generation"),
    }


def test_without_it_what_an_earlier_run_has_staged() -> None:
    hosts = {"h1": host(), "h2": host(B), "h3": host(B, _ready=False)}
    pool = planned(fleet(hosts))
    assert moves(pool) == {"h1": (A, B, "new generation"), "h3": (B, B, "does not serve")}
    # A host that does not serve takes nothing out.
    assert pool.batches == [["h3"], ["h1"]]


def test_nothing_staged_is_refused() -> None:
    found = fleet({"h1": host(_staged=None)})
    assert found.targets(found.pools("planned", "new"), "new") == [
        "h1: nothing is staged: run playbooks/prepare.yml, or site.yml, which does"
    ]


def test_an_unfinished_rollout_is_finished_also_on_its_target() -> None:
    hosts = {
        "h1": host(B, triton_serve_generation={"id": B, "serving": True}),
        "h2": host(B, _unfinished={"target": B}, triton_serve_generation={"id": B, "serving": True}),
    }
    pool = planned(fleet(hosts))
    assert moves(pool) == {"h2": (B, B, "a rollout of it was not finished")}
    # It may be drained, so it is no serving host.
    assert pool.as_dict()["serving"] == ["h1"]


def test_docker_that_waits_for_a_restart() -> None:
    serving = host(
        B, triton_serve_generation={"id": B, "serving": True}, docker_nvidia_engine={"restart_pending": True}
    )
    assert moves(planned(fleet({"h1": serving}))) == {"h1": (B, B, "Docker waits for a restart")}


def test_rollback_to_what_served_before() -> None:
    hosts = {"h1": host(B, A), "h2": host(B, A), "h3": host(A, A)}
    pool = planned(fleet(hosts), "previous")
    assert moves(pool) == dict.fromkeys(("h1", "h2"), (B, A, "back to what served before"))
    assert pool.unchanged == ["h3"]


def test_rollback_of_half_a_rollout_leaves_the_other_half() -> None:
    hosts = {"h1": host(B, A), "h2": host(A, C), "h3": host(A, C)}
    pool = planned(fleet(hosts), "previous")
    assert moves(pool) == {"h1": (B, A, "back to what served before")}
    assert pool.unchanged == ["h2", "h3"]
    # Of another pool it is no half.
    hosts["h2"]["triton_pool"] = hosts["h3"]["triton_pool"] = "other"
    pools = fleet(hosts).pools("planned", "previous")
    assert [[each.name for each in pool.todo] for pool in pools] == [["h1"], ["h2", "h3"]]


def test_rollback_to_a_named_one() -> None:
    hosts = {"h1": host(B, A, _generations=[A, B, C]), "h2": host(C, B, _generations=[B, C])}
    found = fleet(hosts)
    pool = planned(found, C)
    assert moves(pool) == {"h1": (B, C, "named")}
    assert found.targets([pool], C) == []
    assert found.targets(found.pools("planned", A), A) == [
        "h2: generation %s is not on the host, which has %s, %s: name one of these, or leave the host out with"
        " --limit '!h2'" % (A, B, C)
    ]


@pytest.mark.parametrize("value", ["latest", "a/b", "../x", "ab"])
def test_a_name_that_is_none(value: str) -> None:
    with pytest.raises(PoolError, match="is no generation: give an id"):
        target_of(value)


def test_hosts_of_earlier_plays_that_are_gone_are_lost() -> None:
    hosts = {
        "h1": host(),
        "h2": {"triton_serve_preflight": {"unreachable": True, "msg": "Failed to connect\nsecond line"}},
        "h3": {"triton_serve_preflight": {"failed": True, "msg": "no room"}},
        "h4": host(),
        "h5": {},
    }
    for each in hosts.values():
        each["triton_pool_max_failures"] = 9
    pool = planned(fleet(hosts, alive=["h1"]))
    assert pool.as_dict()["causes"] == {
        "h2": "Failed to connect", "h3": "no room", "h4": "failed or lost before the rollout", "h5": "unreachable",
    }  # fmt: skip
    assert pool.as_dict()["serving"] == ["h1"]


def test_hosts_outside_the_run_are_not_asked() -> None:
    pool = planned(fleet({"h1": host(), "h2": {}}, asked=["h1"]))
    assert (pool.size, [each.name for each in pool.todo], pool.unchanged, pool.lost) == (2, ["h1"], [], [])


def test_hosts_of_a_pool_agree() -> None:
    hosts = {"h1": {"trtllm_release": "1.1.0"}, "h2": {"trtllm_release": "0.20.0"}, "h3": {"triton_pool": "other"}}
    assert fleet(hosts).agreement() == [
        "pool default: trtllm_release is 1.1.0 on h1 and 0.20.0 on h2: a pool has one value, set it in the pool's"
        " group_vars, or give the host another triton_pool"
    ]
    # A default is a value like any other; 2 from the command line is 2.
    assert fleet({"h1": {"triton_pool_serial": [1, "100%"]}, "h2": {}}).agreement() == []
    assert fleet({"h1": {"triton_pool_bake": "2"}, "h2": {"triton_pool_bake": 2}}).agreement() == []


def test_the_roles_own_values_hold_where_the_inventory_says_nothing() -> None:
    variables = {"hostvars": {"h1": {}, "h2": {}}, "inventory_hostname": "h1", "ansible_play_hosts_all": ["h1", "h2"]}
    found = Fleet(variables, None, {"triton_pool_max_unavailable": 2})
    assert found.pools("validated", "new")[0].max_unavailable == 2
    # What is that of one host is no default of another.
    variables["hostvars"] = {"h1": {"triton_pool_max_unavailable": 2}, "h2": {}}
    found = Fleet(variables, None, {"triton_pool_max_unavailable": 2})
    assert found.agreement()[0].startswith("pool default: triton_pool_max_unavailable is 2 on h1 and 1 on h2:")


def test_names_that_were_given_up() -> None:
    found = fleet({"h1": {"trtllm_rollout_serial": 1}, "h2": {"trtllm_rollout_bake": 1, "trtllm_rollout_max_lost": 1}})
    assert found.renamed() == [
        "trtllm_rollout_serial is triton_pool_serial now: rename it",
        "trtllm_rollout_max_lost is triton_pool_max_failures now: rename it",
        "trtllm_rollout_bake is not known: the settings of a rollout begin with triton_pool_",
    ]
    assert fleet({"h1": {"trtllm_release": "1.1.0"}}).renamed() == []


def surge(**more: Any) -> list[str]:
    hosts = {"h1": host(triton_pool_strategy="surge", **more)}
    found = fleet(hosts)
    return found.surges(found.pools("foreseen", "new"))


def test_a_surge_needs_a_balancer_and_twice_the_gpus() -> None:
    assert surge() == [
        "h1: triton_pool_strategy surge needs a load balancer that leads requests to the new server, and"
        " triton_serve_load_balancer is none; use in_place for pool default"
    ]
    sizes = {"mixtral_engine_tp_size": 2, "mixtral_engine_pp_size": 2}
    gpus: dict[str, Any] = {"triton_serve_load_balancer": "haproxy", **sizes}
    assert surge(**gpus, _gpu={"count": 8}) == []
    assert surge(**gpus, _gpu={"count": 4}) == [
        "h1: triton_pool_strategy surge needs 8 GPUs for two servers (tp 2, pp 2), and the host has 4; use in_place for"
        " pool default"
    ]
    # Known before any host is asked, and not needed where there is none.
    assert surge(**gpus, mixtral_engine_gpu={"count": 4}) != []
    assert surge(triton_serve_load_balancer="haproxy") == []
    (problem,) = surge(**gpus, _gpu={"count": 8}, triton_serve_gpu_device_ids=[4, 5, 6, 7])
    assert "triton_serve_gpu_device_ids [4, 5, 6, 7]" in problem


def test_another_run() -> None:
    lease = {"foreign": True, "message": "pid 7 (ops@there)"}
    found = fleet({"h1": host(_lease={"held": True}), "h2": host(_lease=lease), "h3": host(_lease=lease), "h4": host()})
    assert found.leases() == [
        "h2, h3: in the hands of another run (pid 7 (ops@there)), so no host is touched: wait until it ends, or take"
        " over with -e triton_pool_take_over=true if it cannot come back"
    ]


def test_a_pool_has_a_name_that_files_and_backends_can_have() -> None:
    with pytest.raises(PoolError, match="^h1: triton_pool 'chat/eu' is no name"):
        fleet({"h1": {"triton_pool": "chat/eu"}}).agreement()


def test_a_variable_that_cannot_be_worked_out_is_named() -> None:
    class Broken(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            if name == "triton_pool_serial":
                raise ValueError("'waves' is undefined")
            return super().get(name, default)

    with pytest.raises(PoolError, match=r"^h1: triton_pool_serial cannot be worked out \('waves' is undefined\)"):
        fleet({"h1": Broken()}).agreement()
