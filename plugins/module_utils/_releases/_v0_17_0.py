# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the tools at TensorRT-LLM 0.17.0 to 0.18.2, as differences to the line before.

Sources: trtllm-build at TensorRT-LLM 008b2b8d (early 2025), its plugin options as of 0.16.0; convert_checkpoint.py as
of 0.16.0 with --use_nvfp4, which a copy of early 2026 (368f8f2a) adds and nothing else (nearest); the launcher is that
of 0.13.0 (exact).
"""

from __future__ import annotations

from . import _v0_16_0
from ._table import Table, revise

# One option a line, as far as it fits.
# fmt: off
CONVERT_CHECKPOINT: Table = revise(
    _v0_16_0.CONVERT_CHECKPOINT,
    add=[
        {"flags": ["--use_nvfp4"], "action": "store_true", "default": False},
    ],
)

TRTLLM_BUILD: Table = revise(
    _v0_16_0.TRTLLM_BUILD,
    change=[
        {"flags": ["--visualize_network"], "type": "str", "default": None},
    ],
)

LAUNCH: Table = _v0_16_0.LAUNCH
