# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tutorial says, written down from its text and from nothing else."""

from __future__ import annotations

from typing import Any

REPOSITORY = "https://github.com/triton-inference-server/tensorrtllm_backend.git"
DOCKERFILE = "dockerfile/Dockerfile.trt_llm_backend"
IMAGE = "triton_trt_llm"

# docker run: --shm-size=2g --ulimit memlock=-1 --ulimit stack=67108864 --gpus all
SHM_SIZE = "2g"
ULIMITS = {"memlock": -1, "stack": 67108864}
GPUS = "all"

WEIGHTS = "mistralai/Mixtral-8x7B-v0.1"
TOKENIZER = "Mixtral-8x7B-Instruct-v0.1"
WORLD_SIZE = 8
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
LISTENS = "0.0.0.0"

# The command lines of the tools, without the paths that they are given.
CONVERT = {"dtype": "float16", "tp_size": 8}
BUILD = {"gemm_plugin": "float16"}

QUESTION = {"text_input": "What is machine learning?", "max_tokens": 512, "bad_words": "", "stop_words": ""}

# Paths as the tutorial's container sees them; where ours has the same things is for the test to say.
TOKENIZER_DIR = "/tensorrtllm_backend/tensorrt_llm/examples/mixtral/Mixtral-8x7B-Instruct-v0.1"
ENGINE_DIR = "/tensorrtllm_backend/triton_model_repo/tensorrt_llm/1"

ONE_ON_CPU = [{"count": 1, "kind": "KIND_CPU"}]

# The fields that it edits, by model: everything else stays as the release's own template has it.
CONFIGS: dict[str, dict[str, Any]] = {
    "ensemble": {
        "max_batch_size": 1,
    },
    "postprocessing": {
        "max_batch_size": 1,
        "parameters": {"tokenizer_dir": TOKENIZER_DIR, "skip_special_tokens": "True"},
        "instance_group": ONE_ON_CPU,
    },
    "preprocessing": {
        "max_batch_size": 1,
        "parameters": {"tokenizer_dir": TOKENIZER_DIR, "skip_special_tokens": "True"},
        "instance_group": ONE_ON_CPU,
    },
    "tensorrt_llm": {
        "max_batch_size": 1,
        "model_transaction_policy": {"decoupled": True},
        "dynamic_batching": {"preferred_batch_size": [1], "max_queue_delay_microseconds": 100},
        "instance_group": ONE_ON_CPU,
        "parameters": {
            "gpt_model_type": "inflight_fused_batching",
            "gpt_model_path": ENGINE_DIR,
            "batch_scheduler_policy": "max_utilization",
        },
    },
    "tensorrt_llm_bls": {
        "max_batch_size": 1,
        "model_transaction_policy": {"decoupled": True},
        "instance_group": ONE_ON_CPU,
    },
}
