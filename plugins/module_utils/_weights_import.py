# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work of mixtral_weights: use a directory that is there, have an importer make one, or fetch it from a hub.

Private to the collection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _hub, _hub_weights, _tool_module, _weights
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    existing_parent,
    explain,
    key_of,
    need_writable,
    read_manifest,
    refresh_times,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Runner

TOOL = "importer"
OUTPUT_TOKEN = "{output_dir}"


def _placeless(word: str) -> str:
    """A word of a command without the directory of the program or script that it names."""
    return os.path.basename(word) if os.path.isabs(word) and os.path.isfile(word) else word


def _describe(
    path: Path, params: Mapping[str, Any], check_mode: bool, cancellation: Cancellation, *, full: bool
) -> dict[str, Any]:
    """What is returned of a directory that is whole; ToolError when it is not."""
    seen = _weights.inspect(path)
    _tool_module.refuse(seen.problems)
    identity = _weights.identify(
        path,
        params["home"],
        name=params.get("name") or None,
        revision=params.get("revision") or None,
        full=full,
        write=not check_mode,
        tick=cancellation.check,
    )
    return {"path": str(path), "identity": identity, "config": seen.summary, "weight_bytes": seen.weight_bytes}


def _reason(final: Path, problems: Sequence[str], what: str) -> str:
    if not final.exists():
        return f"{final} does not exist yet"
    return problems[0] if problems else f"{final} was made by another {what}"


def _need_home(home: str) -> None:
    if not existing_parent(home).is_dir():
        raise _tool_module.ToolError(f"{home} is not a directory: choose another home")


def provide(
    params: Mapping[str, Any], check_mode: bool, cancellation: Cancellation, runner: Runner | None = None
) -> dict[str, Any]:
    """The module's work; returns its result. Raises one of _tool_module.REPORTED."""
    full = params.get("verify") == "full"
    if params.get("path"):
        path = Path(params["path"])
        return {"changed": False, **_describe(path, params, check_mode, cancellation, full=full)}

    hub = _hub.complete(params["hub"]) if params.get("hub") else {}
    _tool_module.refuse(_hub.problems_of(hub) if hub else [])
    name, revision = str(params.get("name") or hub.get("repository") or ""), str(params.get("revision") or "")
    if not name or not revision:
        raise _tool_module.ToolError("give path, or name and revision: without them there are no weights to use")
    final = Path(params["weights_dir"]) / _weights.directory_name(name, revision)
    importer = [str(word) for word in params.get("importer") or []]
    if importer and not any(OUTPUT_TOKEN in word for word in importer):
        raise _tool_module.ToolError(
            f"importer has no {OUTPUT_TOKEN} in it: put it where the directory to fill belongs"
        )

    manifest = read_manifest(final)
    if manifest is None and final.exists():
        # Put there by somebody else: used when it is whole, never removed.
        try:
            return {"changed": False, **_describe(final, params, check_mode, cancellation, full=full)}
        except _tool_module.ToolError as exc:
            raise _tool_module.ToolError(
                f"{exc}; {final} was not made by this collection: complete or remove it"
            ) from exc
    before = _tool_module.stamp(final)
    checked = verify(final, full=full, kind=_weights.KIND, tick=cancellation.check)
    inputs: dict[str, Any] = {"name": name, "revision": revision}
    if hub:
        inputs = _hub_weights.inputs_of(name, revision, hub)
    else:
        inputs["importer"] = [_placeless(word) for word in importer]
    other = bool(importer or hub) and checked.manifest is not None and checked.manifest.inputs != inputs
    if checked.ok and not other:
        if not check_mode:
            refresh_times(checked)
        return {"changed": False, **_describe(final, params, check_mode, cancellation, full=False)}
    if not importer and not hub:
        what = checked.problems[0] if final.exists() else f"{final} does not exist"
        raise _tool_module.ToolError(f"{what}: give importer, or path of a directory with the weights, or hub")
    need_writable(final)
    result: dict[str, Any] = {
        "reason": _reason(final, checked.problems, "choice of files" if hub else "importer command"),
        "diff": {
            **explain(manifest.inputs if manifest is not None else None, inputs),
            "before_header": str(final) if manifest is not None else "no weights",
            "after_header": str(final),
        },
    }
    unknown = {"path": str(final), "identity": None, "config": None, "weight_bytes": None}
    if hub:
        if not _hub.is_commit(revision) and check_mode:
            how = f"'git ls-remote {hub['endpoint']}/{hub['repository']}' lists what there is"
            raise _hub.HubError(_hub.revision_problem(revision, "revision", how))
        _hub.read_token(hub, missing_ok=check_mode)
        if check_mode:
            _need_home(params["home"])
            return {**result, **unknown, "changed": True, "log_file": "", "duration_s": 0.0}
        done = _hub_weights.fetch({**params, "hub": hub}, final, before, inputs, cancellation, runner)
        return {**result, **done, **_describe(final, params, check_mode, cancellation, full=False)}

    def check(path: Path) -> list[str]:
        return _weights.inspect(path).problems

    job = _tool_module.Job(
        tool=TOOL,
        kind=_weights.KIND,
        final=final,
        key=key_of(inputs),
        inputs=inputs,
        command=lambda output: [word.replace(OUTPUT_TOKEN, str(output)) for word in importer],
        check=check,
        home=Path(params["home"]),
        log_dir=Path(params["log_dir"]),
        before=before,
        environment={variable: str(value) for variable, value in (params.get("environment") or {}).items()},
        timeout=params.get("timeout"),
    )
    if check_mode:
        _need_home(params["home"])
        return {**result, **_tool_module.finish(job, None), **unknown, "changed": True}
    outcome = _tool_module.make(job, cancellation, runner)
    return {
        **result,
        **_tool_module.finish(job, outcome),
        **_describe(final, params, check_mode, cancellation, full=False),
    }
