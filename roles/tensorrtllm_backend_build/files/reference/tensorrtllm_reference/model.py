# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Mixtral forward pass in numpy float32, sharded as the engine is.

Every rank's share of a layer is computed by itself and the partial sums are added, as the ranks' all-reduce would;
pipeline stages follow one another; the vocabulary slices of lm_head are concatenated. All sequences of a step are
packed into one matrix of token rows, so that a weight is read once a step however many sequences are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Protocol

import numpy as np

from .errors import EngineError
from .kv_cache import CacheShape, SequenceCache
from .mapping import Mapping
from .tensors import Array, to_float32

# Rows of queries that attend together in a prefill: bounds the score matrix at rows x length for each head.
QUERY_BLOCK = 128
# OpenBLAS packs the weight anew for each matrix product, which costs more than the product itself when only a few
# rows use it. Up to this many rows, one vector product a row over pieces of the weight that stay in the L2 cache wins.
VECTOR_ROWS = 6
VECTOR_PIECE = 400_000
VECTOR_MINIMUM = 200_000


class RankWeights(Protocol):
    """What the model needs of one rank's file; engine_file.EngineFile has it."""

    mapping: Mapping

    def __contains__(self, name: object) -> bool: ...
    def dtype(self, name: str) -> str: ...
    def tensor(self, name: str) -> Array: ...
    def experts(self, name: str) -> list[Array]: ...
    def blob_ids(self, name: str) -> list[int]: ...


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    num_experts: int
    top_k: int
    renormalize: bool
    norm_epsilon: float
    rotary_base: float
    max_position_embeddings: int
    mapping: Mapping

    @classmethod
    def from_pretrained(cls, config: dict[str, Any]) -> ModelConfig:
        """Read an engine's pretrained_config; what this runtime does not compute is refused by name."""
        try:
            moe = config["moe"]
            result = cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=int(config["hidden_size"]),
                num_layers=int(config["num_hidden_layers"]),
                num_heads=int(config["num_attention_heads"]),
                num_kv_heads=int(config["num_key_value_heads"]),
                head_size=int(config.get("head_size") or config["hidden_size"] // config["num_attention_heads"]),
                num_experts=int(moe["num_experts"]),
                top_k=int(moe["top_k"]),
                renormalize=int(moe.get("normalization_mode", 1)) == 1,
                norm_epsilon=float(config["norm_epsilon"]),
                rotary_base=float(config.get("rotary_base", 10000.0)),
                max_position_embeddings=int(config["max_position_embeddings"]),
                mapping=Mapping.from_dict(config.get("mapping", {})),
            )
        except KeyError as exc:
            raise EngineError(f"the engine's config.json has no {exc.args[0]!r} in pretrained_config") from exc
        except (TypeError, ValueError) as exc:
            raise EngineError(f"the engine's config.json has a bad value in pretrained_config: {exc}") from exc
        supported: dict[str, tuple[Any, ...]] = {
            "architecture": ("MixtralForCausalLM",),
            "hidden_act": ("swiglu", "silu"),
            "position_embedding_type": ("rope_gpt_neox",),
            "rotary_scaling": (None,),
        }
        for key, values in supported.items():
            if config.get(key, values[0]) not in values:
                raise EngineError(
                    f"the CPU runtime does not support {key} {config[key]!r}; it computes {values[0]!r} only"
                )
        if int(moe.get("normalization_mode", 1)) not in (0, 1):
            raise EngineError(
                f"the CPU runtime does not support moe normalization_mode {moe['normalization_mode']}; use 0 or 1"
            )
        quantization = config.get("quantization") or {}
        for key in ("quant_algo", "kv_cache_quant_algo"):
            if quantization.get(key):
                raise EngineError(f"the CPU runtime does not support {key} {quantization[key]!r}; use an unquantized "
                                  "checkpoint")
        return result


class Chunk(NamedTuple):
    """Tokens that continue one sequence: a whole prompt, a piece of one, or one token to decode."""

    cache: SequenceCache
    tokens: Array


class _Experts(NamedTuple):
    """Experts of one rank that share their storage: computed once, with the sum of their routing weights."""

    numbers: list[int]
    up_gate: Array
    down: Array


class _Shard(NamedTuple):
    heads: int
    kv_heads: int
    qkv: Array
    dense: Array
    experts: list[_Experts]


class _Layer(NamedTuple):
    input_norm: Array
    post_norm: Array
    router: Array
    shards: list[_Shard]


