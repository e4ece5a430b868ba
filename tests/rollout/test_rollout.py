# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rollouts of whole fleets: what Ansible's own budgets get wrong, and what the plan and the guard make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TWO = {"chat": ["c1", "c2", "c3"], "embed": ["e1", "e2", "e3"]}


def test_one_host_after_the_other(make_fleet: Any) -> None:
    fleet = make_fleet(3)
    done = fleet.play("redeploy")
    assert done.code == 0, done.output
    assert done.outcome("h1", "h2", "h3") == "done done done"
    assert fleet.current("h1", "h2", "h3") == "b b b"
    assert fleet.service("h1", "h2", "h3") == "ready ready ready"
    assert fleet.touched() == ["h1", "h2", "h3"]
    assert fleet.most_out("chat") == 1
    # run_once holds for a batch, and the run is one all the same: one directory, with the plan and all hosts in it.
    (run,) = [path for path in (fleet.base / "runs").iterdir() if not path.is_symlink()]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    assert [each["batches"] for each in events if each["stage"] == "plan"] == [[["h1"], ["h2"], ["h3"]]]
    assert [each["host"] for each in events if each["stage"] == "outcome"] == ["h1", "h2", "h3"]
    # What is done is not touched again, and not even asked to drain.
    again = fleet.play("redeploy")
    assert again.code == 0, again.output
    assert fleet.touched() == []
    assert "skipping: no hosts matched" in again.output


def test_batches_are_split_by_what_may_be_out_and_never_mix_pools(make_fleet: Any) -> None:
    fleet = make_fleet(pools=TWO, serial=["100%"], max_unavailable=2)
    done = fleet.roll()
    assert done.code == 0, done.output
    assert set(done.outcomes) == {*TWO["chat"], *TWO["embed"]}
    assert (fleet.most_out("chat"), fleet.most_out("embed")) == (2, 2)
    both = [
        each for each in fleet.asked()
        if len({host[0] for host, state in each["balancer"].items() if state != "ready"}) > 1
    ]  # fmt: skip
    assert both == []
    assert fleet.touched()[2] == "c3" and set(fleet.touched()[:3]) == set(TWO["chat"])


@pytest.mark.parametrize("where", ["preflight", "first", "middle", "last"])
def test_a_host_that_is_lost_in_each_batch(make_fleet: Any, where: str) -> None:
    fleet = make_fleet(4)
    if where == "preflight":
        fleet.cut("h2")
    else:
        lost = {"first": "h1", "middle": "h2", "last": "h4"}[where]
        fleet.behave(lost, triton_server__started="lose")
    done = fleet.roll()
    assert done.code != 0, done.output
    if where == "preflight":
        assert fleet.touched() == []
        assert done.outcome("h1", "h3", "h4") == "skipped skipped skipped"
        assert "h2 (" in done.outcomes["h1"]["cause"]
    elif where == "last":
        assert done.outcome("h1", "h2", "h3", "h4") == "done done done lost"
    else:
        after = fleet.hosts[fleet.hosts.index(lost) + 1 :]
        assert done.outcome(lost, *after) == " ".join(["lost"] + ["skipped"] * len(after))
        assert fleet.service(*after) == " ".join(["ready"] * len(after))
        assert lost + " (" in done.outcomes[after[0]]["cause"]


def test_a_gate_that_fails_stops_at_the_canary(make_fleet: Any) -> None:
    fleet = make_fleet(3)
    fleet.behave("h1", triton_gate__gate="the prompt default was answered 'x', which is not 'y'")
    done = fleet.roll()
    assert done.code != 0, done.output
    assert done.outcome("h1", "h2", "h3") == "failed skipped skipped"
    assert fleet.current("h1", "h2", "h3") == "a a a"
    assert fleet.service("h1", "h2", "h3") == "ready ready ready"
    assert fleet.touched() == ["h1"]
    assert "is not 'y'" in done.outcomes["h1"]["cause"]
    assert done.outcomes["h1"]["left"].startswith("serves " + "a" * 16)


def test_budgets(make_fleet: Any) -> None:
    """Six pools of one run, each with a budget of its own: a quarter of three hosts is none of them."""
    cases: list[tuple[object, str, str]] = [
        (0, "a2", "done failed skipped"),
        (1, "b1", "failed done done"),
        (1, "c1 c2", "failed failed skipped"),
        ("25%", "d1", "failed done done done"),
        ("25%", "e1 e2", "failed failed skipped skipped"),
        ("25%", "f1", "failed skipped skipped"),
    ]
    pools = {
        failing[0]: [failing[0] + str(number) for number, _word in enumerate(expected.split(), 1)]
        for _allowed, failing, expected in cases
    }
    fleet = make_fleet(pools=pools)
    for allowed, failing, _expected in cases:
        fleet.variables[failing[0]] = {"triton_pool_max_failures": allowed}
        for host in failing.split():
            fleet.behave(host, triton_gate__gate="no token came")
    done = fleet.roll()
    assert {name: done.outcome(*pools[name]) for name in pools} == {case[1][0]: case[2] for case in cases}, done.output
    assert done.code != 0
    assert set(fleet.read("balancer.json").values()) == {"ready"}


