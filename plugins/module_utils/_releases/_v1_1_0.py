# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the tools at TensorRT-LLM 1.1.0 to 1.2.1, as differences to the line before.

Sources: trtllm-build at TensorRT-LLM 65f1d153 (main, autumn 2025), its BuildConfig defaults as of 0.16.0;
convert_checkpoint.py as of 368f8f2a (early 2026); launch_triton_server.py at 0a2e2c1f (1.x). All nearest, not exact.
"""

from __future__ import annotations

from . import _v0_19_0
from ._table import SWITCH, Table, revise

# One option a line, as far as it fits.
# fmt: off
CONVERT_CHECKPOINT: Table = _v0_19_0.CONVERT_CHECKPOINT

TRTLLM_BUILD: Table = revise(
    _v0_19_0.TRTLLM_BUILD,
    drop=["auto_parallel", "gpus_per_node", "cluster_key"],
    change=[
        {"flags": ["--gemm_plugin"], "type": "str",
         "choices": ["auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"],
         "default": "disable"},
        {"flags": ["--tokens_per_block"], "type": "int", "default": 32},
        {"flags": ["--use_paged_context_fmha"], "type": "str", "choices": SWITCH, "default": "enable"},
        {"flags": ["--use_fp8_context_fmha"], "type": "str", "choices": SWITCH, "default": "enable"},
    ],
    add=[
        {"flags": ["--dora_plugin"], "type": "str", "choices": SWITCH, "default": "disable"},
        {"flags": ["--gemm_allreduce_plugin"], "type": "str",
         "choices": ["float16", "bfloat16", "disable"], "default": "disable"},
        {"flags": ["--fuse_fp4_quant"], "type": "str", "choices": SWITCH, "default": "disable"},
        {"flags": ["--norm_quant_fusion"], "type": "str", "choices": SWITCH, "default": "disable"},
    ],
)

LAUNCH: Table = revise(
    _v0_19_0.LAUNCH,
    add=[
        {"flags": ["--trtllm_llmapi_launch"], "action": "store_true", "default": False},
        {"flags": ["--exit_timeout"], "type": "int", "default": None},
    ],
)
