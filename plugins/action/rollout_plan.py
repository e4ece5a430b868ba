# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out the batches of a rollout from what the play has learned of its hosts."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.plugin_utils import _filters, _pools, _survey
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal

_filters.bring()

STATES = ("validated", "foreseen", "planned")


class ActionModule(ActionBase):  # type: ignore[misc]
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _VALID_ARGS = frozenset(("state", "target", "hosts", "settings", "take_over"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        state = str(self._task.args.get("state", "planned"))
        if state not in STATES:
            return {**result, "failed": True, "msg": "state '%s' is not known: use %s" % (state, ", ".join(STATES))}
        fleet = _survey.Fleet(variables, self._task.args.get("hosts"), self._task.args.get("settings"))
        try:
            target = _survey.target_of(self._task.args.get("target"))
            # What only the settings decide first: the pools could not be laid out with others.
            problems = fleet.renamed() or fleet.agreement()
            pools = [] if problems else fleet.pools(state, target)
            problems = problems or self._judge(state, fleet, pools, target)
        except (_pools.PoolError, AnsibleError) as exc:
            problems = [str(exc)]
        if problems:
            return {**result, "failed": True, "changed": False, "msg": "; ".join(problems)}
        result.update(changed=False, target=target)
        if state != "planned":
            return result
        hosts, serial = _pools.serial_of(pools)
        plan = {pool.name: pool.as_dict() for pool in pools}
        result.update(hosts=hosts, serial=serial, pools=plan, lines=_pools.described(pools))
        self._record(variables, plan)
        return result

    def _judge(self, state: str, fleet: Any, pools: list[_pools.Pool], target: str) -> list[str]:
        if state == "validated":
            return [problem for pool in pools for problem in _pools.lay_out(pool)]
        problems: list[str] = [] if self._task.args.get("take_over") in (True, "true", "True") else fleet.leases()
        problems += fleet.surges(pools)
        if state == "planned" or target != "new":
            problems += fleet.targets(pools, target)
        if state == "planned" and not problems:
            problems = [problem for pool in pools for problem in _pools.lay_out(pool)]
        return problems

    @staticmethod
    def _record(variables: dict[str, Any], plan: dict[str, Any]) -> None:
        journal = Journal.of(variables)
        for name, pool in plan.items():
            kept = {each: pool[each] for each in ("batches", "unchanged", "causes", "blocked", "stopped")}
            journal.event(None, name, "plan", "note", **kept)