def test_healthy_peers_of_a_failed_host_end_their_rollout(make_fleet: Any) -> None:
    fleet = make_fleet(4, serial=["50%"], max_unavailable=2)
    fleet.behave("h1", triton_gate__gate="no token came")
    done = fleet.roll()
    assert done.code != 0, done.output
    assert done.outcome(*fleet.hosts) == "failed done skipped skipped"
    assert fleet.current(*fleet.hosts) == "a b a a"
    assert fleet.service(*fleet.hosts) == "ready ready ready ready"
    assert fleet.asked_of("h2", "triton_server.restored") == []


def test_a_pool_that_stops_does_not_stop_others(make_fleet: Any) -> None:
    fleet = make_fleet(pools=TWO)
    fleet.behave("c1", triton_gate__gate="no token came")
    done = fleet.roll()
    assert done.code != 0, done.output
    assert done.outcome(*TWO["chat"]) == "failed skipped skipped"
    assert done.outcome(*TWO["embed"]) == "done done done"


def test_a_whole_batch_that_fails_does_not_end_the_run(make_fleet: Any) -> None:
    fleet = make_fleet(3, serial=["100%"], max_unavailable=3)
    for host in fleet.hosts:
        fleet.behave(host, triton_server__started="lose" if host == "h2" else "the disk is full")
    done = fleet.roll()
    assert done.code != 0, done.output
    assert done.outcome(*fleet.hosts) == "failed lost failed"
    assert "PLAY [Report]" in done.output


HANDLER = """\
- name: Of the operator
  ansible.builtin.include_role:
    name: {path}
"""


@pytest.mark.parametrize("hook", ["after_drain", "after_rollout"])
def test_a_handler_that_fails(make_fleet: Any, tmp_path: Path, hook: str) -> None:
    role = tmp_path / "operator"
    for name, text in {
        "tasks": "- ansible.builtin.command: 'true'\n  changed_when: true\n  notify: Operator's\n",
        "handlers": "- name: Operator's\n  ansible.builtin.command: sh -c 'exit 3'\n",
    }.items():
        (role / name).mkdir(parents=True)
        (role / name / "main.yml").write_text(text, "utf-8")
    (tmp_path / "hook.yml").write_text(HANDLER.format(path=role), "utf-8")
    fleet = make_fleet(2)
    fleet.common["triton_serve_hooks"] = {hook: str(tmp_path / "hook.yml")}
    done = fleet.roll()
    assert done.code != 0, done.output
    assert done.outcome("h1", "h2") == "failed skipped", done.output
    # Whatever it serves: it is in service, or its report says that it is drained.
    assert fleet.service("h1") == "ready" or "drained" in done.outcomes["h1"]["left"]
    assert fleet.service("h2") == "ready" and fleet.current("h2") == "a"


def test_a_host_that_is_lost_in_a_hook(make_fleet: Any, tmp_path: Path) -> None:
    (tmp_path / "hook.yml").write_text(
        "- ansible.builtin.file:\n    path: %s/{{ inventory_hostname }}\n    state: touch\n"
        "  when: inventory_hostname == 'h1'\n" % (tmp_path / "root" / "down"),
        "utf-8",
    )
    fleet = make_fleet(3, max_failures=1, max_unavailable=2, serial=[1])
    fleet.common["triton_serve_hooks"] = {"after_drain": str(tmp_path / "hook.yml")}
    done = fleet.roll()
    assert done.code != 0, done.output
    assert done.outcome(*fleet.hosts) == "lost done done"


def test_too_few_would_serve_and_nothing_is_touched(make_fleet: Any) -> None:
    fleet = make_fleet(3, serial=["100%"], max_unavailable=2, min_available=2)
    done = fleet.play("redeploy")
    assert done.code == 2, done.output
    assert fleet.asked() == []
    assert "would leave 1 of 3 hosts serving, and triton_pool_min_available is 2" in done.output.replace("\n", " ")


def test_too_few_would_serve_beside_a_lost_host(make_fleet: Any) -> None:
    fleet = make_fleet(3, max_unavailable=2, min_available=2, serial=[1], max_failures=1)
    fleet.cut("h3")
    done = fleet.roll()
    assert done.code != 0, done.output
    assert fleet.touched() == []
    assert "would leave 1 of 3 hosts serving" in " ".join(done.output.split())


def test_a_limited_run_touches_and_asks_nobody_else(make_fleet: Any) -> None:
    fleet = make_fleet(3)
    done = fleet.roll("--limit", "h2")
    assert done.code == 0, done.output
    assert fleet.current("h1", "h2", "h3") == "a b a"
    assert {each["host"] for each in fleet.asked()} == {"h2"}
    rest = fleet.roll()
    assert rest.code == 0, rest.output
    assert fleet.touched() == ["h1", "h3"]


