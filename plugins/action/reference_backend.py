# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the tree on the controller, and sends it only to hosts that do not have it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.trtllm.serving.plugins.module_utils._releases import UnknownRelease, get

SKIP_DIRS = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}


def tree(src: Path) -> dict[str, bytes]:
    """Every file of the tree, text by relative path."""
    found: dict[str, bytes] = {}
    for folder, folders, names in os.walk(src):
        folders[:] = sorted(name for name in folders if name not in SKIP_DIRS)
        for name in sorted(names):
            path = Path(folder, name)
            if not name.endswith(".pyc"):
                found[path.relative_to(src).as_posix()] = path.read_bytes()
    return found


def digest_of(files: dict[str, bytes]) -> str:
    lines = ["%s %s\n" % (hashlib.sha256(data).hexdigest(), name) for name, data in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def tables_of(release: str) -> str:
    """What the strict command lines of the tree need to know of the release."""
    found = get(release)
    return json.dumps(
        {
            "release": found.version,
            "config_line": found.config_line,
            "convert_checkpoint": found.convert_checkpoint,
            "trtllm_build": found.trtllm_build,
            "launch": found.launch,
        },
        indent=1,
        sort_keys=True,
    )


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755 if data.startswith(b"#!") else 0o644
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class ActionModule(ActionBase):  # type: ignore[misc]
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        src = Path(str(args.get("src", "")))
        if not src.is_dir():
            raise AnsibleActionFail("src '%s' is not a directory on the controller: name the reference tree" % src)
        files = tree(src)
        try:
            tables = tables_of(str(args.get("release", "")))
        except UnknownRelease as exc:
            raise AnsibleActionFail(str(exc)) from exc
        args.update(digest=digest_of(files), tables=tables)
        answer = self._module(args, task_vars)
        if answer.pop("need_archive", False):
            files["release.json"] = (tables + "\n").encode("utf-8")
            answer = self._send(pack(files), args, task_vars)
        result.update(answer)
        return result

    def _module(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="trtllm.serving.reference_backend", module_args=args, task_vars=task_vars
        )
        return answer

    def _send(self, archive: bytes, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        remote = self._make_tmp_path()
        try:
            with tempfile.NamedTemporaryFile(prefix="trtllm-reference-", suffix=".tar") as local:
                local.write(archive)
                local.flush()
                path = self._connection._shell.join_path(remote, "reference.tar")
                self._transfer_file(local.name, path)
                self._fixup_perms2((remote, path))
            return self._module({**args, "archive": path}, task_vars)
        finally:
            self._remove_tmp_path(remote)
