# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model files that Triton loads, driven as Triton drives them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BACKEND = "backends/tensorrtllm/model.py"
MODELS = "all_models/inflight_batcher_llm/"
OUTPUTS = {
    "output_ids": "TYPE_INT32", "sequence_length": "TYPE_INT32", "cum_log_probs": "TYPE_FP32",
    "output_log_probs": "TYPE_FP32", "context_logits": "TYPE_FP16", "generation_logits": "TYPE_FP32",
    "batch_index": "TYPE_INT32", "sequence_index": "TYPE_INT32", "arrival_time_ns": "TYPE_INT64",
    "first_token_time_ns": "TYPE_INT64", "last_token_time_ns": "TYPE_INT64",
    "kv_cache_alloc_total_blocks": "TYPE_INT32",
    "acceptance_rate": "TYPE_FP32", "num_input_tokens": "TYPE_INT32", "num_output_tokens": "TYPE_INT32",
}
PROMPT = [5, 6, 7]


def config(
    parameters: dict[str, str], *, decoupled: bool = False, outputs: dict[str, str] | None = None
) -> dict[str, str]:
    return {
        "model_name": "m", "model_version": "1",
        "model_config": json.dumps({
            "max_batch_size": 4,
            "model_transaction_policy": {"decoupled": decoupled},
            "output": [{"name": name, "data_type": kind} for name, kind in (outputs or OUTPUTS).items()],
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        }),
    }


class Served:
    """A backend instance and the requests to it."""

    def __init__(self, model: Any, triton: Any) -> None:
        self.model, self._triton = model, triton

    def request(self, prompts: list[list[int]], length: int, request_id: str = "", **inputs: Any) -> Any:
        width = max(len(prompt) for prompt in prompts)
        batch = len(prompts)
        given = {
            "input_ids": np.array([prompt + [0] * (width - len(prompt)) for prompt in prompts], np.int32),
            "input_lengths": np.array([len(prompt) for prompt in prompts], np.int32),
            "request_output_len": np.array([length] * batch, np.int32),
        }
        for name, value in inputs.items():
            array = np.array(value)
            given[name] = array if array.ndim > 1 else np.broadcast_to(array.reshape(-1)[:1], (batch,))
        return self._triton.Request(given, list(self.model.outputs), request_id)

    def ask(self, prompts: list[list[int]], length: int, **inputs: Any) -> list[Any]:
        request = self.request(prompts, length, **inputs)
        assert self.model.execute([request]) is None
        return request.sender.all()

    def error(self, prompts: list[list[int]], length: int, **inputs: Any) -> str:
        (response,) = self.ask(prompts, length, **inputs)
        assert response.has_error()
        return str(response.error().message())


@pytest.fixture
def serve(load_triton_model: Any, triton: Any, make_engine: Callable[..., Path]) -> Iterator[Callable[..., Served]]:
    running = []

    def start(*, decoupled: bool = False, engine: Path | None = None, **parameters: str) -> Served:
        model = load_triton_model(BACKEND)
        running.append(model)
        model.initialize(config({
            "gpt_model_type": "inflight_fused_batching", "gpt_model_path": str(engine or make_engine()),
            "tokenizer_dir": "", "guided_decoding_backend": "", "xgrammar_tokenizer_info_path": "",
            "exclude_input_in_output": "true", **parameters,
        }, decoupled=decoupled))
        return Served(model, triton)

    yield start
    for model in running:
        model.finalize()


def test_one_answer(serve: Any, greedy: Any) -> None:
    (response,) = serve().ask([PROMPT], 6)
    arrays = response.arrays()
    assert arrays["output_ids"].tolist() == [[greedy(PROMPT, 6)]]
    assert arrays["sequence_length"].tolist() == [[6]]
    assert set(arrays) == set(OUTPUTS)
    assert {name: array.dtype.name for name, array in arrays.items() if name.endswith("logits")} == {
        "context_logits": "float16", "generation_logits": "float32"}
    for name in set(OUTPUTS) - {"output_ids", "sequence_length"}:
        assert not arrays[name].any(), f"{name} was not asked for and is not zero"


