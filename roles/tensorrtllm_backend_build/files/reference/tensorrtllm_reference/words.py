# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop and bad words in upstream's tensor format: [2, N], token ids above, ends of the words below.

The words ["A", "B C"] with ids [5], [7, 8] are [[5, 7, 8], [1, 3, -1]]: ids are padded with 0, ends with -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import RequestError
from .tensors import Array


def to_tensor(batch: Sequence[Sequence[Sequence[int]]]) -> Array:
    """The words of each request of a batch as one int32 tensor [batch, 2, N]; N is at least 1."""
    ids = [[token for word in words for token in word] for words in batch]
    ends = [np.cumsum([len(word) for word in words if word]).tolist() for words in batch]
    width = max([1, *(len(row) for row in ids)])
    result = np.zeros((len(batch), 2, width), np.int32)
    result[:, 1] = -1
    for row, (row_ids, row_ends) in enumerate(zip(ids, ends)):
        result[row, 0, : len(row_ids)] = row_ids
        result[row, 1, : len(row_ends)] = row_ends
    return result


def from_tensor(tensor: Array, name: str) -> list[list[int]]:
    """The words of one request from its [2, N] tensor."""
    if tensor.ndim != 2 or tensor.shape[0] != 2:
        raise RequestError(f"{name} has shape {list(tensor.shape)}; it must be [2, N]: token ids, then word ends")
    words, begin = [], 0
    for end in tensor[1].tolist():
        if end < 0:
            break
        if not begin < end <= tensor.shape[1]:
            raise RequestError(f"{name} has the word end {end} after {begin}; ends must grow up to {tensor.shape[1]}")
        words.append([int(token) for token in tensor[0, begin:end]])
        begin = end
    return words
