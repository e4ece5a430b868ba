# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines of a tiny Mixtral with distinct experts, made by the real tools, and a stand-in for Triton's Python API."""

from __future__ import annotations

import importlib.util
import json
import queue
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REFERENCE = Path(__file__).resolve().parents[3] / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
if str(REFERENCE) not in sys.path:
    sys.path.insert(0, str(REFERENCE))

RELEASE = "1.1.0"
MAX_BATCH = 4
MAX_INPUT = 48
MAX_SEQ = 64
TIMEOUT = 20.0


@pytest.fixture(scope="session")
def monkeysession() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def hf_dir(tmp_path_factory: pytest.TempPathFactory, monkeysession: pytest.MonkeyPatch) -> Path:
    from tensorrtllm_reference import tiny

    monkeysession.setenv("TRTLLM_REFERENCE_RELEASE", RELEASE)
    path = tmp_path_factory.mktemp("hf")
    tiny.main(["--output_dir", str(path), "--hidden", "64", "--layers", "2", "--heads", "8", "--kv_heads", "2",
               "--experts", "4", "--inter", "64", "--seed", "3"])
    return path


@pytest.fixture(scope="session")
def make_engine(hf_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Convert and build with the given layout; each layout once a session."""
    from tensorrtllm_reference import build, convert

    made: dict[tuple[Any, ...], Path] = {}

    def make(tp: int = 1, pp: int = 1, moe_tp: int | None = None, moe_ep: int | None = None, *extra: str) -> Path:
        key = (tp, pp, moe_tp, moe_ep, extra)
        if key not in made:
            root = tmp_path_factory.mktemp("engine")
            moe = [] if moe_tp is None else ["--moe_tp_size", str(moe_tp), "--moe_ep_size", str(moe_ep)]
            convert.main(["--model_dir", str(hf_dir), "--output_dir", str(root / "checkpoint"), "--dtype", "float32",
                          "--tp_size", str(tp), "--pp_size", str(pp), *moe])
            build.main(["--checkpoint_dir", str(root / "checkpoint"), "--output_dir", str(root / "engine"),
                        "--max_batch_size", str(MAX_BATCH), "--max_input_len", str(MAX_INPUT),
                        "--max_seq_len", str(MAX_SEQ), "--tokens_per_block", "16", "--gemm_plugin", "auto", *extra])
            made[key] = root / "engine"
        return made[key]

    return make


@pytest.fixture(scope="session")
def load_model(make_engine: Callable[..., Path]) -> Callable[..., Any]:
    from tensorrtllm_reference.engine_file import EngineFile
    from tensorrtllm_reference.model import MixtralModel, ModelConfig

    def load(*layout: Any, **keywords: Any) -> Any:
        directory = make_engine(*layout)
        config = ModelConfig.from_pretrained(json.loads((directory / "config.json").read_text())["pretrained_config"])
        ranks = [EngineFile(directory / f"rank{rank}.engine") for rank in range(config.mapping.world_size)]
        return MixtralModel(config, ranks, max_seq_len=MAX_SEQ, **keywords)

    return load


@pytest.fixture(scope="session")
def model(load_model: Callable[..., Any]) -> Any:
    return load_model()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [[int(token) for token in random.integers(3, 500, length)] for length in (1, 5, 12, 20, 7, 30)]


class Inbox:
    """Receives a request's updates; wait() returns when the last one is there."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self.updates: list[Any] = []

    def put(self, update: Any) -> None:
        self._queue.put(update)

    def next(self) -> Any:
        update = self._queue.get(timeout=TIMEOUT)
        self.updates.append(update)
        return update

    def wait(self) -> Any:
        while not self.next().final:
            pass
        return self.updates[-1]

    @property
    def tokens(self) -> list[int]:
        return [token for update in self.updates for token in update.tokens]

    @property
    def log_probs(self) -> list[float]:
        return [value for update in self.updates for value in update.log_probs]


@pytest.fixture
def inbox() -> type[Inbox]:
    return Inbox


@pytest.fixture
def scheduler(model: Any) -> Iterator[Callable[..., Any]]:
    from tensorrtllm_reference.kv_cache import BlockPool
    from tensorrtllm_reference.scheduler import Scheduler

    running = []

    def make(blocks: int = 64, **keywords: Any) -> Any:
        keywords.setdefault("max_batch_size", MAX_BATCH)
        keywords.setdefault("cancellation_period", 0.0)
        running.append(Scheduler(keywords.pop("model", model), BlockPool(blocks, 16), **keywords))
        return running[-1]

    yield make
    for one in running:
        one.stop()


@pytest.fixture
def greedy(model: Any) -> Callable[[list[int], int], list[int]]:
    """Greedy tokens by the model alone, one token at a time, without a scheduler."""
    from tensorrtllm_reference.model import Chunk

    def generate(prompt: list[int], count: int) -> list[int]:
        cache = model.new_cache(len(prompt) + count)
        logits = model.forward([Chunk(cache, np.array(prompt))])[0]
        tokens: list[int] = []
        while len(tokens) < count:
            tokens.append(int(logits[-1].argmax()))
            logits = model.forward([Chunk(cache, np.array(tokens[-1:]))])[0]
        return tokens

    return generate


# Triton's Python API, as far as the model files use it.


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class Response:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def arrays(self) -> dict[str, Any]:
        assert self._error is None, self._error.message()
        return {tensor.name(): tensor.as_numpy() for tensor in self._tensors}


class RawSender:
    """Like Triton's, it must not be touched after the final response."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()
        self.cancelled = False
        self.final = False

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        assert not self.final, "sent after the final response"
        self.final = bool(flags)
        self.queue.put((response, bool(flags)))

    def is_cancelled(self) -> bool:
        assert not self.final, "asked after the final response: Triton would crash"
        return self.cancelled

    def all(self) -> list[Response]:
        responses = []
        while True:
            response, final = self.queue.get(timeout=TIMEOUT)
            if response is not None:
                responses.append(response)
            if final:
                return responses


class TritonRequest:
    def __init__(self, inputs: dict[str, Any], outputs: list[str], request_id: str = "") -> None:
        self._inputs = [Tensor(name, array) for name, array in inputs.items()]
        self._outputs, self._id, self.sender = outputs, request_id, RawSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def request_id(self) -> str:
        return self._id

    def get_response_sender(self) -> RawSender:
        return self.sender


class _Metric:
    def __init__(self, values: dict[tuple[str, ...], float], labels: dict[str, str]) -> None:
        self._values, self._key = values, tuple(sorted(labels.values()))

    def set(self, value: float) -> None:
        self._values[self._key] = value


class MetricFamily:
    GAUGE = "gauge"
    all: dict[str, dict[tuple[str, ...], float]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._values = MetricFamily.all.setdefault(name, {})

    def Metric(self, labels: dict[str, str]) -> _Metric:
        return _Metric(self._values, labels)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that Triton's stub provides; its log and its metrics can be read."""
    module = types.ModuleType("triton_python_backend_utils")
    module.__file__ = str(REFERENCE / "backends" / "python" / "triton_python_backend_utils.py")
    log: list[str] = []
    MetricFamily.all = {}
    module.__dict__.update(
        Tensor=Tensor, TritonError=TritonError, InferenceResponse=Response, MetricFamily=MetricFamily,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1, Logger=types.SimpleNamespace(log_warn=log.append), log=log,
        Request=TritonRequest,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


@pytest.fixture
def load_triton_model(triton: Any) -> Callable[[str], Any]:
    """An instance of the TritonPythonModel of a file of the reference tree."""

    def load(path: str) -> Any:
        spec = importlib.util.spec_from_file_location("triton_model", REFERENCE / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.TritonPythonModel()

    return load
