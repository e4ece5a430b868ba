# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrtllm_reference import tiny
from tensorrtllm_reference.hf import MixtralWeights
from tokenizers import Tokenizer

Tool = Callable[..., Any]


def test_the_same_options_give_the_same_bytes(tmp_path: Path, tiny_dir: Path, tiny_factory: Tool) -> None:
    again = tiny_factory(tmp_path / "again", shards=3)
    names = sorted(path.name for path in tiny_dir.iterdir())
    assert sorted(path.name for path in again.iterdir()) == names
    for name in names:
        assert (again / name).read_bytes() == (tiny_dir / name).read_bytes(), name
    other = tiny_factory(tmp_path / "other", shards=3, seed=1)
    shard = "model-00001-of-00003.safetensors"
    assert (other / shard).read_bytes() != (tiny_dir / shard).read_bytes()
    assert (other / "tokenizer.json").read_bytes() == (tiny_dir / "tokenizer.json").read_bytes()


def test_experts_are_distinct(tiny_dir: Path) -> None:
    weights = MixtralWeights(tiny_dir)
    for layer in range(2):
        prefix = f"model.layers.{layer}.block_sparse_moe.experts."
        stack = [weights.tensor(f"{prefix}{expert}.w1.weight").tobytes() for expert in range(8)]
        assert len(set(stack)) == 8


@pytest.mark.parametrize("vocab", [259, 300, 512, 2000])
def test_tokenizer_encodes_everything_and_back(vocab: int) -> None:
    tokenizer = tiny.make_tokenizer(vocab)
    assert tokenizer.get_vocab_size() == vocab
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab))
    every_byte = "".join(chr(number) for number in range(1, 0x300))
    for text in ["", "a", " ", "What is machine learning?", "  two  spaces\n\ttab ", "日本語 \U0001f600 é", every_byte]:
        encoded = tokenizer.encode(text)
        assert tokenizer.decode(encoded.ids) == text
        assert all(0 <= number < vocab for number in encoded.ids)
    assert tokenizer.encode("<|im_end|>").ids == [2]


def test_merges_are_used() -> None:
    assert len(tiny.make_tokenizer(512).encode("What is machine learning?").ids) < 10
    assert len(tiny.make_tokenizer(259).encode("What is machine learning?").ids) == 25


def test_tokenizer_files(tiny_dir: Path) -> None:
    config = json.loads((tiny_dir / "tokenizer_config.json").read_text())
    model = json.loads((tiny_dir / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(tiny_dir / "tokenizer.json"))
    assert tokenizer.token_to_id(config["eos_token"]) == model["eos_token_id"] == 2
    assert tokenizer.token_to_id(config["bos_token"]) == model["bos_token_id"] == 0
    assert tokenizer.get_vocab_size() == model["vocab_size"]


def test_options_reach_the_model(tmp_path: Path, run_tool: Tool) -> None:
    words = "--hidden 48 --layers 3 --heads 6 --kv_heads 2 --head_dim 10 --experts 4 --top_k 1 --inter 32 --vocab 300"
    words += " --max_position 64 --dtype bfloat16 --seed 7 --tie_embeddings"
    outcome = run_tool(tiny.main, "--output_dir", tmp_path / "ü t", *words.split())
    assert outcome.code == 0, outcome.err
    weights = MixtralWeights(tmp_path / "ü t")
    config = weights.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 3, 6)
    assert (config.num_key_value_heads, config.head_size, config.num_experts, config.top_k) == (2, 10, 4, 1)
    assert (config.intermediate_size, config.vocab_size, config.max_position_embeddings) == (32, 300, 64)
    assert config.tie_word_embeddings and weights.stored_dtype == "bfloat16"


