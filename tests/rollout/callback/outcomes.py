# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the recap and what rollout_outcome returned for each host, for the tests to read."""

from __future__ import annotations

DOCUMENTATION = r"""
name: outcomes
type: notification
short_description: Recap and outcomes of a run as JSON
description: For the tests of this collection.
"""

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "outcomes"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.outcomes: dict[str, Any] = {}

    def v2_runner_on_ok(self, result: Any) -> None:
        task, host = getattr(result, "task", None) or result._task, getattr(result, "host", None) or result._host
        if task.action.rpartition(".")[2] == "rollout_outcome":
            found = result.result if hasattr(result, "result") else result._result
            kept = ("outcome", "cause", "from", "to", "left")
            self.outcomes[host.get_name()] = {name: str(found.get(name)) for name in kept}

    def v2_playbook_on_stats(self, stats: Any) -> None:
        recap = {host: stats.summarize(host) for host in sorted(stats.processed)}
        with open(os.environ["TRTLLM_TEST_OUTCOMES"], "w", encoding="utf-8") as stream:
            json.dump({"recap": recap, "outcomes": self.outcomes}, stream)
