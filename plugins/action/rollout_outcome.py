# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of a host in a rollout: kept for the next batch's guard, for the journal, and for the report."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal
from ansible_collections.trtllm.serving.plugins.plugin_utils._report import so_far
from ansible_collections.trtllm.serving.plugins.plugin_utils._step import POOL_DEFAULT, first_line

OUTCOMES = ("done", "unchanged", "failed", "lost", "skipped")


class ActionModule(ActionBase):  # type: ignore[misc]
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _VALID_ARGS = frozenset(("outcome", "cause", "from", "to", "left"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        given = {name: str(self._task.args.get(name) or "") for name in ("outcome", "cause", "from", "to", "left")}
        if given["outcome"] not in OUTCOMES:
            return {
                **result, "failed": True,
                "msg": "outcome %r is not known: use one of %s" % (given["outcome"], ", ".join(OUTCOMES)),
            }  # fmt: skip
        given["cause"] = first_line(given["cause"])
        if not self._task.check_mode:
            journal = Journal.of(variables)
            detail: dict[str, Any] = {name: given[name] for name in ("cause", "from", "to", "left")}
            pool = str(self._templar.template(variables.get("triton_pool") or POOL_DEFAULT))
            host = str(variables.get("inventory_hostname") or "")
            journal.event(host, pool, "outcome", "note", given["outcome"], **detail)
            problem = journal.problem or so_far(variables)
            if problem:
                self._display.warning(problem)
        return {**result, **given, "changed": False}
