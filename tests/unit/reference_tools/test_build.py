# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrtllm_reference import cli
from tensorrtllm_reference.engine_file import EngineFile
from tensorrtllm_reference.tensors import SafetensorsFile

Tool = Callable[..., Any]


def _config(directory: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return data


def test_engines_hold_the_checkpoint(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    target = tmp_path / "engine"
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", target, "--workers", 2)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "rank0.engine", "rank1.engine"]
    for rank in range(2):
        source = SafetensorsFile(checkpoint_dir / f"rank{rank}.safetensors")
        engine = EngineFile(target / f"rank{rank}.engine")
        assert (engine.rank, engine.release) == (rank, cli.load_release().release)
        assert engine.mapping.to_dict() == _config(checkpoint_dir)["mapping"]
        assert set(engine.names) == set(source.names)
        for name in engine.names:
            np.testing.assert_array_equal(engine.tensor(name), source.tensor(name))
            assert engine.is_per_expert(name) == name.endswith((".mlp.fc.weight", ".mlp.proj.weight"))
        assert len(set(engine.blob_ids("transformer.layers.0.mlp.fc.weight"))) == 8


def test_memory_is_given_back_after_every_tensor(
    checkpoint_dir: Path, tmp_path: Path, build: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(SafetensorsFile, "forget", lambda self: calls.append(self.path.name))
    assert build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine").code == 0
    names = SafetensorsFile(checkpoint_dir / "rank0.safetensors").names
    assert calls.count("rank0.safetensors") == calls.count("rank1.safetensors") == len(names)


def test_config(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    target = tmp_path / "engine"
    words = ("--max_batch_size", 4, "--max_seq_len", 300, "--max_input_len", 200, "--gemm_plugin", "auto",
             "--kv_cache_type", "continuous", "--multiple_profiles", "enable")
    assert build("--checkpoint_dir", checkpoint_dir, "--output_dir", target, *words).code == 0
    config = _config(target)
    assert set(config) == {"version", "pretrained_config", "build_config"}
    assert config["version"] == cli.load_release().release
    assert config["pretrained_config"] == _config(checkpoint_dir)
    built = config["build_config"]
    chosen = {key: built[key] for key in ("max_batch_size", "max_seq_len", "max_input_len", "max_beam_width")}
    assert chosen == {"max_batch_size": 4, "max_seq_len": 300, "max_input_len": 200, "max_beam_width": 1}
    assert built["kv_cache_type"] == "CONTINUOUS"
    plugins = built["plugin_config"]
    assert plugins["gemm_plugin"] == "float32" and plugins["gpt_attention_plugin"] == "float32"
    assert plugins["lora_plugin"] is None
    assert plugins["context_fmha"] is True and plugins["multiple_profiles"] is True
    assert plugins["tokens_per_block"] == 32
    assert "max_batch_size" not in plugins


@pytest.mark.parametrize(
    ("words", "expected", "said"),
    [
        ([], {"max_seq_len": 512, "max_input_len": 512, "max_num_tokens": 8192},
         "max_seq_len is not specified, using deduced value 512"),
        (["--max_seq_len", "100", "--max_input_len", "200"], {"max_seq_len": 100, "max_input_len": 100},
         "max_input_len is 200 is larger than max_seq_len 100, clipping it to max_seq_len"),
        (["--max_seq_len", "600"], {"max_seq_len": 600},
         "max_seq_len 600 is larger than max_position_embeddings 512"),
        (["--max_batch_size", "2", "--max_seq_len", "64"], {"max_num_tokens": 128, "opt_num_tokens": 2},
         "max_num_tokens (8192) shouldn't be greater than max_seq_len * max_batch_size (128)"),
        (["--max_num_tokens", "64", "--opt_num_tokens", "65"], {"max_num_tokens": 64, "opt_num_tokens": 64},
         "opt_num_tokens (65) shouldn't be greater than max_num_tokens (64)"),
        (["--remove_input_padding", "disable", "--max_batch_size", "2"], {"max_num_tokens": 1024},
         "remove_input_padding is not enabled"),
        (["--context_fmha", "disable", "--max_num_tokens", "64"], {"max_num_tokens": 512},
         "max_num_tokens (64) shouldn't be less than max_input_len (512)"),
    ],
)
def test_limits(
    checkpoint_dir: Path, tmp_path: Path, build: Tool, words: list[str], expected: dict[str, int], said: str
) -> None:
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine", *words)
    assert outcome.code == 0, outcome.err
    built = _config(tmp_path / "engine")["build_config"]
    assert {key: built[key] for key in expected} == expected
    assert said in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_output_len", "100"], "unrecognized arguments: --max_output_len 100"),
        (["--use_custom_all_reduce", "disable"], "unrecognized arguments: --use_custom_all_reduce disable"),
        (["--tp_size", "2"], "unrecognized arguments: --tp_size 2"),
        (["--max_batch_size", "4.5"], "argument --max_batch_size: invalid int value: '4.5'"),
        (["--gemm_plugin", "int4"], "argument --gemm_plugin: invalid choice: 'int4'"),
        (["--gemm_plugin"], "argument --gemm_plugin: expected one argument"),
        (["--context_fmha", "yes"], "argument --context_fmha: invalid choice: 'yes'"),
        (["--kv_cache_type", "lru"], "argument --kv_cache_type: invalid value: 'lru'"),
        (["--log_level", "loud"], "argument --log_level: invalid choice: 'loud'"),
    ],
)
def test_command_line_errors_are_argparses(
    checkpoint_dir: Path, tmp_path: Path, build: Tool, words: list[str], message: str
) -> None:
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine", *words)
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith("usage: trtllm-build [-h]")
    assert outcome.last.startswith(f"trtllm-build: error: {message}")
    assert not (tmp_path / "engine").exists()


def test_abbreviations_and_aliases(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    target = tmp_path / "engine"
    assert build("--checkpoint", checkpoint_dir, "--output_d", target, "--max_decoder_seq_len", 99).code == 0
    assert _config(target)["build_config"]["max_seq_len"] == 99


@pytest.mark.parametrize(
    "words",
    [
        ["--max_beam_width", "2"],
        ["--lora_dir", "a", "b"],
        ["--lora_plugin", "auto"],
        ["--gather_context_logits"],
        ["--speculative_decoding_mode", "medusa"],
        ["--max_draft_len", "4"],
        ["--gemm_plugin", "fp8"],
        ["--kv_cache_type", "disabled"],
        ["--logits_dtype", "float16"],
        ["--streamingllm", "enable"],
        ["--weight_streaming"],
        ["--build_config", "x.json"],
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    checkpoint_dir: Path, tmp_path: Path, build: Tool, words: list[str]
) -> None:
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine", *words)
    assert outcome.code == 1
    assert outcome.last.startswith(f"NotImplementedError: the CPU reference backend cannot honour {words[0]}")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gemm_plugin", "float16"],
         "ValueError: gemm_plugin float16 does not suit the checkpoint's dtype float32: use auto, float32 or disable"),
        (["--max_batch_size", "0"], "ValueError: --max_batch_size must be a positive integer, but is 0"),
        (["--max_num_tokens", "16"], "ValueError: max_num_tokens (16) must be at least tokens_per_block (32)"),
        (["--paged_kv_cache", "disable", "--kv_cache_type", "paged"],
         "ValueError: --paged_kv_cache disable contradicts"),
        (["--workers", "0"], "ValueError: --workers must be at least 1, but is 0"),
    ],
)
def test_failures(checkpoint_dir: Path, tmp_path: Path, build: Tool, words: list[str], message: str) -> None:
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine", *words)
    assert outcome.code == 1 and outcome.last.startswith(message), outcome.err
    assert not (tmp_path / "engine").exists()


def test_missing_rank(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    (checkpoint_dir / "rank1.safetensors").unlink()
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine")
    assert outcome.code == 1 and not (tmp_path / "engine").exists()
    assert outcome.last == (
        f"RuntimeError: {checkpoint_dir}/rank1.safetensors is missing: the checkpoint has world size 2, "
        "and a file for each rank is needed"
    )


def test_truncated_rank(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    path = checkpoint_dir / "rank1.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine")
    assert outcome.code == 1 and not (tmp_path / "engine").exists()
    assert f"{path} is truncated: {len(data) - 1} bytes, expected {len(data)}" in outcome.last


def test_ranks_of_another_layout(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    path = checkpoint_dir / "config.json"
    config = _config(checkpoint_dir)
    config["mapping"].update(moe_tp_size=1, moe_ep_size=2)
    path.write_text(json.dumps(config))
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine")
    assert outcome.code == 1
    assert "mlp.fc.weight is float32 [8, 128, 64], and config.json asks for float32 [4, 256, 64]" in outcome.last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "LlamaForCausalLM"}, "architecture 'LlamaForCausalLM' is not supported"),
        ({"dtype": "float8"}, "dtype 'float8' is not one of float32, float16, bfloat16"),
        ({"quantization": {"quant_algo": "FP8"}}, "quant_algo 'FP8' is not computed"),
        ({"mapping": {"tp_size": 2, "world_size": 4}}, "world_size must equal to tp_size * pp_size * cp_size"),
    ],
)
def test_unusable_checkpoints(
    checkpoint_dir: Path, tmp_path: Path, build: Tool, changes: dict[str, Any], message: str
) -> None:
    (checkpoint_dir / "config.json").write_text(json.dumps({**_config(checkpoint_dir), **changes}))
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine")
    assert outcome.code == 1 and message in outcome.last


