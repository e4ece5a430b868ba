# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Values as protobuf text format, the language of config.pbtxt.

Private to this collection. Each function refuses what it cannot write, since Triton names only a line and a column.
"""

from __future__ import annotations

import math
import re

DATA_TYPES = tuple(
    "TYPE_" + name
    for name in (
        *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
        *("FP16", "FP32", "FP64", "STRING", "BF16"),
    )
)

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class PbtxtError(ValueError):
    """The value cannot be written."""


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    try:
        return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8"))
    except UnicodeEncodeError:
        raise PbtxtError(f"character U+{ord(character):04X} is not text in UTF-8; rename what has it") from None


def parameter(value: object) -> str:
    """A parameter's value as the string that Triton's backends expect: true, 0.9, 1,2,3."""
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, (list, tuple)) and value:
        return ",".join(parameter(item) for item in value)
    raise PbtxtError(f"{value!r} is not a string, number, boolean or list of these")


def quote(value: object) -> str:
    """A string literal. Parsing it gives back parameter(value), whatever characters that has."""
    return '"' + "".join(_escape(character) for character in parameter(value)) + '"'


def integer(value: object, minimum: int = 0) -> str:
    """A whole number. Digit strings count, since templating may have made them."""
    number = value
    if isinstance(number, str) and re.fullmatch(r"-?[0-9]+", number):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
        raise PbtxtError(f"{value!r} is not a whole number from {minimum}")
    return str(number)


def boolean(value: object) -> str:
    if value is True or value is False:
        return str(value).lower()
    raise PbtxtError(f"{value!r} is not true or false")


def data_type(value: object) -> str:
    """A name of inference.DataType."""
    if not isinstance(value, str) or value not in DATA_TYPES:
        raise PbtxtError(f"{value!r} is not one of {', '.join(DATA_TYPES)}")
    return str(value)