def test_writing_again_leaves_nothing_stale(tmp_path: Path, tiny_factory: Tool) -> None:
    tiny_factory(tmp_path, shards=4)
    tiny_factory(tmp_path, shards=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--vocab 258", "--vocab 258 is too small: 259 are needed"),
        ("--heads 6 --kv_heads 4", "--heads 6 is not a multiple of --kv_heads 4"),
        ("--top_k 9", "--top_k 9 is more than --experts 8"),
        ("--hidden 60", "--hidden 60 is not a multiple of --heads 8"),
        ("--hidden 72", "the size of a head must be even, but is 9"),
        ("--layers 0", "--layers must be a positive integer, but is 0"),
    ],
)
def test_impossible_models(tmp_path: Path, run_tool: Tool, words: str, message: str) -> None:
    outcome = run_tool(tiny.main, "--output_dir", tmp_path / "out", *words.split())
    assert outcome.code == 1 and outcome.last.startswith(f"ValueError: {message}")
    assert not (tmp_path / "out").exists()


def _silu(values: np.ndarray) -> np.ndarray:
    return values / (1 + np.exp(-values))


def _forward(weights: MixtralWeights, ids: list[int]) -> np.ndarray:
    """Logits of the last token: the textbook's Mixtral, without a cache."""
    cfg = weights.config
    hidden = weights.tensor("model.embed_tokens.weight")[ids].astype(np.float64)
    length, head = len(ids), cfg.head_size
    angles = np.outer(np.arange(length), cfg.rotary_base ** (-np.arange(0, head, 2) / head))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(values: np.ndarray, name: str) -> np.ndarray:
        scaled = values / np.sqrt((values**2).mean(-1, keepdims=True) + cfg.norm_epsilon)
        return np.asarray(scaled * weights.tensor(name))

    def rotate(values: np.ndarray) -> np.ndarray:
        left, right = values[..., : head // 2], values[..., head // 2 :]
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)

    for layer in range(cfg.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        rows = norm(hidden, prefix + "input_layernorm.weight")
        q, k, v = (
            (rows @ weights.tensor(f"{prefix}self_attn.{part}_proj.weight").T).reshape(length, -1, head)
            for part in "qkv"
        )
        group = cfg.num_attention_heads // cfg.num_key_value_heads
        k, v = np.repeat(rotate(k), group, 1), np.repeat(v, group, 1)
        scores = np.einsum("ihd,jhd->hij", rotate(q), k) / np.sqrt(head)
        scores += np.triu(np.full((length, length), -np.inf), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v).reshape(length, -1)
        hidden = hidden + mixed @ weights.tensor(prefix + "self_attn.o_proj.weight").T
        rows = norm(hidden, prefix + "post_attention_layernorm.weight")
        moe = prefix + "block_sparse_moe."
        router = rows @ weights.tensor(moe + "gate.weight").T
        for token in range(length):
            best = np.argsort(-router[token])[: cfg.top_k]
            share = np.exp(router[token][best] - router[token].max())
            for expert, weight in zip(best, share / share.sum()):
                w1, w2, w3 = (weights.tensor(f"{moe}experts.{expert}.w{number}.weight") for number in (1, 2, 3))
                hidden[token] += weight * ((_silu(rows[token] @ w1.T) * (rows[token] @ w3.T)) @ w2.T)
    last = norm(hidden[-1:], "model.norm.weight")
    return np.asarray((last @ weights.tensor(weights.lm_head_name).T)[0])


def test_greedy_decoding_wanders(tiny_dir: Path) -> None:
    """Tests that compare texts need texts: neither one token for ever, nor the same ones for every prompt."""
    weights = MixtralWeights(tiny_dir)
    tokenizer = Tokenizer.from_file(str(tiny_dir / "tokenizer.json"))
    texts = []
    for prompt in ("What is machine learning?", "Hello", "a"):
        ids = tokenizer.encode(prompt).ids
        start = len(ids)
        for _ in range(16):
            logits = _forward(weights, ids)
            assert 1 < logits.std() < 10
            ids.append(int(logits.argmax()))
        assert len(set(ids[start:])) >= 10 and 2 not in ids[start:]
        texts.append(tuple(ids[start:]))
    assert len(set(texts)) == 3


def test_a_model_takes_less_than_a_second(tmp_path: Path, tiny_factory: Tool) -> None:
    started = time.process_time()
    tiny_factory(tmp_path)
    assert time.process_time() - started < 1
