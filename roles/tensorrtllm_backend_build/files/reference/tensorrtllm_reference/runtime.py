# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A served engine: its parameters read and checked, its ranks loaded, its scheduler running."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from collections.abc import Mapping as StringMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from . import gpu
from .engine_file import EngineFile, EngineFileError
from .errors import EngineError, RequestError
from .kv_cache import BlockPool, bytes_per_token
from .model import MixtralModel, ModelConfig
from .scheduler import Request, Scheduler, Stats

Warn = Callable[[str], None]

_TRUE = {"true", "True", "TRUE", "1"}
_FALSE = {"false", "False", "FALSE", "0"}
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")
_BATCHING = ("inflight_fused_batching", "inflight_batching")
_POLICIES = ("guaranteed_no_evict", "max_utilization")
_DECODING = ("auto", "top_k", "top_p", "top_k_top_p")
# Parameters of features that change what is computed; any value that asks for one is refused.
_FEATURES = {
    "encoder_model_path": "encoder-decoder models",
    "medusa_choices": "speculative decoding",
    "eagle_choices": "speculative decoding",
    "speculative_decoding_fast_logits": "speculative decoding",
    "lookahead_window_size": "speculative decoding",
    "lookahead_ngram_size": "speculative decoding",
    "lookahead_verification_set_size": "speculative decoding",
    "sink_token_length": "attention sinks",
    "guided_decoding_backend": "guided decoding",
    "lora_prefetch_dir": "LoRA",
    "participant_ids": "several processes",
    "kv_cache_host_memory_bytes": "offloading of the KV cache",
}
# Parameters that only change speed or placement on a GPU: they cannot change an answer.
_NO_EFFECT = (
    "enable_kv_cache_reuse", "cuda_graph_mode", "cuda_graph_cache_size", "multi_block_mode", "gpu_device_ids",
    "enable_context_fmha_fp32_acc", "kv_cache_onboard_blocks",
)
# From the release line of 0.19 on, upstream's backend throws when these keys are absent, even if they stay unfilled.
_REQUIRED_FROM_0_19 = ("tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path")
_DEFAULT_TOKENS_PER_BLOCK = 64


class Parameters:
    """The string parameters of config.pbtxt, read as upstream's backend reads them: a placeholder that was left
    unfilled, or an empty value, means the default; an unreadable number or boolean is warned about and defaults."""

    def __init__(self, values: StringMapping[str, str], warn: Warn) -> None:
        self._values = values
        self._warn = warn

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> Optional[str]:
        value = self._values.get(name, "").strip()
        return None if not value or _PLACEHOLDER.fullmatch(value) else value

    def required(self, name: str) -> str:
        if name not in self._values:
            raise EngineError(f"Cannot find parameter with name: {name}")
        return self.text(name) or ""

    def number(self, name: str, default: Any, kind: Callable[[str], Any] = int) -> Any:
        value = self.text(name)
        if value is None:
            return default
        try:
            return kind(value)
        except ValueError:
            self._warn(f"{name} has the value {value!r}, which is not a number; the default {default} is used")
            return default

    def boolean(self, name: str, default: bool) -> bool:
        value = self.text(name)
        if value is None:
            return default
        if value in _TRUE | _FALSE:
            return value in _TRUE
        self._warn(f"{name} has the value {value!r}, which is not true or false; the default {default} is used")
        return default


@dataclass(frozen=True)
class Limits:
    """What the engine was built for."""

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: Optional[int]
    chunked_context: bool


def read_engine_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not directory.is_dir():
        raise EngineError(f"gpt_model_path {directory} is not a directory: it must be an engine directory with "
                          "config.json and one rank<N>.engine a rank")
    if not path.is_file():
        raise EngineError(f"File does not exist: {path} (is gpt_model_path {directory} an engine directory?)")
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise EngineError(f"{path} cannot be read: {exc}") from exc
    for key in ("version", "pretrained_config", "build_config"):
        if not isinstance(data, dict) or key not in data:
            raise EngineError(f"{path} has no {key!r}: it is not an engine's config.json (a checkpoint's, perhaps); "
                              "gpt_model_path must name what trtllm-build wrote")
    return data


def check_release(directory: Path, found: str, release: str) -> None:
    if found != release:
        raise EngineError(f"engine {directory} was built by TensorRT-LLM {found}, and this runtime is {release}: "
                          "build the engine again with this release")


