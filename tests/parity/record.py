#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records what transformers' MixtralForCausalLM computes, for test_parity.py to compare with.

Not part of the tests: it needs torch and transformers. To record anew, in a scratch virtual environment:

    pip install torch transformers 'numpy<2' safetensors tokenizers
    python tests/parity/record.py

The models are generated from their seeds, so only prompts, logits and tokens are stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parents[1] / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
VECTORS = HERE / "vectors.json"
GREEDY_TOKENS = 64
# Options of the generator: two models that differ in every ratio that matters.
MODELS: dict[str, dict[str, Any]] = {
    "eight_experts": {"hidden": 64, "layers": 2, "heads": 8, "kv_heads": 4, "experts": 8, "top_k": 2, "inter": 128,
                      "vocab": 320, "max_position": 256, "seed": 11},
    "four_experts": {"hidden": 96, "layers": 3, "heads": 6, "kv_heads": 1, "head_dim": 24, "experts": 4, "top_k": 3,
                     "inter": 84, "vocab": 300, "max_position": 256, "seed": 12},
}
PROMPT_LENGTHS = (1, 9, 33, 120)


def generate(options: dict[str, Any], directory: Path) -> str:
    """Generate the model and return the hash of its weights."""
    sys.path.insert(0, str(REFERENCE))
    from tensorrtllm_reference import tiny

    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    tiny.main(["--output_dir", str(directory), *argv])
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def record(name: str, options: dict[str, Any], directory: Path) -> dict[str, Any]:
    import numpy as np
    import torch
    from transformers import MixtralForCausalLM

    weights = generate(options, directory)
    model = MixtralForCausalLM.from_pretrained(str(directory), dtype=torch.float32, attn_implementation="eager").eval()
    random = np.random.default_rng(options["seed"])
    cases = []
    for length in PROMPT_LENGTHS:
        prompt = [int(token) for token in random.integers(3, options["vocab"], length)]
        tokens = list(prompt)
        margins = []
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0].numpy()
            for _ in range(GREEDY_TOKENS):
                best = model(torch.tensor([tokens])).logits[0, -1].numpy()
                margins.append(float(np.diff(np.sort(best)[-2:])[0]))
                tokens.append(int(best.argmax()))
        # Greedy tokens only say something when no two candidates are within rounding of each other.
        assert min(margins) > 1e-3, f"{name}: a tie of {min(margins)}; choose another seed"
        positions = sorted({0, length // 2, length - 1})
        cases.append({
            "prompt": prompt,
            "greedy": tokens[length:],
            "logits": {str(at): [float(f"{value:.7g}") for value in logits[at]] for at in positions},
        })
    return {"options": options, "weights_sha256": weights, "cases": cases}


def main() -> None:
    import torch
    import transformers

    os.environ.setdefault("TRTLLM_REFERENCE_RELEASE", "1.1.0")
    with tempfile.TemporaryDirectory() as directory:
        models = {name: record(name, options, Path(directory) / name) for name, options in MODELS.items()}
    made_with = {"torch": torch.__version__, "transformers": transformers.__version__}
    VECTORS.write_text(json.dumps({"made_with": made_with, "models": models}, separators=(",", ":")) + "\n")
    print(f"{VECTORS}: {VECTORS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
