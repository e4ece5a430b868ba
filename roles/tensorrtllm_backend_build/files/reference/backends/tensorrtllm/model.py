# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend `tensorrtllm` on a CPU: a Python-based backend with the interface of upstream's C++ backend.

Triton loads it for every config.pbtxt that says backend: "tensorrtllm". Requests are handed to one scheduler, which
batches them in flight, and are answered when they are done, or token by token with `streaming` in decoupled mode.

A request ends early when its client cancels it (Triton is asked every cancellation_check_period_ms), or when a
request with the same request id and `stop` true arrives, as upstream; it is answered with the tokens it has. Triton
(2.51) tells of a client that goes away over gRPC, for this model and for tensorrt_llm_bls, and over HTTP when it fails
to write the next streamed response of tensorrt_llm_bls. An ensemble does not pass a cancellation on to its steps, and
an HTTP client that waits for a whole answer is not watched: such requests run to their end.

Output tensors that were not asked for are zeros, as upstream's.

For requests that come from this tree's preprocessing (they carry decoder_input_lengths 0), a streamed response has,
behind the sequence_length tokens that count, what postprocessing needs to turn them into text: see detokenize.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parents[2]))

from tensorrtllm_reference import ranks
from tensorrtllm_reference.cli import load_release
from tensorrtllm_reference.detokenize import CONTEXT_TOKENS, with_context
from tensorrtllm_reference.errors import RequestError
from tensorrtllm_reference.responses import Sender
from tensorrtllm_reference.runtime import Runtime
from tensorrtllm_reference.sampling import SamplingParams
from tensorrtllm_reference.scheduler import Request, Stats, Update
from tensorrtllm_reference.words import from_tensor

# Inputs of features that the CPU runtime does not have. Given, with any element in them, they are refused.
_REFUSED = {
    "draft_input_ids": "speculative decoding",
    "draft_logits": "speculative decoding",
    "draft_acceptance_threshold": "speculative decoding",
    "lookahead_window_size": "speculative decoding",
    "lookahead_ngram_size": "speculative decoding",
    "lookahead_verification_set_size": "speculative decoding",
    "encoder_input_features": "encoder-decoder models",
    "encoder_output_lengths": "encoder-decoder models",
    "cross_attention_mask": "encoder-decoder models",
    "skip_cross_attn_blocks": "encoder-decoder models",
    "embedding_bias": "embedding bias",
    "runtime_top_p_min": "top_p decay",
    "runtime_top_p_decay": "top_p decay",
    "runtime_top_p_reset_ids": "top_p decay",
    "prompt_embedding_table": "prompt tuning",
    "prompt_vocab_size": "prompt tuning",
    "prompt_table_extra_ids": "prompt tuning",
    "lora_task_id": "LoRA",
    "lora_weights": "LoRA",
    "lora_config": "LoRA",
    "mrope_rotary_cos_sin": "multimodal input",
    "mrope_position_deltas": "multimodal input",
    "context_phase_params": "disaggregated serving",
    "retention_token_range_starts": "KV cache retention",
    "retention_token_range_ends": "KV cache retention",
    "retention_token_range_priorities": "KV cache retention",
    "retention_token_range_durations_ms": "KV cache retention",
    "retention_decode_priority": "KV cache retention",
    "retention_decode_duration_ms": "KV cache retention",
    "guided_decoding_guide_type": "guided decoding",
    "guided_decoding_guide": "guided decoding",
}
_TYPES = {
    "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64,
    "TYPE_UINT8": np.uint8, "TYPE_UINT64": np.uint64, "TYPE_BOOL": np.bool_,
}
_TIMES = {
    "arrival_time_ns": "arrival",
    "first_scheduled_time_ns": "first_scheduled",
    "first_token_time_ns": "first_token",
    "last_token_time_ns": "last_token",
}


class _Inputs:
    """The tensors of one request, by name; every reader takes the row of the batch."""

    def __init__(self, request: Any) -> None:
        self._tensors = {tensor.name(): tensor for tensor in request.inputs()}
        self._arrays: dict[str, Any] = {}

    def array(self, name: str) -> Optional[Any]:
        """The tensor, or None when it is absent or empty."""
        if name not in self._tensors:
            return None
        if name not in self._arrays:
            self._arrays[name] = self._tensors[name].as_numpy()
        found = self._arrays[name]
        return found if found.size else None

    def names(self) -> list[str]:
        return list(self._tensors)

    def scalar(self, name: str, row: int) -> Optional[Any]:
        found = self.array(name)
        if found is None:
            return None
        values = found.reshape(found.shape[0], -1)
        return values[row if len(values) > 1 else 0][0].item()


