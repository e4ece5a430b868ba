# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading an engine: what is checked, and what each refusal says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorrtllm_reference.errors import EngineError, RequestError
from tensorrtllm_reference.runtime import Runtime
from tensorrtllm_reference.scheduler import Request

REQUIRED = {
    "gpt_model_type": "inflight_fused_batching", "tokenizer_dir": "${tokenizer_dir}",
    "guided_decoding_backend": "${guided_decoding_backend}", "xgrammar_tokenizer_info_path": "",
}


@pytest.fixture
def load(make_engine: Callable[..., Path]) -> Iterator[Callable[..., Runtime]]:
    running = []

    def start(
        directory: Path | None = None, *, world: str | None = None, batch: int = 4, release: str = "1.1.0",
        warnings: list[str] | None = None, drop: str = "", **parameters: str,
    ) -> Runtime:
        values = {**REQUIRED, "gpt_model_path": str(directory or make_engine()), **parameters}
        values.pop(drop, None)
        running.append(Runtime(
            values, release=release, triton_max_batch_size=batch,
            environment={} if world is None else {"OMPI_COMM_WORLD_SIZE": world},
            warn=(warnings if warnings is not None else []).append,
        ))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def copy(make_engine: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_engine(2), tmp_path / "engine"))


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    data = json.loads(path.read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (data[section] if section else data)[name] = value
    path.write_text(json.dumps(data))


def test_loads_and_generates(load: Callable[..., Runtime], inbox: Any, greedy: Any) -> None:
    box = inbox()
    load().submit(Request([5, 6, 7], 4, box.put))
    box.wait()
    assert box.tokens == greedy([5, 6, 7], 4)


def test_unfilled_optional_parameters(load: Callable[..., Runtime]) -> None:
    """Placeholders that were left as they are mean the defaults, without a word."""
    names = ["max_beam_width", "batch_scheduler_policy", "kv_cache_free_gpu_mem_fraction", "enable_chunked_context",
             "max_attention_window_size", "exclude_input_in_output", "decoding_mode", "medusa_choices",
             "cancellation_check_period_ms", "encoder_model_path", "lora_prefetch_dir"]
    warnings: list[str] = []
    runtime = load(warnings=warnings, **{name: f"${{{name}}}" for name in names})
    assert warnings == []
    assert runtime.exclude_input_in_output is False


def test_unreadable_values_warn_and_default(load: Callable[..., Runtime]) -> None:
    warnings: list[str] = []
    runtime = load(warnings=warnings, exclude_input_in_output="maybe", max_tokens_in_paged_kv_cache="many",
                   enable_kv_cache_reuse="true")
    assert warnings == [
        "enable_kv_cache_reuse has no effect on the CPU",
        "exclude_input_in_output has the value 'maybe', which is not true or false; the default False is used",
        "max_tokens_in_paged_kv_cache has the value 'many', which is not a number; the default None is used",
    ]
    assert runtime.pool.total_blocks == 4 * 64 // 16


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gpt_model_path": ""}, "Both encoder and decoder model paths are empty"),
        ({"gpt_model_path": "${engine_dir}"}, "Both encoder and decoder model paths are empty"),
        ({"gpt_model_path": "/nowhere"}, "gpt_model_path /nowhere is not a directory"),
        ({"gpt_model_path": "/tmp"}, "File does not exist: /tmp/config.json"),
        ({"drop": "gpt_model_type"}, "Cannot find parameter with name: gpt_model_type"),
        ({"drop": "xgrammar_tokenizer_info_path"}, "Cannot find parameter with name: xgrammar_tokenizer_info_path"),
        ({"gpt_model_type": "V1"}, "gpt_model_type V1 .* is not supported"),
        ({"gpt_model_type": "static"}, "Invalid gpt_model_type 'static'"),
        ({"max_beam_width": "4"}, "max_beam_width is 4: the CPU runtime supports only 1"),
        ({"decoding_mode": "medusa"}, "decoding_mode is 'medusa'"),
        ({"medusa_choices": "{0, 1}"}, "medusa_choices is '{0, 1}': the CPU runtime has no speculative decoding"),
        ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend is 'xgrammar'"),
        ({"encoder_model_path": "/enc"}, "encoder_model_path is '/enc'"),
        ({"batch_scheduler_policy": "fair"}, "batch_scheduler_policy is 'fair'"),
        ({"kv_cache_free_gpu_mem_fraction": "1.5"}, r"kv_cache_free_gpu_mem_fraction is 1\.5"),
        ({"max_tokens_in_paged_kv_cache": "5"}, "has room for 5 tokens, and one block is 16"),
        ({"max_attention_window_size": "0"}, "max_attention_window_size is 0"),
        ({"batch": 5}, "max_batch_size 5 in config.pbtxt is larger than the engine's max_batch_size 4"),
        ({"world": "2"}, r"MPI size \(2\) does not match TP size x PP size \(1\)"),
        ({"release": "0.12.0"}, r"was built by TensorRT-LLM 1\.1\.0, and this runtime is 0\.12\.0"),
    ],
)
def test_refusals(parameters: dict[str, Any], message: str, load: Callable[..., Runtime]) -> None:
    if parameters.get("gpt_model_path") == "/tmp":
        assert not Path("/tmp/config.json").exists()
    with pytest.raises(EngineError, match=message) as caught:
        load(**parameters)
    assert "\n" not in str(caught.value)


