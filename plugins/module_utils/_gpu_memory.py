# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory and disk a model needs, by its shape.

Private to the collection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional

MIB = 1024 * 1024
# CUDA context, NCCL and TensorRT's workspace and activations on each GPU.
OVERHEAD_MIB = 2560
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "auto": 2.0}


@dataclass(frozen=True)
class Model:
    """The shape of a decoder with attention and, for num_experts above 1, routed experts."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    num_experts: int = 1
    tied: bool = False

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden_size * self.head_size * (self.heads + self.kv_heads)
        experts = self.num_experts * 3 * self.hidden_size * self.intermediate_size
        router = self.hidden_size * self.num_experts if self.num_experts > 1 else 0
        layer = attention + experts + router + 2 * self.hidden_size
        return self.layers * layer + self.vocab_size * self.hidden_size * (1 if self.tied else 2) + self.hidden_size

    def weights_mib(self, bytes_each: float) -> int:
        return int(self.parameters * bytes_each / MIB)

    def kv_mib(self, tokens: int, tp_size: int, pp_size: int) -> int:
        """The key and value cache of so many tokens in 16 bits, on each GPU."""
        heads = max(1, self.kv_heads // tp_size)
        return 2 * -(-self.layers // pp_size) * heads * self.head_size * 2 * tokens // MIB

    def gpu_mib(self, bytes_each: float, tp_size: int, pp_size: int, tokens: int) -> int:
        """What each GPU must have at least: its share of the weights, one sequence's cache, and the overhead."""
        return int(
            self.weights_mib(bytes_each) / (tp_size * pp_size) + self.kv_mib(tokens, tp_size, pp_size) + OVERHEAD_MIB
        )


MIXTRAL_8X7B = Model(4096, 32, 32, 8, 128, 14336, 32000, 8)


def from_config(config: Mapping[str, Any]) -> Optional[Model]:
    """The shape in a Hugging Face config.json; None where it is no such model."""
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return Model(
            hidden_size=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            intermediate_size=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            num_experts=int(config.get("num_local_experts") or 1),
            tied=bool(config.get("tie_word_embeddings")),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def read_config(path: str) -> Optional[Model]:
    try:
        with open(path, encoding="utf-8") as stream:
            value: Any = json.load(stream)
    except (OSError, ValueError):
        return None
    return from_config(value) if isinstance(value, dict) else None


def _on(options: Mapping[str, Any], *names: str) -> bool:
    return any(str(options.get(name, "")).lower() in ("true", "yes", "1", "enable", "fp8") for name in names)


def wants_fp8(options: Mapping[str, Any]) -> bool:
    """Whether options of convert_checkpoint.py or trtllm-build ask for 8 bit floating point."""
    return _on(
        options, "use_fp8", "use_fp8_rowwise", "enable_fp8", "fp8_kv_cache", "gemm_plugin", "use_fp8_context_fmha"
    ) or "fp8" in str(options.get("gemm_swiglu_plugin", "")) + str(options.get("low_latency_gemm_plugin", ""))


def bytes_each(dtype: str, options: Mapping[str, Any]) -> float:
    """Bytes that a parameter takes in the checkpoint and the engine."""
    if _on(options, "use_nvfp4"):
        return 0.5625
    if _on(options, "use_weight_only"):
        precision = str(options.get("weight_only_precision") or "int8")
        return 0.55 if precision.startswith("int4") else 1.0
    if _on(options, "use_fp8", "use_fp8_rowwise", "use_qserve") or "smoothquant" in options:
        return 1.0
    return _BYTES.get(dtype, 2.0)


def space_mib(model: Model, dtype: str, options: Mapping[str, Any]) -> Dict[str, int]:
    """Disk that weights (as published, in 16 bits), checkpoint and engine take."""
    converted = model.weights_mib(bytes_each(dtype, options))
    return {"weights": model.weights_mib(2.0), "checkpoint": converted, "engine": converted}