class _Reader:
    """Tensors of one rank as float32, each stored blob converted once."""

    def __init__(self, weights: RankWeights) -> None:
        self._weights = weights
        self._converted: dict[tuple[int, tuple[int, ...]], Array] = {}

    def _float32(self, blob: int, array: Array, dtype: str) -> Array:
        if dtype == "float32":
            return array
        key = (blob, array.shape)
        if key not in self._converted:
            self._converted[key] = to_float32(array, dtype)
        return self._converted[key]

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def get(self, name: str) -> Array:
        if name not in self._weights:
            raise EngineError(f"rank {self._weights.mapping.rank} of the engine has no tensor {name}: build it again")
        return self._float32(self._weights.blob_ids(name)[0], self._weights.tensor(name), self._weights.dtype(name))

    def experts(self, fc: str, proj: str, first: int) -> list[_Experts]:
        groups: dict[tuple[int, int], list[int]] = {}
        fc_ids, proj_ids = self._weights.blob_ids(fc), self._weights.blob_ids(proj)
        for local, key in enumerate(zip(fc_ids, proj_ids)):
            groups.setdefault(key, []).append(local)
        fcs, projs = self._weights.experts(fc), self._weights.experts(proj)
        return [
            _Experts(
                [first + local for local in locals_],
                self._float32(fc_id, fcs[locals_[0]], self._weights.dtype(fc)),
                self._float32(proj_id, projs[locals_[0]], self._weights.dtype(proj)),
            )
            for (fc_id, proj_id), locals_ in groups.items()
        ]


def linear(rows: Array, weight: Array) -> Array:
    """rows @ weight.T for a row-major weight, by whichever BLAS call reads the weight best."""
    count = rows.shape[0]
    out: Array
    if count == 1:
        out = np.dot(weight, rows[0])[np.newaxis]
        return out
    if count > VECTOR_ROWS or weight.size < VECTOR_MINIMUM:
        out = rows @ weight.T
        return out
    out = np.empty((count, weight.shape[0]), np.float32)
    step = max(1, VECTOR_PIECE // weight.shape[1])
    for begin in range(0, weight.shape[0], step):
        piece = weight[begin : begin + step]
        for row in range(count):
            np.dot(piece, rows[row], out=out[row, begin : begin + step])
    return out


def rms_norm(rows: Array, weight: Array, epsilon: float) -> Array:
    mean = np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1])
    scale = 1.0 / np.sqrt(mean + np.float32(epsilon))
    normed: Array = rows * scale[:, np.newaxis] * weight
    return normed