def test_not_a_checkpoint(tiny_dir: Path, tmp_path: Path, checkpoint_dir: Path, build: Tool) -> None:
    assert "--checkpoint_dir is required" in build("--output_dir", tmp_path / "e").last
    outcome = build("--checkpoint_dir", tmp_path / "none", "--output_dir", tmp_path / "e")
    assert outcome.last.endswith("none/config.json is missing: not a converted checkpoint; "
                                 "run convert_checkpoint.py first")
    outcome = build("--checkpoint_dir", tiny_dir, "--output_dir", tmp_path / "e")
    assert "a Hugging Face model: run convert_checkpoint.py first" in outcome.last
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", checkpoint_dir)
    assert "is the input directory too" in outcome.last
    assert "architecture" in _config(checkpoint_dir)


def test_dry_run_checks_and_writes_nothing(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    arguments = ("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine", "--dry_run")
    assert build(*arguments).code == 0 and not (tmp_path / "engine").exists()
    (checkpoint_dir / "rank0.safetensors").unlink()
    assert build(*arguments).code == 1


def test_log_lines(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    target = tmp_path / "engine"
    lines = build("--checkpoint_dir", checkpoint_dir, "--output_dir", target, "--monitor_memory").out.splitlines()
    stamp = r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[TRT-LLM\] \[I\] "
    assert lines[0] == f"[TensorRT-LLM] TensorRT-LLM version: {cli.load_release().release}"
    assert re.fullmatch(stamp + "Set gemm_plugin to None.", next(line for line in lines if "Set gemm_plugin" in line))
    assert any(re.fullmatch(stamp + re.escape(f"Serializing engine to {target}/rank1.engine..."), x) for x in lines)
    assert re.match(stamp + "Peak memory usage", lines[-2])
    assert re.fullmatch(stamp + r"Total time of building all engines: \d\d:\d\d:\d\d", lines[-1])


def test_the_same_input_gives_the_same_bytes(checkpoint_dir: Path, tmp_path: Path, build: Tool) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        arguments = ("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / name, "--workers", workers)
        assert build(*arguments).code == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("release", ["0.12.0", "0.13.0", "0.16.0", "0.19.0", "1.0.0", "1.2.1"])
def test_every_line_of_releases_builds_with_its_defaults(
    checkpoint_dir: Path, tmp_path: Path, build: Tool, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setenv("TRTLLM_REFERENCE_RELEASE", release)
    outcome = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine")
    assert outcome.code == 0, outcome.err
    config = _config(tmp_path / "engine")
    assert config["version"] == release
    assert config["build_config"]["kv_cache_type"] == "PAGED"
    assert config["build_config"]["max_batch_size"] == (2048 if release >= "0.14" else 256)
    assert EngineFile(tmp_path / "engine" / "rank0.engine").release == release
    old = build("--checkpoint_dir", checkpoint_dir, "--output_dir", tmp_path / "engine", "--tp_size", 4)
    if release == "0.12.0":
        assert old.last == "ValueError: --tp_size 4 contradicts the checkpoint, which has 2"
    else:
        assert old.code == 2


def test_a_release_without_engines(build: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_REFERENCE_RELEASE", "1.3.0")
    outcome = build("--checkpoint_dir", "x")
    assert (outcome.code, outcome.last) == (
        1, "RuntimeError: the release has no trtllm-build: it serves without engines"
    )