def test_only_requested_outputs(serve: Any, triton: Any) -> None:
    served = serve()
    request = served.request([PROMPT], 2)
    request._outputs = ["output_ids"]
    served.model.execute([request])
    assert list(request.sender.all()[0].arrays()) == ["output_ids"]


def test_input_in_output(serve: Any, greedy: Any) -> None:
    expected = PROMPT + greedy(PROMPT, 2)
    served = serve(exclude_input_in_output="false")
    arrays = served.ask([PROMPT], 2)[0].arrays()
    assert arrays["output_ids"].tolist() == [[expected]]
    assert arrays["sequence_length"].tolist() == [[5]]
    arrays = served.ask([PROMPT], 2, exclude_input_in_output=True)[0].arrays()
    assert arrays["output_ids"].tolist() == [[expected[3:]]]


def test_batch_in_one_request(serve: Any, greedy: Any) -> None:
    prompts = [PROMPT, [9], [11, 12]]
    end = greedy(prompts[1], 4)[2]
    expected = [greedy(prompt, 4) for prompt in prompts]
    expected = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in expected]
    (response,) = serve().ask(prompts, 4, end_id=end)
    arrays = response.arrays()
    lengths = arrays["sequence_length"][:, 0].tolist()
    assert [row[0][:length] for row, length in zip(arrays["output_ids"].tolist(), lengths)] == expected
    assert arrays["batch_index"].tolist() == [[0], [1], [2]]
    responses = serve(decoupled=True).ask(prompts, 4, end_id=end)
    found = {int(r.arrays()["batch_index"][0, 0]): r.arrays()["output_ids"].tolist()[0][0] for r in responses}
    assert found == dict(enumerate(expected))


def test_streaming(serve: Any, greedy: Any) -> None:
    server = serve(decoupled=True, exclude_input_in_output="false")
    responses = server.ask([PROMPT], 5, streaming=True, return_num_output_tokens=True)
    assert [r.arrays()["output_ids"].tolist() for r in responses] == [[[[token]]] for token in greedy(PROMPT, 5)]
    assert [int(r.arrays()["num_output_tokens"][0, 0]) for r in responses] == [1, 2, 3, 4, 5]


def test_streaming_with_context_for_the_text(serve: Any, greedy: Any) -> None:
    expected = greedy(PROMPT, 3)
    responses = serve(decoupled=True).ask([PROMPT], 3, streaming=True, decoder_input_lengths=0,
                                          decoder_input_ids=[[0]])
    rows = [r.arrays()["output_ids"][0, 0].tolist() for r in responses]
    assert rows == [[expected[0], -1, 0], [expected[1], -1, 0, expected[0]], [expected[2], -1, 1, *expected[:2]]]
    assert [r.arrays()["sequence_length"].tolist() for r in responses] == [[[1]]] * 3


def test_streaming_needs_decoupled(serve: Any) -> None:
    assert serve().error([PROMPT], 4, streaming=True) == (
        "Streaming is only supported if model is deployed using decoupled mode."
    )


