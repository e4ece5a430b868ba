# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives a run its identity, and a directory on the controller for its journal and its report."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.plugin_utils._controller import controller


def _latest(parent: str, name: str) -> None:
    """A link that is easier to type than the name of a run; a convenience that may fail."""
    link = os.path.join(os.path.abspath(os.path.expanduser(parent)), "latest")
    beside = "%s.%s" % (link, secrets.token_hex(4))
    with contextlib.suppress(OSError):
        os.symlink(name, beside)
        os.replace(beside, link)


# What this plugin makes; nothing else in the directory is touched.
RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def _prune(parent: str, keep: int) -> None:
    """Removes all but the last so many runs, none for 0; housekeeping that may fail."""
    if not keep:
        return
    parent = os.path.abspath(os.path.expanduser(parent))
    with contextlib.suppress(OSError):
        # Their names sort as their times do.
        for name in sorted(name for name in os.listdir(parent) if RUN.fullmatch(name))[:-keep]:
            path = os.path.join(parent, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)


class ActionModule(ActionBase):  # type: ignore[misc]
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _VALID_ARGS = frozenset(("directory", "keep"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        before = (task_vars or {}).get("triton_pool_run")
        if isinstance(before, dict) and before.get("id"):
            # validate.yml has begun it already.
            known = {name: before.get(name) for name in ("id", "dir", "started", "controller")}
            return {**result, **known, "changed": False}
        started = time.time()
        name = "%s-%s" % (time.strftime("%Y%m%d-%H%M%S", time.gmtime(started)), secrets.token_hex(3))
        run = {"id": name, "dir": "", "started": started, "controller": controller()}
        parent = str(self._task.args.get("directory") or "")
        given = str(self._task.args.get("keep") or 0)
        if not given.isdecimal():
            msg = "triton_pool_reports_kept %r is no number of runs: give 0 to keep all, or more" % given
            return {**result, "failed": True, "changed": False, "msg": msg}
        keep = int(given)
        if parent and not self._task.check_mode:
            directory = os.path.join(os.path.abspath(os.path.expanduser(parent)), name)
            try:
                os.makedirs(directory, mode=0o750)
            except OSError as exc:
                return {
                    **result, "failed": True, "changed": False,
                    "msg": "the directory %s for the report cannot be made on the controller (%s): set"
                    " triton_pool_report_dir to one that can, or to '' for none" % (directory, exc.strerror or exc),
                }  # fmt: skip
            run["dir"] = directory
            _latest(parent, name)
            _prune(parent, keep)
        return {**result, **run, "changed": False}
