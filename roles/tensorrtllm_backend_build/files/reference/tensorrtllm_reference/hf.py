# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strict reader of a Hugging Face Mixtral directory; tensors are memory-mapped, so memory use stays small."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tensors import CARRIERS, LFS_PREFIX, Array, PathLike, SafetensorsFile, WeightsError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing: {what}") from None
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read: {exc.strerror}") from exc
    if data.startswith(LFS_PREFIX):
        raise WeightsError(f"{path} is a git-lfs pointer: run `git lfs pull` in its repository")
    try:
        parsed = json.loads(data)
    except ValueError as exc:
        raise WeightsError(f"{path} is not valid JSON: {exc}") from exc
    if not isinstance(parsed, dict):
        raise WeightsError(f"{path} is not a JSON object")
    return parsed


@dataclass(frozen=True)
class MixtralConfig:
    """The part of config.json that decides the computation."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int
    max_position_embeddings: int
    num_experts: int
    top_k: int
    norm_epsilon: float
    rotary_base: float
    tie_word_embeddings: bool
    source_dtype: str | None

    @classmethod
    def read(cls, model_dir: PathLike) -> MixtralConfig:
        path = Path(model_dir) / "config.json"
        if not Path(model_dir).is_dir():
            raise WeightsError(f"{model_dir} is not a directory: a Hugging Face Mixtral directory is needed")
        data = read_json(path, "not a Hugging Face model directory")
        architectures = data.get("architectures") or []
        if "num_local_experts" not in data:
            raise WeightsError(
                f"{path} describes a dense model (architectures {architectures}, no num_local_experts): "
                "a Mixtral is needed"
            )
        if architectures and "MixtralForCausalLM" not in architectures:
            raise WeightsError(f"{path} has architectures {architectures}: a Mixtral (MixtralForCausalLM) is needed")

        def integer(key: str, default: int | None = None) -> int:
            value = data.get(key)
            value = default if value is None else value
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise WeightsError(f"{path}: {key} must be a positive integer, but is {value!r}")
            return value

        def number(key: str, default: float) -> float:
            value = data.get(key, default)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise WeightsError(f"{path}: {key} must be a positive number, but is {value!r}")
            return float(value)

        activation = data.get("hidden_act", "silu")
        if activation != "silu":
            raise WeightsError(f"{path}: hidden_act {activation!r} is not supported, only 'silu'")
        scaling = data.get("rope_scaling")
        parameters = data.get("rope_parameters") or {}
        if scaling or parameters.get("rope_type", "default") != "default":
            raise WeightsError(f"{path}: rope scaling {scaling or parameters} is not supported")
        heads = integer("num_attention_heads")
        hidden = integer("hidden_size")
        if data.get("head_dim") is None and hidden % heads:
            raise WeightsError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        experts = integer("num_local_experts")
        top_k = integer("num_experts_per_tok", 2)
        if top_k > experts:
            raise WeightsError(f"{path}: num_experts_per_tok {top_k} is more than num_local_experts {experts}")
        positions = integer("max_position_embeddings", 4096 * 32)
        window = data.get("sliding_window")
        if isinstance(window, int) and window < positions:
            raise WeightsError(
                f"{path}: sliding_window {window} below max_position_embeddings {positions} is not supported"
            )
        return cls(
            hidden_size=hidden,
            intermediate_size=integer("intermediate_size"),
            num_hidden_layers=integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=integer("num_key_value_heads", heads),
            head_size=integer("head_dim", hidden // heads),
            vocab_size=integer("vocab_size"),
            max_position_embeddings=positions,
            num_experts=experts,
            top_k=top_k,
            norm_epsilon=number("rms_norm_eps", 1e-5),
            rotary_base=float(parameters["rope_theta"]) if "rope_theta" in parameters else number("rope_theta", 1e6),
            tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
            source_dtype=data.get("torch_dtype") or data.get("dtype"),
        )


class MixtralWeights:
    """The tensors of a Hugging Face Mixtral directory, sharded or not, each checked for its shape."""

    def __init__(self, model_dir: PathLike) -> None:
        self.model_dir = Path(model_dir)
        self.config = MixtralConfig.read(model_dir)
        self._files: dict[str, SafetensorsFile] = {}
        self._place: dict[str, str] = {}
        index = self.model_dir / INDEX
        single = self.model_dir / SINGLE
        if index.exists():
            weight_map = read_json(index, "").get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise WeightsError(f"{index} has no weight_map")
            self._place = {str(name): str(shard) for name, shard in weight_map.items()}
            shards = sorted(set(self._place.values()))
            missing = [shard for shard in shards if not (self.model_dir / shard).exists()]
            if missing:
                raise WeightsError(
                    f"{self.model_dir} misses {len(missing)} of {len(shards)} shards: {', '.join(missing)}; "
                    "fetch the rest of the download"
                )
        elif single.exists():
            shards = [SINGLE]
        else:
            others = sorted(path.name for path in self.model_dir.glob("*.bin"))
            raise WeightsError(
                f"{self.model_dir} has neither {SINGLE} nor {INDEX}"
                + (f" (only {others[0]}: convert it to safetensors first)" if others else "")
            )
        for shard in shards:
            self._files[shard] = SafetensorsFile(self.model_dir / shard)
        if not self._place:
            self._place = dict.fromkeys(self._files[SINGLE].names, SINGLE)
        for name, shape in self.expected_shapes().items():
            self._check(name, shape)

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a Mixtral of this configuration has, by Hugging Face's names."""
        cfg = self.config
        q_size = cfg.num_attention_heads * cfg.head_size
        kv_size = cfg.num_key_value_heads * cfg.head_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (cfg.vocab_size, cfg.hidden_size)}
        for layer in range(cfg.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "self_attn.q_proj.weight"] = (q_size, cfg.hidden_size)
            shapes[prefix + "self_attn.k_proj.weight"] = (kv_size, cfg.hidden_size)
            shapes[prefix + "self_attn.v_proj.weight"] = (kv_size, cfg.hidden_size)
            shapes[prefix + "self_attn.o_proj.weight"] = (cfg.hidden_size, q_size)
            shapes[prefix + "input_layernorm.weight"] = (cfg.hidden_size,)
            shapes[prefix + "post_attention_layernorm.weight"] = (cfg.hidden_size,)
            shapes[prefix + "block_sparse_moe.gate.weight"] = (cfg.num_experts, cfg.hidden_size)
            for expert in range(cfg.num_experts):
                part = f"{prefix}block_sparse_moe.experts.{expert}."
                shapes[part + "w1.weight"] = (cfg.intermediate_size, cfg.hidden_size)
                shapes[part + "w2.weight"] = (cfg.hidden_size, cfg.intermediate_size)
                shapes[part + "w3.weight"] = (cfg.intermediate_size, cfg.hidden_size)
        shapes["model.norm.weight"] = (cfg.hidden_size,)
        if not cfg.tie_word_embeddings:
            shapes["lm_head.weight"] = (cfg.vocab_size, cfg.hidden_size)
        return shapes

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        shard = self._place.get(name)
        if shard is None:
            raise WeightsError(f"{self.model_dir} misses tensor {name}: the weights do not match config.json")
        file = self._files[shard]
        if name not in file:
            raise WeightsError(f"{file.path} misses tensor {name}, which {INDEX} places there")
        if file.shape(name) != shape:
            raise WeightsError(
                f"{file.path}: tensor {name} has shape {list(file.shape(name))}, "
                f"and config.json asks for {list(shape)}"
            )
        file.dtype(name)

    def dtype(self, name: str) -> str:
        return self._files[self._place[name]].dtype(name)

    def tensor(self, name: str) -> Array:
        """A read-only view in the tensor's carrier type (bfloat16 as uint16 bit patterns)."""
        return self._files[self._place[name]].tensor(name)

    def forget(self) -> None:
        """Unmap what has been read; it is read again when needed."""
        for file in self._files.values():
            file.forget()

    @property
    def lm_head_name(self) -> str:
        return "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"

    @property
    def stored_dtype(self) -> str:
        """The type config.json declares, or else that of the embedding."""
        declared = self.config.source_dtype
        return declared if declared in CARRIERS else self.dtype("model.embed_tokens.weight")
