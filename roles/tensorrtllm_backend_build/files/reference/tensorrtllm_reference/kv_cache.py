# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The KV cache: a pool of blocks that bounds memory, and the keys and values of one sequence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .tensors import Array


class CacheShape(NamedTuple):
    """Keys and values of one layer on one rank."""

    kv_heads: int
    head_size: int


class BlockPool:
    """Counts blocks of tokens_per_block tokens; a sequence may only hold tokens for which it holds blocks."""

    def __init__(self, total_blocks: int, tokens_per_block: int) -> None:
        self.total_blocks = total_blocks
        self.tokens_per_block = tokens_per_block
        self.used_blocks = 0

    @property
    def free_blocks(self) -> int:
        return self.total_blocks - self.used_blocks

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.tokens_per_block)

    def take(self, blocks: int) -> bool:
        """Take blocks, all or none."""
        if blocks > self.free_blocks:
            return False
        self.used_blocks += blocks
        return True

    def give_back(self, blocks: int) -> None:
        self.used_blocks -= blocks


class SequenceCache:
    """Keys and values of one sequence on every layer and rank, up to capacity tokens.

    The arrays are not initialised, so memory becomes resident page by page as tokens arrive.
    """

    def __init__(self, layers: list[list[CacheShape]], capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys: list[list[Array]] = []
        self.values: list[list[Array]] = []
        for ranks in layers:
            self.keys.append([np.empty((s.kv_heads, capacity, s.head_size), np.float32) for s in ranks])
            self.values.append([np.empty((s.kv_heads, capacity, s.head_size), np.float32) for s in ranks])


def bytes_per_token(layers: list[list[CacheShape]]) -> int:
    return sum(2 * 4 * s.kv_heads * s.head_size for ranks in layers for s in ranks)
