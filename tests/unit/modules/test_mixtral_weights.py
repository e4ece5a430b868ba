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
from ansible_collections.trtllm.serving.plugins.module_utils import _weights
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import ToolError
from ansible_collections.trtllm.serving.plugins.module_utils._weights_import import provide

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4984147224\n"


def args(site: Any, **more: Any) -> dict[str, Any]:
    found = {
        "path": None,
        "home": str(site.home),
        "weights_dir": str(site.home / "weights"),
        "log_dir": str(site.home / "logs"),
        "verify": "fast",
        **more,
    }
    return found


def importer(site: Any, code: str = "shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)") -> list[str]:
    return [sys.executable, "-c", f"import os, shutil, sys, time\n{code}", str(site.model), "{output_dir}"]


def test_whole_model(site: Any, cancellation: Any) -> None:
    found = provide(args(site, path=str(site.model), name="m", revision="r"), False, cancellation)
    assert not found["changed"] and found["path"] == str(site.model)
    assert found["identity"]["name"] == "m" and found["identity"]["revision"] == "r"
    assert sorted(found["identity"]["files"]) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert set(found["identity"]["files"]["config.json"]) == {"size", "sha256"}
    assert found["config"] == {
        "heads": 8,
        "kv_heads": 4,
        "experts": 8,
        "experts_per_token": 2,
        "layers": 4,
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "dtype": "float32",
    }
    assert found["weight_bytes"] > 128


