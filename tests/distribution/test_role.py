# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on several hosts: one conversion and one build of a kind, whoever is lost, and nothing on a second run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest


def use_shared(fleet: Any) -> None:
    shared = fleet.folder / "shared"
    shared.mkdir(exist_ok=True)
    fleet.variables.update(mixtral_engine_distribution="shared", mixtral_engine_shared_path=str(shared))


@pytest.fixture
def shared(fleet: Any) -> None:
    use_shared(fleet)


@pytest.fixture(params=["shared", "registry"])
def store(request: pytest.FixtureRequest, fleet: Any) -> None:
    if request.param == "shared":
        use_shared(fleet)
        return
    registry = request.getfixturevalue("registry")()
    fleet.variables.update(
        mixtral_engine_distribution="registry",
        mixtral_engine_registry=f"{registry.host}/trtllm/engines",
        mixtral_engine_registry_plain_http=True,
        mixtral_engine_registry_chunk_mib=1,
    )


def recap(output: str) -> dict[str, dict[str, int]]:
    return {
        host: {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", rest)}
        for host, rest in re.findall(r"^(h\d)\s+: (.*)$", output, re.M)
    }


def test_one_build_for_all(fleet: Any, store: None) -> None:
    check = fleet.play("--check", "--diff")
    assert check.returncode == 0, check.stdout + check.stderr
    assert fleet.ran("convert") == []
    first = fleet.play("--diff")
    assert first.returncode == 0, first.stdout + first.stderr
    assert fleet.ran("convert") == fleet.ran("build") == ["h1"]
    shown = fleet.shown()
    assert len({each["key"] for each in shown.values()}) == 1
    for host in fleet.hosts:
        home = fleet.home(host)
        key = shown[host]["key"]
        assert shown[host]["path"] == str(home / "engines" / key[:16])
        assert Path(shown[host]["tokenizer"]).parent == home / "tokenizers"
        assert (Path(shown[host]["tokenizer"]) / "tokenizer.json").is_file()
        engine = home / "engines" / key[:16] / "rank1.engine"
        assert engine.read_bytes() == (fleet.home("h1") / "engines" / key[:16] / "rank1.engine").read_bytes()
    assert len({Path(each["tokenizer"]).name for each in shown.values()}) == 1
    assert not (fleet.home("h2") / "weights").exists()
    for arguments in ([], ["--check", "--diff"]):
        again = fleet.play(*arguments)
        assert again.returncode == 0, again.stdout
        assert all(line["changed"] == 0 for line in recap(again.stdout).values()), again.stdout
    assert fleet.ran("build") == ["h1"]


def test_a_builder_that_fails_is_replaced(fleet: Any, shared: None) -> None:
    result = fleet.play(TOOL_ILL="h1")
    assert fleet.ran("build") == ["h1", "h2"], result.stdout + result.stderr
    counts = recap(result.stdout)
    assert counts["h1"]["failed"] == 1 and counts["h2"]["failed"] == counts["h3"]["failed"] == 0
    assert sorted(fleet.shown()) == ["h2", "h3"]
    # It gets, on the next run, what the other has built.
    again = fleet.play(TOOL_ILL="h1")
    assert again.returncode == 0, again.stdout
    assert fleet.ran("build") == ["h1", "h2"]
    assert sorted(fleet.shown()) == fleet.hosts


def test_builders_that_all_fail_end_it(fleet: Any, shared: None) -> None:
    fleet.variables["mixtral_engine_builder_attempts"] = 2
    result = fleet.play(TOOL_ILL="h1,h2,h3")
    assert result.returncode != 0
    assert fleet.ran("build") == ["h1", "h2"], result.stdout
    said = [line for line in result.stdout.splitlines() if "no engine for this kind of host was built by h1: " in line]
    assert said and "CUDA out of memory" in said[0] and "h2: " in said[0]


def test_a_lost_builder_is_replaced(fleet: Any, shared: None) -> None:
    fleet.of_host["h1"] = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    result = fleet.play()
    assert fleet.ran("build") == ["h2"], result.stdout + result.stderr
    assert sorted(fleet.shown()) == ["h2", "h3"]
    assert recap(result.stdout)["h1"]["unreachable"] == 1


def test_limit_gets_what_was_built(fleet: Any, store: None) -> None:
    assert fleet.play("--limit", "h1").returncode == 0
    result = fleet.play("--limit", "h3")
    assert result.returncode == 0, result.stdout
    assert fleet.ran("build") == ["h1"]


def test_kinds_are_kept_apart(fleet: Any, shared: None) -> None:
    fleet.of_host["h3"] = {"mixtral_engine_tp_size": 1}
    assert fleet.play().returncode == 0
    assert sorted(fleet.ran("build")) == ["h1", "h3"]


def test_the_named_builder_builds(fleet: Any, shared: None) -> None:
    fleet.variables["mixtral_engine_builder"] = "h2"
    assert fleet.play().returncode == 0
    assert fleet.ran("build") == ["h2"]


def test_a_damaged_engine_is_fetched_again(fleet: Any, shared: None) -> None:
    assert fleet.play().returncode == 0
    shown = fleet.shown()["h2"]
    (Path(shown["path"]) / "rank0.engine").write_bytes(b"x")
    result = fleet.play()
    assert result.returncode == 0, result.stdout
    assert fleet.ran("build") == ["h1"]
    key = shown["key"][:16]
    assert all(
        (fleet.home("h2") / "engines" / key / f"rank{rank}.engine").read_bytes()
        == (fleet.home("h1") / "engines" / key / f"rank{rank}.engine").read_bytes()
        for rank in (0, 1)
    )


def test_an_emptied_store_is_filled_again(fleet: Any, shared: None, tmp_path: Path) -> None:
    assert fleet.play("--limit", "h1,h2").returncode == 0
    shutil.rmtree(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    result = fleet.play()
    assert result.returncode == 0, result.stdout
    assert fleet.ran("build") == ["h1"]
    assert sorted(fleet.shown()) == fleet.hosts


def test_weights_of_a_directory(fleet: Any, shared: None, tmp_path: Path) -> None:
    """What a directory holds may change under the same name, so the builder looks at it every time."""
    assert fleet.play("--limit", "h1").returncode == 0
    weights = next((fleet.home("h1") / "weights").glob("tiny*"))
    shutil.copytree(weights, tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))
    model = str(tmp_path / "model")
    fleet.variables.update(mixtral_engine_weights_source="directory", mixtral_engine_weights_path=model)
    assert fleet.play().returncode == 0
    before = fleet.shown()["h2"]["key"]
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    check = fleet.play("--check")
    assert check.returncode == 0, check.stdout
    result = fleet.play()
    assert result.returncode == 0, result.stdout
    assert len(set(fleet.ran("build"))) == 1 and fleet.shown()["h2"]["key"] != before
    assert len({each["key"] for each in fleet.shown().values()}) == 1
