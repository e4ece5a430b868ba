# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host builds for which: by what decides the engine, and again when a builder is lost or fails."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.plugin_utils._builders import (
    LONGEST,
    assign,
    difference,
    has_engine,
    signature_of,
)

HOSTS = ["h1", "h2", "h3"]


def decides(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "gpu": {"name": "H100", "count": 8},
        "release": "1.1.0",
        "weights": {"source": "huggingface", "name": "a/b", "revision": "0" * 40},
        "convert": {"tp_size": 8},
        "build": {"max_batch_size": 64},
    }
    return {**made, **changed}


def facts(builder: str = "", **of: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host: {"signature": {**signature_of(of.get(host) or decides()), "builder": builder}} for host in HOSTS}


def engine_of(facts: dict[str, Any]) -> dict[str, Any]:
    return {"signature": facts["signature"]["signature"], "path": "/e", "changed": True}


def test_one_builder_a_kind() -> None:
    known = facts(h2=decides(gpu={"name": "A100", "count": 8}))
    plan = assign(HOSTS, known, {}, 3, HOSTS)
    assert plan["builder_of"] == {"h1": "h1", "h2": "h2", "h3": "h1"}
    assert plan["problems"] == {} and plan["warnings"] == []


@pytest.mark.parametrize(
    "other",
    [
        {"release": "1.0.0"},
        {"gpu": {"name": "H100", "count": 4}},
        {"weights": {"source": "huggingface", "name": "a/b", "revision": "1" * 40}},
        {"build": {"max_batch_size": 32}},
    ],
)
def test_everything_that_decides_makes_another_kind(other: dict[str, Any]) -> None:
    assert signature_of(decides())["signature"] != signature_of(decides(**other))["signature"]


def test_the_next_one_after_a_loss() -> None:
    known = facts()
    first = assign(HOSTS, known, {}, 3, HOSTS)
    second = assign(["h2", "h3"], known, first, 3, HOSTS)
    assert second["builder_of"] == {"h2": "h2", "h3": "h2"}
    assert second["groups"][0]["tried"] == ["h1"]
    assert second["warnings"] == ["the builder was lost or failed (h1: lost); the next host of its kind builds"]


def test_it_ends_after_so_many() -> None:
    known = facts()
    known["h1"]["engine"] = {"failed": True, "msg": "trtllm_build: out\nof memory"}
    first = assign(HOSTS, known, {}, 2, HOSTS)
    second = assign(["h2", "h3"], known, first, 2, HOSTS)
    known["h2"]["checkpoint"] = {"failed": True, "msg": "no room"}
    third = assign(["h3"], known, second, 2, HOSTS)
    assert third["problems"] == {
        "h3": "no engine for this kind of host was built by h1: trtllm_build: out of memory, h2: no room;"
        " mend that, and run again"
    }


def test_who_has_it_stays_the_builder() -> None:
    known = facts()
    first = assign(HOSTS, known, {}, 3, HOSTS)
    known["h1"]["engine"] = engine_of(known["h1"])
    assert assign(HOSTS, known, first, 3, HOSTS)["builder_of"] == dict.fromkeys(HOSTS, "h1")
    # Lost after it had published: whoever has it by then takes its place, without building.
    known["h3"]["engine"] = engine_of(known["h3"])
    assert assign(["h2", "h3"], known, first, 3, HOSTS)["builder_of"] == {"h2": "h3", "h3": "h3"}


def test_an_engine_of_another_signature_does_not_count() -> None:
    known = facts()["h1"]
    assert not has_engine({**known, "engine": {"signature": "other", "path": "/e"}})
    assert not has_engine({**known, "engine": {**engine_of(known), "failed": True}})
    assert has_engine({**known, "engine": engine_of(known)})
    assert has_engine({**known, "engine": {**engine_of(known), "path": None}})
    assert not has_engine({**known, "engine": {**engine_of(known), "path": None, "changed": False}})


def test_the_named_builder() -> None:
    assert assign(HOSTS, facts("h2"), {}, 3, HOSTS)["builder_of"]["h1"] == "h2"
    away = assign(["h1", "h3"], facts("h2"), {}, 3, HOSTS)
    assert away["builder_of"]["h1"] == "h1" and "h2 is not in this run; h1 builds" in away["warnings"][0]
    unknown = assign(HOSTS, facts("h9"), {}, 3, HOSTS)
    assert "mixtral_engine_builder 'h9' is no host of the inventory" in unknown["problems"]["h1"]
    wrong = assign(HOSTS, facts("h2", h2=decides(release="1.0.0")), {}, 3, HOSTS)
    assert 'release is "1.1.0" and "1.0.0"' in wrong["problems"]["h1"] and "h2" not in wrong["problems"]


def test_two_named_builders_of_one_kind() -> None:
    known = facts("h1")
    known["h3"]["signature"]["builder"] = "h3"
    assert "is h1 and h3 for hosts that need the same engine" in assign(HOSTS, known, {}, 3, HOSTS)["problems"]["h2"]


def test_rounds_end() -> None:
    known, plan = facts(), {}
    known["h1"]["engine"] = engine_of(known["h1"])
    for _round in range(LONGEST + 1):
        plan = assign(HOSTS, known, plan, 3, HOSTS)
    assert "got none in 20 rounds" in plan["problems"]["h2"]


def test_only_what_is_pinned_is_looked_up() -> None:
    assert signature_of(decides())["resolvable"]
    assert not signature_of(decides(weights={"source": "directory", "path": "/models/a"}))["resolvable"]
    assert not signature_of(decides(build={"options": {"model_config": "/etc/model.json"}}))["resolvable"]
    assert difference(decides(), decides(convert={"tp_size": 4})) == "convert.tp_size is 8 and 4"
