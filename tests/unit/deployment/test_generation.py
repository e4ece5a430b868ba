# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Generations: their identity, what differs on the host, and how they are made, repaired and pruned."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError, read_manifest
from ansible_collections.trtllm.serving.plugins.module_utils._generation import (
    UNPROVEN,
    GenerationError,
    check_tokenizer,
    differences,
    generations,
    link_target,
    make,
    model_files,
    plan,
    prune,
    repair,
    unproven,
)

FILES = {"model_repo/m/config.pbtxt": 'name: "m"\n', "launch.json": '{"argv": ["%s/venv/bin/tritonserver"]}\n'}


def files_at(home: Path) -> dict[str, str]:
    return {name: text.replace("%s", str(home)) for name, text in FILES.items()}


def test_identity_follows_content_and_not_the_place(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / 'an "other" ü'
    first = plan(one, files_at(one), {"engine": "e"})
    quoted = {
        name: text.replace("%s", json.dumps(str(other), ensure_ascii=False)[1:-1]) for name, text in FILES.items()
    }
    assert plan(other, quoted, {"engine": "e"}).id == first.id
    assert plan(one, {**files_at(one), "launch.json": "{}\n"}, {"engine": "e"}).id != first.id
    assert plan(one, files_at(one), {"engine": "f"}).id != first.id


def test_made_whole_with_its_manifest(tmp_path: Path) -> None:
    wanted = plan(tmp_path, files_at(tmp_path), {"engine": "e"})
    assert not wanted.made and not wanted.in_place
    make(wanted)
    again = plan(tmp_path, files_at(tmp_path), {"engine": "e"})
    assert again.made and again.drift == [] and not again.in_place
    assert json.loads((again.path / "generation.json").read_text())["id"] == again.id
    manifest = read_manifest(again.path)
    assert manifest is not None and manifest.key == again.key
    (tmp_path / "current").symlink_to("generations/" + again.id)
    assert plan(tmp_path, files_at(tmp_path), {"engine": "e"}).in_place


def test_nothing_is_left_when_making_breaks_off(tmp_path: Path) -> None:
    wanted = plan(tmp_path, {**FILES, "launch.json/below": "a file is in the way"}, {})
    with pytest.raises((ArtifactError, OSError)):
        make(wanted)
    assert list((tmp_path / "generations").iterdir()) == []


def test_drift_is_named_shown_and_repaired(tmp_path: Path) -> None:
    wanted = plan(tmp_path, FILES, {})
    make(wanted)
    (wanted.path / "model_repo/m/config.pbtxt").write_text("edited\n")
    (wanted.path / "launch.json").unlink()
    (wanted.path / "extra").write_text("not ours")
    (wanted.path / "model_repo/m/__pycache__").mkdir()
    (wanted.path / "model_repo/m/__pycache__/model.pyc").write_text("compiled")
    seen = plan(tmp_path, FILES, {})
    assert seen.drift == ["extra", "launch.json", "model_repo/m/config.pbtxt"]
    shown = {Path(each["before_header"]).name: (each["before"], each["after"]) for each in differences(seen)}
    assert shown == {
        "extra": ("not ours", ""),
        "launch.json": ("", FILES["launch.json"]),
        "config.pbtxt": ("edited\n", FILES["model_repo/m/config.pbtxt"]),
    }
    assert repair(seen) == ["extra", "launch.json", "model_repo/m/config.pbtxt"]
    assert plan(tmp_path, FILES, {}).drift == []
    assert (wanted.path / "launch.json").stat().st_mode & 0o777 == 0o640


def test_a_link_in_place_of_a_file_is_drift(tmp_path: Path) -> None:
    wanted = plan(tmp_path, FILES, {})
    make(wanted)
    target = tmp_path / "elsewhere"
    (wanted.path / "launch.json").rename(target)
    (wanted.path / "launch.json").symlink_to(target)
    assert plan(tmp_path, FILES, {}).drift == ["launch.json"]


def test_a_new_generation_is_shown_against_the_one_in_service(tmp_path: Path) -> None:
    old = plan(tmp_path, {**FILES, "gone": "was there\n"}, {})
    make(old)
    (tmp_path / "current").symlink_to("generations/" + old.id)
    new = plan(tmp_path, {**FILES, "launch.json": "new\n"}, {})
    shown = {Path(each["before_header"]).name: (each["before"], each["after"]) for each in differences(new)}
    shown.pop("generation.json")
    assert shown == {"launch.json": (FILES["launch.json"], "new\n"), "gone": ("was there\n", "")}
    # In check mode some files are not known yet: what is missing then is no loss.
    assert "gone" not in {Path(each["before_header"]).name for each in differences(new, complete=False)}


def test_outdated_after_a_part_was_put_back(tmp_path: Path) -> None:
    wanted = plan(tmp_path, FILES, {})
    make(wanted)
    (tmp_path / "run").mkdir()
    started = tmp_path / "run" / "server.json"
    started.write_text("{}")
    now = time.time()
    os.utime(started, (now + 10, now + 10))
    part = tmp_path / "part"
    part.write_text("")
    assert not wanted.outdated(part)
    os.utime(part, (now + 20, now + 20))
    assert wanted.outdated(part)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"generation": "a"}', '{"generation": "a", "before": {"current": null}}', '{"before": 1}']
)
def test_an_unreadable_record_counts_as_proven(tmp_path: Path, text: str) -> None:
    (tmp_path / "current").symlink_to("generations/a")
    (tmp_path / "run").mkdir()
    (tmp_path / UNPROVEN).write_text(text)
    assert unproven(tmp_path) == {}


