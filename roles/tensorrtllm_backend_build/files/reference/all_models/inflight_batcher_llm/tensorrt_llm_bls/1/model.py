# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ensemble's steps as one model: preprocessing, tensorrt_llm and postprocessing called from Python.

With accumulate_tokens, each streamed response has the whole text so far; without it, the text that is new.
A request that its client cancels is passed on: tensorrt_llm is told to stop the request of the same id.
"""

from __future__ import annotations

import json
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Triton puts <tree>/backends/python on the path of every Python model; the package lies beside backends/.
sys.path.insert(0, str(Path(pb_utils.__file__).parents[2]))

from tensorrtllm_reference.responses import Sender
from tensorrtllm_reference.text import TokenizerError, flag, parameter

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_CANCELLATION_PERIOD = 0.1

_TO_PREPROCESSING = {
    "text_input": "QUERY", "decoder_text_input": "DECODER_QUERY", "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT", "stop_words": "STOP_WORDS_DICT", "end_id": "END_ID", "pad_id": "PAD_ID",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS", "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
}
_TO_LLM = {
    "top_k": "runtime_top_k", "top_p": "runtime_top_p", "length_penalty": "len_penalty", "stream": "streaming",
    **{name: name for name in (
        "temperature", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_length", "min_tokens",
        "random_seed", "seed", "return_log_probs", "return_context_logits", "return_generation_logits", "beam_width",
        "num_return_sequences", "exclude_input_in_output", "prompt_embedding_table", "prompt_vocab_size",
        "lora_task_id", "lora_weights", "lora_config", "return_perf_metrics", "return_num_input_tokens",
        "return_num_output_tokens", "guided_decoding_guide_type", "guided_decoding_guide",
    )},
}
_PREPROCESSED = {
    "INPUT_ID": "input_ids", "REQUEST_INPUT_LEN": "input_lengths", "REQUEST_OUTPUT_LEN": "request_output_len",
    "DECODER_INPUT_ID": "decoder_input_ids", "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "BAD_WORDS_IDS": "bad_words_list", "STOP_WORDS_IDS": "stop_words_list", "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
}
_REFUSED = {
    "num_draft_tokens": "speculative decoding", "use_draft_logits": "speculative decoding",
    "image_input": "multimodal input", "image_bytes_input": "multimodal input", "image_url_input": "multimodal input",
    "image_sizes_input": "multimodal input", "video_bytes_input": "multimodal input",
}


class _ModelError(Exception):
    """An error that a called model answered with."""


def _renamed(tensor: Any, name: str) -> Any:
    """The tensor under another name; inputs that the config reshapes to [batch] are [batch, 1] again."""
    array = tensor.as_numpy()
    return pb_utils.Tensor(name, array[:, np.newaxis] if array.ndim == 1 else array)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
        self._outputs = [output["name"] for output in config["output"]]
        self._accumulate = flag(config, "accumulate_tokens", False)
        self._llm = parameter(config, "tensorrt_llm_model_name") or "tensorrt_llm"
        for name in ("tensorrt_llm_draft_model_name", "multimodal_encoders_name"):
            value = parameter(config, name)
            if value is not None:
                raise TokenizerError(f"{name} is {value!r}: the CPU runtime has no speculative decoding and no "
                                     "multimodal input; leave it empty")
        self._running: dict[str, Sender] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="cancellation", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        """Answer each request from a thread of its own, so that they are batched in flight."""
        for request in requests:
            inputs = {tensor.name(): tensor for tensor in request.inputs()}
            wanted = set(request.requested_output_names())
            arguments = (inputs, wanted, Sender(request.get_response_sender(), _FINAL))
            # Daemon threads: when the server dies, a thread that waits for it must not keep this process alive.
            threading.Thread(target=self._answer, args=arguments, daemon=True).start()

    def finalize(self) -> None:
        self._stopping.set()
        self._watcher.join()

    def _answer(self, inputs: dict[str, Any], wanted: set[str], sender: Sender) -> None:
        request_id = f"bls-{uuid.uuid4().hex}"
        with self._lock:
            self._running[request_id] = sender
        try:
            count = 0
            for outputs in self._responses(inputs, wanted, request_id):
                count += 1
                sender.send(pb_utils.InferenceResponse(output_tensors=outputs), final=not self._decoupled)
            if count == 0:
                raise _ModelError(f"{self._llm} gave no response")
            if self._decoupled:
                sender.send(final=True)
        except Exception as exc:  # Whatever happens, the client must get an answer.
            known = isinstance(exc, (_ModelError, TokenizerError))
            message = str(exc) if known else f"{type(exc).__name__}: {exc}"
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message)), final=True)
        finally:
            with self._lock:
                self._running.pop(request_id, None)

    def _call(self, model: str, tensors: list[Any], outputs: list[str], request_id: str) -> Any:
        request = pb_utils.InferenceRequest(
            model_name=model, requested_output_names=outputs, inputs=tensors, request_id=request_id
        )
        response = request.exec()
        if response.has_error():
            raise _ModelError(response.error().message())
        return {tensor.name(): tensor for tensor in response.output_tensors()}

    def _responses(self, inputs: dict[str, Any], wanted: set[str], request_id: str) -> Iterator[list[Any]]:
        for name, feature in _REFUSED.items():
            if name in inputs and np.any(inputs[name].as_numpy()):
                raise TokenizerError(f"{name} is not supported: the CPU runtime has no {feature}; leave it out")
        preprocessed = self._call(
            "preprocessing",
            [_renamed(inputs[name], target) for name, target in _TO_PREPROCESSING.items() if name in inputs],
            list(_PREPROCESSED), request_id,
        )
        passed = [name for name in self._outputs if name != "text_output" and name in wanted]
        request = pb_utils.InferenceRequest(
            model_name=self._llm, request_id=request_id,
            requested_output_names=["output_ids", "sequence_length", *passed],
            inputs=[_renamed(preprocessed[name], target) for name, target in _PREPROCESSED.items()]
            + [_renamed(inputs[name], target) for name, target in _TO_LLM.items() if name in inputs],
        )
        streaming = "stream" in inputs and bool(inputs["stream"].as_numpy().reshape(-1)[0])
        so_far: dict[int, list[int]] = {}
        for response in request.exec(decoupled=True):
            if response.has_error():
                # An error is the last response, but the iterator would wait for another one: do not ask for it.
                raise _ModelError(response.error().message())
            outputs = {tensor.name(): tensor for tensor in response.output_tensors()}
            if not outputs:
                continue
            tokens, lengths = outputs["output_ids"].as_numpy(), outputs["sequence_length"].as_numpy()
            if streaming and self._accumulate:
                row = int(outputs["batch_index"].as_numpy().reshape(-1)[0]) if "batch_index" in outputs else 0
                whole = so_far.setdefault(row, [])
                whole += tokens[0, 0, : lengths[0, 0]].tolist()
                tokens, lengths = np.array([[whole]], np.int32), np.array([[len(whole)]], np.int32)
            result = [outputs[name] for name in passed if name in outputs]
            if "text_output" in wanted:
                text = self._call(
                    "postprocessing",
                    [pb_utils.Tensor("TOKENS_BATCH", tokens), pb_utils.Tensor("SEQUENCE_LENGTH", lengths)],
                    ["OUTPUT"], request_id,
                )
                result.insert(0, _renamed(text["OUTPUT"], "text_output"))
            yield result

    def _watch(self) -> None:
        """Stop the inner request of each request whose client cancelled it."""
        while not self._stopping.wait(_CANCELLATION_PERIOD):
            with self._lock:
                running = list(self._running.items())
            for request_id, sender in running:
                if not sender.closed and sender.is_cancelled():
                    self._stop(request_id)

    def _stop(self, request_id: str) -> None:
        one = np.ones((1, 1), np.int32)
        request = pb_utils.InferenceRequest(
            model_name=self._llm, request_id=request_id, requested_output_names=["sequence_length"],
            inputs=[pb_utils.Tensor(name, one) for name in ("input_ids", "input_lengths", "request_output_len")]
            + [pb_utils.Tensor("stop", np.ones((1, 1), np.bool_))],
        )
        for _response in request.exec(decoupled=True):
            pass
