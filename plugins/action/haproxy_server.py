# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Journals a drain, and lets a balancer that is gone be a failure of that step and not the end of the host's play."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible_collections.trtllm.serving.plugins.plugin_utils._step import StepAction, lost_message


class ActionModule(StepAction):
    # A query is no stage of a rollout.
    STAGES = {"drained": "drain", "maint": "drain", "ready": "undrain"}

    def step(
        self,
        task_vars: dict[str, Any],
        module_name: str | None = None,
        module_args: Mapping[str, Any] | None = None,
        stage: str | None = None,
    ) -> dict[str, Any]:
        host = str(task_vars.get("inventory_hostname") or "")
        where = str(getattr(self._task, "delegate_to", None) or host)
        try:
            result = super().step(task_vars, module_name, module_args, stage)
        except AnsibleConnectionFailure as exc:
            if where == host:
                raise
            result = {"unreachable": True, "msg": str(exc)}
        # Also outside of a fleet's rollout: the other balancers' drains must be undone, which a lost host could not do.
        if result.get("unreachable") and where != host:
            return {"failed": True, "changed": False, "msg": lost_message(host, where, result.get("msg"))}
        return result
