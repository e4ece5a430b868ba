# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs that are cut off and repeated, and two controllers at once, on hosts with real servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.tests.demo._site import free_ports
from ansible_collections.trtllm.serving.tests.rollout._embedded import Hosts

SWITCH = "Stop the old server, switch, start the new one] "
GATE = "The new server is ready and answers] "
SETTLE = "Keep the last generations] "
# A hook for the point before the drain, which waits for a file, so that a run stays there.
WAIT = """\
- name: Say that the host has come here
  ansible.builtin.file:
    path: "{{ trtllm_home }}/here"
    state: touch
    mode: "0600"
- name: Wait
  ansible.builtin.wait_for:
    path: "{{ trtllm_home }}/go"
    timeout: 120
    sleep: 1
"""


@pytest.fixture(name="hosts", scope="module")
def _hosts() -> Iterator[Hosts]:
    """Two hosts that serve generation B and have A as the one before; each test begins with that or says otherwise."""
    ports = free_ports(6)
    hosts = Hosts({"r1": (ports[0], ports[1], ports[2]), "r2": (ports[3], ports[4], ports[5])})
    hosts.prepare()
    hosts.play("site", triton_serve_max_queue_size=1)
    hosts.play("site", triton_serve_max_queue_size=2)
    yield hosts
    hosts.play("teardown", code=None)
    hosts.sweep()


@pytest.fixture(name="ids")
def _ids(hosts: Hosts) -> dict[str, tuple[str, str]]:
    """Of each host the generation that it serves and another one that it has."""
    found = {}
    for host in hosts.ports:
        current = hosts.link(host)
        others = [path.name for path in (hosts.home(host) / "generations").iterdir() if not path.name.startswith(".")]
        found[host] = (current, next(other for other in sorted(others) if other != current))
    return found


def settled(hosts: Hosts, host: str, generation: str) -> None:
    """The host serves it, its gate was passed, and nothing of a rollout is left."""
    assert hosts.link(host) == generation
    assert hosts.record(host, "server")["generation"] == generation
    for name in ("rollout", "unproven"):
        assert hosts.record(host, name) == {}, name
    assert hosts.record(host, "lease").get("released"), "no run has the host any more"


@pytest.mark.parametrize(
    ("where", "everything"),
    [
        pytest.param(SWITCH, False, id="switch"),
        pytest.param(SWITCH, True, id="switch-power"),
        pytest.param(SETTLE, True, id="settle-power"),
    ],
)
def test_a_run_that_was_killed_is_finished_by_the_next(
    hosts: Hosts, ids: dict[str, tuple[str, str]], where: str, everything: bool
) -> None:
    old, wanted = ids["r1"]
    run = ("rollback", "--limit", "r1")
    play = hosts.start(*run, triton_pool_rollback_to=wanted).reaches(where)
    play.kill(everything)
    # What ran on the host when the controller was killed goes on there, and is waited for.
    again = hosts.play(*run, triton_pool_rollback_to=wanted)
    settled(hosts, "r1", wanted)
    starts = [line for line in hosts.ledger("r1") if line["stage"] == "switch" and line["generation"] == wanted]
    last = [line for line in starts if line["time"] >= hosts.record("r1", "server")["started"]]
    assert len(last) <= 1, again.output
    assert hosts.link("r2") == ids["r2"][0]
    assert wanted != old


def test_a_server_that_was_started_by_a_killed_run_only_needs_its_gate(
    hosts: Hosts, ids: dict[str, tuple[str, str]]
) -> None:
    run = ("rollback", "--limit", "r1")
    wanted = ids["r1"][1]
    hosts.start(*run, triton_pool_rollback_to=wanted).reaches(GATE).kill()
    assert hosts.record("r1", "unproven")["generation"] == wanted and hosts.record("r1", "rollout")["target"] == wanted
    pid = hosts.pid("r1")
    hosts.play(*run, triton_pool_rollback_to=wanted)
    settled(hosts, "r1", wanted)
    assert hosts.pid("r1") == pid, "it was not started again"
    # And there is nothing left for a third run.
    hosts.play(*run, triton_pool_rollback_to=wanted)
    assert hosts.pid("r1") == pid


def test_a_site_that_was_killed_goes_on_where_it_was(hosts: Hosts) -> None:
    queue = {"triton_serve_max_queue_size": 3}
    play = hosts.start("site", **queue).reaches("TASK [trtllm.serving.triton_serve : Model repository] ")
    play.kill(everything=True)
    pids = {host: hosts.pid(host) for host in hosts.ports}
    # The first host is done when the run is killed again, at the second one.
    play = hosts.start("site", **queue).reaches(GATE).reaches("PLAY [Rollout]")
    done = 0
    while done < 2:
        done = play.output.count(SWITCH)
        assert play.process.poll() is None, play.output
        time.sleep(0.05)
    play.kill(everything=True)
    first, second = [host for host in hosts.ports if hosts.pid(host) != pids[host]][:1] or ["r1"], "r2"
    settled(hosts, first[0], hosts.record(first[0], "staged")["id"])
    pid = hosts.pid(first[0])
    again = hosts.play("site", **queue)
    assert hosts.pid(first[0]) == pid, "a host that is done is left alone"
    settled(hosts, second, hosts.record(second, "staged")["id"])
    assert again.output.count(SWITCH) <= 1, again.output


