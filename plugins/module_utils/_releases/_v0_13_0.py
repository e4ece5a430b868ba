# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the tools at TensorRT-LLM 0.13.0, as differences to the line before.

Sources: convert_checkpoint.py and trtllm-build at TensorRT-LLM 78f5c293 (0.13.0.dev2024090300, the commit that
NGC 24.09 pins); launch_triton_server.py at tensorrtllm_backend v0.13.0 (exact).
"""

from __future__ import annotations

from . import _v0_12_0
from ._table import FP8, SWITCH, Table, revise

# One option a line, as far as it fits.
# fmt: off
CONVERT_CHECKPOINT: Table = revise(
    _v0_12_0.CONVERT_CHECKPOINT,
    add=[
        {"flags": ["--use_fp8"], "action": "store_true", "default": False},
    ],
)

TRTLLM_BUILD: Table = revise(
    _v0_12_0.TRTLLM_BUILD,
    drop=["cp_size", "tp_size", "pp_size"],
    change=[
        {"flags": ["--paged_kv_cache"], "type": "str", "default": None},
        {"flags": ["--use_fused_mlp"], "type": "str", "choices": SWITCH, "default": "enable"},
    ],
    add=[
        {"flags": ["--kv_cache_type"], "type": "enum:continuous|paged|disabled", "default": None},
        {"flags": ["--fast_build"], "action": "store_true", "default": False},
        {"flags": ["--low_latency_gemm_plugin"], "type": "str", "choices": FP8, "default": "disable"},
    ],
)

LAUNCH: Table = revise(
    _v0_12_0.LAUNCH,
    add=[
        {"flags": ["--disable-spawn-processes"], "action": "store_true", "default": False},
        {"flags": ["--multimodal_gpu0_cuda_mem_pool_bytes"], "type": "int", "default": 0},
    ],
)