class _Answer:
    """One Triton request: collects the updates of its sequences and sends the responses."""

    def __init__(
        self, model: TritonPythonModel, sender: Sender, requested: set[str], batch: int, streaming: bool
    ) -> None:
        self._model = model
        self._sender = sender
        self._requested = requested
        self._batch = batch
        self._streaming = streaming
        self._open = batch
        self.prompts: list[list[int]] = []
        self.exclude_input = False
        self.text_context = False
        self.asked: dict[str, bool] = {}
        self.rows: list[dict[str, Any]] = [{"tokens": [], "log_probs": [], "logits": []} for _row in range(batch)]

    def is_cancelled(self) -> bool:
        """Also true when the answer was already given: one row's error ends the others."""
        return self._sender.is_cancelled()

    def update(self, row: int, update: Update) -> None:
        """Called from the scheduler's thread only."""
        if self._sender.closed:
            return
        if update.error is not None:
            error = pb_utils.TritonError(update.error)
            self._sender.send(pb_utils.InferenceResponse(error=error), final=True)
            return
        state = self.rows[row]
        state["tokens"] += update.tokens
        state["log_probs"] += update.log_probs
        if update.context_logits is not None:
            state["context"] = update.context_logits
        state["logits"] += update.generation_logits or []
        state["last"] = update
        if update.final:
            self._open -= 1
        if self._model.decoupled:
            if update.final or self._streaming:
                self._send([row], self._open == 0)
        elif self._open == 0:
            self._send(list(range(self._batch)), True)

    def _send(self, rows: list[int], last: bool) -> None:
        tensors = self._tensors(rows)
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors), final=last)
        if self._streaming:
            for row in rows:
                state = self.rows[row]
                keep = (state.get("sent", []) + state["tokens"])[-CONTEXT_TOKENS:]
                self.rows[row] = {"tokens": [], "log_probs": [], "logits": [], "sent": keep,
                                  "count": state.get("count", 0) + len(state["tokens"])}

    def _tensors(self, rows: list[int]) -> list[Any]:
        outputs = []
        for name, kind in self._model.outputs.items():
            if name in self._requested:
                outputs.append(pb_utils.Tensor(name, np.ascontiguousarray(self._output(name, rows), dtype=kind)))
        return outputs

    def _ids(self, row: int) -> list[int]:
        state = self.rows[row]
        # A streamed response holds new tokens only, whatever exclude_input_in_output says, as upstream's.
        tokens = list(state["tokens"])
        if not self._streaming and not self.exclude_input:
            return self.prompts[row] + tokens
        return tokens

    def _output(self, name: str, rows: list[int]) -> Any:
        states = [self.rows[row] for row in rows]
        if name == "output_ids":
            ids = [self._ids(row) for row in rows]
            if self._streaming and self.text_context:
                ids = [with_context(new, s.get("sent", []), s["last"].final) for new, s in zip(ids, states)]
            return _padded(ids, self._model.pad_id, np.int32)[:, np.newaxis]
        if name == "sequence_length":
            return np.array([[len(self._ids(row))] for row in rows])
        if name == "batch_index":
            return np.array([[row] for row in rows])
        if name == "cum_log_probs":
            asked = self.asked["log_probs"]
            return np.array([[s["last"].cumulative_log_prob if asked else 0.0] for s in states])
        if name == "output_log_probs":
            if not self.asked["log_probs"]:
                return np.zeros((len(rows), 1, max(len(s["tokens"]) for s in states)))
            return _padded([s["log_probs"] for s in states], 0.0, np.float32)[:, np.newaxis]
        if name == "context_logits":
            return _stacked([s.get("context") for s in states], self.asked["context_logits"])
        if name == "generation_logits":
            found = [np.stack(s["logits"]) if s["logits"] else None for s in states]
            return _stacked(found, self.asked["generation_logits"])[:, np.newaxis]
        return np.array([[self._statistic(name, row, state)] for row, state in zip(rows, states)])

    def _statistic(self, name: str, row: int, state: dict[str, Any]) -> int:
        update: Update = state["last"]
        if self.asked["perf_metrics"]:
            if name in _TIMES:
                return int(getattr(update.timing, _TIMES[name]))
            if name in ("kv_cache_alloc_new_blocks", "kv_cache_alloc_total_blocks"):
                return update.blocks
        if name == "num_input_tokens" and self.asked["num_input_tokens"]:
            return len(self.prompts[row])
        if name == "num_output_tokens" and self.asked["num_output_tokens"]:
            return int(state.get("count", 0)) + len(state["tokens"])
        return 0


