# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""convert_checkpoint: a Hugging Face Mixtral directory to one safetensors file a rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .cli import Log, Release, ToolError, build_parser, clock, defaults, load_release, refuse, refuse_same_directory
from .hf import MixtralConfig, MixtralWeights
from .mapping import Mapping
from .tensors import CARRIERS, Array, PathLike, SafetensorsWriter, cast, sync_directory, write_json

_QUANTISATION = "quantised weights are not computed"
_REFUSED = {
    "meta_ckpt_dir": "only Hugging Face checkpoints are read",
    "use_weight_only": _QUANTISATION,
    "smoothquant": _QUANTISATION,
    "use_qserve": _QUANTISATION,
    "per_channel": _QUANTISATION,
    "per_token": _QUANTISATION,
    "per_group": _QUANTISATION,
    "int8_kv_cache": _QUANTISATION,
    "fp8_kv_cache": _QUANTISATION,
    "quant_ckpt_path": _QUANTISATION,
    "use_fp8": _QUANTISATION,
    "use_nvfp4": _QUANTISATION,
    "use_fp8_rowwise": _QUANTISATION,
    "use_meta_fp8_rowwise_recipe": _QUANTISATION,
    "use_parallel_embedding": "the embedding is kept whole on each rank",
    "use_embedding_sharing": "the embedding and the head are written separately",
}
# Used by upstream only to describe a model that has no directory; beside one they may merely repeat what it says.
_REPEATED = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "inter_size": "intermediate_size",
    "rms_norm_eps": "norm_epsilon",
    "rotary_base": "rotary_base",
    "moe_num_experts": "num_experts",
    "moe_top_k": "top_k",
}
_RENORMALIZE = 1

Producer = Callable[[], Iterator[Array]]


