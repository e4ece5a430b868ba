# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny random Mixtrals with distinct experts and a real small tokenizer: for tests, where routing and cuts matter."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .cli import ToolError
from .tensors import CARRIERS, Array, PathLike, SafetensorsWriter, from_float32, write_json

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SMALLEST_VOCAB = 256 + len(SPECIALS)

# What the tokenizer's merges are learnt from; any text would do, as every byte is a token of its own.
_TEXT = """\
The quick brown fox jumps over the lazy dog. A router sends each token to two of the eight experts, and the answer of
the layer is the weighted sum of what those experts say. What is machine learning? Machine learning is the study of
programs that improve with experience. Question: how many ranks are there? Answer: as many as there are shards of the
weights, counted over the tensor and the pipeline dimension. Once upon a time there was a small model that lived on a
small machine, and it answered every question with great confidence and little sense. The capital of France is Paris,
the capital of Italy is Rome, and the capital of Norway is Oslo. One, two, three, four, five, six, seven, eight, nine,
ten. Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. Please write a short story about the sea and the
ships that sailed on it. In the beginning the water was calm; then the wind came from the north and the waves grew.
def main(): return {"name": "value", "list": [1, 2, 3]} # comments are words as well
"""


class TinyOptions(argparse.Namespace):
    """The generator's options."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int | None
    experts: int
    top_k: int
    inter: int
    vocab: int
    max_position: int
    dtype: str
    seed: int
    shards: int
    tie_embeddings: bool
    output_dir: str | None


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="generate_tiny.py", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Generate a tiny random Mixtral in Hugging Face's layout.",
    )
    result.add_argument("--output_dir", required=True, help="directory to write, made when missing")
    result.add_argument("--hidden", type=int, default=64, help="hidden size")
    result.add_argument("--layers", type=int, default=2, help="number of layers")
    result.add_argument("--heads", type=int, default=8, help="attention heads")
    result.add_argument("--kv_heads", type=int, default=4, help="key/value heads")
    result.add_argument("--head_dim", type=int, default=None, help="size of a head (None: hidden / heads)")
    result.add_argument("--experts", type=int, default=8, help="experts of a layer")
    result.add_argument("--top_k", type=int, default=2, help="experts a token")
    result.add_argument("--inter", type=int, default=128, help="intermediate size of an expert")
    result.add_argument("--vocab", type=int, default=512, help=f"vocabulary, {SMALLEST_VOCAB} at least")
    result.add_argument("--max_position", type=int, default=512, help="longest sequence")
    result.add_argument("--dtype", choices=sorted(CARRIERS), default="float32", help="type of the weights")
    result.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    result.add_argument("--shards", type=int, default=1, help="number of safetensors files")
    result.add_argument("--tie_embeddings", action="store_true", help="use the embedding as the head")
    return result


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly the given size: every byte can be encoded, and decoding gives the text back."""
    if vocab_size < SMALLEST_VOCAB:
        raise ToolError(
            f"--vocab {vocab_size} is too small: {SMALLEST_VOCAB} are needed for all bytes and special tokens",
            "ValueError",
        )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        [_TEXT],
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    model: dict[str, Any] = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in model["merges"]]
    # The text gives only so many merges; the rest are pairs of letters' tokens, so that no number is without a token.
    base = [token for token in vocab if token not in SPECIALS]
    for left in base:
        for right in base:
            if len(vocab) >= vocab_size:
                break
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
        if len(vocab) >= vocab_size:
            break
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def _check(options: TinyOptions) -> int:
    """The size of a head; refuses what cannot be a model."""
    for name in ("hidden", "layers", "heads", "kv_heads", "experts", "top_k", "inter", "max_position", "shards"):
        if getattr(options, name) < 1:
            raise ToolError(f"--{name} must be a positive integer, but is {getattr(options, name)}", "ValueError")
    if options.heads % options.kv_heads:
        raise ToolError(f"--heads {options.heads} is not a multiple of --kv_heads {options.kv_heads}", "ValueError")
    if options.top_k > options.experts:
        raise ToolError(f"--top_k {options.top_k} is more than --experts {options.experts}", "ValueError")
    if options.head_dim is None and options.hidden % options.heads:
        raise ToolError(f"--hidden {options.hidden} is not a multiple of --heads {options.heads}", "ValueError")
    head = options.head_dim if options.head_dim is not None else options.hidden // options.heads
    if head < 2 or head % 2:
        raise ToolError(f"the size of a head must be even, but is {head}: change --hidden or --head_dim", "ValueError")
    return head


