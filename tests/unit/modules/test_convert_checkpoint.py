# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _artifact, _artifact_files
from ansible_collections.trtllm.serving.plugins.module_utils._checkpoint import check_checkpoint_dir, convert
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, Locked
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import ToolError

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("tool_behaviour")

# The tests themselves, which are the same for both runners.
from tool_behaviour import *  # noqa: F403 # pylint: disable=wildcard-import,unused-wildcard-import


def test_made_once(site: Any, cancellation: Any) -> None:
    first = convert(site.convert_args(tp_size=2), False, cancellation)
    assert first["changed"] and first["world_size"] == 2
    assert first["ranks"] == ["rank0.safetensors", "rank1.safetensors"]
    assert len(first["key"]) == 64 and Path(first["path"]).name == first["key"][:16]
    assert Path(first["path"]) == site.home / "checkpoints" / first["key"][:16]
    assert first["log_file"] and "done" in Path(first["log_file"]).read_text()
    assert os.stat(first["log_file"]).st_mode & 0o777 == 0o640
    manifest = json.loads((Path(first["path"]) / "manifest.json").read_text())
    assert manifest["complete"] is True and manifest["kind"] == "checkpoint" and manifest["key"] == first["key"]
    assert sorted(manifest["files"]) == ["config.json", "rank0.safetensors", "rank1.safetensors"]
    assert _artifact.key_of(manifest["inputs"]) == first["key"]

    second = convert(site.convert_args(tp_size=2), False, cancellation)
    assert not second["changed"] and second["path"] == first["path"] and "diff" not in second
    assert len(site.runs) == 1
    assert site.partials() == []


def test_command_names_the_final_directory(site: Any, cancellation: Any) -> None:
    found = convert(site.convert_args(tp_size=2, options={"moe_renorm_mode": 1}), False, cancellation)
    command = found["command"]
    assert command[command.index("--output_dir") + 1] == found["path"]
    assert command[command.index("--tp_size") + 1] == "2"
    assert command[command.index("--moe_renorm_mode") + 1] == "1"


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"workers": 4}, True),
        ({"options": {"load_model_on_cpu": True}}, True),
        ({"options": {"log_level": "error"}}, True),
        ({"moe_tp_size": 2, "moe_ep_size": 1}, True),
        ({"options": {"tp_size": 2}, "tp_size": None}, True),
        ({"dtype": "float32"}, False),
        ({"moe_tp_size": 1, "moe_ep_size": 2}, False),
        ({"options": {"use_weight_only": True}}, False),
        ({"release": "0.19.0"}, False),
    ],
)
def test_key_follows_what_decides_the_content(
    site: Any, cancellation: Any, changed: dict[str, Any], same: bool
) -> None:
    base = convert(site.convert_args(tp_size=2), True, cancellation)
    other = convert(site.convert_args(**{"tp_size": 2, **changed}), True, cancellation)
    assert (base["key"] == other["key"]) is same


def test_key_does_not_follow_the_place(site: Any, cancellation: Any, tmp_path: Path) -> None:
    before = convert(site.convert_args(), True, cancellation)["key"]
    shutil.copytree(site.model, tmp_path / "elsewhere")
    moved = site.convert_args(model_dir=str(tmp_path / "elsewhere"), checkpoints_dir=str(tmp_path / "other"))
    assert convert(moved, True, cancellation)["key"] == before
    (tmp_path / "elsewhere" / "config.json").write_text((site.model / "config.json").read_text() + " ")
    assert convert(moved, True, cancellation)["key"] != before


def test_given_identity_is_used_and_checked(site: Any, cancellation: Any) -> None:
    size = (site.model / "config.json").stat().st_size
    weights = {"name": "m", "revision": "r", "files": {"config.json": {"size": size, "sha256": "0" * 64}}}
    found = convert(site.convert_args(weights=weights), True, cancellation)
    assert found["key"] != convert(site.convert_args(), True, cancellation)["key"]
    weights["files"]["config.json"]["size"] = size + 1  # type: ignore[index]
    with pytest.raises(ToolError, match="config.json has .* bytes, the given weights say"):
        convert(site.convert_args(weights=weights), True, cancellation)


