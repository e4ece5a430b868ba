# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The batches of a pool: sizes, order, what may be out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.trtllm.serving.plugins.plugin_utils import _pools
from ansible_collections.trtllm.serving.plugins.plugin_utils._pools import Member, Pool, PoolError, Settings, lay_out
from ansible_collections.trtllm.serving.tests.demo._site import ROOT


def pool(hosts: str, **settings: Any) -> Pool:
    """A pool from one word a host: its name, then - lost, o not serving, = done, ? outside this run."""
    members = []
    for word in hosts.split():
        name, mark = word.rstrip("-o=?"), word[len(word.rstrip("-o=?")) :]
        members.append(
            Member(
                name,
                asked=mark != "?",
                lost="unreachable" if mark == "-" else "",
                up=mark not in ("-", "o"),
                needs=mark not in ("=", "?"),
                why="new generation",
                source="old",
                target="new",
            )
        )
    return Pool("chat", Settings.of({"triton_pool_" + name: value for name, value in settings.items()}), members)


def batches(hosts: str, **settings: Any) -> list[str]:
    made = pool(hosts, **settings)
    assert lay_out(made) == []
    return [" ".join(batch) for batch in made.batches]


def test_one_after_the_other_by_default() -> None:
    assert batches("h1 h2 h3") == ["h1", "h2", "h3"]


def test_canary_then_all_that_may_be_out() -> None:
    assert batches("h1 h2 h3 h4 h5", max_unavailable=2) == ["h1", "h2 h3", "h4 h5"]
    assert batches("h1 h2 h3 h4 h5", max_unavailable=9) == ["h1", "h2 h3 h4 h5"]


@pytest.mark.parametrize(
    ("serial", "expected"),
    [
        ([1, "50%", "100%"], ["h1", "h2 h3", "h4"]),
        (["25%"], ["h1", "h2", "h3", "h4"]),
        (["10%", 3], ["h1", "h2 h3 h4"]),
        (2, ["h1 h2", "h3 h4"]),
        ("100%", ["h1 h2 h3 h4"]),
    ],
)
def test_serial(serial: object, expected: list[str]) -> None:
    assert batches("h1 h2 h3 h4", serial=serial, max_unavailable="100%") == expected


def test_a_share_of_the_pool_may_be_out_rounded_down_and_at_least_one() -> None:
    assert batches("h1 h2 h3 h4 h5 h6 h7", serial=["100%"], max_unavailable="30%") == ["h1 h2", "h3 h4", "h5 h6", "h7"]
    assert batches("h1 h2 h3", serial=["100%"], max_unavailable="30%") == ["h1", "h2", "h3"]


def test_a_lost_host_counts_as_out() -> None:
    assert batches("h1- h2 h3 h4", serial=["100%"], max_unavailable=2, max_failures=1) == ["h2", "h3", "h4"]


def test_no_room_beside_lost_hosts_leaves_the_serving_ones_alone() -> None:
    made = pool("h1- h2 h3o", max_unavailable=1, max_failures=1)
    assert lay_out(made) == []
    assert made.batches == [["h3"], ["h2"]]
    assert made.blocked == {
        "h2": "pool chat is short of 1: h1 (lost before the rollout); triton_pool_max_unavailable 1 leaves no room for"
        " another host: mend those first, or raise it"
    }


def test_hosts_that_serve_nothing_need_no_room_and_come_first() -> None:
    assert batches("h1o h2o h3o h4o") == ["h1", "h2 h3 h4"]
    assert batches("h1 h2 h3o h4o") == ["h3", "h4", "h1", "h2"]
    assert batches("h1 h2 h3o h4o", max_unavailable=2) == ["h3", "h4 h1", "h2"]


def test_a_repeated_run_goes_on_after_the_hosts_that_are_done() -> None:
    assert batches("h1= h2= h3 h4 h5", serial=[1, 1, 2], max_unavailable=2) == ["h3 h4", "h5"]
    # A canary that is lost was none.
    assert batches("h1- h2 h3 h4", max_unavailable=3, max_failures=1) == ["h2", "h3 h4"]


def test_hosts_outside_the_run_belong_to_the_pool_and_serve() -> None:
    assert batches("h1 h2? h3? h4?", min_available=3) == ["h1"]
    assert batches("h1 h2 h3? h4?", serial=["50%"], max_unavailable=2) == ["h1 h2"]


def test_nothing_to_do() -> None:
    assert batches("h1= h2=") == []


