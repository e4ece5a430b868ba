# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._checkpoint import convert
from ansible_collections.trtllm.serving.plugins.module_utils._engine import build, check_engine_dir
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import ToolError

GPU = {"name": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0", "memory_mib": 81920, "count": 8}


@pytest.fixture
def checkpoint(site: Any, cancellation: Any) -> str:
    return str(convert(site.convert_args(tp_size=2), False, cancellation)["path"])


def test_built_once(site: Any, cancellation: Any, checkpoint: str) -> None:
    given = site.build_args(checkpoint, max_batch_size=8, gemm_plugin="auto", gpu=GPU)
    first = build(given, False, cancellation)
    assert first["changed"] and first["world_size"] == 2 and first["ranks"] == ["rank0.engine", "rank1.engine"]
    assert first["engine"]["max_batch_size"] == 8 and first["engine"]["version"] == "1.1.0"
    assert first["engine"]["world_size"] == 2 and first["engine"]["gemm_plugin"] == "auto"
    inputs = json.loads((Path(first["path"]) / "manifest.json").read_text())["inputs"]
    assert inputs["tensorrt"] == "10.13.3.9" and inputs["tensorrt_llm"] == "1.1.0" and inputs["gpu"] == GPU
    assert inputs["checkpoint"].startswith(Path(checkpoint).name)
    # The tool drops a timing cache where it runs, which was a directory that is gone.
    place = re.search(r"^in (.+)$", Path(first["log_file"]).read_text(), re.M)
    assert place and Path(place[1]).parent == site.home / "engines" and not Path(place[1]).exists()
    assert site.partials() == []
    second = build(given, False, cancellation)
    assert not second["changed"] and second["engine"] == first["engine"] and len(site.runs) == 2


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"workers": 8}, True),
        ({"options": {"log_level": "error", "output_timing_cache": "/tmp/x"}}, True),
        ({"options": {"max_batch_size": 8}, "max_batch_size": None}, True),
        ({"max_batch_size": 16}, False),
        ({"options": {"reduce_fusion": "enable"}}, False),
        ({"image_digest": "sha256:1"}, False),
        ({"gpu": {**GPU, "name": "NVIDIA H100"}}, False),
        ({"gpu": {**GPU, "memory_mib": 40960}}, False),
        ({"gpu": {**GPU, "count": 4}}, False),
        ({"gpu": None}, False),
    ],
)
def test_key(site: Any, cancellation: Any, checkpoint: str, changed: dict[str, Any], same: bool) -> None:
    base = {"max_batch_size": 8, "gpu": GPU}
    one = build(site.build_args(checkpoint, **base), True, cancellation)
    other = build(site.build_args(checkpoint, **{**base, **changed}), True, cancellation)
    assert (one["key"] == other["key"]) is same