def _padded(rows: list[list[Any]], pad: Any, kind: Any) -> Any:
    result = np.full((len(rows), max(len(row) for row in rows)), pad, kind)
    for number, row in enumerate(rows):
        result[number, : len(row)] = row
    return result


def _stacked(rows: list[Optional[Any]], asked: bool) -> Any:
    """[batch, tokens, vocab], shorter rows padded with zeros; one zero where logits were not asked for."""
    if not asked or all(row is None for row in rows):
        return np.zeros((len(rows), 1, 1), np.float32)
    width = max(row.shape[1] for row in rows if row is not None)
    result = np.zeros((len(rows), max(len(row) for row in rows if row is not None), width), np.float32)
    for number, row in enumerate(rows):
        if row is not None:
            result[number, : len(row)] = row
    return result


class TritonPythonModel:
    """Triton's entry point."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
        self.outputs = {output["name"]: _TYPES[output["data_type"]] for output in config["output"]}
        self.pad_id = 0
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        release = load_release().release
        rank = ranks.rank_of(os.environ)
        if rank > 0:
            ranks.serve(Path(parameters.get("gpt_model_path", "")), release, rank)
        self._metrics = _Metrics(args["model_name"], args["model_version"], release)
        self.runtime = Runtime(
            parameters, release=release, triton_max_batch_size=int(config.get("max_batch_size", 0)),
            warn=lambda message: pb_utils.Logger.log_warn(f"{args['model_name']}: {message}"),
            on_stats=self._metrics.update,
        )

    def execute(self, requests: list[Any]) -> None:
        """Hand the requests to the scheduler. Responses follow through each request's sender, in either mode."""
        for request in requests:
            sender = Sender(request.get_response_sender(), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            try:
                self._accept(request, sender)
            except RequestError as exc:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(exc))), final=True)

    def _accept(self, request: Any, sender: Sender) -> None:
        inputs = _Inputs(request)
        request_id = request.request_id()
        if inputs.scalar("stop", 0):
            if not request_id:
                raise RequestError("stop needs the request id of the request to be stopped")
            self.runtime.scheduler.cancel(request_id)
            # A response in decoupled mode too: a caller in BLS waits for one, and would for ever.
            sender.send(self._stopped(request), final=True)
            return
        lengths = inputs.array("input_lengths")
        ids = inputs.array("input_ids")
        if lengths is None or ids is None:
            raise RequestError("input_ids and input_lengths are needed, and must not be empty")
        batch = lengths.reshape(-1).shape[0]
        ids = ids.reshape(batch, -1)
        self._refuse(inputs, batch)
        streaming = bool(inputs.scalar("streaming", 0))
        if streaming and not self.decoupled:
            raise RequestError("Streaming is only supported if model is deployed using decoupled mode.")
        answer = _Answer(self, sender, set(request.requested_output_names()), batch, streaming)
        answer.asked = {
            name: bool(inputs.scalar(f"return_{name}", 0))
            for name in ("log_probs", "context_logits", "generation_logits", "perf_metrics", "num_input_tokens",
                         "num_output_tokens")
        }
        exclude = inputs.scalar("exclude_input_in_output", 0)
        answer.exclude_input = self.runtime.exclude_input_in_output if exclude is None else bool(exclude)
        answer.text_context = inputs.scalar("decoder_input_lengths", 0) == 0
        built = [self._build(inputs, answer, ids, int(lengths.reshape(-1)[row]), row, request_id)
                 for row in range(batch)]
        for one in built:
            self.runtime.check(one)
        answer.prompts = [one.prompt for one in built]
        for one in built:
            self.runtime.submit(one)

    def _stopped(self, request: Any) -> Any:
        """The answer to a stop request: no tokens."""
        shapes = {"output_ids": (1, 1, 0), "output_log_probs": (1, 1, 0), "context_logits": (1, 1, 1),
                  "generation_logits": (1, 1, 1, 1)}
        wanted = set(request.requested_output_names())
        return pb_utils.InferenceResponse(output_tensors=[
            pb_utils.Tensor(name, np.zeros(shapes.get(name, (1, 1)), kind))
            for name, kind in self.outputs.items() if name in wanted
        ])

    @staticmethod
    def _refuse(inputs: _Inputs, batch: int) -> None:
        for name in inputs.names():
            if name in _REFUSED and inputs.array(name) is not None:
                raise RequestError(f"{name} is not supported: the CPU runtime has no {_REFUSED[name]}; leave it out")
        for row in range(batch):
            for name in ("beam_width", "num_return_sequences"):
                value = inputs.scalar(name, row)
                if value is not None and value != 1:
                    raise RequestError(f"{name} {value} is not supported: the CPU runtime supports only 1")
            length = inputs.scalar("decoder_input_lengths", row)
            if length or (length is None and inputs.array("decoder_input_ids") is not None):
                raise RequestError("decoder_input_ids is not supported: the CPU runtime has no encoder-decoder models; "
                                   "leave it out")

    def _build(
        self, inputs: _Inputs, answer: _Answer, ids: Any, length: int, row: int, request_id: str
    ) -> Request:
        if not 0 <= length <= ids.shape[1]:
            raise RequestError(f"input_lengths is {length}, and input_ids has {ids.shape[1]} tokens")

        def value(*names: str, default: Any = None) -> Any:
            for name in names:
                found = inputs.scalar(name, row)
                if found is not None:
                    return found
            return default

        def words(name: str) -> list[list[int]]:
            found = inputs.array(name)
            return [] if found is None else from_tensor(found[row] if found.ndim == 3 else found, name)

        end_id = value("end_id")
        return Request(
            prompt=[int(token) for token in ids[row, :length]],
            max_new_tokens=int(value("request_output_len", default=0)),
            on_update=lambda update: answer.update(row, update),
            sampling=SamplingParams(
                top_k=value("runtime_top_k"),
                top_p=value("runtime_top_p"),
                temperature=value("temperature", default=1.0),
                seed=int(value("seed", "random_seed", default=0)),
                repetition_penalty=value("repetition_penalty", default=1.0),
                presence_penalty=value("presence_penalty", default=0.0),
                frequency_penalty=value("frequency_penalty", default=0.0),
                min_tokens=int(value("min_tokens", "min_length", default=0)),
            ),
            end_id=None if end_id is None or end_id < 0 else int(end_id),
            stop_words=words("stop_words_list"),
            bad_words=words("bad_words_list"),
            streaming=bool(inputs.scalar("streaming", 0)),
            return_log_probs=answer.asked["log_probs"],
            return_context_logits=answer.asked["context_logits"],
            return_generation_logits=answer.asked["generation_logits"],
            is_cancelled=answer.is_cancelled,
            request_id=request_id,
        )

    def finalize(self) -> None:
        runtime = getattr(self, "runtime", None)
        if runtime is not None:
            runtime.stop()


