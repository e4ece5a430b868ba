# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A step of a run: one module on one host, with its place in the run's journal, and word of it while it lasts.

Private to the collection.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal
from ansible_collections.trtllm.serving.plugins.plugin_utils._report import so_far
from ansible_collections.trtllm.serving.plugins.plugin_utils._watcher import Watcher, file_for

ROLLING = "__triton_serve_rolling"
POOL_DEFAULT = "default"
HIDDEN = "hidden, because the task has no_log"


def truth(value: object) -> bool:
    """A boolean, also where ansible-core has handed on its text."""
    return value is True or str(value).strip().lower() in ("true", "yes", "1")


def first_line(text: object) -> str:
    lines = [line for line in str(text or "").strip().splitlines() if line.strip()]
    return lines[0].strip() if lines else ""


def lost_message(host: str, where: str, error: object) -> str:
    other = f" (for {host})" if where != host else ""
    return f"{where}{other} cannot be reached: {first_line(error)}: see that it runs and is reachable, then run again"


class StepAction(ActionBase):  # type: ignore[misc]
    """Base of the action plugins that run a module of the same name.

    In a rollout a lost connection is a failure of the step, which a rescue can answer, and not the end of the host's
    play: an unreachable host counts for no budget of Ansible's, and a batch that is lost whole would end the run before
    its report. The result then has ``lost``, unless it is another host, such as a balancer, that cannot be reached.
    """

    _supports_check_mode = True
    _supports_async = False
    # The stage of the report that the module is; by the module's state where it has several.
    STAGE = ""
    STAGES: Mapping[str, str] = {}
    # Whether the module takes ``progress``, the path of a file in which it tells how far it is.
    PROGRESS = False

    def stage(self) -> str:
        return self.STAGES.get(str(self._task.args.get("state")), self.STAGE)

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(self.step(task_vars or {}))
        return result

    def step(
        self,
        task_vars: dict[str, Any],
        module_name: str | None = None,
        module_args: Mapping[str, Any] | None = None,
        stage: str | None = None,
    ) -> dict[str, Any]:
        """The module's result; its time, and that of its ``stages``, go into the journal."""
        host, pool = str(task_vars.get("inventory_hostname") or ""), self.pool(task_vars)
        name = stage if stage is not None else self.stage()
        arguments = dict(self._task.args if module_args is None else module_args)
        # In check mode nothing happens that a journal could tell.
        dry = bool(self._task.check_mode) or not name
        journal = Journal(None) if dry else Journal.of(task_vars)
        if self.PROGRESS and not dry:
            arguments["progress"] = arguments.get("progress") or file_for()
        watcher = Watcher(self, host, pool, name, arguments.get("progress"), journal)
        begun = time.time()
        journal.event(host, pool, name, "start", at=begun)
        try:
            if dry:
                result = self._call(task_vars, host, module_name or self._task.action, arguments)
            else:
                with watcher:
                    result = self._call(task_vars, host, module_name or self._task.action, arguments)
        except BaseException as exc:
            outcome = "lost" if isinstance(exc, AnsibleConnectionFailure) and self._where(host) == host else "failed"
            journal.event(host, pool, name, "end", outcome, cause=self._cause({"msg": exc}))
            if journal.path is not None:
                so_far(task_vars)
            raise
        outcome = "failed" if result.get("failed") or result.get("unreachable") else "ok"
        outcome = "lost" if result.get("lost") else outcome
        parts = placed(result.get("stages"), begun, time.time())
        if outcome != "ok" and parts and all(part["outcome"] == "ok" for part in parts):
            # A module stops at what fails.
            parts[-1]["outcome"] = outcome
        for part in parts:
            journal.event(host, pool, part["name"], "start", at=part["start"], within=name)
            journal.event(host, pool, part["name"], "end", part["outcome"], at=part["end"], within=name)
        cause = self._cause(result) if outcome != "ok" else None
        journal.event(host, pool, name, "end", outcome, cause=cause, changed=bool(result.get("changed")))
        if journal.problem:
            self._display.warning(f"{journal.problem}: the report of this run lacks what comes now")
        elif outcome != "ok" and journal.path is not None:
            so_far(task_vars)
        return result

    def pool(self, task_vars: Mapping[str, Any]) -> str:
        value = task_vars.get("triton_pool")
        try:
            value = self._templar.template(value) if value is not None else None
        except Exception:  # Whether a pool has a name that can be told is for the validation.
            value = None
        return str(value or POOL_DEFAULT)

    def _where(self, host: str) -> str:
        return str(getattr(self._task, "delegate_to", None) or host)

    def _cause(self, result: Mapping[str, Any]) -> str:
        return HIDDEN if self._task.no_log else first_line(result.get("msg"))

    def _call(self, task_vars: dict[str, Any], host: str, module: str, arguments: dict[str, Any]) -> dict[str, Any]:
        rolling = truth(task_vars.get(ROLLING))
        where = self._where(host)
        try:
            result: dict[str, Any] = self._execute_module(
                module_name=module, module_args=arguments, task_vars=task_vars
            )
        except AnsibleConnectionFailure as exc:
            if not rolling:
                raise
            result = {"unreachable": True, "msg": str(exc)}
        if rolling and result.get("unreachable"):
            message = lost_message(host, where, result.get("msg"))
            return {"failed": True, "changed": False, "lost": where == host, "msg": message}
        return result


def placed(stages: object, begun: float, ended: float) -> list[dict[str, Any]]:
    """A module's own stages on the controller's clock: the last one ended just before the answer came."""
    found: list[tuple[str, float, float, str]] = []
    for part in stages if isinstance(stages, (list, tuple)) else []:
        try:
            offset, seconds = float(part.get("offset_s") or 0.0), max(0.0, float(part.get("seconds") or 0.0))
            found.append((str(part["name"]), offset, seconds, str(part.get("outcome") or "ok")))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    base = max([begun, *([ended - max(part[1] + part[2] for part in found)] if found else [])])
    return [
        {
            "name": name,
            "start": round(min(ended, base + offset), 3),
            "end": round(min(ended, base + offset + seconds), 3),
            "outcome": outcome,
        }
        for name, offset, seconds, outcome in found
    ]
