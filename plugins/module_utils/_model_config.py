# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""config.pbtxt read the way Triton reads it, before Triton does.

Private to this collection. Needs the Python packages protobuf and tritonclient (grpcio is not needed); Unavailable is
raised where they are missing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """The text is no inference.ModelConfig; the message is path:line:column: what is wrong."""

    def __init__(self, path: str, line: int, column: int, problem: str) -> None:
        super().__init__(f"{path}:{line}:{column}: {problem}")
        self.path = path
        self.line = line
        self.column = column
        self.problem = problem


class Unavailable(RuntimeError):
    """The parser's packages cannot be imported."""


@functools.cache
def _schema() -> Any:
    """The module model_config_pb2. The package tritonclient.grpc is not imported, for it imports grpcio."""
    try:
        importlib.import_module("google.protobuf")
    except ImportError as error:
        raise Unavailable(f"config.pbtxt cannot be parsed: {error}; install the Python package protobuf") from error
    name = "tritonclient.grpc.model_config_pb2"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("tritonclient")
    for place in (package.submodule_search_locations or []) if package else []:
        path = os.path.join(place, "grpc", "model_config_pb2.py")
        if not os.path.isfile(path):
            continue
        spec = importlib.util.spec_from_file_location("_trtllm_serving_model_config_pb2", path)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # protobuf raises several kinds when its version does not suit the file
            raise Unavailable(
                f"config.pbtxt cannot be parsed: {path} does not load with this protobuf: {error}"
            ) from error
        return module
    raise Unavailable("config.pbtxt cannot be parsed: no tritonclient; install the Python package tritonclient")


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


def _plain(message: Any) -> dict[str, Any]:
    """The fields that are set, as Python's own types; enums by name, maps as dictionaries."""
    plain: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            item = field.message_type.fields_by_name["value"]
            plain[field.name] = {key: _value(item, value[key]) for key in sorted(value)}
        elif hasattr(value, "append"):
            plain[field.name] = [_value(field, item) for item in value]
        else:
            plain[field.name] = _value(field, value)
    return plain


def parse(text: str, path: str = "config.pbtxt") -> dict[str, Any]:
    """The model configuration as a dictionary with the fields that are set. Raises ConfigError, Unavailable."""
    schema = _schema()
    placeholder = re.search(r"\$\{[^}\n]*\}?", text)
    if placeholder:
        before = text[: placeholder.start()]
        line, column = before.count("\n") + 1, placeholder.start() - before.rfind("\n")
        raise ConfigError(path, line, column, f"placeholder {placeholder.group()} is not filled")
    text_format = importlib.import_module("google.protobuf.text_format")
    message = schema.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        problem = re.sub(r"^\d+:\d+ : ", "", str(error)).replace("\n", " ")
        raise ConfigError(path, error.GetLine() or 1, error.GetColumn() or 1, problem) from error
    return _plain(message)


def check_repository(texts: Mapping[str, str]) -> list[str]:
    """What Triton would refuse in a repository of config.pbtxt texts by directory name, one line each.

    Checked are the syntax, unfilled placeholders, names, and that the steps of ensembles are models of the repository.
    Raises Unavailable.
    """
    problems: list[str] = []
    for directory, text in texts.items():
        path = f"{directory}/config.pbtxt"
        try:
            config = parse(text, path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        name = config.get("name", directory)
        if name != directory:
            problems.append(f"{path}: name {name!r} is not its directory's name {directory!r}; make them equal")
        for step in config.get("ensemble_scheduling", {}).get("step", []):
            model = step.get("model_name", "")
            if model not in texts:
                problems.append(f"{path}: step {model!r} is not a model here; there are {', '.join(sorted(texts))}")
    return problems
