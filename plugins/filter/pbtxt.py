# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters that write values of Triton's config.pbtxt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.trtllm.serving.plugins.module_utils import _pbtxt
from jinja2 import Undefined


def _filter(name: str, function: Callable[..., str]) -> Callable[..., str]:
    def wrapper(value: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, Undefined):
            str(value)  # raises the error that names the variable
        try:
            return function(value, *args, **kwargs)
        except _pbtxt.PbtxtError as error:
            raise AnsibleFilterError(f"trtllm.serving.{name}: {error}") from error

    return wrapper


class FilterModule:
    """Filters of this collection for config.pbtxt."""

    def filters(self) -> dict[str, Callable[..., str]]:
        functions = {
            "pbtxt": _pbtxt.quote,
            "pbtxt_int": _pbtxt.integer,
            "pbtxt_bool": _pbtxt.boolean,
            "pbtxt_data_type": _pbtxt.data_type,
        }
        return {name: _filter(name, function) for name, function in functions.items()}