def edit_config(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config.update(values)
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


FIRST = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path, h: shutil.rmtree(path), "is not a directory"),
        (lambda path, h: (path / "config.json").unlink(), "has no config.json"),
        (lambda path, h: (path / "config.json").write_text("{"), "config.json is not valid JSON"),
        (
            lambda path, h: edit_config(path, num_local_experts=None, architectures=["LlamaForCausalLM"]),
            "has no num_local_experts (architectures: LlamaForCausalLM): this is no Mixtral",
        ),
        (lambda path, h: edit_config(path, architectures=["Qwen2MoeForCausalLM"]), "is of Qwen2MoeForCausalLM, not"),
        (lambda path, h: edit_config(path, hidden_size="wide"), "no usable hidden_size ('wide')"),
        (lambda path, h: (path / FIRST).unlink(), f"lacks 1 of 2 weights files: {FIRST}"),
        (lambda path, h: (path / FIRST).write_text(POINTER), f"{FIRST} is a git-lfs pointer of"),
        (lambda path, h: os.truncate(path / FIRST, (path / FIRST).stat().st_size - 1), "is truncated"),
        (lambda path, h: os.truncate(path / FIRST, 20), "is truncated"),
        (lambda path, h: os.truncate(path / FIRST, 0), "has only 0 bytes"),
        (lambda path, h: (path / FIRST).write_bytes((path / FIRST).read_bytes() + b"x"), "is damaged"),
        (lambda path, h: (path / FIRST).write_bytes(b"\xff" * 64), "no safetensors file"),
        (
            lambda path, h: h.write_safetensors(path / FIRST, {"other": 4}),
            "lacks 1 tensors that model.safetensors.index",
        ),
        (
            lambda path, h: (path / "model.safetensors.index.json").write_text(POINTER),
            "index.json is a git-lfs pointer",
        ),
        (lambda path, h: (path / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
        (lambda path, h: (path / "tokenizer.json").write_text(POINTER), "tokenizer.json is a git-lfs pointer"),
        (lambda path, h: (path / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda path, h: (path / "tokenizer_config.json").unlink(), "no tokenizer_config.json"),
        (lambda path, h: (path / "tokenizer.json").write_text("oops"), "tokenizer.json is not valid JSON"),
    ],
)
def test_damage_is_named(site: Any, cancellation: Any, helpers: Any, damage: Any, message: str) -> None:
    damage(site.model, helpers)
    with pytest.raises(ToolError) as caught:
        provide(args(site, path=str(site.model)), False, cancellation)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(site.model) in str(caught.value)


def test_shards_without_an_index(site: Any, cancellation: Any) -> None:
    (site.model / "model.safetensors.index.json").unlink()
    provide(args(site, path=str(site.model)), False, cancellation)
    (site.model / FIRST).unlink()
    with pytest.raises(ToolError, match=f"lacks 1 of 2 weights files: {FIRST}"):
        provide(args(site, path=str(site.model)), False, cancellation)
    (site.model / "model-00002-of-00002.safetensors").rename(site.model / "pytorch_model.bin")
    with pytest.raises(ToolError, match="has no .*safetensors .found pytorch_model.bin."):
        provide(args(site, path=str(site.model)), False, cancellation)


def test_sentencepiece_tokenizer_is_enough(site: Any, cancellation: Any) -> None:
    (site.model / "tokenizer.json").unlink()
    (site.model / "tokenizer.model").write_bytes(b"sp")
    assert "tokenizer.model" in provide(args(site, path=str(site.model)), False, cancellation)["identity"]["files"]


def test_hashes_are_read_once(site: Any, cancellation: Any, monkeypatch: pytest.MonkeyPatch, helpers: Any) -> None:
    given = args(site, path=str(site.model))
    read: list[str] = []
    real = _weights.hash_files
    monkeypatch.setattr(_weights, "hash_files", lambda root, names, tick=None: read.extend(names) or real(root, names))
    before = helpers.tree(site.model)
    first = provide(given, False, cancellation)
    assert len(read) == 6 and helpers.tree(site.model) == before
    assert len(list((site.home / "weights" / ".identity").iterdir())) == 1
    read.clear()
    assert provide(given, False, cancellation)["identity"] == first["identity"] and read == []
    (site.model / "config.json").write_text((site.model / "config.json").read_text() + "\n")
    assert provide(given, False, cancellation)["identity"] != first["identity"] and read == ["config.json"]
    # The size alone would not tell.
    text = (site.model / "config.json").read_text()
    (site.model / "config.json").write_text(text.replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    os.utime(site.model / "config.json", ns=(1, 1))
    read.clear()
    assert provide(given, False, cancellation)["config"]["layers"] == 5 and read == ["config.json"]
    read.clear()
    provide({**given, "verify": "full"}, False, cancellation)
    assert len(read) == 6


def test_check_mode_writes_nothing(site: Any, cancellation: Any, helpers: Any, tmp_path: Path) -> None:
    before = helpers.tree(tmp_path)
    found = provide(args(site, path=str(site.model)), True, cancellation)
    assert found["identity"] and helpers.tree(tmp_path) == before
    found = provide(args(site, name="o/m", revision="r", importer=importer(site)), True, cancellation)
    assert found["changed"] and found["identity"] is None and found["path"] == str(site.home / "weights" / "o--m@r")
    assert helpers.tree(tmp_path) == before


def test_importer_runs_once(site: Any, cancellation: Any) -> None:
    given = args(site, name="o/m", revision="r", importer=importer(site))
    first = provide(given, False, cancellation)
    assert first["changed"] and first["identity"]["name"] == "o/m" and first["diff"]["after"]
    assert (Path(first["path"]) / "manifest.json").exists()
    second = provide(given, False, cancellation)
    assert not second["changed"] and second["identity"] == first["identity"]
    elsewhere = provide(args(site, path=str(site.model), name="o/m", revision="r"), False, cancellation)
    assert elsewhere["identity"] == first["identity"]
    os.truncate(Path(first["path"]) / FIRST, 10)
    third = provide(given, False, cancellation)
    assert third["changed"] and "10 bytes" in third["reason"] and third["identity"] == first["identity"]


def test_importer_with_other_words_runs_again(site: Any, cancellation: Any, tmp_path: Path) -> None:
    command = importer(site)
    first = provide(args(site, name="m", revision="r", importer=command), False, cancellation)
    moved = tmp_path / "bin" / Path(sys.executable).name
    moved.parent.mkdir()
    moved.symlink_to(sys.executable)
    given = args(site, name="m", revision="r", importer=[str(moved), *command[1:]])
    assert not provide(given, True, cancellation)["changed"]
    given["importer"] = [*command, "--seed=2"]
    found = provide(given, True, cancellation)
    assert found["changed"] and "another importer command" in found["reason"] and "--seed=2" in found["diff"]["after"]
    assert provide(given, False, cancellation)["identity"] == first["identity"]
    assert not provide(given, False, cancellation)["changed"]
    assert not provide(args(site, name="m", revision="r"), False, cancellation)["changed"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.mkdir(sys.argv[2] + '/x'); sys.exit('no such repository')", "no such repository"),
        ("pass", "has no config.json"),
        ("shutil.copy(sys.argv[1] + '/config.json', sys.argv[2])", "has no *.safetensors"),
    ],
)
def test_importer_that_fails_leaves_nothing(site: Any, cancellation: Any, code: str, message: str) -> None:
    given = args(site, name="m", revision="r", importer=importer(site, code))
    with pytest.raises(ToolError) as caught:
        provide(given, False, cancellation)
    assert message in str(caught.value) and "importer" in str(caught.value)
    assert list((site.home / "weights").iterdir()) == []


def test_directory_of_somebody_else_is_used_but_never_replaced(site: Any, cancellation: Any) -> None:
    place = site.home / "weights" / "m@r"
    place.parent.mkdir()
    shutil.copytree(site.model, place)
    given = args(site, name="m", revision="r", importer=importer(site))
    assert not provide(given, False, cancellation)["changed"]
    (place / FIRST).unlink()
    with pytest.raises(ToolError, match="was not made by this collection: complete or remove it"):
        provide(given, False, cancellation)
    assert (place / "config.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give path, or name and revision"),
        ({"name": "m", "revision": "r"}, "does not exist: give importer, or path"),
        ({"name": "../m", "revision": "r"}, "cannot be part of a path"),
        ({"name": "m", "revision": "r", "importer": ["true"]}, "has no {output_dir} in it"),
    ],
)
def test_refused(site: Any, cancellation: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises((ToolError, _weights.WeightsError)) as caught:
        provide(args(site, **given), False, cancellation)
    assert message in str(caught.value)


def test_module_process(site: Any, start_module: Any) -> None:
    made = start_module("mixtral_weights", {"home": str(site.home), "path": str(site.model)}).result()
    assert made["identity"]["name"] == "local" and not made["changed"]
    (site.model / FIRST).write_text(POINTER)
    failed = start_module("mixtral_weights", {"home": str(site.home), "path": str(site.model)}).result()
    assert failed["failed"] and "git-lfs pointer" in failed["msg"]
