# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says before each batch of a rollout which of its hosts may go, by what became of those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.plugin_utils import _pools
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal


class ActionModule(ActionBase):  # type: ignore[misc]
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _VALID_ARGS = frozenset(("plan",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        plan = self._task.args.get("plan") or {}
        hostvars = variables.get("hostvars") or {}
        batch = [str(host) for host in variables.get("ansible_play_batch") or []]
        verdicts: dict[str, dict[str, Any]] = {}
        stopped: dict[str, str] = {}
        for name, pool in (plan.get("pools") or {}).items():
            mine = [host for host in batch if host in pool["hosts"]]
            if not mine:
                continue
            outcomes = {host: self._outcome(hostvars, host) for host in pool["hosts"]}
            if self._task.check_mode:
                # Nothing became of the hosts before, and none of them is lost.
                outcomes = {host: found or {"outcome": "skipped"} for host, found in outcomes.items()}
            said = _pools.judge(name, pool, mine, {host: found for host, found in outcomes.items() if found})
            verdicts.update(said)
            causes = sorted({verdict["cause"] for verdict in said.values() if not verdict["go"]})
            if causes:
                stopped[name] = "; ".join(causes)
        unplanned = [host for host in batch if host not in verdicts]
        for host in unplanned:
            verdicts[host] = {"go": False, "cause": "the plan of this run does not have the host: run site.yml whole"}
        journal = Journal.of(variables)
        for name, cause in stopped.items():
            journal.event(None, name, "guard", "note", cause=cause, hosts=batch)
            self._display.warning(cause)
        return {**result, "changed": False, "hosts": verdicts, "stopped": stopped}

    @staticmethod
    def _outcome(hostvars: Mapping[str, Any], host: str) -> Mapping[str, Any]:
        found = hostvars[host].get("triton_serve_outcome") if host in hostvars else None
        return found if isinstance(found, Mapping) else {}