class _Metrics:
    """The metric families of upstream's backend."""

    def __init__(self, name: str, version: str, release: str) -> None:
        self._labels = {"model": name, "version": version}
        # "waiting" and "fraction" came with 0.18.
        self._recent = tuple(int(part) for part in release.split(".")[:2]) >= (0, 18)
        self._families: dict[str, Any] = {}
        self._gauges: dict[tuple[str, str], Any] = {}

    def _set(self, family: str, description: str, label: str, values: dict[str, float]) -> None:
        if family not in self._families:
            self._families[family] = pb_utils.MetricFamily(
                name=family, description=description, kind=pb_utils.MetricFamily.GAUGE
            )
        for key, value in values.items():
            if (family, key) not in self._gauges:
                self._gauges[family, key] = self._families[family].Metric(labels={**self._labels, label: key})
            self._gauges[family, key].set(value)

    def update(self, runtime: Runtime, stats: Stats) -> None:
        pool = runtime.pool
        requests: dict[str, float] = {
            "active": stats.active + stats.waiting, "max": runtime.limits.max_batch_size,
            "scheduled": stats.scheduled, "context": stats.context,
        }
        blocks: dict[str, float] = {
            "max": pool.total_blocks, "free": pool.free_blocks, "used": pool.used_blocks,
            "tokens_per": pool.tokens_per_block, "reused": 0,
        }
        if self._recent:
            requests["waiting"] = stats.waiting
            blocks["fraction"] = pool.used_blocks / pool.total_blocks
        with open("/proc/self/statm", encoding="ascii") as stream:
            resident = int(stream.read().split()[1]) * 4096
        self._set("nv_trt_llm_request_metrics", "TRT LLM request metrics", "request_type", requests)
        self._set("nv_trt_llm_runtime_memory_metrics", "TRT LLM runtime memory metrics", "memory_type",
                  {"cpu": resident, "gpu": 0, "pinned": 0})
        self._set("nv_trt_llm_kv_cache_block_metrics", "TRT LLM KV cache block metrics", "kv_cache_block_type", blocks)
        self._set("nv_trt_llm_inflight_batcher_metrics", "TRT LLM inflight_batcher-specific metrics",
                  "inflight_batcher_specific_metric", {
                      "total_context_tokens": stats.context_tokens, "generation_requests": stats.generation,
                      "micro_batch_id": 0, "paused_requests": stats.paused,
                  })
        self._set("nv_trt_llm_general_metrics", "General TRT LLM metrics", "general_type",
                  {"timestamp": time.time(), "iteration_counter": stats.iterations})