@pytest.mark.parametrize(("seed", "minimum"), [("seed", "min_tokens"), ("random_seed", "min_length")])
def test_names_of_both_interfaces(seed: str, minimum: str, serve: Any, greedy: Any) -> None:
    served = serve()
    drawn = [served.ask([PROMPT], 8, runtime_top_p=np.float32(1.0), temperature=np.float32(3.0),
                        **{seed: np.uint64(number)})[0].arrays()["output_ids"].tolist() for number in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    end = greedy(PROMPT, 1)[0]
    assert served.ask([PROMPT], 4, end_id=end)[0].arrays()["sequence_length"].tolist() == [[0]]
    held = served.ask([PROMPT], 4, end_id=end, **{minimum: 3})[0].arrays()
    assert held["sequence_length"][0, 0] >= 3


def test_every_sampling_option_arrives(serve: Any, greedy: Any) -> None:
    served = serve()
    base = served.ask([PROMPT], 8)[0].arrays()["output_ids"].tolist()
    sampled = served.ask([PROMPT], 8, runtime_top_k=50, temperature=np.float32(9.0))[0].arrays()["output_ids"].tolist()
    assert sampled != base
    assert served.ask([PROMPT], 8, runtime_top_k=1)[0].arrays()["output_ids"].tolist() == base
    first = base[0][0][0]
    for inputs in ({"repetition_penalty": np.float32(50.0)}, {"presence_penalty": np.float32(50.0)},
                   {"frequency_penalty": np.float32(50.0)}):
        tokens = served.ask([PROMPT], 8, **inputs)[0].arrays()["output_ids"].tolist()[0][0]
        assert len(set(tokens)) == 8, inputs
    banned = served.ask([PROMPT], 8, bad_words_list=[[[first], [1]]])[0].arrays()["output_ids"].tolist()
    assert first not in banned[0][0]
    stopped = served.ask([PROMPT], 8, stop_words_list=[[base[0][0][1:3], [2, -1]]])[0].arrays()
    assert stopped["output_ids"].tolist() == [[base[0][0][:3]]]


def test_log_probs(serve: Any) -> None:
    arrays = serve().ask([PROMPT], 4, return_log_probs=True)[0].arrays()
    assert arrays["output_log_probs"].shape == (1, 1, 4)
    assert (arrays["output_log_probs"] < 0).all()
    assert arrays["cum_log_probs"][0, 0] == pytest.approx(arrays["output_log_probs"].sum(), abs=1e-4)


def test_logits(serve: Any, make_engine: Callable[..., Path], tmp_path: Path) -> None:
    engine = Path(shutil.copytree(make_engine(), tmp_path / "engine"))
    config_json = json.loads((engine / "config.json").read_text())
    config_json["build_config"].update(gather_context_logits=True, gather_generation_logits=True)
    (engine / "config.json").write_text(json.dumps(config_json))
    served = serve(engine=engine)
    arrays = served.ask([PROMPT], 4, return_context_logits=True, return_generation_logits=True)[0].arrays()
    assert arrays["context_logits"].shape == (1, 3, 512)
    assert arrays["generation_logits"].shape == (1, 1, 4, 512)
    assert arrays["generation_logits"][0, 0].argmax(axis=1).tolist() == arrays["output_ids"][0, 0].tolist()


def test_statistics(serve: Any) -> None:
    arrays = serve().ask([PROMPT], 4, return_perf_metrics=True, return_num_input_tokens=True,
                         return_num_output_tokens=True)[0].arrays()
    times = [int(arrays[f"{name}_time_ns"][0, 0]) for name in ("arrival", "first_token", "last_token")]
    assert 0 < times[0] < times[1] < times[2]
    assert arrays["kv_cache_alloc_total_blocks"].tolist() == [[1]]
    assert arrays["num_input_tokens"].tolist() == [[3]]
    assert arrays["num_output_tokens"].tolist() == [[4]]


REFUSED = {
    "beam_width": (2, "beam_width 2 is not supported: the CPU runtime supports only 1"),
    "num_return_sequences": (3, "num_return_sequences 3 is not supported"),
    "lora_task_id": (np.uint64(1), "lora_task_id is not supported: the CPU runtime has no LoRA; leave it out"),
    "prompt_vocab_size": (8, "prompt_vocab_size is not supported: the CPU runtime has no prompt tuning"),
    "embedding_bias": ([[0.5]], "embedding_bias is not supported"),
    "draft_input_ids": ([[4]], "draft_input_ids is not supported: the CPU runtime has no speculative decoding"),
    "guided_decoding_guide": ([[b"x"]], "guided_decoding_guide is not supported: the CPU runtime has no guided"),
    "decoder_input_ids": ([[4]], "decoder_input_ids is not supported"),
    "runtime_top_p_decay": (0.5, "runtime_top_p_decay is not supported"),
    "return_context_logits": (True, "return_context_logits needs an engine built with gather_context_logits"),
    "runtime_top_k": (-4, "top_k is -4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, serve: Any) -> None:
    value, message = REFUSED[name]
    assert message in serve().error([PROMPT], 4, **{name: value})


def test_a_bad_request_does_not_disturb_others(serve: Any, greedy: Any) -> None:
    served = serve()
    bad, good = served.request([PROMPT], 400), served.request([PROMPT], 4)
    served.model.execute([bad, good])
    assert "which exceeds the engine's max_seq_len (64)" in bad.sender.all()[0].error().message()
    assert good.sender.all()[0].arrays()["output_ids"].tolist() == [[greedy(PROMPT, 4)]]


def test_empty_tensors_mean_none(serve: Any, greedy: Any) -> None:
    arrays = serve().ask([PROMPT], 2, embedding_bias=np.zeros((1, 0)), lora_config=np.zeros((1, 0, 3)))[0].arrays()
    assert arrays["output_ids"].tolist() == [[greedy(PROMPT, 2)]]


def test_cancelled_by_the_client(serve: Any) -> None:
    served = serve(decoupled=True, cancellation_check_period_ms="0")
    request = served.request([PROMPT], 60, streaming=True)
    request.sender.cancelled = True
    served.model.execute([request])
    assert len(request.sender.all()) < 5
    assert served.model.runtime.pool.used_blocks == 0


def test_stopped_by_id(serve: Any) -> None:
    served = serve(decoupled=True)
    released = served.model.runtime.model.forward
    stop = served.request([PROMPT], 1, "job", stop=True)

    def forward(*arguments: Any) -> Any:
        # The stop request arrives while the first step runs.
        served.model.execute([stop])
        return released(*arguments)

    served.model.runtime.model.forward = forward
    request = served.request([PROMPT], 60, "job", streaming=True)
    served.model.execute([request])
    last = request.sender.all()[-1].arrays()
    assert last["sequence_length"].tolist() == [[0]], "ends normally, with what it has"
    assert stop.sender.queue.get_nowait()[1]
    assert "needs the request id" in served.error([PROMPT], 1, stop=True)


def test_nothing_reaches_triton_after_the_final_response(triton: Any) -> None:
    from tensorrtllm_reference.responses import Sender

    raw = triton.Request({}, []).sender
    sender = Sender(raw, 1)
    assert not sender.is_cancelled()
    sender.send(triton.InferenceResponse(), final=True)
    sender.send(triton.InferenceResponse(), final=True)
    assert sender.is_cancelled()
    assert len(raw.all()) == 1


def test_metrics(serve: Any, triton: Any) -> None:
    served = serve(stats_check_period_ms="0")
    served.ask([PROMPT], 4)
    served.model.finalize()
    families = triton.MetricFamily.all
    assert families["nv_trt_llm_request_metrics"]["1", "m", "max"] == 4
    assert ("1", "m", "waiting") in families["nv_trt_llm_request_metrics"]
    assert families["nv_trt_llm_kv_cache_block_metrics"]["1", "m", "tokens_per"] == 16
    assert families["nv_trt_llm_general_metrics"]["1", "iteration_counter", "m"] == 4
    assert {"nv_trt_llm_runtime_memory_metrics", "nv_trt_llm_inflight_batcher_metrics"} <= set(families)


# Preprocessing and postprocessing.

PREPROCESSED = ["INPUT_ID", "REQUEST_INPUT_LEN", "DECODER_INPUT_ID", "REQUEST_DECODER_INPUT_LEN", "BAD_WORDS_IDS",
                "STOP_WORDS_IDS", "EMBEDDING_BIAS", "REQUEST_OUTPUT_LEN", "OUT_END_ID", "OUT_PAD_ID"]


def texts(*rows: Any) -> Any:
    return np.array([[part.encode() if isinstance(part, str) else part for part in row] for row in rows], object)


@pytest.fixture
def preprocess(load_triton_model: Any, triton: Any, hf_dir: Path) -> Callable[..., Any]:
    model = load_triton_model(MODELS + "preprocessing/1/model.py")
    model.initialize(config({"tokenizer_dir": str(hf_dir), "add_special_tokens": "${add_special_tokens}"}))

    def run(query: Any, **inputs: Any) -> Any:
        given = {"QUERY": query, "REQUEST_OUTPUT_LEN": np.full((len(query), 1), 4, np.int32), **inputs}
        return model.execute([triton.Request(given, PREPROCESSED)])[0]

    return run


@pytest.fixture
def tokenizer(hf_dir: Path) -> Any:
    from tensorrtllm_reference.text import Tokenizer

    return Tokenizer(str(hf_dir))


def test_preprocessing(preprocess: Any, tokenizer: Any) -> None:
    long, short = "What is machine learning?", "naïve ✓"
    arrays = preprocess(texts([long], [short])).arrays()
    lengths = arrays["REQUEST_INPUT_LEN"][:, 0].tolist()
    for row, text, length in zip(arrays["INPUT_ID"].tolist(), (long, short), lengths):
        assert row[:length] == tokenizer.encode(text, special=True)
        assert set(row[length:]) <= {tokenizer.pad_id}
    assert arrays["OUT_END_ID"].tolist() == [[tokenizer.end_id]] * 2
    assert arrays["REQUEST_OUTPUT_LEN"].tolist() == [[4], [4]]
    assert arrays["REQUEST_DECODER_INPUT_LEN"].tolist() == [[0], [0]]
    assert arrays["STOP_WORDS_IDS"].tolist() == [[[0], [-1]]] * 2


def test_preprocessing_words_and_ids(preprocess: Any, tokenizer: Any) -> None:
    arrays = preprocess(texts(["a"]), STOP_WORDS_DICT=texts(["", "end", "zz"]), BAD_WORDS_DICT=texts([""]),
                        END_ID=np.array([[7]], np.int32), PAD_ID=np.array([[8]], np.int32)).arrays()
    from tensorrtllm_reference.words import from_tensor

    assert from_tensor(arrays["STOP_WORDS_IDS"][0], "w") == [tokenizer.encode(w, special=False) for w in ("end", "zz")]
    assert from_tensor(arrays["BAD_WORDS_IDS"][0], "w") == []
    assert arrays["OUT_END_ID"].tolist() == [[7]]
    assert arrays["OUT_PAD_ID"].tolist() == [[8]]


@pytest.mark.parametrize(
    ("query", "inputs", "message"),
    [
        (texts([""]), {}, "text_input is empty"),
        (texts([b"\xff"]), {}, "the text is not UTF-8 at byte 0"),
        (texts(["a"]), {"DECODER_QUERY": texts(["b"])}, "decoder_text_input is not supported"),
        (texts(["a"]), {"EMBEDDING_BIAS_WORDS": texts(["b"])}, "embedding_bias_words is not supported"),
        (texts(["a"]), {"IMAGE_URL": texts(["b"])}, "IMAGE_URL is not supported: the CPU runtime has no multimodal"),
    ],
)
def test_preprocessing_errors(query: Any, inputs: Any, message: str, preprocess: Any) -> None:
    if message.startswith("text_input is empty"):
        response = preprocess(query)
        # A tokenizer that adds special tokens makes something of an empty text.
        assert response.has_error() or response.arrays()["REQUEST_INPUT_LEN"][0, 0] > 0
        return
    response = preprocess(query, **inputs)
    assert response.has_error()
    assert message in response.error().message()


def test_empty_strings_mean_none(preprocess: Any) -> None:
    assert not preprocess(texts(["a"]), EMBEDDING_BIAS_WORDS=texts([""]), DECODER_QUERY=texts([""])).has_error()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unset", "tokenizer_dir is not set"),
        ("nowhere", "tokenizer_dir .* is not a directory"),
        ("empty", "has no tokenizer.json"),
        ("no config", "has no tokenizer_config.json"),
        ("no eos", "has no eos_token"),
        ("foreign eos", "names eos_token '<nope>', which tokenizer.json does not know"),
        ("damaged", "tokenizer.json cannot be read"),
    ],
)
def test_tokenizer_errors(change: str, message: str, load_triton_model: Any, hf_dir: Path, tmp_path: Path) -> None:
    from tensorrtllm_reference.text import TokenizerError

    directory = tmp_path / "t"
    if change != "nowhere":
        directory.mkdir()
    if change in ("no config", "no eos", "foreign eos", "damaged"):
        (directory / "tokenizer.json").write_bytes((hf_dir / "tokenizer.json").read_bytes())
    if change in ("no eos", "foreign eos"):
        (directory / "tokenizer_config.json").write_text(
            "{}" if change == "no eos" else '{"eos_token": {"content": "<nope>"}}')
    if change == "damaged":
        (directory / "tokenizer.json").write_text("{")
    parameter = "${tokenizer_dir}" if change == "unset" else str(directory)
    for name in ("preprocessing", "postprocessing"):
        with pytest.raises(TokenizerError, match=message):
            load_triton_model(MODELS + f"{name}/1/model.py").initialize(config({"tokenizer_dir": parameter}))


@pytest.fixture
def postprocess(load_triton_model: Any, triton: Any, hf_dir: Path) -> Callable[..., Any]:
    def run(tokens: Any, lengths: Any, skip: str = "${skip_special_tokens}", **inputs: Any) -> Any:
        model = load_triton_model(MODELS + "postprocessing/1/model.py")
        model.initialize(config({"tokenizer_dir": str(hf_dir), "skip_special_tokens": skip}))
        given = {"TOKENS_BATCH": np.array(tokens, np.int32), "SEQUENCE_LENGTH": np.array(lengths, np.int32), **inputs}
        wanted = ["OUTPUT", *(f"OUT_{name}" for name in inputs)]
        return model.execute([triton.Request(given, wanted)])[0].arrays()

    return run


def test_postprocessing(postprocess: Any, tokenizer: Any) -> None:
    ids = tokenizer.encode("hello ✓ there", special=False)
    arrays = postprocess([[[*ids, 9, 9]], [[*ids[:2], tokenizer.end_id, *[9] * (len(ids) - 1)]]], [[len(ids)], [3]])
    assert arrays["OUTPUT"].tolist() == [["hello ✓ there".encode()],
                                         [tokenizer.decode(ids[:2], skip_special=True).encode()]]
    kept = postprocess([[[*ids, tokenizer.end_id]]], [[len(ids) + 1]], skip="false")
    assert kept["OUTPUT"][0, 0] == tokenizer.decode([*ids, tokenizer.end_id], skip_special=False).encode()
    assert kept["OUTPUT"][0, 0] != "hello ✓ there".encode()


def test_postprocessing_passes_log_probs(postprocess: Any) -> None:
    arrays = postprocess([[[5]]], [[1]], CUM_LOG_PROBS=np.array([[-1.5]], np.float32))
    assert arrays["OUT_CUM_LOG_PROBS"].tolist() == [[-1.5]]


@pytest.mark.parametrize("text", [" leading space", "two  spaces", "naïve ✓ 日本語 🎉🎉", "a\nb", "tail 🎉"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_streamed_pieces_are_the_text(text: str, size: int, postprocess: Any, tokenizer: Any) -> None:
    from tensorrtllm_reference.detokenize import CONTEXT_TOKENS, with_context

    ids = tokenizer.encode(text, special=False)
    assert len(ids) > 1
    pieces = []
    for begin in range(0, len(ids), size):
        new = ids[begin : begin + size]
        row = with_context(new, ids[:begin][-CONTEXT_TOKENS:], begin + size >= len(ids))
        pieces.append(postprocess([[row]], [[len(new)]])["OUTPUT"][0, 0].decode())
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=True)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_cut_character_is_kept_at_the_end(postprocess: Any, tokenizer: Any) -> None:
    from tensorrtllm_reference.detokenize import with_context

    ids = tokenizer.encode("x🎉", special=False)[:-1]
    rows = [with_context([token], ids[:number], False) for number, token in enumerate(ids)]
    rows.append(with_context([], ids, True))
    pieces = [postprocess([[row]], [[len(row) - 2 - min(n, len(ids))]])["OUTPUT"][0, 0].decode()
              for n, row in enumerate(rows)]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=True)
    assert pieces[-1].endswith("\ufffd")
    assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_decoders_that_join_bytes() -> None:
    """Byte fallback decodes a run of bytes as a whole: while its end is cut, all of it is unreadable."""
    from tensorrtllm_reference.detokenize import Streamed, piece

    def decode(ids: list[int]) -> str:
        try:
            return bytes(ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(ids)

    ids = list("é🎉é".encode())
    last = len(ids) - 1
    pieces = [piece(decode, Streamed([token], ids[:number], number == last)) for number, token in enumerate(ids)]
    assert pieces == ["", "é", "", "", "", "🎉", "", "é"]


# The ensemble as one model.


class Inner:
    """The models that BLS calls: canned preprocessing and postprocessing, and an engine that waits to be stopped."""

    def __init__(self, triton: Any) -> None:
        self.triton, self.calls, self.stopped = triton, [], threading.Event()
        self.answers: list[Any] = []
        self.waits = False

    def __call__(
        self, *, model_name: str, requested_output_names: list[str], inputs: list[Any], request_id: str
    ) -> Any:
        call = {tensor.name(): tensor.as_numpy() for tensor in inputs}
        self.calls.append((model_name, call, request_id))
        inner = self

        class Request:
            def exec(self, decoupled: bool = False) -> Any:
                assert decoupled == (model_name == "llm")
                return inner.llm(call, request_id) if decoupled else inner.step(model_name, call)

        return Request()

    def step(self, name: str, call: dict[str, Any]) -> Any:
        make = self.triton.Tensor
        if name == "postprocessing":
            rows = zip(call["TOKENS_BATCH"].tolist(), call["SEQUENCE_LENGTH"].tolist())
            texts = [["-".join(map(str, row[0][: length[0]])).encode()] for row, length in rows]
            return self.triton.InferenceResponse([make("OUTPUT", np.array(texts, object))])
        if call["QUERY"][0, 0] == b"bad":
            return self.triton.InferenceResponse(error=self.triton.TritonError("no such text"))
        one = np.ones((1, 1), np.int32)
        return self.triton.InferenceResponse([make(name, one) for name in PREPROCESSED])

    def llm(self, call: dict[str, Any], request_id: str) -> Any:
        if "stop" in call:
            self.stopped_id = request_id
            self.stopped.set()
            return
        for tokens in self.answers:
            if isinstance(tokens, str):
                yield self.triton.InferenceResponse(error=self.triton.TritonError(tokens))
                raise AssertionError("asked for more after an error: Triton would wait for ever")
            yield self.triton.InferenceResponse([
                self.triton.Tensor("output_ids", np.array([[tokens]], np.int32)),
                self.triton.Tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
                self.triton.Tensor("cum_log_probs", np.array([[-2.0]], np.float32)),
            ])
            if self.waits:
                assert self.stopped.wait(20), "the inner request was not stopped"


@pytest.fixture
def bls(load_triton_model: Any, triton: Any) -> Iterator[Callable[..., Any]]:
    running = []

    def start(*, decoupled: bool, **parameters: str) -> tuple[Any, Inner]:
        inner = triton.InferenceRequest = Inner(triton)
        model = load_triton_model(MODELS + "tensorrt_llm_bls/1/model.py")
        model.initialize(config({"tensorrt_llm_model_name": "llm", **parameters}, decoupled=decoupled,
                                outputs={"text_output": "TYPE_STRING", "cum_log_probs": "TYPE_FP32"}))
        running.append(model)
        return model, inner

    yield start
    for model in running:
        model.finalize()


def ask_bls(model: Any, triton: Any, text: str = "a", **inputs: Any) -> Any:
    given = {"text_input": texts([text]), "max_tokens": np.array([[4]], np.int32), **inputs}
    request = triton.Request(given, ["text_output", "cum_log_probs"])
    assert model.execute([request]) is None
    return request


def outputs(request: Any) -> list[str]:
    return [response.arrays()["text_output"][0, 0].decode() for response in request.sender.all()]


STREAM = {"stream": np.array([True])}


def test_bls_one_answer(bls: Any, triton: Any) -> None:
    model, inner = bls(decoupled=False)
    inner.answers = [[4, 5]]
    given = {"top_k": np.array([[7]]), "return_log_probs": np.array([True])}
    (response,) = ask_bls(model, triton, **given).sender.all()
    assert response.arrays()["text_output"][0, 0] == b"4-5"
    assert response.arrays()["cum_log_probs"].tolist() == [[-2.0]]
    called = {name: call for name, call, _ in inner.calls}
    assert called["llm"]["runtime_top_k"].tolist() == [[7]]
    assert called["llm"]["return_log_probs"].tolist() == [[True]], "inputs that were reshaped get their batch back"
    assert called["preprocessing"]["REQUEST_OUTPUT_LEN"].tolist() == [[4]]
    assert {"input_ids", "end_id", "stop_words_list", "decoder_input_lengths"} <= set(called["llm"])


def test_bls_streams(bls: Any, triton: Any) -> None:
    model, inner = bls(decoupled=True)
    inner.answers = [[4], [5], [6]]
    assert outputs(ask_bls(model, triton, **STREAM)) == ["4", "5", "6"]


def test_bls_accumulates(bls: Any, triton: Any) -> None:
    model, inner = bls(decoupled=True, accumulate_tokens="true")
    inner.answers = [[4], [5], [6]]
    assert outputs(ask_bls(model, triton, **STREAM)) == ["4", "4-5", "4-5-6"]


@pytest.mark.parametrize("decoupled", [False, True])
def test_bls_errors(decoupled: bool, bls: Any, triton: Any) -> None:
    model, inner = bls(decoupled=decoupled)
    inner.answers = ["too long"]
    assert [r.error().message() for r in ask_bls(model, triton).sender.all()] == ["too long"]
    assert [r.error().message() for r in ask_bls(model, triton, "bad").sender.all()] == ["no such text"]
    (refused,) = ask_bls(model, triton, num_draft_tokens=np.array([[3]])).sender.all()
    assert "num_draft_tokens is not supported: the CPU runtime has no speculative decoding" in refused.error().message()


def test_bls_passes_a_cancellation_on(bls: Any, triton: Any) -> None:
    model, inner = bls(decoupled=True)
    inner.answers, inner.waits = [[4]], True
    request = ask_bls(model, triton, **STREAM)
    request.sender.cancelled = True
    request.sender.all()
    assert inner.stopped.is_set()
    assert inner.stopped_id == next(request_id for name, _, request_id in inner.calls if name == "llm")


def test_bls_refuses_features(bls: Any) -> None:
    from tensorrtllm_reference.text import TokenizerError

    with pytest.raises(TokenizerError, match="tensorrt_llm_draft_model_name is 'draft'"):
        bls(decoupled=True, tensorrt_llm_draft_model_name="draft")