def make_weights(options: TinyOptions, head: int) -> dict[str, Array]:
    """Random float32 weights under Hugging Face's names.

    Scaled so that the residual stream keeps its size and the logits spread (deviation near 3): greedy decoding then
    neither repeats itself at once nor stops at once.
    """
    random = np.random.default_rng(options.seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Array:
        values: Array = random.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(gain / np.sqrt(columns))

    def norm() -> Array:
        return (1 + 0.1 * random.standard_normal(options.hidden, dtype=np.float32)).astype(np.float32)

    weights: dict[str, Array] = {"model.embed_tokens.weight": matrix(options.vocab, options.hidden, 8.0)}
    for layer in range(options.layers):
        prefix = f"model.layers.{layer}."
        weights[prefix + "input_layernorm.weight"] = norm()
        weights[prefix + "self_attn.q_proj.weight"] = matrix(options.heads * head, options.hidden, 1.5)
        weights[prefix + "self_attn.k_proj.weight"] = matrix(options.kv_heads * head, options.hidden, 1.5)
        weights[prefix + "self_attn.v_proj.weight"] = matrix(options.kv_heads * head, options.hidden)
        weights[prefix + "self_attn.o_proj.weight"] = matrix(options.hidden, options.heads * head, 2.0)
        weights[prefix + "post_attention_layernorm.weight"] = norm()
        weights[prefix + "block_sparse_moe.gate.weight"] = matrix(options.experts, options.hidden)
        for expert in range(options.experts):
            part = f"{prefix}block_sparse_moe.experts.{expert}."
            weights[part + "w1.weight"] = matrix(options.inter, options.hidden, 1.5)
            weights[part + "w2.weight"] = matrix(options.hidden, options.inter, 3.0)
            weights[part + "w3.weight"] = matrix(options.inter, options.hidden, 1.5)
    weights["model.norm.weight"] = norm()
    if not options.tie_embeddings:
        # Small rows for the special tokens: they stay possible when sampling, and are not the greedy choice.
        scale = np.full((options.vocab, 1), 3.0, np.float32)
        scale[: len(SPECIALS)] = 0.01
        weights["lm_head.weight"] = matrix(options.vocab, options.hidden) * scale
    return weights


def write_model(options: TinyOptions) -> None:
    """Write the model directory."""
    head = _check(options)
    tokenizer = make_tokenizer(options.vocab)
    if options.output_dir is None:
        raise ToolError("--output_dir is required", "ValueError")
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    weights = make_weights(options, head)
    _write_weights(output_dir, weights, options.dtype, options.shards)
    write_json(
        output_dir / "config.json",
        {
            "architectures": ["MixtralForCausalLM"],
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": options.hidden,
            "head_dim": head,
            "intermediate_size": options.inter,
            "max_position_embeddings": options.max_position,
            "model_type": "mixtral",
            "num_attention_heads": options.heads,
            "num_experts_per_tok": options.top_k,
            "num_hidden_layers": options.layers,
            "num_key_value_heads": options.kv_heads,
            "num_local_experts": options.experts,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": None,
            "tie_word_embeddings": options.tie_embeddings,
            "torch_dtype": options.dtype,
            "vocab_size": options.vocab,
        },
    )
    write_tokenizer(output_dir, tokenizer, bos=SPECIALS[0], eos=SPECIALS[2], pad=SPECIALS[0])


def write_tokenizer(
    output_dir: PathLike,
    tokenizer: Tokenizer,
    *,
    bos: str,
    eos: str,
    pad: str,
    chat_template: str | None = None,
    model_max_length: int | None = None,
) -> None:
    """tokenizer.json and the tokenizer_config.json that names its special tokens."""
    tokenizer.save(str(Path(output_dir) / "tokenizer.json"))
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "pad_token": pad,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    if chat_template is not None:
        config["chat_template"] = chat_template
    write_json(Path(output_dir) / "tokenizer_config.json", config)


def _write_weights(output_dir: Path, weights: dict[str, Array], dtype: str, shards: int) -> None:
    for stale in output_dir.glob("model*.safetensors*"):
        stale.unlink()
    names = list(weights)
    shards = min(shards, len(names))
    files: dict[str, list[str]] = {}
    for position, name in enumerate(names):
        number = position * shards // len(names)
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        files.setdefault(file, []).append(name)
    for file, members in files.items():
        with SafetensorsWriter(output_dir / file, [(name, dtype, weights[name].shape) for name in members]) as writer:
            for name in members:
                writer.write(name, [from_float32(weights[name], dtype)])
    if shards > 1:
        size = sum(array.size for array in weights.values()) * CARRIERS[dtype].itemsize
        weight_map = {name: file for file, members in files.items() for name in members}
        write_json(
            output_dir / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv, namespace=TinyOptions())
    write_model(options)
    print(f"Tiny Mixtral written to {options.output_dir}", flush=True)
