# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters that judge how engines are distributed, on the controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._oci_words import problems_of


def _variable(option: str) -> str:
    return "mixtral_engine_registry" if option == "repository" else f"mixtral_engine_registry_{option}"


def distribution_problems(
    distribution: str, shared_path: str = "", registry: Mapping[str, Any] | None = None, attempts: int = 3
) -> list[str]:
    """One line for each reason why engines cannot be distributed in this way."""
    problems = problems_of(distribution, shared_path, registry or {}, _variable, "mixtral_engine_shared_path")
    if distribution != "local" and int(attempts) < 1:
        problems.append(f"mixtral_engine_builder_attempts {attempts} is not possible: give 1 or more")
    return problems


class FilterModule:
    """Filters of this collection for distribution."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"distribution_problems": distribution_problems}
