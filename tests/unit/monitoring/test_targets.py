# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The targets that Prometheus gets."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.filter.monitoring import monitoring_targets


def host(**more: Any) -> dict[str, Any]:
    return {"inventory_hostname": "h1", "triton_serve_address": "192.0.2.1", **more}


def only(**more: Any) -> dict[str, Any]:
    found = monitoring_targets([host(**more)])
    assert found["problems"] == []
    (entry,) = found["files"]["pool-" + more.get("triton_pool", "default")]
    return dict(entry)


def test_plain_host() -> None:
    assert only() == {
        "targets": ["192.0.2.1:8002"],
        "labels": {"pool": "default", "host": "h1", "generation": "none", "release": "1.1.0"},
    }


def test_generation_that_was_seen_counts_more_than_what_the_run_knew() -> None:
    before = {"host": {"current": "aaaa"}}
    seen = {"stat": {"exists": True, "lnk_target": "generations/bbbb"}}
    assert only(triton_serve_preflight=before)["labels"]["generation"] == "aaaa"
    assert only(triton_serve_preflight=before, triton_monitoring_current=seen)["labels"]["generation"] == "bbbb"
    # Nothing is deployed there any more.
    gone = {"stat": {"exists": False}}
    assert only(triton_serve_preflight=before, triton_monitoring_current=gone)["labels"]["generation"] == "none"
    # A host that could not be looked at.
    lost = {"unreachable": True, "msg": "no route"}
    assert only(triton_serve_preflight=before, triton_monitoring_current=lost)["labels"]["generation"] == "aaaa"


@pytest.mark.parametrize(
    ("registered", "port"),
    [
        ({}, 8002),
        ({"triton_serve_preflight": {"host": {"slot": "b"}}}, 8102),
        ({"triton_serve_preflight": {"host": {"slot": "b"}}, "triton_serve_switch": {"slot": "a"}}, 8002),
        ({"triton_serve_switch": {"slot": "b"}, "triton_serve_surge_port_offset": 50}, 8052),
        # A surge that was dropped: the first place serves on.
        ({"triton_serve_switch": {"slot": "b"}, "triton_serve_restore": {"slot": "a"}}, 8002),
    ],
)
def test_port_of_the_place_in_service(registered: dict[str, Any], port: int) -> None:
    assert only(**registered)["targets"] == ["192.0.2.1:%d" % port]


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ({"triton_serve_address": "0.0.0.0", "ansible_host": "10.0.0.7"}, "10.0.0.7:8002"),
        ({"triton_serve_address": "0.0.0.0"}, "h1:8002"),
        ({"triton_serve_address": "::", "ansible_connection": "local"}, "127.0.0.1:8002"),
        ({"triton_serve_address": "2001:db8::7"}, "[2001:db8::7]:8002"),
        ({"triton_serve_address": "127.0.0.1", "triton_monitoring_address": "gw"}, "gw:8002"),
        ({"triton_serve_address": "127.0.0.1", "ansible_connection": "local"}, "127.0.0.1:8002"),
    ],
)
def test_address(given: dict[str, Any], target: str) -> None:
    assert only(**given)["targets"] == [target]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_address_that_nobody_reaches(address: str) -> None:
    (problem,) = monitoring_targets([host(triton_serve_address=address)])["problems"]
    assert problem.startswith("host h1 has its metrics on " + address) and "triton_monitoring_address" in problem


def test_balancers() -> None:
    found = monitoring_targets(
        [],
        [
            {"inventory_hostname": "a", "triton_lb_metrics_address": "192.0.2.9"},
            {"inventory_hostname": "b", "triton_lb_metrics_port": 0},
            {"inventory_hostname": "c", "triton_lb_metrics_port": 9000},
        ],
    )
    assert [entry["targets"] for entry in found["files"]["balancers"]] == [["192.0.2.9:8405"], ["127.0.0.1:9000"]]
    (problem,) = found["problems"]
    assert "host c has its metrics on 127.0.0.1 (triton_lb_metrics_address)" in problem
    assert monitoring_targets([])["files"] == {"balancers": []}


def test_labels() -> None:
    found = monitoring_targets([host()], [host(triton_lb_metrics_address="192.0.2.9")], {"site": "paris", "rack": 7})
    for entries in found["files"].values():
        assert entries[0]["labels"]["site"] == "paris" and entries[0]["labels"]["rack"] == "7"
    problems = monitoring_targets([], [], {"pool": "x", "my-site": "y"})["problems"]
    assert "that label is this collection's" in problems[0] and "no label" in problems[1]


def test_pool_that_is_no_name_of_a_file() -> None:
    (problem,) = monitoring_targets([host(triton_pool="../x")])["problems"]
    assert "triton_pool '../x' cannot be the name of a file" in problem