def test_old_releases_need_fewer_parameters(load: Callable[..., Runtime]) -> None:
    with pytest.raises(EngineError, match="built by"):
        load(release="0.12.0", drop="tokenizer_dir")


def test_world_size(load: Callable[..., Runtime], make_engine: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match=r"MPI size \(1\) does not match TP size x PP size \(4\): start the server "
                                          "with world_size 4"):
        load(make_engine(2, 2))
    assert load(make_engine(2, 2), world="4").config.mapping.pp_size == 2


def test_damaged_engines(load: Callable[..., Runtime], copy: Path) -> None:
    rank = copy / "rank1.engine"
    content = rank.read_bytes()
    rank.unlink()
    with pytest.raises(EngineError, match="rank1.engine is missing"):
        load(copy, world="2")
    shutil.copy(copy / "rank0.engine", rank)
    with pytest.raises(EngineError, match="rank1.engine holds rank 0 of .* asks for rank 1"):
        load(copy, world="2")
    rank.write_bytes(content[:-100])
    with pytest.raises(EngineError, match="rank1.engine is truncated"):
        load(copy, world="2")


def test_ranks_of_different_engines(
    load: Callable[..., Runtime], copy: Path, tmp_path: Path, hf_dir: Path
) -> None:
    from tensorrtllm_reference import build, convert, tiny

    tiny.main(["--output_dir", str(tmp_path / "hf"), "--hidden", "64", "--layers", "2", "--heads", "8", "--kv_heads",
               "2", "--experts", "4", "--inter", "64", "--seed", "4"])
    convert.main(["--model_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "c"), "--tp_size", "2",
                  "--dtype", "float32"])
    build.main(["--checkpoint_dir", str(tmp_path / "c"), "--output_dir", str(tmp_path / "e"), "--max_seq_len", "64"])
    shutil.copy(tmp_path / "e" / "rank1.engine", copy / "rank1.engine")
    with pytest.raises(EngineError, match="rank files are of different engines"):
        load(copy, world="2")


def test_rank_files_of_another_release(load: Callable[..., Runtime], copy: Path) -> None:
    edit(copy, version="0.12.0")
    with pytest.raises(EngineError, match=r"rank0.engine was built by TensorRT-LLM 1\.1\.0, and this runtime is 0\.12"):
        load(copy, world="2", release="0.12.0")


def test_bad_config(load: Callable[..., Runtime], copy: Path) -> None:
    edit(copy, build_config__max_batch_size="many")
    with pytest.raises(EngineError, match="bad build_config: .*many"):
        load(copy, world="2")
    (copy / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="has no 'version': it is not an engine's config.json"):
        load(copy, world="2")
    (copy / "config.json").write_text("{")
    with pytest.raises(EngineError, match="config.json cannot be read"):
        load(copy, world="2")


@pytest.mark.parametrize(
    ("prompt", "output", "message"),
    [
        (0, 4, "the input is empty"),
        (49, 4, r"Prompt length \(49\) exceeds maximum input length \(48\)"),
        (40, 25, r"Prompt length \(40\) plus request_output_len \(25\) is 65, which exceeds the engine's max_seq_len "
                 r"\(64\): ask for at most 24 tokens"),
        (4, 0, r"request_output_len \(max_tokens\) is 0"),
    ],
)
def test_length_limits(prompt: int, output: int, message: str, load: Callable[..., Runtime]) -> None:
    with pytest.raises(RequestError, match=message):
        load().submit(Request([5] * prompt, output, lambda update: None))


def test_the_longest_request_fits(load: Callable[..., Runtime], inbox: Any) -> None:
    box = inbox()
    load().submit(Request([5] * 48, 16, box.put))
    assert box.wait().reason == "length"
    assert len(box.tokens) == 16


def test_tokens_of_another_vocabulary(load: Callable[..., Runtime]) -> None:
    with pytest.raises(RequestError, match="input_ids has the token 512, and the vocabulary is 0 to 511"):
        load().submit(Request([5, 512], 4, lambda update: None))


def test_max_num_tokens(load: Callable[..., Runtime], copy: Path, inbox: Any) -> None:
    edit(copy, build_config__max_num_tokens=10)
    with pytest.raises(RequestError, match=r"Prompt length \(11\) exceeds the engine's max_num_tokens \(10\)"):
        load(copy, world="2").submit(Request([5] * 11, 2, lambda update: None))
    box = inbox()
    load(copy, world="2", enable_chunked_context="true").submit(Request([5] * 11, 2, box.put))
    assert box.wait().reason == "length"


def test_logits_need_the_build_option(load: Callable[..., Runtime], copy: Path, inbox: Any) -> None:
    runtime = load()
    with pytest.raises(RequestError, match="return_context_logits needs an engine built with gather_context_logits"):
        runtime.submit(Request([5], 1, lambda update: None, return_context_logits=True))
    with pytest.raises(RequestError, match="gather_generation_logits"):
        runtime.submit(Request([5], 1, lambda update: None, return_generation_logits=True))
    edit(copy, build_config__gather_context_logits=True)
    box = inbox()
    load(copy, world="2").submit(Request([5, 6], 1, box.put, return_context_logits=True))
    assert box.wait().context_logits.shape == (2, 512)
