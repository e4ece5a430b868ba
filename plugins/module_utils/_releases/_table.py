# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an option table is made of.

A table is {"options": [option, ...]}; an option has "flags", "default", and "action" (always "store_true") or "type"
(str, int, float, bool or enum:<a|b>), and where they apply "dest", "nargs" ("+" or "?"), "const" and "choices".
Everything is JSON, so that a table can be handed to a program on another host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Option = dict[str, Any]
Table = dict[str, list[Option]]

DTYPES = ["auto", "float16", "float32", "bfloat16", "int32", "disable"]
GEMM = ["auto", "float16", "float32", "bfloat16", "int32", "fp8", "disable"]
FP8 = ["fp8", "disable"]
SWITCH = ["enable", "disable"]
LOG_LEVELS = ["internal_error", "error", "warning", "info", "verbose", "debug", "trace"]


def dest(option: Option) -> str:
    """The key of an option: argparse's rule, the first long flag without its dashes."""
    if "dest" in option:
        return str(option["dest"])
    return next(str(flag) for flag in option["flags"] if flag.startswith("--"))[2:].replace("-", "_")


def table(*options: Option) -> Table:
    return {"options": list(options)}


def revise(
    base: Table, *, drop: Sequence[str] = (), change: Sequence[Option] = (), add: Sequence[Option] = ()
) -> Table:
    """The table of the next line: options left out, replaced in place, and added at the end."""
    changed = {dest(option): option for option in change}
    known = {dest(option) for option in base["options"]}
    for name in [*drop, *changed]:
        if name not in known:
            raise ValueError(f"{name} is not in the table to revise")
    kept = [changed.get(dest(option), option) for option in base["options"] if dest(option) not in drop]
    return {"options": [*kept, *add]}