def _softmax(scores: Array) -> Array:
    """Softmax over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


class MixtralModel:
    """A loaded engine: all ranks of a Mixtral, computed in this process.

    attention_window limits how many of the latest tokens a token attends to, itself included (None: all).
    """

    def __init__(
        self, config: ModelConfig, ranks: Sequence[RankWeights], *, max_seq_len: Optional[int] = None,
        attention_window: Optional[int] = None,
    ) -> None:
        self.config = config
        mapping = config.mapping
        if len(ranks) != mapping.world_size:
            raise EngineError(f"the engine has {len(ranks)} ranks, and its mapping says {mapping.world_size}")
        self.attention_window = attention_window
        readers = [_Reader(weights) for weights in ranks]
        tp_size = mapping.tp_size
        self._layers: list[_Layer] = []
        for stage in range(mapping.pp_size):
            members = range(stage * tp_size, (stage + 1) * tp_size)
            for layer in range(len(mapping.at(stage * tp_size).pp_layers(config.num_layers))):
                self._layers.append(self._load_layer(readers, members, layer))
        self._embedding = self._load_embedding(readers[:tp_size])
        last = readers[(mapping.pp_size - 1) * tp_size :]
        self._final_norm = last[0].get("transformer.ln_f.weight")
        self._lm_head = [reader.get("lm_head.weight") for reader in last]
        rows = sum(shard.shape[0] for shard in self._lm_head)
        if rows < config.vocab_size:
            raise EngineError(f"lm_head has {rows} rows on all ranks together, and vocab_size is {config.vocab_size}")
        length = max_seq_len or config.max_position_embeddings
        half = config.head_size // 2
        frequency = 1.0 / (config.rotary_base ** (np.arange(0, half, dtype=np.float32) * 2 / config.head_size))
        angles = np.outer(np.arange(length, dtype=np.float32), frequency.astype(np.float32))
        self._cos = np.cos(angles)[:, np.newaxis, :]
        self._sin = np.sin(angles)[:, np.newaxis, :]
        self._query_scale = np.float32(1.0 / np.sqrt(config.head_size))
        self.cache_layout = [
            [CacheShape(shard.kv_heads, config.head_size) for shard in layer.shards] for layer in self._layers
        ]

    def _load_layer(self, readers: list[_Reader], members: range, index: int) -> _Layer:
        config = self.config
        prefix = f"transformer.layers.{index}."
        shards = []
        for rank in members:
            reader, mapping = readers[rank], config.mapping.at(rank)
            heads, kv_heads = config.num_heads // mapping.tp_size, len(mapping.kv_head_range(config.num_kv_heads))
            qkv, dense = reader.get(prefix + "attention.qkv.weight"), reader.get(prefix + "attention.dense.weight")
            expected = (heads + 2 * kv_heads) * config.head_size
            if qkv.shape != (expected, config.hidden_size):
                raise EngineError(f"rank {rank}: {prefix}attention.qkv.weight is {qkv.shape}, and the config asks for "
                                  f"{(expected, config.hidden_size)}: config.json and the rank files do not match")
            first = mapping.ep_experts(config.num_experts).start
            experts = reader.experts(prefix + "mlp.fc.weight", prefix + "mlp.proj.weight", first)
            shards.append(_Shard(heads, kv_heads, qkv, dense, experts))
        leader = readers[members[0]]
        layer = _Layer(
            leader.get(prefix + "input_layernorm.weight"),
            leader.get(prefix + "post_layernorm.weight"),
            leader.get(prefix + "mlp.router.weight"),
            shards,
        )
        for rank in members[1:]:
            if not np.array_equal(readers[rank].get(prefix + "input_layernorm.weight"), layer.input_norm):
                raise EngineError(f"rank {rank} and rank {members[0]} hold different {prefix}input_layernorm.weight: "
                                  "the rank files are of different engines; build the engine again")
        return layer

    def _load_embedding(self, readers: list[_Reader]) -> Array:
        """The embedding, whole on every rank, or split by vocabulary (use_parallel_embedding)."""
        parts = [reader.get("transformer.vocab_embedding.weight") for reader in readers]
        if parts[0].shape[0] >= self.config.vocab_size and parts[0].shape[1] == self.config.hidden_size:
            return parts[0]
        axis = 0 if parts[0].shape[1] == self.config.hidden_size else 1
        return np.concatenate(parts, axis=axis)

    def new_cache(self, capacity: int) -> SequenceCache:
        return SequenceCache(self.cache_layout, capacity)

    def forward(self, chunks: Sequence[Chunk], all_logits: Sequence[bool] = ()) -> list[Array]:
        """Continue every chunk's sequence and return its logits: [1, vocab] of the last token, or [tokens, vocab]
        where all_logits says so. The caches are extended."""
        config = self.config
        counts = [len(chunk.tokens) for chunk in chunks]
        starts = [chunk.cache.length for chunk in chunks]
        bounds = np.concatenate([[0], np.cumsum(counts)]).tolist()
        positions = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts)])
        cos, sin = self._cos[positions], self._sin[positions]
        hidden = self._embedding[np.concatenate([chunk.tokens for chunk in chunks])].astype(np.float32, copy=False)
        for number, layer in enumerate(self._layers):
            normed = rms_norm(hidden, layer.input_norm, config.norm_epsilon)
            for rank, shard in enumerate(layer.shards):
                attended = self._attention(number, rank, shard, normed, cos, sin, chunks, bounds)
                hidden = hidden + linear(attended, shard.dense)
            normed = rms_norm(hidden, layer.post_norm, config.norm_epsilon)
            hidden = self._experts(layer, normed, hidden)
        for chunk, count in zip(chunks, counts):
            chunk.cache.length += count
        wanted = [
            range(begin, end) if number < len(all_logits) and all_logits[number] else range(end - 1, end)
            for number, (begin, end) in enumerate(zip(bounds, bounds[1:]))
        ]
        rows = hidden[[row for span in wanted for row in span]]
        rows = rms_norm(rows, self._final_norm, config.norm_epsilon)
        parts = [linear(rows, shard) for shard in self._lm_head]
        logits = (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))[:, : config.vocab_size]
        result, begin = [], 0
        for span in wanted:
            result.append(logits[begin : begin + len(span)])
            begin += len(span)
        return result

    def _attention(
        self, number: int, rank: int, shard: _Shard, rows: Array, cos: Array, sin: Array,
        chunks: Sequence[Chunk], bounds: list[int],
    ) -> Array:
        size, half = self.config.head_size, self.config.head_size // 2
        heads, kv_heads = shard.heads, shard.kv_heads
        qkv = linear(rows, shard.qkv).reshape(len(rows), heads + 2 * kv_heads, size)
        rotated = qkv[:, : heads + kv_heads]
        left, right = rotated[..., :half], rotated[..., half:]
        turned: Array = left * cos - right * sin
        rotated[..., half:] = right * cos + left * sin
        rotated[..., :half] = turned
        rotated[:, :heads] *= self._query_scale
        out = np.empty((len(rows), heads * size), np.float32)
        for chunk, begin, end in zip(chunks, bounds, bounds[1:]):
            keys, values = chunk.cache.keys[number][rank], chunk.cache.values[number][rank]
            start = chunk.cache.length
            stop = start + end - begin
            keys[:, start:stop] = qkv[begin:end, heads : heads + kv_heads].transpose(1, 0, 2)
            values[:, start:stop] = qkv[begin:end, heads + kv_heads :].transpose(1, 0, 2)
            if end - begin == 1:
                low = 0 if self.attention_window is None else max(0, stop - self.attention_window)
                queries = qkv[begin, :heads].reshape(kv_heads, heads // kv_heads, size)
                scores = _softmax(queries @ keys[:, low:stop].transpose(0, 2, 1))
                out[begin] = (scores @ values[:, low:stop]).reshape(-1)
                continue
            for block in range(begin, end, QUERY_BLOCK):
                last = min(block + QUERY_BLOCK, end)
                out[block:last] = self._attend_block(
                    qkv[block:last, :heads], keys, values, start + block - begin, kv_heads
                )
        return out

    def _attend_block(self, queries: Array, keys: Array, values: Array, first: int, kv_heads: int) -> Array:
        """Causal attention of consecutive queries, the first at position `first`."""
        count, heads, size = queries.shape
        stop = first + count
        low = 0 if self.attention_window is None else max(0, first + 1 - self.attention_window)
        group = heads // kv_heads
        grouped = queries.transpose(1, 0, 2).reshape(kv_heads, group * count, size)
        scores = (grouped @ keys[:, low:stop].transpose(0, 2, 1)).reshape(heads, count, stop - low)
        rows, columns = np.arange(first, stop)[:, np.newaxis], np.arange(low, stop)
        hidden = columns > rows
        if self.attention_window is not None:
            hidden |= columns <= rows - self.attention_window
        scores[:, hidden] = -np.inf
        _softmax(scores)
        mixed = scores.reshape(kv_heads, group * count, stop - low) @ values[:, low:stop]
        by_row: Array = mixed.reshape(heads, count, size).transpose(1, 0, 2).reshape(count, heads * size)
        return by_row

    def _experts(self, layer: _Layer, rows: Array, hidden: Array) -> Array:
        """hidden plus the mixture of experts of rows."""
        config = self.config
        probabilities = _softmax(rows @ layer.router.T)
        chosen = np.argpartition(-probabilities, config.top_k - 1, axis=1)[:, : config.top_k]
        weights = np.take_along_axis(probabilities, chosen, axis=1)
        if config.renormalize:
            weights = weights / weights.sum(axis=1, keepdims=True)
        routing = np.zeros_like(probabilities)
        np.put_along_axis(routing, chosen, weights, axis=1)
        used = routing.any(axis=0).tolist()
        out = hidden.copy()
        for shard in layer.shards:
            for experts in shard.experts:
                if not any(used[number] for number in experts.numbers):
                    continue
                share = routing[:, experts.numbers].sum(axis=1)
                picked = np.flatnonzero(share)
                everything = len(picked) == len(rows)
                inputs = rows if everything else rows[picked]
                up_gate = linear(inputs, experts.up_gate)
                inner = up_gate.shape[1] // 2
                up, gate = up_gate[:, :inner], up_gate[:, inner:]
                # A very negative gate overflows exp to infinity, and gate / infinity is the right 0.
                with np.errstate(over="ignore"):
                    activated = gate / (np.exp(-gate) + np.float32(1.0)) * up
                result = linear(activated, experts.down)
                if everything:
                    out += result * share[:, np.newaxis]
                else:
                    out[picked] += result * share[picked, np.newaxis]
        return out