def checkpoint_config(config: MixtralConfig, mapping: Mapping, dtype: str, release: str) -> dict[str, Any]:
    """config.json of the checkpoint, with upstream's keys."""
    return {
        "producer": {"name": "tensorrtllm_reference", "version": release},
        "architecture": "MixtralForCausalLM",
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_size": config.head_size,
        "intermediate_size": config.intermediate_size,
        "norm_epsilon": config.norm_epsilon,
        "hidden_act": "swiglu",
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": config.rotary_base,
        "moe": {
            "num_experts": config.num_experts,
            "top_k": config.top_k,
            "normalization_mode": _RENORMALIZE,
        },
        "mapping": mapping.to_dict(),
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


def rank_shapes(config: dict[str, Any], mapping: Mapping) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of one rank, from the checkpoint's config. The float32 routers come first,
    so that every tensor is aligned to its type."""
    dtype = str(config["dtype"])
    hidden = int(config["hidden_size"])
    head = int(config["head_size"])
    heads = int(config["num_attention_heads"]) // mapping.tp_size
    kv_heads = len(mapping.kv_head_range(int(config["num_key_value_heads"])))
    inter = int(config["intermediate_size"]) // mapping.moe_tp_size
    experts = int(config["moe"]["num_experts"])
    local_experts = len(mapping.ep_experts(experts))
    vocab = padded_vocab(int(config["vocab_size"]), mapping.tp_size)
    layers = len(mapping.pp_layers(int(config["num_hidden_layers"])))
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(layers):
        shapes[f"transformer.layers.{layer}.mlp.router.weight"] = ("float32", (experts, hidden))
    if mapping.is_first_pp_rank:
        shapes["transformer.vocab_embedding.weight"] = (dtype, (int(config["vocab_size"]), hidden))
    for layer in range(layers):
        prefix = f"transformer.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (dtype, (hidden,))
        shapes[prefix + "attention.qkv.weight"] = (dtype, ((heads + 2 * kv_heads) * head, hidden))
        shapes[prefix + "attention.dense.weight"] = (dtype, (hidden, heads * head))
        shapes[prefix + "post_layernorm.weight"] = (dtype, (hidden,))
        shapes[prefix + "mlp.fc.weight"] = (dtype, (local_experts, 2 * inter, hidden))
        shapes[prefix + "mlp.proj.weight"] = (dtype, (local_experts, hidden, inter))
    if mapping.is_last_pp_rank:
        shapes["transformer.ln_f.weight"] = (dtype, (hidden,))
        shapes["lm_head.weight"] = (dtype, (vocab // mapping.tp_size, hidden))
    return shapes


def padded_vocab(vocab_size: int, tp_size: int) -> int:
    """The head's rows are padded with zeros to a multiple of tp_size."""
    return -(-vocab_size // tp_size) * tp_size


def rank_tensors(weights: MixtralWeights, mapping: Mapping, dtype: str) -> dict[str, Producer]:
    """For each tensor of one rank, how to produce its data: pieces that follow each other in memory order."""
    config = weights.config
    head = config.head_size
    heads = config.num_attention_heads // mapping.tp_size
    q_rows = slice(mapping.tp_rank * heads * head, (mapping.tp_rank + 1) * heads * head)
    kv_range = mapping.kv_head_range(config.num_key_value_heads)
    kv_rows = slice(kv_range.start * head, kv_range.stop * head)
    inter = config.intermediate_size // mapping.moe_tp_size
    inter_rows = slice(mapping.moe_tp_rank * inter, (mapping.moe_tp_rank + 1) * inter)
    everything = slice(None)

    def pieces(
        names: list[str], rows: Sequence[slice], columns: slice = everything, target: str = dtype
    ) -> Producer:
        def produce() -> Iterator[Array]:
            for name, chosen in zip(names, rows):
                array = weights.tensor(name)
                cut = array[chosen] if array.ndim == 1 else array[chosen, columns]
                yield cast(cut, weights.dtype(name), target)

        return produce

    def head_rows() -> Iterator[Array]:
        rows = padded_vocab(config.vocab_size, mapping.tp_size) // mapping.tp_size
        begin = min(mapping.tp_rank * rows, config.vocab_size)
        end = min(begin + rows, config.vocab_size)
        name = weights.lm_head_name
        yield cast(weights.tensor(name)[begin:end], weights.dtype(name), dtype)
        if end - begin < rows:
            yield np.zeros((rows - (end - begin), config.hidden_size), CARRIERS[dtype])

    result: dict[str, Producer] = {}
    if mapping.is_first_pp_rank:
        result["transformer.vocab_embedding.weight"] = pieces(["model.embed_tokens.weight"], [everything])
    for local, layer in enumerate(mapping.pp_layers(config.num_hidden_layers)):
        source, target = f"model.layers.{layer}.", f"transformer.layers.{local}."
        attention = source + "self_attn."
        moe = source + "block_sparse_moe."
        result[target + "input_layernorm.weight"] = pieces([source + "input_layernorm.weight"], [everything])
        result[target + "post_layernorm.weight"] = pieces([source + "post_attention_layernorm.weight"], [everything])
        result[target + "attention.qkv.weight"] = pieces(
            [attention + f"{part}_proj.weight" for part in "qkv"], [q_rows, kv_rows, kv_rows]
        )
        result[target + "attention.dense.weight"] = pieces([attention + "o_proj.weight"], [everything], q_rows)
        result[target + "mlp.router.weight"] = pieces([moe + "gate.weight"], [everything], target="float32")
        experts = mapping.ep_experts(config.num_experts)
        # Upstream stacks the up projection (w3) above the gate (w1).
        stacked = [f"{moe}experts.{expert}.{part}.weight" for expert in experts for part in ("w3", "w1")]
        result[target + "mlp.fc.weight"] = pieces(stacked, [inter_rows] * len(stacked))
        down = [f"{moe}experts.{expert}.w2.weight" for expert in experts]
        result[target + "mlp.proj.weight"] = pieces(down, [everything] * len(down), inter_rows)
    if mapping.is_last_pp_rank:
        result["transformer.ln_f.weight"] = pieces(["model.norm.weight"], [everything])
        result["lm_head.weight"] = head_rows
    return result


def write_rank(weights: MixtralWeights, config: dict[str, Any], mapping: Mapping, output_dir: PathLike) -> Path:
    shapes = rank_shapes(config, mapping)
    producers = rank_tensors(weights, mapping, str(config["dtype"]))
    path = Path(output_dir) / f"rank{mapping.rank}.safetensors"
    with SafetensorsWriter(path, [(name, kind, shape) for name, (kind, shape) in shapes.items()]) as writer:
        for name in shapes:
            writer.write(name, producers[name]())
            weights.forget()
    return path


def infer_dtype(requested: str, weights: MixtralWeights, log: Log) -> str:
    """Upstream's rule: auto keeps the model's type, and float32 becomes float16."""
    if requested != "auto":
        return requested
    source = weights.stored_dtype
    dtype = "float16" if source == "float32" else source
    log.info(f"Specified dtype 'auto'; inferred dtype {dtype!r}.")
    return dtype


def _refuse_unsupported(values: dict[str, Any], given_defaults: dict[str, Any]) -> None:
    found = [
        (name, values[name], reason)
        for name, reason in _REFUSED.items()
        if name in values and values[name] not in (given_defaults[name], None, False)
    ]
    if int(values.get("cp_size", 1)) != 1:
        found.append(("cp_size", values["cp_size"], "context parallelism is not computed"))
    if int(values.get("moe_renorm_mode", _RENORMALIZE)) != _RENORMALIZE:
        found.append(("moe_renorm_mode", values["moe_renorm_mode"], "only 1 (renormalise) is computed"))
    if values.get("hidden_act", "silu") != "silu":
        found.append(("hidden_act", values["hidden_act"], "only silu is computed"))
    refuse(found)


def _refuse_contradictions(values: dict[str, Any], given_defaults: dict[str, Any], config: MixtralConfig) -> None:
    for name, field in _REPEATED.items():
        if name not in values or values[name] == given_defaults[name]:
            continue
        actual = getattr(config, field)
        if values[name] != actual:
            raise ToolError(f"--{name} {values[name]} contradicts the model, which has {field} {actual}", "ValueError")


def main(argv: Sequence[str] | None = None, release: Release | None = None) -> None:
    release = release or load_release()
    table = release.convert_checkpoint
    args = vars(build_parser("convert_checkpoint.py", table).parse_args(argv))
    started = time.monotonic()
    print(f"[TensorRT-LLM] TensorRT-LLM version: {release.release}", flush=True)
    print(release.release, flush=True)
    log = Log()
    if "log_level" in args:
        log.set_level(args["log_level"])
    given_defaults = defaults(table)
    _refuse_unsupported(args, given_defaults)
    if not args["model_dir"]:
        raise ToolError(
            "--model_dir is required: the CPU reference backend converts a Hugging Face directory", "ValueError"
        )
    if args["workers"] < 1:
        raise ToolError(f"--workers must be at least 1, but is {args['workers']}", "ValueError")
    tp_size, pp_size = args["tp_size"], args["pp_size"]
    mapping = Mapping(
        tp_size * pp_size,
        tp_size=tp_size,
        pp_size=pp_size,
        moe_tp_size=args.get("moe_tp_size", -1),
        moe_ep_size=args.get("moe_ep_size", -1),
    )
    model_config = MixtralConfig.read(args["model_dir"])
    if args.get("load_by_shard"):
        raise ToolError("MoE does not support sharded load", "AssertionError")
    _refuse_contradictions(args, given_defaults, model_config)
    refuse_same_directory(args["model_dir"], args["output_dir"])
    mapping.check_model(
        num_layers=model_config.num_hidden_layers,
        num_heads=model_config.num_attention_heads,
        num_kv_heads=model_config.num_key_value_heads,
        intermediate_size=model_config.intermediate_size,
        num_experts=model_config.num_experts,
    )
    weights = MixtralWeights(args["model_dir"])
    if args.get("remove_duplicated_kv_heads"):
        log.warning("--remove_duplicated_kv_heads is deprecated and has no effect")
    dtype = infer_dtype(args["dtype"], weights, log)
    config = checkpoint_config(model_config, mapping, dtype, release.release)
    output_dir = Path(args["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)
    if not args.get("save_config_only"):
        _convert(weights, config, mapping, output_dir, args["workers"], log)
    write_json(output_dir / "config.json", config)
    sync_directory(output_dir)
    print(f"Total time of converting checkpoints: {clock(time.monotonic() - started)}", flush=True)


def _convert(
    weights: MixtralWeights, config: dict[str, Any], mapping: Mapping, output_dir: Path, workers: int, log: Log
) -> None:
    def convert_rank(rank: int) -> None:
        started = time.monotonic()
        path = write_rank(weights, config, mapping.at(rank), output_dir)
        log.info(
            f"rank {rank}: {path.name}, {os.path.getsize(path) / 2**20:.1f} MiB, "
            f"{time.monotonic() - started:.1f} s"
        )

    with ThreadPoolExecutor(min(workers, mapping.world_size)) as pool:
        futures = [pool.submit(convert_rank, rank) for rank in range(mapping.world_size)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
