# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the module which ansible-playbook process the run is, so that the host's lease ends with it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.module_utils._lease import RunLease
from ansible_collections.trtllm.serving.plugins.plugin_utils._controller import controller


class ActionModule(ActionBase):  # type: ignore[misc]
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        run = {**controller(), "host": str((task_vars or {}).get("inventory_hostname") or "")}
        found = self._look(run, task_vars)
        lease = _lease(found)
        holder = lease.get("holder")
        if lease.get("foreign") and isinstance(holder, dict) and RunLease.known_dead(holder):
            # A run of this controller that was killed: here that can be seen, the host could only wait.
            found = self._look({**run, "gone": str(holder.get("run_id") or "")}, task_vars)
        result.update(found)
        return result

    def _look(self, run: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(
            module_name="trtllm.serving.host_preflight",
            module_args={**self._task.args, "run": run},
            task_vars=task_vars,
        )
        return found


def _lease(found: dict[str, Any]) -> dict[str, Any]:
    host = found.get("host")
    lease = host.get("lease") if isinstance(host, dict) else None
    return lease if isinstance(lease, dict) else {}
