# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forward pass: every layout of ranks gives the same logits, and so does every way of packing tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrtllm_reference.model as model_module
from tensorrtllm_reference.engine_file import EngineFile
from tensorrtllm_reference.errors import EngineError
from tensorrtllm_reference.model import Chunk, MixtralModel, ModelConfig, linear

LAYOUTS = [
    (2, 1, None, None), (4, 1, None, None), (8, 1, None, None), (1, 2, None, None), (2, 2, None, None),
    (2, 1, 1, 2), (4, 1, 2, 2), (4, 1, 1, 4), (4, 1, 4, 1), (4, 2, 2, 2),
]


def all_logits(model: Any, prompt: list[int]) -> Any:
    return model.forward([Chunk(model.new_cache(len(prompt)), np.array(prompt))], [True])[0]


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    return bool(np.abs(actual - expected).max() <= tolerance * np.abs(expected).max())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_agree(layout: Any, model: Any, load_model: Callable[..., Any], prompts: list[list[int]]) -> None:
    sharded = load_model(*layout)
    assert sharded.config.mapping.world_size == layout[0] * layout[1]
    for prompt in prompts:
        assert close(all_logits(sharded, prompt), all_logits(model, prompt))


def test_ranks_hold_shares(make_engine: Callable[..., Path]) -> None:
    """Agreement would prove nothing if every rank held everything."""
    engine = EngineFile(make_engine(4, 1, 2, 2) / "rank3.engine")
    assert engine.shape("transformer.layers.0.attention.qkv.weight") == ((2 + 2) * 8, 64)
    assert engine.shape("transformer.layers.0.mlp.fc.weight") == (2, 2 * 32, 64)
    assert engine.shape("lm_head.weight")[0] == 128


def test_routing_matters(model: Any, prompts: list[list[int]]) -> None:
    """With distinct experts another choice of experts gives other logits."""
    before = all_logits(model, prompts[3])
    routers = [layer.router.copy() for layer in model._layers]
    layers = list(model._layers)
    try:
        model._layers[:] = [layer._replace(router=-router) for layer, router in zip(layers, routers)]
        assert not close(all_logits(model, prompts[3]), before, 1e-2)
    finally:
        model._layers[:] = layers


def test_token_by_token_is_the_whole_prompt(model: Any, prompts: list[list[int]]) -> None:
    prompt = prompts[3]
    cache = model.new_cache(len(prompt))
    parts = [model.forward([Chunk(cache, np.array(prompt[:7]))], [True])[0]]
    parts += [model.forward([Chunk(cache, np.array([token]))])[0] for token in prompt[7:]]
    assert close(np.concatenate(parts), all_logits(model, prompt))


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_query_blocks(block: int, model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = all_logits(model, prompts[5])
    monkeypatch.setattr(model_module, "QUERY_BLOCK", block)
    assert close(all_logits(model, prompts[5]), expected)


def test_packed_prefill_and_decode(model: Any, prompts: list[list[int]]) -> None:
    """Sequences in one step, some being decoded and some prefilled, do not see one another."""
    decoding, filling = prompts[3], prompts[5]
    cache = model.new_cache(len(decoding))
    model.forward([Chunk(cache, np.array(decoding[:-1]))])
    chunks = [Chunk(cache, np.array(decoding[-1:])), Chunk(model.new_cache(len(filling)), np.array(filling)),
              Chunk(model.new_cache(1), np.array(prompts[0]))]
    results = model.forward(chunks, [False, True, False])
    assert close(results[0], all_logits(model, decoding)[-1:])
    assert close(results[1], all_logits(model, filling))
    assert close(results[2], all_logits(model, prompts[0]))
    assert [len(result) for result in results] == [1, len(filling), 1]


def test_attention_window(model: Any, load_model: Callable[..., Any], prompts: list[list[int]]) -> None:
    """With a window, tokens before it do not matter in one layer, and the way of feeding does not either."""
    prompt = prompts[3]
    windowed = load_model(attention_window=4)
    whole = all_logits(windowed, prompt)
    assert close(whole[:4], all_logits(model, prompt)[:4])
    assert not close(whole[8:], all_logits(model, prompt)[8:], 1e-3)
    cache = windowed.new_cache(len(prompt))
    parts = [windowed.forward([Chunk(cache, np.array(prompt[:9]))], [True])[0]]
    parts += [windowed.forward([Chunk(cache, np.array([token]))])[0] for token in prompt[9:]]
    assert close(np.concatenate(parts), whole)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 40])
def test_linear(rows: int) -> None:
    random = np.random.default_rng(rows)
    weight = random.standard_normal((700, 300), dtype=np.float32)
    values = random.standard_normal((rows, 300), dtype=np.float32)
    assert close(linear(values, weight), values.astype(np.float64) @ weight.T.astype(np.float64))
    assert close(linear(values, weight[:3]), values.astype(np.float64) @ weight[:3].T.astype(np.float64))


class _Rank:
    """A rank in memory, with experts 0 and 1 stored as one."""

    def __init__(self, engine: EngineFile, shared: bool) -> None:
        self._engine, self._shared = engine, shared
        self.mapping = engine.mapping

    def __contains__(self, name: object) -> bool:
        return name in self._engine

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def tensor(self, name: str) -> Any:
        return self._engine.tensor(name)

    def experts(self, name: str) -> list[Any]:
        found = self._engine.experts(name)
        return [found[0], found[0].copy(), *found[2:]]

    def blob_ids(self, name: str) -> list[int]:
        ids = self._engine.blob_ids(name)
        return ids if len(ids) == 1 else [ids[0], ids[0] if self._shared else -1, *ids[2:]]


def test_shared_experts_are_computed_once(
    make_engine: Callable[..., Path], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_engine()
    config = ModelConfig.from_pretrained(json.loads((directory / "config.json").read_text())["pretrained_config"])
    engine = EngineFile(directory / "rank0.engine")
    shared, apart = (MixtralModel(config, [_Rank(engine, value)]) for value in (True, False))
    assert [experts.numbers for experts in shared._layers[0].shards[0].experts] == [[0, 1], [2], [3]]
    assert [experts.numbers for experts in apart._layers[0].shards[0].experts] == [[0], [1], [2], [3]]
    assert close(all_logits(shared, prompts[5]), all_logits(apart, prompts[5]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "LlamaForCausalLM"}, "does not support architecture 'LlamaForCausalLM'"),
        ({"hidden_act": "gelu"}, "does not support hidden_act 'gelu'"),
        ({"quantization": {"quant_algo": "FP8"}}, "does not support quant_algo 'FP8'"),
        ({"moe": {"num_experts": 4, "top_k": 2, "normalization_mode": 2}}, "normalization_mode 2"),
        ({"vocab_size": None}, "has a bad value in pretrained_config"),
    ],
)
def test_unsupported_models(change: dict[str, Any], message: str, make_engine: Callable[..., Path]) -> None:
    config = json.loads((make_engine() / "config.json").read_text())["pretrained_config"]
    with pytest.raises(EngineError, match=message):
        ModelConfig.from_pretrained({**config, **change})
    del config["norm_epsilon"]
    with pytest.raises(EngineError, match="no 'norm_epsilon'"):
        ModelConfig.from_pretrained(config)