def test_key_follows_the_content_of_a_named_file(site: Any, cancellation: Any, checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "build.json"
    file.write_text("{}")
    keys = []
    for text in ("{}", '{"a": 1}'):
        file.write_text(text)
        given = site.build_args(checkpoint, options={"build_config": str(file)})
        keys.append(build(given, True, cancellation)["key"])
    shutil.copy(file, tmp_path / "copy.json")
    moved = site.build_args(checkpoint, options={"build_config": str(tmp_path / "copy.json")})
    assert keys[0] != keys[1] == build(moved, True, cancellation)["key"]


def test_diff(site: Any, cancellation: Any, checkpoint: str) -> None:
    build(site.build_args(checkpoint, max_batch_size=8), False, cancellation)
    found = build(site.build_args(checkpoint, max_batch_size=16), True, cancellation)
    assert found["diff"]["before"] == "options.max_batch_size: 8\n"
    assert found["diff"]["after"] == "options.max_batch_size: 16\n"


def test_check_mode_writes_nothing(site: Any, cancellation: Any, checkpoint: str, helpers: Any, tmp_path: Path) -> None:
    before = helpers.tree(tmp_path)
    assert build(site.build_args(checkpoint), True, cancellation)["changed"]
    for missing in ("", None, str(tmp_path / "nowhere")):
        found = build(site.build_args(missing), True, cancellation)
        assert found["changed"] and found["key"] is None
    assert helpers.tree(tmp_path) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"release": "1.3.0"}, "flavour"),
        ({"options": {"max_output_len": 5}}, "max_output_len"),
        ({"options": {"tp_size": 2}}, "the checkpoint decides it"),
        ({"options": {"dry_run": True}}, "makes no engine"),
        ({"max_batch_size": 0}, "max_batch_size 0 is not possible"),
        ({"max_input_len": 4096, "max_seq_len": 2048}, "max_input_len 4096 is above max_seq_len 2048"),
        ({"gemm_plugin": "bfloat16"}, "gemm_plugin bfloat16 does not suit a checkpoint in float16"),
        ({"gpu": {**GPU, "count": 1}}, "is for 2 ranks, the host has 1 GPUs"),
        ({"release": "0.19.0"}, "converted by release 1.1.0, not 0.19.0"),
        ({"checkpoint_dir": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_refused_before_anything_runs(
    site: Any, cancellation: Any, checkpoint: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ToolError) as caught:
        build(site.build_args(**{"checkpoint": checkpoint, **{}}) | args, False, cancellation)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(site.runs) == 1 and not (site.home / "engines").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "manifest.json").unlink(), "is incomplete"),
        (lambda path: (path / "rank1.safetensors").unlink(), "rank1.safetensors is missing"),
        (lambda path: os.truncate(path / "rank1.safetensors", 50), "rank1.safetensors has 50 bytes"),
    ],
)
def test_unusable_checkpoint(site: Any, cancellation: Any, checkpoint: str, damage: Any, message: str) -> None:
    damage(Path(checkpoint))
    with pytest.raises(ToolError, match=message):
        build(site.build_args(checkpoint), False, cancellation)
    assert len(site.runs) == 1


def test_tool_of_another_release(
    site: Any, cancellation: Any, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VERSION", "1.0.0")
    with pytest.raises(ToolError, match="was built by TensorRT-LLM 1.0.0, not 1.1.0"):
        build(site.build_args(checkpoint), False, cancellation)
    assert list((site.home / "engines").iterdir()) == []


def test_check_engine_dir(site: Any, cancellation: Any, checkpoint: str, tmp_path: Path) -> None:
    made = build(site.build_args(checkpoint, gpu=GPU), False, cancellation)
    path = Path(made["path"])
    assert check_engine_dir(path, "1.1.0", key=made["key"], world_size=2, gpu=GPU, full=True) == []
    assert "was built by TensorRT-LLM 1.1.0, not 1.2.0" in check_engine_dir(path, "1.2.0")[0]
    assert "is for 2 ranks, not 4" in check_engine_dir(path, "1.1.0", world_size=4)[0]
    assert "GPU name NVIDIA A100" in check_engine_dir(path, gpu={**GPU, "name": "L4"})[0]
    assert "has key" in check_engine_dir(path, key="0" * 64)[0]
    assert "does not exist" in check_engine_dir(tmp_path / "nowhere")[0]

    (path / "rank1.engine").write_bytes(b"short")
    assert "rank1.engine has 5 bytes, not 60" in check_engine_dir(path)[0]
    (path / "rank1.engine").unlink()
    problems = check_engine_dir(path)
    assert len(problems) == 1 and "rank1.engine is missing" in problems[0]
    (path / "manifest.json").unlink()
    assert "is incomplete" in check_engine_dir(path)[0]
    assert build(site.build_args(checkpoint, gpu=GPU), False, cancellation)["changed"]
    assert check_engine_dir(path) == []


def test_module_process(site: Any, start_module: Any, checkpoint: str) -> None:
    args = site.build_args(checkpoint, gpu=GPU, max_batch_size=4, environment={"HF_TOKEN": "hf_verysecret", "ONE": "1"})
    predicted = start_module("trtllm_build", args, check=True).result()
    made = start_module("trtllm_build", args).result()
    assert made["changed"] and made["key"] == predicted["key"] and made["engine"]["max_batch_size"] == 4
    assert "hf_verysecret" not in json.dumps(made) and made["world_size"] == 2
    assert not start_module("trtllm_build", args).result()["changed"]