def test_too_few_would_serve() -> None:
    made = pool("h1 h2 h3 h4", serial=["100%"], max_unavailable=2, min_available=3)
    assert lay_out(made) == [
        "pool chat: the batch h1, h2 would leave 2 of 4 hosts serving, and triton_pool_min_available is 3: lower"
        " triton_pool_serial or triton_pool_max_unavailable, add hosts, or lower triton_pool_min_available"
    ]
    assert batches("h1 h2 h3 h4", serial=["100%"], max_unavailable=1, min_available=3) == ["h1", "h2", "h3", "h4"]


def test_a_lost_host_does_not_serve() -> None:
    made = pool("h1 h2 h3 h4-", max_unavailable=2, min_available=3, max_failures=1)
    assert lay_out(made) == [
        "pool chat: the batch h1 would leave 2 of 4 hosts serving (h4 (lost before the rollout)), and"
        " triton_pool_min_available is 3: lower triton_pool_serial or triton_pool_max_unavailable, add hosts, or lower"
        " triton_pool_min_available"
    ]


def test_hosts_that_do_not_serve_take_nothing_away() -> None:
    assert batches("h1o h2o", serial=["100%"], min_available=2) == ["h1 h2"]
    # The first host has come into service when the second batch begins.
    assert batches("h1o h2 h3", min_available=2) == ["h1", "h2", "h3"]


def test_a_share_that_must_serve_is_rounded_up() -> None:
    assert lay_out(pool("h1 h2 h3", min_available="70%"))
    assert batches("h1 h2 h3", min_available="66%") == ["h1", "h2", "h3"]


def test_a_surge_takes_nothing_out() -> None:
    assert batches("h1 h2 h3", serial=["100%"], strategy="surge", min_available=3) == ["h1 h2 h3"]


@pytest.mark.parametrize(
    ("hosts", "allowed", "stops"),
    [
        ("h1 h2 h3 h4", 0, False),
        ("h1- h2 h3 h4", 0, True),
        ("h1- h2 h3 h4", 1, False),
        ("h1- h2- h3 h4", 1, True),
        ("h1- h2 h3 h4", "25%", False),
        ("h1- h2- h3 h4", "25%", True),
        ("h1- h2 h3", "25%", True),
    ],
)
def test_lost_hosts_use_the_budget(hosts: str, allowed: object, stops: bool) -> None:
    made = pool(hosts, max_failures=allowed, max_unavailable=3)
    assert lay_out(made) == []
    assert bool(made.stopped) == stops


def test_a_stopped_pool_is_told_and_refuses_no_other() -> None:
    made = pool("h1- h2 h3", min_available=2)
    assert lay_out(made) == []
    assert made.stopped == (
        "the rollout of pool chat stopped: h1 (lost before the rollout), and triton_pool_max_failures allows 0: mend"
        " what failed, then run again"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"serial": []}, "triton_pool_serial is empty"),
        ({"serial": [0]}, "triton_pool_serial 0 is below 1: write at least 1"),
        ({"serial": ["0%"]}, "triton_pool_serial 0% is below 1: write at least 1%"),
        ({"serial": ["half"]}, "triton_pool_serial 'half' is neither a number nor a percentage"),
        ({"max_unavailable": 0}, "triton_pool_max_unavailable 0 is below 1"),
        ({"max_unavailable": True}, "triton_pool_max_unavailable True is neither"),
        ({"min_available": "120%"}, "triton_pool_min_available 120% is more than the whole pool"),
        ({"max_failures": -1}, "triton_pool_max_failures -1 is neither"),
        ({"bake": "5%"}, "triton_pool_bake 5% is not a number of seconds"),
        ({"lock_ttl": 5}, "triton_pool_lock_ttl 5 is below 60: write at least 60"),
        ({"strategy": "bluegreen"}, "triton_pool_strategy 'bluegreen' is not known: choose in_place or surge"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PoolError, match="^" + said):
        pool("h1", **settings)


def test_numbers_from_the_command_line_are_texts() -> None:
    assert batches("h1 h2 h3", serial=["1", "100%"], max_unavailable="2") == ["h1", "h2 h3"]


def test_defaults_are_the_roles() -> None:
    role = yaml.safe_load((ROOT / "roles" / "triton_pool" / "defaults" / "main.yml").read_text("utf-8"))
    assert {name: role[name] for name in _pools.DEFAULTS} == _pools.DEFAULTS
    assert role["triton_pool"] == _pools.POOL_DEFAULT


