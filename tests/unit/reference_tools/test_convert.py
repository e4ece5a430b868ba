# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tensorrtllm_reference import cli
from tensorrtllm_reference import convert as converter
from tensorrtllm_reference.hf import MixtralWeights
from tensorrtllm_reference.mapping import Mapping
from tensorrtllm_reference.tensors import SafetensorsFile, from_float32, to_float32

Tool = Callable[..., Any]

LAYOUTS = [
    # tp, pp, moe_tp, moe_ep
    (1, 1, -1, -1),
    (1, 2, -1, -1),
    (2, 1, -1, -1),
    (4, 1, 4, 1),
    (4, 1, 2, 2),
    (4, 1, -1, 4),
    (4, 2, 1, 4),
    (8, 1, 4, 2),
    (8, 2, -1, 8),
]


def _ranks(directory: Path, mapping: Mapping) -> list[dict[str, np.ndarray]]:
    return [safetensors.numpy.load_file(directory / f"rank{rank}.safetensors") for rank in range(mapping.world_size)]


def _reassemble(directory: Path) -> dict[str, np.ndarray]:
    """The Hugging Face tensors, put together again from all ranks by the layout's rules."""
    config = json.loads((directory / "config.json").read_text())
    mapping = Mapping.from_dict(config["mapping"])
    ranks = _ranks(directory, mapping)
    head = config["head_size"]
    heads = config["num_attention_heads"] // mapping.tp_size
    kv_total = config["num_key_value_heads"]
    experts = config["moe"]["num_experts"]
    inter = config["intermediate_size"]
    hidden = config["hidden_size"]
    stages = [range(stage * mapping.tp_size, (stage + 1) * mapping.tp_size) for stage in range(mapping.pp_size)]
    per_stage = config["num_hidden_layers"] // mapping.pp_size
    result: dict[str, np.ndarray] = {}
    for rank in stages[0]:
        result.setdefault("model.embed_tokens.weight", ranks[rank]["transformer.vocab_embedding.weight"])
    result["lm_head.weight"] = np.concatenate([ranks[rank]["lm_head.weight"] for rank in stages[-1]])
    result["model.norm.weight"] = ranks[stages[-1][0]]["transformer.ln_f.weight"]
    for layer in range(config["num_hidden_layers"]):
        members = stages[layer // per_stage]
        source, target = f"transformer.layers.{layer % per_stage}.", f"model.layers.{layer}."
        result[target + "input_layernorm.weight"] = ranks[members[0]][source + "input_layernorm.weight"]
        result[target + "post_attention_layernorm.weight"] = ranks[members[0]][source + "post_layernorm.weight"]
        result[target + "block_sparse_moe.gate.weight"] = ranks[members[0]][source + "mlp.router.weight"]
        queries, keys, values = [], {}, {}
        fc = np.full((experts, 2, inter, hidden), np.nan, np.float32)
        proj = np.full((experts, hidden, inter), np.nan, np.float32)
        for rank in members:
            tp_rank = rank % mapping.tp_size
            qkv = ranks[rank][source + "attention.qkv.weight"]
            kv_heads = max(1, kv_total // mapping.tp_size)
            first = tp_rank * kv_total // mapping.tp_size
            queries.append(qkv[: heads * head])
            keys[first] = qkv[heads * head : (heads + kv_heads) * head]
            values[first] = qkv[(heads + kv_heads) * head :]
            ep, slice_no = tp_rank % mapping.moe_ep_size, tp_rank // mapping.moe_ep_size
            width = inter // mapping.moe_tp_size
            columns = slice(slice_no * width, (slice_no + 1) * width)
            count = experts // mapping.moe_ep_size
            mine = slice(ep * count, (ep + 1) * count)
            fc[mine, :, columns] = ranks[rank][source + "mlp.fc.weight"].reshape(count, 2, width, hidden)
            proj[mine, :, columns] = ranks[rank][source + "mlp.proj.weight"]
        result[target + "self_attn.q_proj.weight"] = np.concatenate(queries)
        result[target + "self_attn.k_proj.weight"] = np.concatenate([keys[first] for first in sorted(keys)])
        result[target + "self_attn.v_proj.weight"] = np.concatenate([values[first] for first in sorted(values)])
        result[target + "self_attn.o_proj.weight"] = np.concatenate(
            [ranks[rank][source + "attention.dense.weight"] for rank in members], axis=1
        )
        for expert in range(experts):
            part = f"{target}block_sparse_moe.experts.{expert}."
            result[part + "w3.weight"], result[part + "w1.weight"] = fc[expert]
            result[part + "w2.weight"] = proj[expert]
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_make_up_the_model(tiny_dir: Path, tmp_path: Path, convert: Tool, layout: tuple[int, ...]) -> None:
    tp, pp, moe_tp, moe_ep = layout
    outcome = convert(
        "--model_dir", tiny_dir, "--output_dir", tmp_path, "--dtype", "float32", "--tp_size", tp, "--pp_size", pp,
        "--moe_tp_size", moe_tp, "--moe_ep_size", moe_ep, "--workers", 2,
    )
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["config.json", *(f"rank{rank}.safetensors" for rank in range(tp * pp))]
    )
    original = MixtralWeights(tiny_dir)
    found = _reassemble(tmp_path)
    assert set(found) == set(original.expected_shapes())
    for name, array in found.items():
        np.testing.assert_array_equal(array, original.tensor(name), err_msg=name)


def test_ranks_share_the_work(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    """With 8 ranks and 4 KV heads each head is on two ranks, and the experts' weights are on one each."""
    assert convert("--model_dir", tiny_dir, "--output_dir", tmp_path, "--tp_size", 8, "--moe_ep_size", 8).code == 0
    ranks = _ranks(tmp_path, Mapping(8, tp_size=8, moe_ep_size=8))
    name = "transformer.layers.0.attention.qkv.weight"
    assert [rank[name].shape for rank in ranks] == [(24, 64)] * 8
    np.testing.assert_array_equal(ranks[2][name][8:], ranks[3][name][8:])
    assert not np.array_equal(ranks[3][name][8:], ranks[4][name][8:])
    assert {rank["transformer.layers.0.mlp.fc.weight"].shape for rank in ranks} == {(1, 256, 64)}
    assert {rank["transformer.layers.1.mlp.router.weight"].dtype for rank in ranks} == {np.dtype(np.float32)}


def test_the_head_is_padded_to_the_ranks(tmp_path: Path, tiny_factory: Tool, convert: Tool) -> None:
    model = tiny_factory(tmp_path / "hf", vocab=259, heads=4, tie_embeddings=True)
    target = tmp_path / "ck"
    assert convert("--model_dir", model, "--output_dir", target, "--tp_size", 4, "--dtype", "float32").code == 0
    ranks = _ranks(target, Mapping(4, tp_size=4))
    head = np.concatenate([rank["lm_head.weight"] for rank in ranks])
    assert head.shape == (260, 64) and not head[259].any()
    np.testing.assert_array_equal(head[:259], ranks[0]["transformer.vocab_embedding.weight"])


def test_config(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    assert convert("--model_dir", tiny_dir, "--output_dir", tmp_path, "--tp_size", 4, "--moe_ep_size", 2).code == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["producer"] == {"name": "tensorrtllm_reference", "version": cli.load_release().release}
    del config["producer"]
    assert config == {
        "architecture": "MixtralForCausalLM", "dtype": "float16", "logits_dtype": "float32", "vocab_size": 512,
        "max_position_embeddings": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_size": 8, "intermediate_size": 128, "norm_epsilon": 1e-05,
        "hidden_act": "swiglu", "position_embedding_type": "rope_gpt_neox", "rotary_base": 10000.0,
        "moe": {"num_experts": 8, "top_k": 2, "normalization_mode": 1},
        "mapping": {"world_size": 4, "tp_size": 4, "pp_size": 1, "moe_tp_size": 2, "moe_ep_size": 2},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


@pytest.mark.parametrize(
    ("stored", "requested", "expected"),
    [
        ("float32", "auto", "float16"),
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float16"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_types(
    tmp_path: Path, tiny_factory: Tool, convert: Tool, stored: str, requested: str, expected: str
) -> None:
    model = tiny_factory(tmp_path / "hf", dtype=stored)
    outcome = convert("--model_dir", model, "--output_dir", tmp_path / "ck", "--dtype", requested)
    assert outcome.code == 0
    assert (f"Specified dtype 'auto'; inferred dtype '{expected}'." in outcome.out) == (requested == "auto")
    assert json.loads((tmp_path / "ck" / "config.json").read_text())["dtype"] == expected
    rank = SafetensorsFile(tmp_path / "ck" / "rank0.safetensors")
    source = MixtralWeights(model)
    name = "model.layers.0.self_attn.o_proj.weight"
    values = to_float32(source.tensor(name), stored)
    assert rank.dtype("transformer.layers.0.attention.dense.weight") == expected
    np.testing.assert_array_equal(
        rank.tensor("transformer.layers.0.attention.dense.weight"), from_float32(values, expected)
    )


def test_log_lines(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    outcome = convert("--model_dir", tiny_dir, "--output_dir", tmp_path)
    lines = outcome.out.splitlines()
    assert lines[0] == f"[TensorRT-LLM] TensorRT-LLM version: {cli.load_release().release}"
    assert re.fullmatch(r"Total time of converting checkpoints: \d\d:\d\d:\d\d", lines[-1])
    assert re.match(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[TRT-LLM\] \[I\] rank 0: rank0.safetensors", lines[-2])
    quiet = convert("--model_dir", tiny_dir, "--output_dir", tmp_path, "--log_level", "error")
    assert "[I]" not in quiet.out


def test_the_same_input_gives_the_same_bytes(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    for name, workers in (("a", 1), ("b", 4)):
        arguments = ("--model_dir", tiny_dir, "--output_dir", tmp_path / name, "--tp_size", 4, "--workers", workers)
        assert convert(*arguments).code == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_memory_is_given_back_after_every_tensor(
    tiny_dir: Path, tmp_path: Path, convert: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[MixtralWeights] = []

    def forget(self: MixtralWeights) -> None:
        calls.append(self)

    monkeypatch.setattr(MixtralWeights, "forget", forget)
    assert convert("--model_dir", tiny_dir, "--output_dir", tmp_path).code == 0
    assert len(calls) == len(SafetensorsFile(tmp_path / "rank0.safetensors").names)


def test_save_config_only(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    assert convert("--model_dir", tiny_dir, "--output_dir", tmp_path, "--save_config_only").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world_size", "2"], "unrecognized arguments: --world_size 2"),
        (["--moe_tp_mode", "2"], "unrecognized arguments: --moe_tp_mode 2"),
        (["--use_embedding_sharing"], "unrecognized arguments: --use_embedding_sharing"),
        (["--tp_size", "two"], "argument --tp_size: invalid int value: 'two'"),
        (["--rotary_base", "x"], "argument --rotary_base: invalid float value: 'x'"),
        (["--dtype", "fp8"], "argument --dtype: invalid choice: 'fp8'"),
        (["--tp_size"], "argument --tp_size: expected one argument"),
        (["--moe", "2"], "ambiguous option: --moe could match"),
    ],
)
def test_command_line_errors_are_argparses(
    tiny_dir: Path, tmp_path: Path, convert: Tool, words: list[str], message: str
) -> None:
    target = tmp_path / "out"
    outcome = convert("--model_dir", tiny_dir, "--output_dir", target, *words)
    assert outcome.code == 2
    assert outcome.err.startswith("usage: convert_checkpoint.py [-h]")
    assert outcome.last.startswith(f"convert_checkpoint.py: error: {message}")
    assert outcome.out == "" and not target.exists()


def test_options_can_be_abbreviated(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    assert convert("--model_d", tiny_dir, "--out", tmp_path, "--tp", 2, "--moe_ep=2").code == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["mapping"]["moe_ep_size"] == 2


@pytest.mark.parametrize(
    ("release", "words", "code"),
    [
        ("0.12.0", ["--use_embedding_sharing"], 1),
        ("0.12.0", ["--dtype", "auto"], 2),
        ("0.12.0", ["--cp_size", "2"], 2),
        ("0.16.0", ["--cp_size", "2"], 1),
        ("0.16.0", ["--dtype", "auto"], 0),
    ],
)
def test_options_are_those_of_the_release(
    tiny_dir: Path, tmp_path: Path, convert: Tool, monkeypatch: pytest.MonkeyPatch, release: str, words: list[str],
    code: int,
) -> None:
    monkeypatch.setenv("TRTLLM_REFERENCE_RELEASE", release)
    outcome = convert("--model_dir", tiny_dir, "--output_dir", tmp_path, *words)
    assert outcome.code == code, outcome.err
    if code != 2:
        assert f"TensorRT-LLM version: {release}\n" in outcome.out


def test_unknown_release(monkeypatch: pytest.MonkeyPatch, convert: Tool) -> None:
    monkeypatch.setenv("TRTLLM_REFERENCE_RELEASE", "0.7.1")
    outcome = convert()
    assert outcome.code == 1 and outcome.last.startswith("ValueError: release '0.7.1' is not supported")


@pytest.mark.parametrize(
    "words",
    [
        ["--use_weight_only"],
        ["--smoothquant", "0.5"],
        ["-sq", "0.5"],
        ["--meta_ckpt_dir", "/x"],
        ["--cp_size", "2"],
        ["--fp8_kv_cache"],
        ["--use_parallel_embedding"],
        ["--moe_renorm_mode", "0"],
        ["--hidden_act", "gelu"],
        ["--quant_ckpt_path", "/x"],
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tiny_dir: Path, tmp_path: Path, convert: Tool, words: list[str]
) -> None:
    target = tmp_path / "out"
    outcome = convert("--model_dir", tiny_dir, "--output_dir", target, *words)
    assert outcome.code == 1 and not target.exists()
    name = "smoothquant" if words[0] == "-sq" else words[0].lstrip("-")
    assert outcome.last.startswith(f"NotImplementedError: the CPU reference backend cannot honour --{name}")
    assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--load_by_shard"], "AssertionError: MoE does not support sharded load"),
        (["--tp_size", "4", "--moe_ep_size", "3"],
         "ValueError: tp_size must equal to moe_tp_size * moe_ep_size, but got 4 != 1 * 3"),
        (["--tp_size", "16"], "ValueError: num_attention_heads 8 is not divisible by tp_size 16"),
        (["--pp_size", "3"], "ValueError: num_hidden_layers 2 is not divisible by pp_size 3"),
        (["--workers", "0"], "ValueError: --workers must be at least 1, but is 0"),
        (["--moe_num_experts", "4"], "ValueError: --moe_num_experts 4 contradicts the model, which has num_experts 8"),
        (["--log_level", "loud"], "AttributeError: Unsupported log severity: loud"),
    ],
)
def test_failures(tiny_dir: Path, tmp_path: Path, convert: Tool, words: list[str], message: str) -> None:
    target = tmp_path / "out"
    outcome = convert("--model_dir", tiny_dir, "--output_dir", target, *words)
    assert outcome.code == 1 and outcome.last.startswith(message), outcome.err
    assert not target.exists()


def test_options_may_repeat_what_the_model_says(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    words = ("--moe_num_experts", 8, "--moe_top_k", 2, "--n_layer", 2, "--n_kv_head", 4)
    assert convert("--model_dir", tiny_dir, "--output_dir", tmp_path, *words).code == 0


def test_no_model_and_bad_model(tiny_dir: Path, tmp_path: Path, convert: Tool) -> None:
    assert convert("--output_dir", tmp_path).last.startswith("ValueError: --model_dir is required")
    outcome = convert("--model_dir", tmp_path / "none", "--output_dir", tmp_path / "out")
    assert (outcome.code, outcome.last.split(" is not ")[0]) == (1, f"RuntimeError: {tmp_path}/none")
    model = shutil.copytree(tiny_dir, tmp_path / "hf")
    before = (model / "config.json").read_bytes()
    outcome = convert("--model_dir", model, "--output_dir", f"{model}/../hf")
    assert outcome.code == 1 and "is the input directory too" in outcome.last
    assert (model / "config.json").read_bytes() == before


def test_an_interrupted_rank_is_seen_as_truncated(tiny_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The files only grow, so what is left of a killed run cannot pass for a complete checkpoint."""
    weights = MixtralWeights(tiny_dir)
    mapping = Mapping(1)
    config = converter.checkpoint_config(weights.config, mapping, "float32", "1.1.0")
    original = converter.rank_tensors

    def dying(*arguments: Any) -> Any:
        producers = original(*arguments)

        def die() -> Any:
            raise KeyboardInterrupt

        producers["transformer.layers.1.mlp.fc.weight"] = die
        return producers

    monkeypatch.setattr(converter, "rank_tensors", dying)
    with pytest.raises(KeyboardInterrupt):
        converter.write_rank(weights, config, mapping, tmp_path)
    with pytest.raises(Exception, match="is truncated: .* expected"):
        SafetensorsFile(tmp_path / "rank0.safetensors")


@pytest.mark.parametrize(
    "script", ["examples/llama/convert_checkpoint.py", "examples/models/core/llama/convert_checkpoint.py"]
)
def test_scripts_in_an_installed_tree(
    reference: Path, tiny_dir: Path, tmp_path: Path, script: str
) -> None:
    """As installed: release.json instead of the collection, a path with blanks and letters, another directory."""
    tree = tmp_path / "répertoire à lui"
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("tensorrtllm_reference", "examples", "bin"):
        shutil.copytree(reference / part, tree / part, ignore=ignored)
    release = cli.load_release()
    table = {"options": [*release.convert_checkpoint["options"], {"flags": ["--only_here"], "type": "int"}]}
    recorded = {"release": "9.9.9", "convert_checkpoint": table, "trtllm_build": table, "launch": table}
    (tree / "release.json").write_text(json.dumps(recorded))
    target = tree / "sortie"
    argv = ["--model_dir", str(tiny_dir), "--output_dir", str(target), "--only_here", "1"]
    done = subprocess.run(
        [sys.executable, str(tree / script), *argv], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[TensorRT-LLM] TensorRT-LLM version: 9.9.9\n")
    assert (target / "rank0.safetensors").exists()
    done = subprocess.run([sys.executable, str(tree / script), "--nope"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: convert_checkpoint.py [-h]")


def test_a_damaged_release_file(reference: Path, tmp_path: Path) -> None:
    for part in ("tensorrtllm_reference", "bin"):
        shutil.copytree(reference / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    script = str(tmp_path / "bin" / "trtllm-build")
    missing = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and "release.json is missing: install this tree" in missing.stderr
    (tmp_path / "release.json").write_text("{}")
    damaged = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert damaged.returncode == 1 and "release.json is damaged" in damaged.stderr
