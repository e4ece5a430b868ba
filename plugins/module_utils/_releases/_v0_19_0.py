# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the tools at TensorRT-LLM 0.19.0 to 1.0.3, as differences to the line before.

Sources: launch_triton_server.py at tensorrtllm_backend v0.19.0 (exact; nearest from 0.20.0 on). The other tools are
those of 0.17.0 (nearest): the commands of 0.20.0 to 1.0.3 as such were not at hand.
"""

from __future__ import annotations

from . import _v0_17_0
from ._table import Table, revise

# One option a line, as far as it fits.
# fmt: off
CONVERT_CHECKPOINT: Table = _v0_17_0.CONVERT_CHECKPOINT

TRTLLM_BUILD: Table = _v0_17_0.TRTLLM_BUILD

LAUNCH: Table = revise(
    _v0_17_0.LAUNCH,
    add=[
        {"flags": ["--no-mpi"], "action": "store_true", "default": False},
    ],
)
