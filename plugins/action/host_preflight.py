# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the module which ansible-playbook process the run is, so that the host's lease ends with it."""

from __future__ import annotations

import getpass
import os
import socket
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.module_utils._lock import machine_id, pid_starttime


def controller() -> dict[str, Any]:
    """The process of this run. Actions run in workers, whose parent is ansible-playbook itself."""
    pid = os.getppid()
    started = pid_starttime(pid)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "uid %d" % os.getuid()
    host = machine_id()
    return {
        "run_id": "%s:%d:%s" % (host, pid, started),
        "machine_id": host,
        "pid": pid,
        "starttime": started,
        "who": "%s@%s" % (user, socket.gethostname()),
        # The host compares its clock with this one.
        "now": time.time(),
    }


class ActionModule(ActionBase):  # type: ignore[misc]
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(
            self._execute_module(
                module_name="trtllm.serving.host_preflight",
                module_args={
                    **self._task.args,
                    "run": {**controller(), "host": str((task_vars or {}).get("inventory_hostname") or "")},
                },
                task_vars=task_vars,
            )
        )
        return result