def test_unproven_names_what_served_before(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    before = {"current": "b", "previous": None}
    (tmp_path / UNPROVEN).write_text(json.dumps({"generation": "a", "before": before}))
    assert unproven(tmp_path) == {}, "the switch was begun, and not done"
    (tmp_path / "current").symlink_to("generations/a")
    assert unproven(tmp_path)["before"] == before
    wanted = plan(tmp_path, FILES, {})
    make(wanted)
    assert not wanted.ungated, "it is not the one in service"
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("generations/" + wanted.id)
    (tmp_path / UNPROVEN).write_text(json.dumps({"generation": wanted.id, "before": before}))
    wanted = plan(tmp_path, FILES, {})
    assert wanted.in_place and wanted.ungated and not wanted.outdated()


def test_models_are_read_whole_and_missing_ones_named(tmp_path: Path) -> None:
    (tmp_path / "pre" / "1" / "__pycache__").mkdir(parents=True)
    (tmp_path / "pre" / "1" / "model.py").write_text("x = 1\n")
    (tmp_path / "pre" / "1" / "__pycache__" / "model.pyc").write_text("")
    assert model_files(tmp_path, ["pre"]) == {"model_repo/pre/1/model.py": "x = 1\n"}
    with pytest.raises(GenerationError, match="has no model post .*choose the models of the release"):
        model_files(tmp_path, ["pre", "post"])


def test_tokenizer_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="holds no tokenizer .*triton_serve_tokenizer_dir"):
        check_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    check_tokenizer(tmp_path)


def test_oldest_are_pruned_and_never_current_or_previous(tmp_path: Path) -> None:
    made = []
    for number in range(5):
        wanted = plan(tmp_path, {"a": str(number)}, {})
        make(wanted)
        os.utime(wanted.path / "manifest.json", (1000 + number, 1000 + number))
        made.append(wanted.id)
    assert [each.name for each in generations(tmp_path)] == made[::-1]
    (tmp_path / "current").symlink_to("generations/" + made[0])
    (tmp_path / "previous").symlink_to("generations/" + made[1])
    assert prune(tmp_path, 3) == [made[3], made[2]]
    assert {each.name for each in generations(tmp_path)} == {made[0], made[1], made[4]}
    assert prune(tmp_path, -1) == [made[4]]
    assert link_target(tmp_path, "current") == made[0] and link_target(tmp_path, "none") is None
