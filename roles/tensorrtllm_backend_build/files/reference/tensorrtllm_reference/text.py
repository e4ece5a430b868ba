# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tokenizer of a Hugging Face directory, by the tokenizers library alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from tokenizers import Tokenizer as _Tokenizer


class TokenizerError(Exception):
    """A tokenizer directory that cannot be used, or a text that cannot be tokenized. One line."""


def parameter(model_config: dict[str, Any], name: str) -> Optional[str]:
    """A string parameter of config.pbtxt; None when absent, empty, or a placeholder that was left unfilled."""
    value = str(model_config.get("parameters", {}).get(name, {}).get("string_value", "")).strip()
    return None if not value or (value.startswith("${") and value.endswith("}")) else value


def flag(model_config: dict[str, Any], name: str, default: bool) -> bool:
    """A boolean parameter, with upstream's spellings of true and false."""
    value = (parameter(model_config, name) or str(default)).lower()
    if value in ("true", "yes", "1", "t"):
        return True
    if value in ("false", "no", "0", "f"):
        return False
    raise TokenizerError(f"{name} is {value!r}; it must be true or false")


class Tokenizer:
    def __init__(self, directory: Optional[str]) -> None:
        if directory is None:
            raise TokenizerError("tokenizer_dir is not set: it must be the directory of the model's tokenizer.json")
        path = Path(directory)
        if not (path / "tokenizer.json").is_file():
            state = "has no tokenizer.json" if path.is_dir() else "is not a directory"
            raise TokenizerError(f"tokenizer_dir {directory} {state}: it must hold the model's tokenizer.json and "
                                 "tokenizer_config.json")
        try:
            self._tokenizer = _Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as exc:  # The library raises bare Exception for an unreadable file.
            raise TokenizerError(f"{path / 'tokenizer.json'} cannot be read: {exc}") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config_path = path / "tokenizer_config.json"
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise TokenizerError(f"tokenizer_dir {directory} has no tokenizer_config.json, which names the end of "
                                 "sequence token") from exc
        except (OSError, ValueError) as exc:
            raise TokenizerError(f"{config_path} cannot be read: {exc}") from exc
        end_id = self._id(config, "eos_token", config_path)
        if end_id is None:
            raise TokenizerError(f"{config_path} has no eos_token: generation would not know where to end")
        self.end_id: int = end_id
        pad_id = self._id(config, "pad_token", config_path)
        self.pad_id: int = end_id if pad_id is None else pad_id

    def _id(self, config: dict[str, Any], key: str, path: Path) -> Optional[int]:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            return None
        token: Optional[int] = self._tokenizer.token_to_id(text)
        if token is None:
            raise TokenizerError(f"{path} names {key} {text!r}, which tokenizer.json does not know")
        return token

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int], *, skip_special: bool) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special))
