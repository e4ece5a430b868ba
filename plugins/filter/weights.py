# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters that judge where weights come from, on the controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _hub

# Options of the module that are not called after the hub in the role.
_NAMES = {"repository": "mixtral_engine_weights_repository"}
_SPACE = {"checkpoint": float, "engine": float, "image_gib": float, "image_path": str, "reserve_gib": float}


def _variable(option: str) -> str:
    return _NAMES.get(option, "mixtral_engine_hub_" + option)


def _space_problems(space: object) -> list[str]:
    if not isinstance(space, Mapping):
        return [f"mixtral_engine_space {space!r} is not a dictionary: write {{checkpoint: 1.0, engine: 1.0}}"]
    problems = []
    for name, value in space.items():
        if name not in _SPACE:
            problems.append(f"mixtral_engine_space has {name!r}, which means nothing: use {', '.join(_SPACE)}")
        elif _SPACE[name] is float:
            number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
            if number < 0:
                problems.append(f"mixtral_engine_space.{name} {value!r} is not possible: give 0 or more")
        elif not str(value).startswith("/"):
            problems.append(f"mixtral_engine_space.{name} {value!r} is not an absolute path: name Docker's directory")
    return problems


def hub_problems(
    source: str, hub: Mapping[str, Any], revision: str = "", runtime: str = "embedded", space: object = None
) -> list[str]:
    """One line for each reason why weights cannot come from this source, as far as a hub or the runtime decides it."""
    if source in ("smollm2", "tiny") and runtime == "docker":
        return [
            f"mixtral_engine_weights_source '{source}' is made by the reference backend, which mixtral_engine_runtime"
            " 'docker' does not have: set the source to huggingface or directory"
        ]
    if source != "huggingface":
        return []
    problems = _hub.problems_of(hub, _variable)
    if not _hub.is_commit(revision):
        page = f"{str(hub.get('endpoint') or _hub.ENDPOINT).rstrip('/')}/{hub.get('repository')}"
        how = f"'git ls-remote {page}' lists what there is"
        problems.append(_hub.revision_problem(str(revision), "mixtral_engine_weights_revision", how))
    return problems + _space_problems(space or {})


class FilterModule:
    """Filters of this collection for weights."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"hub_problems": hub_problems}
