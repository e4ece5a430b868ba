# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of upstream's tools, checked against the tables of a release, and turned into a command line.

Private to this collection. Nothing here starts a program or needs a GPU.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ._releases import ADVICE, LAST_RELEASE, Option, all_releases, dest, get

TOOLS = ("convert_checkpoint", "trtllm_build", "launch")


class OptionError(ValueError):
    """Options that the release's tool would refuse; problems has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


def _by_dest(tool: str, release: str) -> dict[str, Option]:
    return {dest(option): option for option in get(release).table(tool)["options"]}


def _show(value: object) -> str:
    """A value as its author wrote it in YAML, on one line and not too long."""
    if value is True or value is False:
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _releases_with(tool: str, name: str) -> str:
    """Where an option exists: '0.13.0 and newer', '0.12.0 to 0.18.2', 'only 0.12.0', or '' when nowhere."""
    known = all_releases()
    having = [release for release in known if name in _by_dest(tool, release)]
    if not having:
        gone = LAST_RELEASE[tool].get(name)
        return f"it was last in {gone}" if gone else ""
    if having[-1] == known[-1]:
        return f"it is in {having[0]} and newer"
    if len(having) == 1:
        return f"it is only in {having[0]}"
    return f"it is in {having[0]} to {having[-1]}"


def _unknown(tool: str, release: str, name: str, table: Mapping[str, Option]) -> str:
    """Why there is no such option here, and what to write instead."""
    head = f"{tool} option {name!r}"
    advice = ADVICE[tool].get(name)
    plain = name.lstrip("-").replace("-", "_")
    for key, option in table.items():
        if name in option["flags"] or f"--{plain}" in option["flags"] or plain == key:
            return f"{head} is spelled {key!r} here"
    elsewhere = _releases_with(tool, name)
    if elsewhere:
        return f"{head} is not in release {release}: {elsewhere}" + (f"; {advice}" if advice else "")
    if advice:
        return f"{head} is unknown to release {release}: {advice}"
    for other in TOOLS:
        if other != tool and name in _by_dest(other, release):
            return f"{head} is unknown to release {release}: it is an option of {other}"
    close = difflib.get_close_matches(plain, list(table), n=1, cutoff=0.7)
    hint = f"did you mean {close[0]!r}?" if close else f"the {len(table)} known ones begin {', '.join(list(table)[:4])}"
    return f"{head} is unknown to release {release}: {hint}"


def _number(kind: str, value: object) -> object | None:
    """The value as int or float, or None. Digit strings count, since templating may have made them; booleans do not."""
    if isinstance(value, bool):
        return None
    if kind == "int":
        if isinstance(value, int):
            return value
        return int(value) if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value) else None
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return None


def _scalar(option: Option, value: object) -> tuple[object, str | None]:
    """The typed value and None, or anything and what was expected instead."""
    kind = str(option.get("type", "str"))
    typed: object = value
    choices = option.get("choices")
    if kind.startswith("enum:"):
        choices, kind = kind[len("enum:") :].split("|"), "str"
    if kind in ("int", "float"):
        typed = _number(kind, value)
        if typed is None:
            return None, "an integer" if kind == "int" else "a number"
    elif kind == "bool":
        if not isinstance(value, bool):
            return None, "true or false"
    elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
        expected = "one of " + ", ".join(map(str, choices)) if choices else "a string"
        if isinstance(value, bool) and choices == ["enable", "disable"]:
            expected += f" (use {'enable' if value else 'disable'})"
        return None, expected
    else:
        typed = str(value)
        if "\0" in typed:
            return None, "a string without NUL bytes"
    if choices and typed not in choices:
        return None, "one of " + ", ".join(map(str, choices))
    return typed, None


def _value(option: Option, value: object) -> tuple[Any, str | None]:
    if option.get("action") == "store_true":
        return (value, None) if isinstance(value, bool) else (None, "true or false")
    if option.get("nargs") != "+":
        return _scalar(option, value)
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        return None, "at least one value"
    typed = [_scalar(option, item) for item in values]
    for _unused, expected in typed:
        if expected:
            return None, f"a list, each {expected}"
    return [item for item, _unused in typed], None


def _examine(tool: str, release: str, options: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """The given options with typed values in the table's order, and the problems. A null counts as not given."""
    if tool not in TOOLS:
        raise ValueError(f"tool {tool!r} is not one of {', '.join(TOOLS)}")
    table = _by_dest(tool, release)
    given: dict[str, Any] = {}
    problems = [_unknown(tool, release, str(name), table) for name in options if name not in table]
    for name, option in table.items():
        if options.get(name) is None:
            continue
        typed, expected = _value(option, options[name])
        if expected:
            problems.append(f"{tool} option {name!r}: {_show(options[name])} is not allowed, give {expected}")
        else:
            given[name] = typed
    return given, problems


