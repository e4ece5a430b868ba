# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference runtime computes what transformers' MixtralForCausalLM computes (vectors.json, by record.py)."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parents[1] / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
if str(REFERENCE) not in sys.path:
    sys.path.insert(0, str(REFERENCE))

TOLERANCE = 1e-4
RECORDED = json.loads((HERE / "vectors.json").read_text())["models"]
LAYOUTS = {"eight_experts": [(1, 1), (4, 1), (2, 2)], "four_experts": [(1, 1), (3, 1), (1, 3)]}
CASES = [(name, *layout) for name in RECORDED for layout in LAYOUTS[name]]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-tp{case[1]}-pp{case[2]}")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The recorded model through generator, converter, builder and loader, and what was recorded of it."""
    from tensorrtllm_reference import build, convert, tiny
    from tensorrtllm_reference.engine_file import EngineFile
    from tensorrtllm_reference.model import MixtralModel, ModelConfig

    name, tp, pp = request.param
    recorded = RECORDED[name]
    root = tmp_path_factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTLLM_REFERENCE_RELEASE", "1.1.0")
        argv = [word for option, value in recorded["options"].items() for word in (f"--{option}", str(value))]
        tiny.main(["--output_dir", str(root / "hf"), *argv])
        found = hashlib.sha256((root / "hf" / "model.safetensors").read_bytes()).hexdigest()
        assert found == recorded["weights_sha256"], "the generator makes other weights than the recorded ones"
        convert.main(["--model_dir", str(root / "hf"), "--output_dir", str(root / "checkpoint"), "--dtype", "float32",
                      "--tp_size", str(tp), "--pp_size", str(pp)])
        build.main(["--checkpoint_dir", str(root / "checkpoint"), "--output_dir", str(root / "engine")])
    config = ModelConfig.from_pretrained(json.loads((root / "engine" / "config.json").read_text())["pretrained_config"])
    ranks = [EngineFile(root / "engine" / f"rank{rank}.engine") for rank in range(tp * pp)]
    return MixtralModel(config, ranks), recorded["cases"]


def test_logits(served: Any) -> None:
    from tensorrtllm_reference.model import Chunk

    model, cases = served
    for case in cases:
        prompt = np.array(case["prompt"])
        logits = model.forward([Chunk(model.new_cache(len(prompt)), prompt)], [True])[0]
        for position, recorded in case["logits"].items():
            expected = np.array(recorded)
            difference = np.abs(logits[int(position)] - expected).max() / np.abs(expected).max()
            assert difference <= TOLERANCE, f"position {position} of a prompt of {len(prompt)}: {difference}"


def test_greedy_tokens(served: Any) -> None:
    """All prompts at once, as they are served: in flight, batched."""
    from tensorrtllm_reference.kv_cache import BlockPool
    from tensorrtllm_reference.scheduler import Request, Scheduler

    model, cases = served
    results: list[list[int]] = [[] for _ in cases]
    scheduler = Scheduler(model, BlockPool(100, 16), max_batch_size=len(cases))
    import threading

    ends = [threading.Event() for _ in cases]
    for number, case in enumerate(cases):
        def update(news: Any, number: int = number) -> None:
            results[number] += news.tokens
            if news.final:
                ends[number].set()

        scheduler.submit(Request(case["prompt"], len(case["greedy"]), update))
    assert all(end.wait(60) for end in ends)
    scheduler.stop()
    assert results == [case["greedy"] for case in cases]
