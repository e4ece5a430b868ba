# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells what decides a host's engine, and which host builds it for those that need the same."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.plugin_utils._builders import assign, signature_of


class ActionModule(ActionBase):  # type: ignore[misc]
    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("decides", "builder", "attempts"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        if "decides" in args:
            if not isinstance(args["decides"], dict):
                raise AnsibleActionFail(
                    "decides %r is not a dictionary: give what the engine is made of" % args["decides"]
                )
            found = signature_of(args["decides"])
            return {**result, **found, "builder": str(args.get("builder") or ""), "changed": False}
        hosts = list(variables.get("ansible_play_hosts") or [])
        everybody = list(variables.get("ansible_play_hosts_all") or hosts)
        previous = variables.get("mixtral_engine_builders")
        plan = assign(
            hosts,
            {host: self._facts(variables, host) for host in everybody},
            previous if isinstance(previous, dict) else {},
            int(args.get("attempts") or 3),
            list((variables.get("groups") or {}).get("all") or everybody),
        )
        for warning in plan.pop("warnings"):
            self._display.warning(warning)
        return {**result, **plan, "changed": False}

    @staticmethod
    def _facts(variables: dict[str, Any], host: str) -> dict[str, Any]:
        """What earlier tasks have registered for a host; one variable at a time spares templating the others."""
        found = variables["hostvars"].get(host) if host in variables["hostvars"] else None
        names = ("signature", "weights", "checkpoint", "engine")
        return {name: found.get("mixtral_engine_" + name) for name in names} if found is not None else {}
