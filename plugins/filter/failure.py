# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why a task failed, in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 1000
# What Ansible says of a command whose own words are elsewhere.
EMPTY = ("non-zero return code", "The command exited with a non-zero", "MODULE FAILURE", "One or more items failed")


def _line(text: object) -> str:
    return " ".join(str(text or "").split())


def _reason(result: Mapping[str, Any]) -> str:
    said = _line(result.get("msg"))
    if not said or said.startswith(EMPTY):
        words = [str(result.get(name) or "").strip() for name in ("stderr", "module_stderr", "stdout")]
        last = next((_line(text.split("\n")[-1]) for text in words if text), "")
        command = result.get("cmd")
        shown = " ".join(map(str, command)) if isinstance(command, (list, tuple)) else _line(command)
        parts = ["%s: " % shown if shown else "", said or "failed without a word", ": %s" % last if last else ""]
        said = "".join(parts)
    return said


def failure_line(result: object) -> str:
    """What a failed task said; of a loop, what each failed item said, each once."""
    if not isinstance(result, Mapping):
        return "the task failed without a word"
    items = result.get("results")
    failed = [item for item in items if isinstance(item, Mapping) and item.get("failed")] if items else []
    lines = list(dict.fromkeys(_reason(item) for item in failed)) or [_reason(result)]
    return "; ".join(lines)[:LONGEST]


class FilterModule:
    """Filters of this collection for failures."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"failure_line": failure_line}
