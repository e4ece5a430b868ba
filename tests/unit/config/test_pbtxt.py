# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _model_config, _pbtxt
from ansible_collections.trtllm.serving.tests.unit.config._render import HOSTILE_STRINGS


def read_back(literal: str) -> str:
    """The string as protobuf's parser reads it."""
    found = _model_config.parse('parameters { key: "k" value: { string_value: ' + literal + " } }")
    text: str = found["parameters"]["k"].get("string_value", "")
    return text


@pytest.mark.parametrize(
    "text", [*HOSTILE_STRINGS, "", '"', "\\", "\\n", "'", "\n", "\0", "\x1b[0m", "\\101", "\u2029"]
)
def test_strings_come_back_exactly(text: str) -> None:
    literal = _pbtxt.quote(text)
    assert read_back(literal) == text
    assert literal.isprintable()


def test_every_character_of_the_first_plane_comes_back() -> None:
    text = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000 and chr(code) not in "${")
    assert read_back(_pbtxt.quote(text)) == text


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (True, '"true"'),
        (False, '"false"'),
        (0, '"0"'),
        (0.9, '"0.9"'),
        ([0, 1], '"0,1"'),
        ("a b", '"a b"'),
        ('a"b\\c\nd', '"a\\"b\\\\c\\nd"'),
        ("é\x01", '"é\\001"'),
    ],
)
def test_literals(value: object, literal: str) -> None:
    assert _pbtxt.quote(value) == literal


@pytest.mark.parametrize("value", [None, {}, [], [[]], float("nan"), b"bytes"])
def test_what_is_no_parameter_is_refused(value: object) -> None:
    with pytest.raises(_pbtxt.PbtxtError, match="is not a string, number, boolean or list"):
        _pbtxt.quote(value)


def test_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(_pbtxt.PbtxtError, match=r"U\+DC80 is not text in UTF-8"):
        _pbtxt.quote("a\udc80")


@pytest.mark.parametrize(("value", "minimum", "text"), [(0, 0, "0"), ("12", 1, "12"), (-1, -1, "-1"), ("-1", -1, "-1")])
def test_integers(value: object, minimum: int, text: str) -> None:
    assert _pbtxt.integer(value, minimum) == text


@pytest.mark.parametrize("value", [True, False, 1.0, "1.0", "", "x", None, -1, "-1", "--1", "1 }"])
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(_pbtxt.PbtxtError, match="is not a whole number from 0"):
        _pbtxt.integer(value)


def test_booleans() -> None:
    assert (_pbtxt.boolean(True), _pbtxt.boolean(False)) == ("true", "false")
    for value in ("true", 1, None):
        with pytest.raises(_pbtxt.PbtxtError, match="is not true or false"):
            _pbtxt.boolean(value)


def test_data_types_are_those_of_the_schema() -> None:
    enum = _model_config._schema().DataType
    assert set(_pbtxt.DATA_TYPES) == set(enum.keys()) - {"TYPE_INVALID"}
    with pytest.raises(_pbtxt.PbtxtError, match="is not one of TYPE_BOOL"):
        _pbtxt.data_type("TYPE_INVALID")
