# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the tools at TensorRT-LLM 0.16.0, as differences to the line before.

Sources: convert_checkpoint.py and trtllm-build at TensorRT-LLM b171e879 (0.16.0.dev2024121000, a snapshot two weeks
before the release); the launcher is that of 0.13.0 (exact).
"""

from __future__ import annotations

from . import _v0_15_0
from ._table import SWITCH, Table, revise

# One option a line, as far as it fits.
# fmt: off
CONVERT_CHECKPOINT: Table = revise(
    _v0_15_0.CONVERT_CHECKPOINT,
    drop=["use_embedding_sharing"],
    add=[
        {"flags": ["--cp_size"], "type": "int", "default": 1},
    ],
)

TRTLLM_BUILD: Table = revise(
    _v0_15_0.TRTLLM_BUILD,
    drop=["enable_xqa"],
    add=[
        {"flags": ["--user_buffer"], "type": "str", "choices": SWITCH, "default": "disable"},
    ],
)

LAUNCH: Table = _v0_15_0.LAUNCH
