# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tensorrtllm_reference.hf import MixtralWeights
from tensorrtllm_reference.tensors import SafetensorsWriter, WeightsError, from_float32, to_float32


@pytest.fixture
def model(tiny_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dir, tmp_path / "hf"))


def _change_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def _error(model: Path) -> str:
    with pytest.raises(WeightsError) as error:
        MixtralWeights(model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_what_the_library_wrote(model: Path) -> None:
    weights = MixtralWeights(model)
    everything: dict[str, Any] = {}
    for file in model.glob("*.safetensors"):
        everything.update(safetensors.numpy.load_file(file))
    assert set(everything) == set(weights.expected_shapes())
    for name, expected in everything.items():
        np.testing.assert_array_equal(weights.tensor(name), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(tmp_path: Path, tiny_dir: Path, tiny_factory: Callable[..., Path], dtype: str) -> None:
    weights = MixtralWeights(tiny_factory(tmp_path / "hf", dtype=dtype, shards=2))
    exact = MixtralWeights(tiny_dir)
    name = "model.layers.1.block_sparse_moe.experts.7.w2.weight"
    assert weights.dtype(name) == dtype
    relative = 2.0**-10 if dtype == "float16" else 2.0**-8
    np.testing.assert_allclose(to_float32(weights.tensor(name), dtype), exact.tensor(name), rtol=relative, atol=1e-4)


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 1.004, -1.004, np.inf, np.nan, 3.4e38], np.float32)
    back = to_float32(from_float32(values, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(back, np.array([1, 1, 1.015625, 1.0078125, -1.0078125, np.inf, np.nan, np.inf]))


def test_writer_agrees_with_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with SafetensorsWriter(path, [("a", "float32", (2, 3)), ("b", "float16", (4, 3))]) as writer:
        writer.write("a", [values])
        writer.write("b", [values.astype(np.float16), -values.astype(np.float16)])
    loaded = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(loaded["a"], values)
    np.testing.assert_array_equal(loaded["b"], np.concatenate([values, -values]).astype(np.float16))


def test_writer_refuses_what_was_not_declared(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x", [("a", "float32", (2,)), ("b", "float32", (2,))])
    with pytest.raises(ValueError, match="b written where a was declared"):
        writer.write("b", [np.zeros(2, np.float32)])
    writer = SafetensorsWriter(tmp_path / "x", [("a", "float32", (2,))])
    with pytest.raises(ValueError, match="differs from its declared size by -4 bytes"):
        writer.write("a", [np.zeros(1, np.float32)])
    writer = SafetensorsWriter(tmp_path / "x", [("a", "float32", (2,))])
    with pytest.raises(ValueError, match="1 declared tensors were not written"):
        writer.close()


def test_what_was_read_can_be_forgotten(model: Path) -> None:
    """A model of many gigabytes must not pile up in the converter's memory; views stay good."""
    weights = MixtralWeights(model)
    views = {name: weights.tensor(name) for name in weights.expected_shapes()}
    before = {name: view.copy() for name, view in views.items()}

    def resident() -> int:
        total, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = str(model) in line
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1])
        return total

    assert resident() > 1000
    weights.forget()
    assert resident() == 0
    for name, view in views.items():
        np.testing.assert_array_equal(view, before[name])


def test_a_full_disk_names_the_file() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        SafetensorsWriter("/dev/full", [("a", "float32", (2,))])


def test_no_directory(tmp_path: Path) -> None:
    message = _error(tmp_path / "none")
    assert message == f"{tmp_path}/none is not a directory: a Hugging Face Mixtral directory is needed"


def test_no_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert _error(model) == f"{model}/config.json is missing: not a Hugging Face model directory"


def test_broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")
    assert _error(model).startswith(f"{model}/config.json is not valid JSON")


def test_dense_model(model: Path) -> None:
    _change_config(model, num_local_experts=None, architectures=["LlamaForCausalLM"])
    message = _error(model)
    assert "dense model" in message and "LlamaForCausalLM" in message and "a Mixtral is needed" in message


def test_another_architecture(model: Path) -> None:
    _change_config(model, architectures=["PhimoeForCausalLM"])
    assert "['PhimoeForCausalLM']: a Mixtral (MixtralForCausalLM) is needed" in _error(model)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": "64"}, "hidden_size must be a positive integer, but is '64'"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a positive integer, but is None"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than num_local_experts 8"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu'"),
        ({"rope_scaling": {"factor": 2.0}}, "rope scaling {'factor': 2.0} is not supported"),
        ({"sliding_window": 128}, "sliding_window 128 below max_position_embeddings 512 is not supported"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, but is 0"),
    ],
)
def test_unusable_configs(model: Path, changes: dict[str, Any], named: str) -> None:
    _change_config(model, **changes)
    assert _error(model) == f"{model}/config.json: {named}"


def test_missing_shards_are_all_named(model: Path) -> None:
    for number in (1, 3):
        (model / f"model-{number:05d}-of-00003.safetensors").unlink()
    message = _error(model)
    assert "misses 2 of 3 shards: model-00001-of-00003.safetensors, model-00003-of-00003.safetensors" in message


@pytest.mark.parametrize("left", [0, 4, 200, 20_000, -1])
def test_truncated_shard(model: Path, left: int) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:left])
    size = len(data[:left])
    message = _error(model)
    assert message.startswith(f"{shard} is truncated: {size} bytes")
    if left in (20_000, -1):
        assert f"expected {len(data)}" in message


def test_git_lfs_pointer(model: Path) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4900000000\n")
    message = _error(model)
    assert message.startswith(f"{shard} is a git-lfs pointer") and "git lfs pull" in message


def test_something_else_than_safetensors(model: Path) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    shard.write_bytes(b"PK\x03\x04 a zip archive, as torch.save makes them")
    assert _error(model).startswith(f"{shard} is not a safetensors file")


def test_inconsistent_header(model: Path) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
    text = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    assert _error(model).startswith(f"{shard} is not a valid safetensors file")


def test_missing_tensor(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    del data["weight_map"]["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    index.write_text(json.dumps(data))
    assert "misses tensor model.layers.1.block_sparse_moe.experts.3.w2.weight" in _error(model)


def test_tensor_not_in_the_shard_that_the_index_names(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(data))
    assert "model-00001-of-00003.safetensors misses tensor lm_head.weight" in _error(model)


def test_wrong_shape(model: Path) -> None:
    _change_config(model, intermediate_size=64)
    message = _error(model)
    assert "w1.weight has shape [128, 64], and config.json asks for [64, 64]" in message


def test_wrong_type(tmp_path: Path, tiny_factory: Callable[..., Path]) -> None:
    model = tiny_factory(tmp_path / "hf")
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    safetensors.numpy.save_file(tensors, model / "model.safetensors")
    assert "tensor model.norm.weight has type F64; only F32, F16, BF16 can be read" in _error(model)


def test_no_weights_at_all(model: Path) -> None:
    for path in model.glob("model*"):
        path.unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in _error(model)
    (model / "pytorch_model.bin").write_bytes(b"")
    assert "only pytorch_model.bin: convert it to safetensors first" in _error(model)
