# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The conversion of a checkpoint, as a stage of the run's report."""

from __future__ import annotations

from ansible_collections.trtllm.serving.plugins.plugin_utils._step import StepAction


class ActionModule(StepAction):
    STAGE = "convert"
    PROGRESS = True