def test_no_batch_has_hosts_of_two_pools() -> None:
    one, other = pool("a1 a2 a3", max_unavailable=2), pool("b1 b2 b3", serial=["100%"], max_unavailable=3)
    assert lay_out(one) == lay_out(other) == []
    assert _pools.serial_of([one, other]) == (["a1", "a2", "a3", "b1", "b2", "b3"], [1, 2, 3])


def test_the_plan_in_lines() -> None:
    made = pool("h1= h2 h3 h4- h5?", max_failures=1, max_unavailable=2)
    made.release = "1.1.0"
    assert lay_out(made) == []
    assert _pools.described([made]) == [
        "pool chat (1.1.0): 2 hosts of 5 to do; at most 2 out, at least 0 serving; 1 may fail; bake 0 s",
        "  batch 1: h2 old -> new (new generation)",
        "  batch 2: h3 old -> new (new generation)",
        "  stay as they are: h1",
        "  lost: h4 (unreachable)",
        "  outside this run, taken to serve: h5",
    ]


# --- what the guard of a batch says ---

DONE = {"outcome": "done", "left": "serves new"}
BACK = {"outcome": "failed", "cause": "no token came", "left": "serves old"}
DOWN = {"outcome": "failed", "cause": "no token came", "left": "drained, serves old"}
LOST = {"outcome": "lost", "cause": "connection lost"}


def judged(hosts: str, batch: str, outcomes: dict[str, dict[str, str]], **settings: Any) -> dict[str, str]:
    made = pool(hosts, **settings)
    assert lay_out(made) == []
    verdicts = _pools.judge("chat", made.as_dict(), batch.split(), outcomes)
    assert all(verdict["go"] == (not verdict["cause"]) for verdict in verdicts.values())
    return {host: verdict["cause"] for host, verdict in verdicts.items()}


def test_the_first_batch_goes() -> None:
    assert judged("h1 h2 h3", "h1", {}) == {"h1": ""}


@pytest.mark.parametrize("outcome", [BACK, DOWN, LOST, {}])
@pytest.mark.parametrize(("allowed", "goes"), [(0, False), (1, True), ("25%", True), ("24%", False)])
def test_what_failed_before_is_counted(outcome: dict[str, str], allowed: object, goes: bool) -> None:
    said = judged("h1 h2 h3 h4", "h2", {"h1": outcome} if outcome else {}, max_failures=allowed, max_unavailable=2)
    assert (not said["h2"]) == goes
    if not goes:
        became = outcome.get("outcome", "lost")
        assert said["h2"].startswith("the rollout of pool chat stopped: h1 (%s), and triton_pool_max_failures" % became)


def test_a_host_left_drained_takes_the_room_of_another() -> None:
    settings: dict[str, Any] = {"max_failures": 1, "max_unavailable": 2}
    said = judged("h1 h2 h3 h4 h5", "h2 h3", {"h1": DOWN}, **settings)
    assert said["h2"] == ""
    assert said["h3"].startswith("pool chat is short of 2: h1 (failed), h2 (in this batch);")
    assert judged("h1 h2 h3 h4 h5", "h2 h3", {"h1": BACK}, **settings) == {"h2": "", "h3": ""}


def test_enough_must_serve_also_when_hosts_were_lost_meanwhile() -> None:
    settings: dict[str, Any] = {"max_failures": 1, "max_unavailable": 2, "min_available": 2}
    said = judged("h1 h2 h3 h4", "h2 h3", {"h1": LOST}, **settings)
    assert said["h2"] == ""
    assert said["h3"] != ""
    said = judged("h1 h2 h3", "h2", {"h1": LOST}, **{**settings, "min_available": 2, "serial": [1]})
    assert said["h2"] == (
        "without h2 only 1 host of pool chat would serve, and triton_pool_min_available is 2: mend h1 (lost) first"
    )


def test_hosts_skipped_before_are_as_they_were() -> None:
    assert judged("h1 h2", "h2", {"h1": {"outcome": "skipped", "cause": "x", "left": "serves old"}}) == {"h2": ""}


def test_the_guard_of_a_stopped_pool_lets_nobody_go() -> None:
    made = pool("h1- h2 h3")
    lay_out(made)
    verdicts = _pools.judge("chat", made.as_dict(), ["h2"], {})
    assert not verdicts["h2"]["go"] and "h1 (lost before the rollout)" in verdicts["h2"]["cause"]