def check_world_size(tp_size: int, pp_size: int, environment: StringMapping[str, str]) -> None:
    """All ranks are computed in this process, but it insists on being launched as upstream's would have to be."""
    try:
        launched = int(environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    except ValueError:
        launched = 1
    if launched != tp_size * pp_size:
        raise EngineError(
            f"MPI size ({launched}) does not match TP size x PP size ({tp_size * pp_size}): start the server with "
            f"world_size {tp_size * pp_size}, or build an engine for {launched}"
        )


def available_memory() -> int:
    """Bytes that can still be allocated: what the kernel says, or less where the control group is smaller."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        fields = dict(line.split(":", 1) for line in stream)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        if limit != "max":
            available = min(available, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(0, available)


class Runtime:
    """An engine ready to generate."""

    def __init__(
        self, values: StringMapping[str, str], *, release: str, triton_max_batch_size: int,
        environment: Optional[StringMapping[str, str]] = None, warn: Warn = print,
        on_stats: Optional[Callable[[Runtime, Stats], None]] = None,
    ) -> None:
        parameters = Parameters(values, warn)
        self._check_parameters(parameters, release, warn)
        directory = Path(parameters.text("gpt_model_path") or "")
        config = read_engine_config(directory)
        check_release(directory, str(config["version"]), release)
        self.config = ModelConfig.from_pretrained(config["pretrained_config"])
        mapping = self.config.mapping
        check_world_size(mapping.tp_size, mapping.pp_size, os.environ if environment is None else environment)
        self.limits = self._limits(config["build_config"], parameters)
        if triton_max_batch_size > self.limits.max_batch_size:
            raise EngineError(
                f"max_batch_size {triton_max_batch_size} in config.pbtxt is larger than the engine's max_batch_size "
                f"{self.limits.max_batch_size}: lower triton_max_batch_size, or build the engine with a larger one"
            )
        build = config["build_config"]
        gathers = bool(build.get("gather_all_token_logits"))
        self.context_logits = gathers or bool(build.get("gather_context_logits", True))
        self.generation_logits = gathers or bool(build.get("gather_generation_logits", True))
        self.exclude_input_in_output = parameters.boolean("exclude_input_in_output", False)
        window = parameters.number("max_attention_window_size", None)
        if window is not None and window < 1:
            raise EngineError(f"max_attention_window_size is {window}; it must be at least 1")
        if window is not None and window >= self.limits.max_seq_len:
            window = None
        self.model = MixtralModel(self.config, self._load(directory, release), max_seq_len=self.limits.max_seq_len,
                                  attention_window=window)
        self.pool = self._pool(build, parameters)
        period = parameters.number("cancellation_check_period_ms", 100)
        stats_period = parameters.number("stats_check_period_ms", 100)
        self.scheduler = Scheduler(
            self.model, self.pool,
            max_batch_size=self.limits.max_batch_size,
            step_tokens=self.limits.max_num_tokens,
            reserve_all=(parameters.text("batch_scheduler_policy") or _POLICIES[0]) == _POLICIES[0],
            # Upstream's default would make every log probability of greedy decoding 0, so it must be asked for.
            normalize_log_probs=parameters.boolean("normalize_log_probs", False),
            cancellation_period=period / 1000,
            stats_period=stats_period / 1000,
            on_stats=None if on_stats is None else lambda stats: on_stats(self, stats),
            log=warn,
        )

    @staticmethod
    def _check_parameters(parameters: Parameters, release: str, warn: Warn) -> None:
        batching = parameters.required("gpt_model_type")
        if batching == "V1":
            raise EngineError("gpt_model_type V1 (static batching) is not supported: use inflight_fused_batching")
        if batching not in _BATCHING:
            raise EngineError(f"Invalid gpt_model_type {batching!r}: use {' or '.join(_BATCHING)}")
        if tuple(int(part) for part in re.findall(r"\d+", release)[:2]) >= (0, 19):
            for name in _REQUIRED_FROM_0_19:
                parameters.required(name)
        for name, feature in _FEATURES.items():
            value = parameters.text(name)
            if value is not None and value not in _FALSE:
                raise EngineError(f"{name} is {value!r}: the CPU runtime has no {feature}; leave it empty")
        for name, choices in (("batch_scheduler_policy", _POLICIES), ("decoding_mode", _DECODING)):
            value = parameters.text(name)
            if value is not None and value not in choices:
                raise EngineError(f"{name} is {value!r}: the CPU runtime knows {', '.join(choices)}")
        for name in ("max_beam_width", "num_nodes"):
            number = parameters.number(name, 1)
            if number != 1:
                raise EngineError(f"{name} is {number}: the CPU runtime supports only 1")
        for name in _NO_EFFECT:
            if (parameters.text(name) or "false") not in _FALSE:
                warn(f"{name} has no effect on the CPU")
        if parameters.text("gpt_model_path") is None:
            warn("gpt_model_path is not specified, will be left empty")
            raise EngineError("Both encoder and decoder model paths are empty: fill gpt_model_path (engine_dir)")

    @staticmethod
    def _limits(build: dict[str, Any], parameters: Parameters) -> Limits:
        try:
            if int(build.get("max_beam_width", 1)) < 1:
                raise ValueError("max_beam_width below 1")
            sequence = int(build["max_seq_len"])
            return Limits(
                max_batch_size=int(build["max_batch_size"]),
                max_input_len=min(int(build["max_input_len"]), sequence),
                max_seq_len=sequence,
                max_num_tokens=None if build.get("max_num_tokens") is None else int(build["max_num_tokens"]),
                chunked_context=parameters.boolean("enable_chunked_context", False),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise EngineError(f"the engine's config.json has a bad build_config: {exc}") from exc

    def _load(self, directory: Path, release: str) -> list[EngineFile]:
        files = []
        try:
            gpus = gpu.find()
        except gpu.CudaError as exc:
            raise EngineError(f"[TensorRT-LLM][ERROR] {exc}") from exc
        for rank in range(self.config.mapping.world_size):
            path = directory / f"rank{rank}.engine"
            try:
                engine = EngineFile(path)
            except EngineFileError as exc:
                raise EngineError(str(exc)) from exc
            check_release(path, engine.release, release)
            try:
                gpu.check(path, engine.gpu, gpus)
            except gpu.CudaError as exc:
                raise EngineError(f"[TensorRT-LLM][ERROR] {exc}") from exc
            if engine.rank != rank or engine.mapping.to_dict() != self.config.mapping.to_dict():
                raise EngineError(f"{path} holds rank {engine.rank} of {engine.mapping.to_dict()}, and config.json "
                                  f"asks for rank {rank} of {self.config.mapping.to_dict()}: build the engine again")
            files.append(engine)
        return files

    def _pool(self, build: dict[str, Any], parameters: Parameters) -> BlockPool:
        plugins = build.get("plugin_config") or {}
        per_block = int(plugins.get("tokens_per_block") or _DEFAULT_TOKENS_PER_BLOCK)
        fraction = parameters.number("kv_cache_free_gpu_mem_fraction", 0.9, float)
        if not 0.0 < fraction <= 1.0:
            raise EngineError(f"kv_cache_free_gpu_mem_fraction is {fraction}: it must be above 0 and at most 1")
        token = bytes_per_token(self.model.cache_layout)
        tokens = int(available_memory() * fraction) // token
        # More than every sequence at full length can never be used.
        tokens = min(tokens, self.limits.max_batch_size * (-(-self.limits.max_seq_len // per_block) * per_block))
        asked = parameters.number("max_tokens_in_paged_kv_cache", None)
        if asked is not None:
            tokens = min(tokens, asked)
        if tokens < per_block:
            raise EngineError(f"the KV cache has room for {tokens} tokens, and one block is {per_block}: free some "
                              "memory, or raise max_tokens_in_paged_kv_cache or kv_cache_free_gpu_mem_fraction")
        return BlockPool(tokens // per_block, per_block)

    def check(self, request: Request) -> None:
        """RequestError when the engine cannot take the request."""
        limits, length, output = self.limits, len(request.prompt), request.max_new_tokens
        if length < 1:
            raise RequestError("the input is empty: at least one input token is needed")
        if output < 1:
            raise RequestError(f"request_output_len (max_tokens) is {output}; it must be at least 1")
        if length > limits.max_input_len:
            raise RequestError(
                f"Prompt length ({length}) exceeds maximum input length ({limits.max_input_len}): shorten the prompt, "
                "or build the engine with a larger max_input_len"
            )
        if length + output > limits.max_seq_len:
            raise RequestError(
                f"Prompt length ({length}) plus request_output_len ({output}) is {length + output}, which exceeds the "
                f"engine's max_seq_len ({limits.max_seq_len}): ask for at most {max(0, limits.max_seq_len - length)} "
                "tokens, or build the engine with a larger max_seq_len"
            )
        if limits.max_num_tokens is not None and length > limits.max_num_tokens and not limits.chunked_context:
            raise RequestError(
                f"Prompt length ({length}) exceeds the engine's max_num_tokens ({limits.max_num_tokens}): set "
                "enable_chunked_context, or build the engine with a larger max_num_tokens"
            )
        wrong = [token for token in request.prompt if not 0 <= token < self.config.vocab_size]
        if wrong:
            raise RequestError(f"input_ids has the token {wrong[0]}, and the vocabulary is 0 to "
                               f"{self.config.vocab_size - 1}: the tokenizer is not this model's")
        if request.return_context_logits and not self.context_logits:
            raise RequestError("return_context_logits needs an engine built with gather_context_logits")
        if request.return_generation_logits and not self.generation_logits:
            raise RequestError("return_generation_logits needs an engine built with gather_generation_logits")

    def submit(self, request: Request) -> None:
        self.check(request)
        self.scheduler.submit(request)

    def stop(self) -> None:
        self.scheduler.stop()
