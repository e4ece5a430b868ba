# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the tools at TensorRT-LLM 0.15.0, as differences to the line before.

Sources: convert_checkpoint.py and trtllm-build at TensorRT-LLM c629546c (0.15.0.dev2024111200, a snapshot three weeks
before the release); the launcher is that of 0.13.0 (exact).
"""

from __future__ import annotations

from . import _v0_14_0
from ._table import FP8, SWITCH, Table, revise

# One option a line, as far as it fits.
# fmt: off
CONVERT_CHECKPOINT: Table = revise(
    _v0_14_0.CONVERT_CHECKPOINT,
    change=[
        {"flags": ["--dtype"], "type": "str", "choices": ["auto", "float16", "bfloat16", "float32"], "default": "auto"},
        {"flags": ["--weight_only_precision"], "type": "str", "nargs": "?", "const": "int8",
         "choices": ["int8", "int4", "int8_gptq", "int4_gptq", "int4_awq"], "default": "int8"},
    ],
    add=[
        {"flags": ["--use_qserve"], "action": "store_true", "default": False},
        {"flags": ["--use_meta_fp8_rowwise_recipe"], "action": "store_true", "default": False},
    ],
)

TRTLLM_BUILD: Table = revise(
    _v0_14_0.TRTLLM_BUILD,
    drop=["builder_force_num_profiles", "lookup_plugin"],
    change=[
        {"flags": ["--speculative_decoding_mode"], "type": "str",
         "choices": ["draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle"],
         "default": None},
    ],
    add=[
        {"flags": ["--monitor_memory"], "action": "store_true", "default": False},
        {"flags": ["--low_latency_gemm_swiglu_plugin"], "type": "str", "choices": FP8, "default": "disable"},
        {"flags": ["--pp_reduce_scatter"], "type": "str", "choices": SWITCH, "default": "disable"},
    ],
)

LAUNCH: Table = _v0_14_0.LAUNCH
