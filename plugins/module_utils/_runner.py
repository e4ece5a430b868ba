# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one of upstream's tools to its end, or to the end of whoever asked for it.

Callers depend on the Runner interface only: where the tool runs is the runner's business. This names what they need;
a runner for containers is in _runner_container, which only those import that may use it.
Private to the collection.
"""

from __future__ import annotations

from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import (
    GRACE_S,
    TAIL_LINES,
    Cancelled,
    NotStarted,
    OnLine,
    PathLike,
    Runner,
    RunnerError,
    RunResult,
    TimedOut,
    mask,
    secret_names,
    secret_values,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner_cancel import Cancellation
from ansible_collections.trtllm.serving.plugins.module_utils._runner_native import NativeRunner

__all__ = [
    "GRACE_S",
    "TAIL_LINES",
    "Cancellation",
    "Cancelled",
    "NativeRunner",
    "NotStarted",
    "OnLine",
    "PathLike",
    "RunResult",
    "Runner",
    "RunnerError",
    "TimedOut",
    "mask",
    "secret_names",
    "secret_values",
]