def test_check_mode_writes_nothing(site: Any, cancellation: Any, helpers: Any, tmp_path: Path) -> None:
    before = helpers.tree(tmp_path)
    found = convert(site.convert_args(tp_size=2), True, cancellation)
    assert found["changed"] and found["key"] and not Path(found["path"]).exists()
    assert helpers.tree(tmp_path) == before
    made = convert(site.convert_args(tp_size=2), False, cancellation)
    assert made["key"] == found["key"]
    before = helpers.tree(tmp_path)
    assert not convert(site.convert_args(tp_size=2), True, cancellation)["changed"]
    assert helpers.tree(tmp_path) == before


def test_check_mode_before_the_weights_are_there(site: Any, cancellation: Any) -> None:
    shutil.rmtree(site.model)
    found = convert(site.convert_args(tp_size=2), True, cancellation)
    assert found["changed"] and found["key"] is None and "does not exist yet" in found["msg"]
    with pytest.raises(ToolError, match="is not a directory"):
        convert(site.convert_args(tp_size=2), False, cancellation)


def test_diff_names_the_changed_inputs_only(site: Any, cancellation: Any) -> None:
    first = convert(site.convert_args(tp_size=2, dtype="float16"), False, cancellation)
    assert first["diff"]["before"] == ""
    found = convert(site.convert_args(tp_size=2, dtype="float32"), True, cancellation)
    assert found["diff"]["before"] == 'options.dtype: "float16"\n'
    assert found["diff"]["after"] == 'options.dtype: "float32"\n'
    assert found["diff"]["before_header"] == first["path"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"release": "9.9"}, "9.9"),
        ({"release": "1.3.0"}, "flavour"),
        ({"options": {"moe_tp_mode": 1}}, "moe_tp_mode"),
        ({"options": {"world_size": 4}}, "give tp_size and pp_size"),
        ({"options": {"output_dir": "/x"}}, "below checkpoints_dir"),
        ({"options": {"--save-config-only": True}}, "makes no checkpoint"),
        ({"tp_size": 2, "options": {"tp_size": 4}}, "given twice"),
        ({"options": {"workers": "many"}}, "many"),
        ({"dtype": "float8"}, "float8"),
        ({"tp_size": 3}, "tp_size 3 does not divide num_attention_heads 8"),
        ({"tp_size": 4, "moe_tp_size": 3, "moe_ep_size": 2}, "moe_tp_size 3 x moe_ep_size 2 = 6 is not tp_size 4"),
        ({"tp_size": 8, "gpus": 4}, "needs 8 GPUs, the host has 4"),
    ],
)
def test_refused_before_anything_runs(
    site: Any, cancellation: Any, helpers: Any, tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    before = helpers.tree(tmp_path)
    for check in (True, False):
        with pytest.raises(ToolError) as caught:
            convert(site.convert_args(**args), check, cancellation)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert site.runs == []
    (site.home / "weights").exists() and shutil.rmtree(site.home / "weights")
    assert set(helpers.tree(tmp_path)) == set(before)


def test_secret_is_in_no_log_and_no_result(site: Any, cancellation: Any) -> None:
    site.mode("secret")
    args = site.convert_args(environment={"HF_TOKEN": "hf_verysecret"})
    args["executable"].append("--extra=hf_verysecret")
    with pytest.raises(ToolError) as caught:
        convert(args, False, cancellation)
    assert "hf_verysecret" not in json.dumps([str(caught.value), caught.value.details])
    log = Path(caught.value.details["log_file"]).read_text()
    assert "token is ********" in log and "hf_verysecret" not in log


def test_damage_is_seen_and_repaired(site: Any, cancellation: Any) -> None:
    path = Path(convert(site.convert_args(tp_size=2), False, cancellation)["path"])
    rank = path / "rank1.safetensors"
    os.truncate(rank, rank.stat().st_size - 1)
    found = convert(site.convert_args(tp_size=2), False, cancellation)
    assert found["changed"] and "rank1.safetensors has" in found["reason"]
    assert check_checkpoint_dir(path) == []
    (path / "manifest.json").unlink()
    found = convert(site.convert_args(tp_size=2), False, cancellation)
    assert found["changed"] and "incomplete" in found["reason"] and len(site.runs) == 3


def test_silent_damage_is_found_by_full_verification(site: Any, cancellation: Any) -> None:
    path = Path(convert(site.convert_args(), False, cancellation)["path"])
    rank = path / "rank0.safetensors"
    times = rank.stat()
    data = bytearray(rank.read_bytes())
    data[-1] ^= 1
    rank.write_bytes(bytes(data))
    os.utime(rank, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not convert(site.convert_args(), False, cancellation)["changed"]
    assert convert(site.convert_args(verify="full"), False, cancellation)["changed"]


def test_copied_without_times_is_not_made_again(site: Any, cancellation: Any) -> None:
    path = Path(convert(site.convert_args(), False, cancellation)["path"])
    os.utime(path / "rank0.safetensors", ns=(5, 5))
    assert _artifact.verify(path).touched == ["rank0.safetensors"]
    assert not convert(site.convert_args(), False, cancellation)["changed"]
    assert _artifact.verify(path).touched == []


def test_no_room(site: Any, cancellation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_artifact_files, "free_bytes", lambda path: 10)
    with pytest.raises(_artifact_files.NoSpace, match="needed below .*, only 10 B free"):
        convert(site.convert_args(), True, cancellation)
    assert site.runs == []


def test_held_lock_refuses(site: Any, cancellation: Any) -> None:
    with HostLock(site.home, "trtllm_build 0123"), pytest.raises(Locked, match=f"pid {os.getpid()} .trtllm_build 0123"):
        convert(site.convert_args(), False, cancellation)
    assert site.runs == []


def test_check_checkpoint_dir(site: Any, cancellation: Any, tmp_path: Path) -> None:
    path = Path(convert(site.convert_args(tp_size=2), False, cancellation)["path"])
    assert check_checkpoint_dir(path, release="1.1.0", world_size=2) == []
    assert "converted by release 1.1.0, not 0.19.0" in check_checkpoint_dir(path, release="0.19.0")[0]
    assert "for 2 ranks, not 4" in check_checkpoint_dir(path, world_size=4)[0]
    (path / "rank1.safetensors").unlink()
    problems = check_checkpoint_dir(path)
    assert len(problems) == 1 and "rank1.safetensors is missing" in problems[0]
    assert "does not exist" in check_checkpoint_dir(tmp_path / "nowhere")[0]


# --- as a process -----------------------------------------------------------------------------------------------


def test_module_process(site: Any, start_module: Any) -> None:
    args = site.convert_args(tp_size=2)
    del args["checkpoints_dir"], args["log_dir"]
    predicted = start_module("convert_checkpoint", args, check=True).result()
    assert predicted["changed"] and not (site.home / "checkpoints").exists()
    made = start_module("convert_checkpoint", args).result()
    assert made["changed"] and made["path"] == predicted["path"] and made["diff"]["after"]
    refused = start_module("convert_checkpoint", {**args, "tp_size": 3}).result()
    assert refused["failed"] and refused["rc_of_module"] == 1 and "tp_size 3" in refused["msg"]


def test_killed_process_takes_the_tool_along(site: Any, start_module: Any, helpers: Any, cancellation: Any) -> None:
    site.mode("hang")
    module = start_module("convert_checkpoint", site.convert_args())
    helpers.wait_for(lambda: site.pids)
    module.process.kill()
    module.process.wait()
    helpers.wait_for(lambda: not any(helpers.alive(pid) for pid in site.pids))
    assert site.partials()
    site.mode("ok")
    assert convert(site.convert_args(), False, cancellation)["changed"]
    assert site.partials() == []
