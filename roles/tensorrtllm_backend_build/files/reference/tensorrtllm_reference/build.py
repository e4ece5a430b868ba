# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""trtllm-build: a converted checkpoint to one engine file a rank."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import gpu
from .cli import (
    Log,
    Release,
    ToolError,
    build_parser,
    clock,
    defaults,
    load_release,
    option_dest,
    refuse,
    refuse_same_directory,
)
from .convert import rank_shapes
from .engine_file import EngineTensor, write_engine
from .hf import read_json
from .mapping import Mapping
from .tensors import CARRIERS, PathLike, SafetensorsFile, WeightsError, sync_directory, write_json

_REFUSED = {
    "model_config": "the model is described by the checkpoint's config.json",
    "build_config": "give the options themselves",
    "model_cls_file": "only Mixtral is computed",
    "model_cls_name": "only Mixtral is computed",
    "strip_plan": "an engine without weights cannot be refitted",
    "weight_sparsity": "sparse weights are not computed",
    "weight_streaming": "the weights are memory-mapped anyway",
    "visualize_network": "there is no network graph",
    "enable_debug_output": "there are no debug outputs",
    "gather_context_logits": "logits are not returned",
    "gather_generation_logits": "logits are not returned",
    "gather_all_token_logits": "logits are not returned",
    "lora_dir": "LoRA is not computed",
    "lora_target_modules": "LoRA is not computed",
    "lora_plugin": "LoRA is not computed",
    "dora_plugin": "LoRA is not computed",
    "speculative_decoding_mode": "speculative decoding is not computed",
    "max_draft_len": "speculative decoding is not computed",
    "max_prompt_embedding_table_size": "prompt embeddings are not computed",
    "max_beam_width": "beam search is not computed",
    "auto_parallel": "the layout is that of the checkpoint",
    "streamingllm": "attention sinks are not computed",
    "gemm_swiglu_plugin": "fp8 is not computed",
    "fp8_rowwise_gemm_plugin": "fp8 is not computed",
    "low_latency_gemm_plugin": "fp8 is not computed",
    "low_latency_gemm_swiglu_plugin": "fp8 is not computed",
    "fuse_fp4_quant": "fp4 is not computed",
    "lookup_plugin": "there is no such kernel",
}
_LIMITS = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "opt_num_tokens", "tokens_per_block")
_TOKENS_HIGH = 16384


def is_plugin_option(option: dict[str, Any]) -> bool:
    """Whether an option belongs to plugin_config: a kernel's type, a switch, or the block size."""
    name = option_dest(option)
    return name.endswith("_plugin") or option.get("choices") == ["enable", "disable"] or name == "tokens_per_block"


def plugin_config(table: dict[str, Any], values: dict[str, Any], dtype: str, log: Log) -> dict[str, Any]:
    """The options as the engine records them: auto is the checkpoint's type, switches are booleans."""
    words = {"auto": dtype, "enable": True, "disable": False}
    config: dict[str, Any] = {"dtype": dtype}
    for option in table["options"]:
        if not is_plugin_option(option):
            continue
        name = option_dest(option)
        if name not in values:
            continue
        value = words.get(values[name], values[name])
        if value is False and name.endswith("_plugin") and option.get("choices") != ["enable", "disable"]:
            value = None
        config[name] = value
        log.info(f"Set {name} to {value}.")
    return config


