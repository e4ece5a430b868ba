# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text to token ids: the first step of the ensemble.

Stop and bad words become token sequences ([2, N]); empty strings mean none. A stop word ends the generation where its
own token ids appear, as upstream: the text then ends with the stop word, and a word that the tokenizer joins with its
neighbours is not found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np
import triton_python_backend_utils as pb_utils

# Triton puts <tree>/backends/python on the path of every Python model; the package lies beside backends/.
sys.path.insert(0, str(Path(pb_utils.__file__).parents[2]))

from tensorrtllm_reference.text import Tokenizer, TokenizerError, flag, parameter
from tensorrtllm_reference.words import to_tensor

_REFUSED = {
    "DECODER_QUERY": "encoder-decoder models",
    "EMBEDDING_BIAS_WORDS": "embedding bias",
    "EMBEDDING_BIAS_WEIGHTS": "embedding bias",
    "PROMPT_EMBEDDING_TABLE": "prompt tuning",
    "PROMPT_TABLE_EXTRA_ID": "prompt tuning",
    "IMAGE": "multimodal input",
    "IMAGES": "multimodal input",
    "IMAGE_BYTES": "multimodal input",
    "IMAGE_URL": "multimodal input",
    "VIDEO_BYTES": "multimodal input",
}
# The names by which the ensemble's users know these inputs.
_NAMES = {
    "DECODER_QUERY": "decoder_text_input",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "PROMPT_EMBEDDING_TABLE": "prompt_embedding_table",
    "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
    "IMAGE": "image_input",
}


def _given(array: Optional[Any]) -> bool:
    """Whether an input says anything: absent, empty, and only empty strings do not."""
    return array is not None and array.size > 0 and any(value != b"" for value in array.reshape(-1).tolist())


def _text(value: Any) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as exc:
        raise TokenizerError(f"the text is not UTF-8 at byte {exc.start}") from exc


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._tokenizer = Tokenizer(parameter(config, "tokenizer_dir"))
        self._special = flag(config, "add_special_tokens", True)
        for name in ("visual_model_path", "multimodal_model_path"):
            if parameter(config, name) is not None:
                raise TokenizerError(f"{name} is set: multimodal models are not supported; leave it empty")

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            try:
                responses.append(pb_utils.InferenceResponse(output_tensors=self._process(request)))
            except TokenizerError as exc:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(exc))))
        return responses

    def _process(self, request: Any) -> list[Any]:
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name, feature in _REFUSED.items():
            if _given(inputs.get(name)):
                raise TokenizerError(f"{_NAMES.get(name, name)} is not supported: the CPU runtime has no {feature}; "
                                     "leave it out")
        query = inputs["QUERY"].reshape(-1).tolist()
        batch = len(query)
        ids = [self._tokenizer.encode(_text(text), special=self._special) for text in query]
        if not all(ids):
            raise TokenizerError("text_input is empty: at least one input token is needed")
        end_id = self._numbers(inputs.get("END_ID"), batch, self._tokenizer.end_id)
        pad_id = self._numbers(inputs.get("PAD_ID"), batch, self._tokenizer.pad_id)
        tokens = np.repeat(pad_id, max(len(row) for row in ids), axis=1)
        for number, row in enumerate(ids):
            tokens[number, : len(row)] = row
        outputs = {
            "INPUT_ID": tokens,
            "REQUEST_INPUT_LEN": np.array([[len(row)] for row in ids], np.int32),
            "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"].reshape(batch, -1).astype(np.int32),
            "BAD_WORDS_IDS": self._words(inputs.get("BAD_WORDS_DICT"), batch),
            "STOP_WORDS_IDS": self._words(inputs.get("STOP_WORDS_DICT"), batch),
            "OUT_END_ID": end_id,
            "OUT_PAD_ID": pad_id,
            # Steps of the ensemble need every tensor that is mapped to them; these say "none".
            "DECODER_INPUT_ID": np.zeros((batch, 1), np.int32),
            "REQUEST_DECODER_INPUT_LEN": np.zeros((batch, 1), np.int32),
            "EMBEDDING_BIAS": np.zeros((batch, 0), np.float32),
            "OUT_PROMPT_EMBEDDING_TABLE": np.zeros((batch, 0, 0), np.float16),
            "OUT_PROMPT_TABLE_EXTRA_IDS": np.zeros((batch, 0), np.uint64),
        }
        wanted = request.requested_output_names()
        return [pb_utils.Tensor(name, array) for name, array in outputs.items() if name in wanted]

    @staticmethod
    def _numbers(given: Optional[Any], batch: int, default: int) -> Any:
        if given is None or given.size == 0:
            return np.full((batch, 1), default, np.int32)
        return np.broadcast_to(given.reshape(-1, 1).astype(np.int32), (batch, 1))

    def _words(self, given: Optional[Any], batch: int) -> Any:
        if given is None or given.size == 0:
            return to_tensor([[]] * batch)
        rows = given.reshape(batch, -1).tolist() if given.size % batch == 0 else [given.reshape(-1).tolist()] * batch
        return to_tensor([[self._tokenizer.encode(_text(word), special=False) for word in row] for row in rows])
