# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text for streamed tokens, so that the pieces put together are the text of all tokens.

Tokens decoded one by one would lose the spaces in front of words and cut characters of several bytes apart. In an
ensemble, postprocessing sees each response alone and keeps no state; so the backend sends what went before along,
behind the tokens that sequence_length counts: a -1, then 1 for the last response or 0, then the latest tokens that
were sent already. Whoever honours sequence_length never sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

# Enough for the longest run of byte tokens that decoders join, and cheap to decode twice for each piece.
CONTEXT_TOKENS = 64
_MARK = -1
# What decoders put for bytes that are no character, or not yet one.
_REPLACEMENT = "\ufffd"


class Streamed(NamedTuple):
    tokens: list[int]
    context: list[int]
    final: bool


def with_context(tokens: Sequence[int], context: Sequence[int], final: bool) -> list[int]:
    return [*tokens, _MARK, int(final), *context]


def split_context(row: Sequence[int], length: int) -> Streamed | None:
    """The parts of an output_ids row with context, or None for a plain row."""
    if len(row) < length + 2 or row[length] != _MARK:
        return None
    return Streamed(list(row[:length]), list(row[length + 2 :]), bool(row[length + 1]))


def _whole(decode: Callable[[list[int]], str], tokens: list[int]) -> str:
    """The text of as many of the tokens, from the first, as do not end inside a character."""
    for count in range(len(tokens), 0, -1):
        text = decode(tokens[:count])
        if not text.endswith(_REPLACEMENT):
            return text
    return ""


def piece(decode: Callable[[list[int]], str], streamed: Streamed) -> str:
    """The text that the new tokens add. A character that is not whole yet is held back, until the last response."""
    tokens = streamed.context + streamed.tokens
    before = _whole(decode, streamed.context)
    text = decode(tokens) if streamed.final else _whole(decode, tokens)
    return text[len(before) :]
