# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows what a run has done, and keeps it on the controller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal
from ansible_collections.trtllm.serving.plugins.plugin_utils._report import of_run, table, write
from ansible_collections.trtllm.serving.plugins.plugin_utils._step import POOL_DEFAULT


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class ActionModule(ActionBase):  # type: ignore[misc]
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _VALID_ARGS = frozenset(("plan", "run", "hosts"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        run, plan = _mapping(self._task.args.get("run")), _mapping(self._task.args.get("plan"))
        hosts = self._task.args.get("hosts") or variables.get("ansible_play_hosts_all") or []
        journal = Journal(str(run.get("dir") or ""))
        report = of_run(journal.events(), run, plan, self._outcomes(variables, [str(host) for host in hosts]))
        if self._task.check_mode:
            for lane in report.lanes:
                # Nothing has been touched, and what the plan has is what a run would do.
                lane.outcome = lane.outcome or ("planned" if lane.batch else "")
        for lane in report.lanes:
            if not lane.source:
                # Hosts that were left alone are in no plan of what moves.
                lane.source = self._serves(variables, lane.host)
                lane.target = lane.target or (lane.source if lane.outcome == "unchanged" else "")
        page = ""
        if journal.path is not None and not self._task.check_mode:
            try:
                page = str(write(report, journal.path.parent))
            except OSError as exc:
                self._display.warning("the report cannot be written to %s: %s" % (run["dir"], exc.strerror or exc))
        lines = table(report)
        for line in lines:
            self._display.display(line)
        if page:
            self._display.display("%s has it as a timeline" % page)
        rows = [lane.as_dict() for lane in report.lanes]
        return {
            **result, "changed": False, "rows": rows, "lines": lines, "failed_hosts": report.failures(), "page": page,
        }  # fmt: skip

    @staticmethod
    def _serves(variables: Mapping[str, Any], host: str) -> str:
        hostvars = variables.get("hostvars") or {}
        seen = _mapping(hostvars[host].get("triton_serve_preflight")) if host in hostvars else {}
        return str(_mapping(seen.get("host")).get("current") or "")

    @staticmethod
    def _outcomes(variables: Mapping[str, Any], hosts: list[str]) -> dict[str, tuple[str, Mapping[str, Any]]]:
        hostvars = variables.get("hostvars") or {}
        found: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for host in hosts:
            of = hostvars[host] if host in hostvars else {}
            found[host] = (str(of.get("triton_pool") or POOL_DEFAULT), _mapping(of.get("triton_serve_outcome")))
        return found