def test_a_repeated_run_goes_on_where_the_first_stopped(make_fleet: Any) -> None:
    fleet = make_fleet(4, serial=[1, 3], max_unavailable=3)
    fleet.behave("h2", triton_server__started="lose")
    first = fleet.roll()
    assert first.outcome(*fleet.hosts) == "done lost done done", first.output
    assert first.code != 0
    fleet.mend("h2")
    second = fleet.roll()
    assert second.code == 0, second.output
    assert fleet.touched() == ["h2"]
    assert fleet.current(*fleet.hosts) == "b b b b"
    assert fleet.service(*fleet.hosts) == "ready ready ready ready"


def test_a_host_left_drained_takes_the_place_of_another(make_fleet: Any) -> None:
    fleet = make_fleet(4, max_failures=1, max_unavailable=1)
    fleet.behave("h1", triton_gate__gate="no token came", triton_server__restored="the disk is full")
    done = fleet.roll()
    assert done.code != 0, done.output
    assert done.outcome(*fleet.hosts) == "failed skipped skipped skipped"
    assert "leaves no room" in done.outcomes["h2"]["cause"]
    assert fleet.most_out("chat") == 1


def test_rollback_and_a_second_one_changes_nothing(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    assert fleet.roll().code == 0
    back = fleet.play("rollback")
    assert back.code == 0, back.output
    assert fleet.current("h1", "h2") == "a a"
    assert fleet.service("h1", "h2") == "ready ready"
    again = fleet.play("rollback")
    assert again.code == 0, again.output
    assert fleet.touched() == []


def test_rollback_of_a_rollout_that_stopped_half_way(make_fleet: Any) -> None:
    fleet = make_fleet(3)
    fleet.behave("h2", triton_gate__gate="no token came")
    assert fleet.roll().outcome(*fleet.hosts) == "done failed skipped"
    back = fleet.play("rollback")
    assert back.code == 0, back.output
    assert fleet.current(*fleet.hosts) == "a a a"
    assert fleet.touched() == ["h1"]


def test_rollback_to_a_named_generation(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    done = fleet.play("rollback", "-e", "triton_pool_rollback_to=" + "c" * 16)
    assert done.code == 0, done.output
    assert fleet.current("h1", "h2") == "c c"


def test_rollback_without_a_previous_generation_touches_nobody(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    fleet.state("h2", previous=None)
    done = fleet.play("rollback")
    assert done.code == 2, done.output
    assert fleet.touched() == []
    assert "h2: no generation served before" in " ".join(done.output.split())
    assert fleet.asked_of("h1", "run_lease") == ["run_lease"]


def test_another_run_on_one_host_keeps_this_one_from_all(make_fleet: Any) -> None:
    fleet = make_fleet(3)
    fleet.state("h3", lease={"foreign": True, "run_id": "", "message": "pid 7 (ops@there, since noon)"})
    done = fleet.roll()
    assert done.code == 2, done.output
    assert fleet.touched() == []
    assert "h3: in the hands of another run (pid 7 (ops@there, since noon))" in " ".join(done.output.split())
    # What this run had got is free again.
    assert [fleet.asked_of(host, "run_lease") for host in fleet.hosts] == [["run_lease"], ["run_lease"], []]
    taken = fleet.roll("-e", "triton_pool_take_over=true")
    assert taken.code == 0, taken.output


def test_pools_that_disagree_and_names_that_were_given_up(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    fleet.variables["h2"] = {"triton_pool_bake": 30}
    done = fleet.play("redeploy")
    assert done.code == 2 and fleet.asked() == []
    said = " ".join(done.output.split())
    assert "pool chat: triton_pool_bake is 0 on h1 and 30 on h2" in said, done.output
    fleet.variables["h2"] = {"trtllm_rollout_max_lost": 1}
    done = fleet.play("redeploy")
    assert done.code == 2 and fleet.asked() == []
    assert "trtllm_rollout_max_lost is triton_pool_max_failures now: rename it" in " ".join(done.output.split())


def test_check_mode_shows_the_plan_and_touches_nothing(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    done = fleet.play("redeploy", "--check", "--diff")
    assert done.code == 0, done.output
    assert "batch 1: h1 aaaaaaaaaaaaaaaa -> bbbbbbbbbbbbbbbb (new generation)" in " ".join(done.output.split())
    assert fleet.current("h1", "h2") == "a a"
    assert all(each["check"] for each in fleet.asked() if each["what"].startswith(("triton_server", "haproxy")))
    # A host of which nothing became is not lost: the second batch is shown too.
    assert {each["host"] for each in fleet.asked() if each["what"] == "triton_server.started"} == {"h1", "h2"}
    assert fleet.service("h1", "h2") == "ready ready"


def test_hosts_that_serve_nothing_come_first(make_fleet: Any) -> None:
    fleet = make_fleet(3)
    fleet.state("h3", current=None, previous=None, running=None)
    done = fleet.roll()
    assert done.code == 0, done.output
    assert fleet.touched() == ["h3", "h1", "h2"]