def check_options(tool: str, release: str, options: Mapping[str, object]) -> list[str]:
    """What the tool of that release would refuse, one line each. Raises UnknownRelease."""
    return _examine(tool, release, options)[1]


def effective_options(tool: str, release: str, options: Mapping[str, object]) -> dict[str, Any]:
    """Every option of the tool with the value it takes, defaults included. Raises OptionError, UnknownRelease."""
    given, problems = _examine(tool, release, options)
    if problems:
        raise OptionError(problems)
    return {name: given.get(name, option.get("default")) for name, option in _by_dest(tool, release).items()}


def to_argv(tool: str, release: str, options: Mapping[str, object]) -> list[str]:
    """The given options as command-line words in the table's order. Raises OptionError, UnknownRelease."""
    given, problems = _examine(tool, release, options)
    if problems:
        raise OptionError(problems)
    argv: list[str] = []
    for name, option in _by_dest(tool, release).items():
        if name not in given:
            continue
        flag = next(word for word in option["flags"] if word.startswith("--"))
        value = given[name]
        if option.get("action") == "store_true":
            argv += [flag] if value else []
        elif isinstance(value, list):
            argv += [flag, *map(str, value)]
        elif str(value).startswith("-"):
            # argparse would take a word that begins with a dash for another option
            argv.append(f"{flag}={value}")
        else:
            argv += [flag, str(value)]
    return argv


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _one_of(numbers: Sequence[int]) -> str:
    return f"use one of {', '.join(map(str, numbers))}" if len(numbers) > 1 else f"use {numbers[0]}"


def _suits(tp: int, heads: int | None, kv_heads: int | None) -> bool:
    """Heads are split evenly; key/value heads may also be duplicated evenly."""
    return (not heads or heads % tp == 0) and (not kv_heads or kv_heads % tp == 0 or tp % kv_heads == 0)


def moe_sizes(tp: int, moe_tp: int | None = None, moe_ep: int | None = None) -> tuple[int, int]:
    """moe_tp_size and moe_ep_size as upstream completes them: -1 or null follows from the other and tp_size."""
    tensor = moe_tp if moe_tp is not None and moe_tp != -1 else None
    expert = moe_ep if moe_ep is not None and moe_ep != -1 else None
    if tensor is None and expert is None:
        return tp, 1
    if tensor is None:
        return tp // (expert or 1), expert or 1
    if expert is None:
        return tensor, tp // (tensor or 1)
    return tensor, expert


def check_topology(
    tp: int,
    pp: int = 1,
    moe_tp: int | None = None,
    moe_ep: int | None = None,
    *,
    heads: int | None = None,
    kv_heads: int | None = None,
    experts: int | None = None,
    layers: int | None = None,
    gpus: int | None = None,
) -> list[str]:
    """Whether a model can be split so, one line for each problem. What is not known (null) is not checked."""
    problems: list[str] = []
    sizes = (("tp_size", tp, 1), ("pp_size", pp, 1), ("moe_tp_size", moe_tp, -1), ("moe_ep_size", moe_ep, -1))
    for name, size, least in sizes:
        if size is None and least == -1:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size == 0 or size < least:
            problems.append(f"{name} {_show(size)} is not a number of ranks; give a whole number from 1")
    if problems:
        return problems

    if heads and heads % tp:
        fit = [size for size in _divisors(heads) if _suits(size, heads, kv_heads)]
        problems.append(f"tp_size {tp} does not divide num_attention_heads {heads}; {_one_of(fit)}")
    elif kv_heads and not _suits(tp, None, kv_heads):
        fit = [size for size in _divisors(heads or kv_heads) if _suits(size, heads, kv_heads)]
        problems.append(
            f"tp_size {tp} neither divides num_key_value_heads {kv_heads} nor is a multiple of it; {_one_of(fit)}"
        )
    if layers and layers % pp:
        problems.append(f"pp_size {pp} does not divide num_hidden_layers {layers}; {_one_of(_divisors(layers))}")

    tensor, expert = moe_sizes(tp, moe_tp, moe_ep)
    if tensor * expert != tp:
        pairs = ", ".join(f"{tp // size} x {size}" for size in _divisors(tp) if not experts or experts % size == 0)
        problems.append(
            f"moe_tp_size {tensor} x moe_ep_size {expert} = {tensor * expert} is not tp_size {tp}; use one of {pairs}"
        )
    elif experts and experts % expert:
        fit = [size for size in _divisors(experts) if tp % size == 0]
        problems.append(f"moe_ep_size {expert} does not divide the {experts} experts; {_one_of(fit)}")

    if gpus is not None and tp * pp > gpus:
        problems.append(f"tp_size {tp} x pp_size {pp} needs {tp * pp} GPUs, the host has {gpus}")
    return problems