def test_limit_rolls_one_host_and_the_next_run_the_other(hosts: Hosts) -> None:
    queue = {"triton_serve_max_queue_size": 4}
    before = {host: hosts.link(host) for host in hosts.ports}
    hosts.play("site", "--limit", "r2", **queue)
    assert hosts.link("r1") == before["r1"] and hosts.link("r2") != before["r2"]
    pid = hosts.pid("r2")
    hosts.play("prepare", **queue)
    assert hosts.link("r1") == before["r1"], "prepare switches nothing"
    hosts.play("redeploy", **queue)
    assert hosts.link("r1") == hosts.record("r1", "staged")["id"] != before["r1"]
    assert hosts.pid("r2") == pid


# --- two controllers ---


@pytest.fixture(name="waiting")
def _waiting(hosts: Hosts, tmp_path: Path) -> Iterator[Any]:
    """A run that stays before the first host's drain until it is let go."""
    hook = tmp_path / "wait.yml"
    hook.write_text(WAIT, "utf-8")
    hosts.variables["triton_serve_hooks"] = {"before_drain": str(hook)}
    for host in hosts.ports:
        for name in ("here", "go"):
            (hosts.home(host) / name).unlink(missing_ok=True)
    plays = []

    def start(**variables: Any) -> Any:
        play = hosts.start("rollback", "--limit", "r1", **variables)
        plays.append(play)
        deadline = time.monotonic() + 120
        while not (hosts.home("r1") / "here").exists():
            assert play.process.poll() is None and time.monotonic() < deadline, play.output
            time.sleep(0.05)
        return play

    yield start
    hosts.variables.clear()
    for play in plays:
        if play.process.poll() is None:
            play.kill(everything=True)


def go(hosts: Hosts) -> None:
    (hosts.home("r1") / "go").touch()


def test_a_second_controller_is_refused_as_a_whole(hosts: Hosts, ids: dict[str, tuple[str, str]], waiting: Any) -> None:
    first = waiting(triton_pool_rollback_to=ids["r1"][1])
    pids = {host: hosts.pid(host) for host in hosts.ports}
    second = hosts.play("rollback", code=None, triton_pool_rollback_to="0" * 16)
    assert second.process.returncode != 0
    assert "pid %d" % first.process.pid in " ".join(second.output.split()), second.output
    assert hosts.pid("r2") == pids["r2"] and hosts.record("r2", "rollout") == {}
    assert hosts.record("r2", "lease").get("released"), "what the refused run had taken is free again"
    go(hosts)
    first.end()
    settled(hosts, "r1", ids["r1"][1])


def test_a_run_that_lost_its_host_to_another_does_not_touch_it(
    hosts: Hosts, ids: dict[str, tuple[str, str]], waiting: Any
) -> None:
    first = waiting(triton_pool_rollback_to=ids["r1"][1])
    pid = hosts.pid("r1")
    path = hosts.home("r1") / "run" / "lease.json"
    other = {"run_id": "other", "controller_machine_id": "elsewhere", "controller_pid": 1, "who": "other@elsewhere"}
    path.write_text(json.dumps({**other, "since": "2026-01-01T00:00:00Z", "ttl": 900, "expires": time.time() + 900}))
    go(hosts)
    first.end(code=None)
    assert first.process.returncode != 0 and "is being deployed by another run" in " ".join(first.output.split())
    assert hosts.pid("r1") == pid and hosts.link("r1") == ids["r1"][0]
    assert json.loads(path.read_text())["run_id"] == "other"
    path.unlink()


def test_a_controller_elsewhere_is_waited_for_or_taken_over(hosts: Hosts, ids: dict[str, tuple[str, str]]) -> None:
    path = hosts.home("r1") / "run" / "lease.json"
    other = {
        "run_id": "other", "controller_machine_id": "elsewhere", "controller_pid": 1, "who": "other@elsewhere",
        "since": "2026-01-01T00:00:00Z", "ttl": 900,
    }  # fmt: skip
    run = ("rollback", "--limit", "r1")
    path.write_text(json.dumps({**other, "expires": time.time() + 900}))
    wanted = ids["r1"][1]
    refused = hosts.play(*run, code=None, triton_pool_rollback_to=wanted)
    assert refused.process.returncode != 0 and "other@elsewhere" in refused.output
    assert "triton_pool_take_over=true" in " ".join(refused.output.split())
    assert hosts.link("r1") == ids["r1"][0]
    taken = hosts.play(*run, triton_pool_rollback_to=wanted, triton_pool_take_over=True)
    assert "taken over from another run" in " ".join(taken.output.split())
    settled(hosts, "r1", wanted)
    # Nothing was heard of it for longer than its lease lasts.
    path.write_text(json.dumps({**other, "expires": time.time() - 1}))
    hosts.play(*run, triton_pool_rollback_to=ids["r1"][0])
    settled(hosts, "r1", ids["r1"][0])