def resolve(
    values: dict[str, Any], checkpoint: dict[str, Any], plugins: dict[str, Any], log: Log
) -> dict[str, Any]:
    """build_config with upstream's defaults and relations between the limits."""
    for name in _LIMITS:
        value = values.get(name)
        if value is not None and value < 1:
            raise ToolError(f"--{name} must be a positive integer, but is {value}", "ValueError")
    positions = int(checkpoint["max_position_embeddings"])
    batch, input_len = values["max_batch_size"], values["max_input_len"]
    seq_len = values["max_seq_len"]
    if seq_len is None:
        seq_len = positions
        log.info(f"max_seq_len is not specified, using deduced value {seq_len}")
    elif seq_len > positions:
        log.warning(
            f"max_seq_len {seq_len} is larger than max_position_embeddings {positions} * rotary scaling 1, "
            "the model accuracy might be affected"
        )
    if input_len > seq_len:
        log.warning(f"max_input_len is {input_len} is larger than max_seq_len {seq_len}, clipping it to max_seq_len")
        input_len = seq_len
    num_tokens, opt_num_tokens = _num_tokens(values, plugins, batch, input_len, seq_len, log)
    if plugins.get("remove_input_padding") and plugins.get("context_fmha"):
        log.warning("padding removal and fMHA are both enabled, max_input_len is not required and will be ignored")
    return {
        "max_input_len": input_len,
        "max_seq_len": seq_len,
        "opt_batch_size": min(8, batch),
        "max_batch_size": batch,
        "max_beam_width": values["max_beam_width"],
        "max_num_tokens": num_tokens,
        "opt_num_tokens": opt_num_tokens,
        "max_prompt_embedding_table_size": 0,
        "kv_cache_type": _kv_cache_type(values, log),
        "gather_context_logits": False,
        "gather_generation_logits": False,
        "strongly_typed": True,
        "profiling_verbosity": values["profiling_verbosity"],
        "enable_debug_output": False,
        "max_draft_len": 0,
        "speculative_decoding_mode": 1,
        "use_refit": False,
        "input_timing_cache": values.get("input_timing_cache"),
        "output_timing_cache": values.get("output_timing_cache"),
        "weight_sparsity": False,
        "weight_streaming": False,
        "use_strip_plan": False,
        "max_encoder_input_len": values.get("max_encoder_input_len"),
        "dry_run": bool(values.get("dry_run")),
        "plugin_config": plugins,
    }


def _num_tokens(
    values: dict[str, Any], plugins: dict[str, Any], batch: int, input_len: int, seq_len: int, log: Log
) -> tuple[int, int | None]:
    num_tokens, optimum = values["max_num_tokens"], values["opt_num_tokens"]
    most = seq_len * batch
    if not plugins.get("remove_input_padding"):
        if num_tokens is not None or optimum is not None:
            log.warning(
                "remove_input_padding is not enabled, the specified max_num_tokens/opt_num_tokens will be ignored."
            )
        return most, optimum
    if num_tokens is None:
        num_tokens = most
        log.warning(f"max_num_tokens is not specified, using max_seq_len * max_batch_size = {most}")
    if optimum is None and not plugins.get("multiple_profiles"):
        optimum = min(num_tokens, batch)
        log.warning(
            "remove_input_padding is enabled, while opt_num_tokens is not set, "
            f"setting to max_batch_size*max_beam_width = {optimum}."
        )
    if num_tokens > _TOKENS_HIGH:
        log.warning("Specifying a `max_num_tokens` larger than 16384 is usually not recommended")
    if num_tokens > most:
        log.warning(
            f"max_num_tokens ({num_tokens}) shouldn't be greater than max_seq_len * max_batch_size ({most}), "
            "specifying to max_seq_len * max_batch_size."
        )
        num_tokens = most
    if not plugins.get("context_fmha"):
        if num_tokens < input_len:
            log.warning(
                f"max_num_tokens ({num_tokens}) shouldn't be less than max_input_len ({input_len}), "
                "specifying to max_input_len."
            )
            num_tokens = input_len
    elif num_tokens < plugins["tokens_per_block"] and num_tokens < most:
        raise ToolError(
            f"max_num_tokens ({num_tokens}) must be at least tokens_per_block ({plugins['tokens_per_block']})",
            "ValueError",
        )
    if optimum is not None and optimum > num_tokens:
        log.warning(
            f"opt_num_tokens ({optimum}) shouldn't be greater than max_num_tokens ({num_tokens}), "
            "specifying to max_num_tokens."
        )
        optimum = num_tokens
    return num_tokens, optimum


