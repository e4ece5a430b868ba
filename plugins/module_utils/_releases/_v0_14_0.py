# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the tools at TensorRT-LLM 0.14.0, as differences to the line before.

Sources: convert_checkpoint.py and trtllm-build at TensorRT-LLM 8681b3a4 (0.14.0.dev2024100800, a snapshot four weeks
before the release); the launcher is that of 0.13.0 (exact).
"""

from __future__ import annotations

from . import _v0_13_0
from ._table import LOG_LEVELS, Table, revise

# One option a line, as far as it fits.
# fmt: off
CONVERT_CHECKPOINT: Table = revise(
    _v0_13_0.CONVERT_CHECKPOINT,
    change=[
        {"flags": ["--weight_only_precision"], "type": "str", "nargs": "?", "const": "int8",
         "choices": ["int8", "int4", "int4_gptq", "int4_awq"], "default": "int8"},
    ],
    add=[
        {"flags": ["--calib_size"], "type": "int", "default": 512},
        {"flags": ["--calib_max_seq_length"], "type": "int", "default": 512},
    ],
)

TRTLLM_BUILD: Table = revise(
    _v0_13_0.TRTLLM_BUILD,
    drop=["builder_opt"],
    change=[
        {"flags": ["--max_batch_size"], "type": "int", "default": 2048},
        {"flags": ["--log_level"], "type": "str", "choices": LOG_LEVELS, "default": "info"},
    ],
)

LAUNCH: Table = _v0_13_0.LAUNCH
