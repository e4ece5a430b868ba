# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Token ids to text: the last step of the ensemble.

Streamed responses carry what is needed to give exactly the text that the new tokens add (detokenize.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Triton puts <tree>/backends/python on the path of every Python model; the package lies beside backends/.
sys.path.insert(0, str(Path(pb_utils.__file__).parents[2]))

from tensorrtllm_reference.detokenize import piece, split_context
from tensorrtllm_reference.text import Tokenizer, flag, parameter

# Up to release 0.13 these go through postprocessing unchanged.
_PASSED = ("CUM_LOG_PROBS", "OUTPUT_LOG_PROBS", "CONTEXT_LOGITS", "GENERATION_LOGITS", "BATCH_INDEX")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._tokenizer = Tokenizer(parameter(config, "tokenizer_dir"))
        self._skip_special = flag(config, "skip_special_tokens", True)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special=self._skip_special)

    def _text(self, row: list[int], length: int) -> str:
        streamed = split_context(row, length)
        return self._decode(row[:length]) if streamed is None else piece(self._decode, streamed)

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            tokens, lengths = inputs["TOKENS_BATCH"], inputs["SEQUENCE_LENGTH"]
            texts = [
                [self._text(row, length).encode() for row, length in zip(beams, beam_lengths)]
                for beams, beam_lengths in zip(tokens.tolist(), lengths.tolist())
            ]
            outputs = [pb_utils.Tensor("OUTPUT", np.array(texts, dtype=object))]
            wanted = request.requested_output_names()
            for name in _PASSED:
                if name in inputs and f"OUT_{name}" in wanted:
                    outputs.append(pb_utils.Tensor(f"OUT_{name}", inputs[name]))
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