def _kv_cache_type(values: dict[str, Any], log: Log) -> str:
    chosen = values.get("kv_cache_type")
    if values.get("paged_kv_cache") is not None:
        implied = "paged" if values["paged_kv_cache"] == "enable" else "continuous"
        if chosen is not None and chosen != implied:
            raise ToolError(
                f"--paged_kv_cache {values['paged_kv_cache']} contradicts --kv_cache_type {chosen}: "
                "give only the latter",
                "ValueError",
            )
        chosen = implied
    if chosen == "disabled":
        refuse([("kv_cache_type", chosen, "generation needs a KV cache")])
    return (chosen or "paged").upper()


def check_gemm_plugin(value: str | None, dtype: str) -> None:
    """A kernel's type must be that of the weights it multiplies."""
    if value in ("fp8", "nvfp4"):
        refuse([("gemm_plugin", value, "fp8 and fp4 are not computed")])
    if value not in (None, "auto", "disable", dtype):
        raise ToolError(
            f"gemm_plugin {value} does not suit the checkpoint's dtype {dtype}: use auto, {dtype} or disable",
            "ValueError",
        )


def read_checkpoint(checkpoint_dir: PathLike) -> tuple[dict[str, Any], Mapping]:
    """The checkpoint's config.json and topology."""
    path = Path(checkpoint_dir) / "config.json"
    config = read_json(path, "not a converted checkpoint; run convert_checkpoint.py first")
    architecture = config.get("architecture")
    if architecture != "MixtralForCausalLM":
        hint = " (a Hugging Face model: run convert_checkpoint.py first)" if "architectures" in config else ""
        raise ToolError(f"{path}: architecture {architecture!r} is not supported, only MixtralForCausalLM{hint}")
    if config.get("dtype") not in CARRIERS:
        raise ToolError(f"{path}: dtype {config.get('dtype')!r} is not one of {', '.join(CARRIERS)}")
    quantised = (config.get("quantization") or {}).get("quant_algo")
    if quantised:
        raise ToolError(f"{path}: quant_algo {quantised!r} is not computed by the CPU reference backend")
    try:
        mapping = Mapping.from_dict(config["mapping"])
        rank_shapes(config, mapping)
    except KeyError as exc:
        raise ToolError(f"{path} has no {exc.args[0]}: convert the checkpoint again") from exc
    return config, mapping


def open_rank(checkpoint_dir: PathLike, config: dict[str, Any], mapping: Mapping) -> SafetensorsFile:
    """A rank's weights, checked for being complete and of the shapes that config.json implies."""
    path = Path(checkpoint_dir) / f"rank{mapping.rank}.safetensors"
    if not path.exists():
        raise WeightsError(
            f"{path} is missing: the checkpoint has world size {mapping.world_size}, and a file for each rank is needed"
        )
    file = SafetensorsFile(path)
    for name, (dtype, shape) in rank_shapes(config, mapping).items():
        if name not in file:
            raise WeightsError(f"{path} misses tensor {name}: convert the checkpoint again")
        if file.shape(name) != shape or file.dtype(name) != dtype:
            raise WeightsError(
                f"{path}: tensor {name} is {file.dtype(name)} {list(file.shape(name))}, "
                f"and config.json asks for {dtype} {list(shape)}"
            )
    return file


def build_rank(
    file: SafetensorsFile,
    config: dict[str, Any],
    mapping: Mapping,
    output_dir: PathLike,
    release: str,
    device: gpu.Gpu | None = None,
) -> Path:
    path = Path(output_dir) / f"rank{mapping.rank}.engine"

    def tensors() -> Iterator[EngineTensor]:
        for name, (dtype, _shape) in rank_shapes(config, mapping).items():
            stacked = name.endswith((".mlp.fc.weight", ".mlp.proj.weight"))
            yield EngineTensor(name, dtype, file.tensor(name), per_expert=stacked)
            file.forget()

    write_engine(path, tensors(), release=release, mapping=mapping, gpu=device.to_dict() if device else None)
    return path


def main(argv: Sequence[str] | None = None, release: Release | None = None) -> None:
    release = release or load_release()
    table = release.trtllm_build
    parser = build_parser("trtllm-build", table)
    given_defaults = defaults(table)
    values = vars(parser.parse_args(argv))
    started = time.monotonic()
    print(f"[TensorRT-LLM] TensorRT-LLM version: {release.release}", flush=True)
    log = Log()
    log.set_level(values["log_level"])
    refuse(
        [
            (name, values[name], reason)
            for name, reason in _REFUSED.items()
            if name in values and values[name] not in (given_defaults[name], None, False)
        ]
    )
    if values.get("logits_dtype") not in (None, "float32"):
        refuse([("logits_dtype", values["logits_dtype"], "logits are float32")])
    if not values["checkpoint_dir"]:
        raise ToolError("--checkpoint_dir is required", "ValueError")
    if values["workers"] < 1:
        raise ToolError(f"--workers must be at least 1, but is {values['workers']}", "ValueError")
    refuse_same_directory(values["checkpoint_dir"], values["output_dir"])
    config, mapping = read_checkpoint(values["checkpoint_dir"])
    for name in ("tp_size", "pp_size", "cp_size"):
        if name in values and values[name] not in (given_defaults[name], getattr(mapping, name)):
            raise ToolError(
                f"--{name} {values[name]} contradicts the checkpoint, which has {getattr(mapping, name)}", "ValueError"
            )
    dtype = str(config["dtype"])
    check_gemm_plugin(values.get("gemm_plugin"), dtype)
    plugins = plugin_config(table, values, dtype, log)
    build_config = resolve(values, config, plugins, log)
    if values.get("input_timing_cache"):
        log.warning("input_timing_cache is not used: nothing is timed on a CPU")
    device = _device(log)
    files = [open_rank(values["checkpoint_dir"], config, mapping.at(rank)) for rank in range(mapping.world_size)]
    output_dir = Path(values["output_dir"])
    if values.get("dry_run"):
        log.info("Dry run: the checkpoint and the options are good, no engine is written")
    else:
        output_dir.mkdir(parents=True, exist_ok=True)
        _build(files, config, mapping, output_dir, values["workers"], release.release, log, device)
        write_json(
            output_dir / "config.json",
            {"version": release.release, "pretrained_config": config, "build_config": build_config},
        )
        sync_directory(output_dir)
    if values.get("monitor_memory"):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        log.info(f"Peak memory usage during engine building: {peak:.0f} MiB")
    log.info(f"Total time of building all engines: {clock(time.monotonic() - started)}")


def _device(log: Log) -> gpu.Gpu | None:
    """The GPU that the engine is bound to; none where there is none to be seen."""
    try:
        found = gpu.find()
    except gpu.CudaError as exc:
        raise ToolError(f"[TensorRT-LLM][ERROR] {exc}") from exc
    if not found:
        return None
    log.info(f"Building for {found[0].name} (compute capability {found[0].compute_capability})")
    return found[0]


def _build(
    files: Sequence[SafetensorsFile],
    config: dict[str, Any],
    mapping: Mapping,
    output_dir: Path,
    workers: int,
    release: str,
    log: Log,
    device: gpu.Gpu | None = None,
) -> None:
    def build(rank: int) -> None:
        started = time.monotonic()
        log.info(f"Serializing engine to {output_dir / f'rank{rank}.engine'}...")
        path = build_rank(files[rank], config, mapping.at(rank), output_dir, release, device)
        log.info(
            f"Engine serialized. Total time: {clock(time.monotonic() - started)} "
            f"(rank {rank}, {os.path.getsize(path) / 2**20:.1f} MiB)"
        )

    with ThreadPoolExecutor(min(workers, mapping.world_size)) as pool:
        futures = [pool.submit(build, rank) for rank in range(mapping.world_size)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
