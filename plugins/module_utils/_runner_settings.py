# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the container of a tool is made.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import secret_names


@dataclass(frozen=True)
class ContainerSettings:
    """How the container of a tool is made; none of it decides what the tool makes."""

    image: str
    user: str = ""
    gpus: _containers.Gpus = "all"
    device_policy: str = "auto"
    volumes: tuple[str, ...] = ()
    shm_size: str | int = ""
    ulimits: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    memory: str | int = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ContainerSettings:
        """The settings of a module's parameter. ContainerError when one cannot be meant; asks no engine."""
        known = {name: value for name, value in given.items() if value is not None and name in cls.__dataclass_fields__}
        known["volumes"] = tuple(known.get("volumes", ()))
        known["environment"] = {name: str(value) for name, value in (known.get("environment") or {}).items()}
        found = cls(**known)
        refuse_secrets(found.environment, "container.environment")
        _containers.parse_gpus(found.gpus)
        for size in (found.shm_size, found.memory):
            if size != "":
                _containers.size_bytes(size)
        return found


def refuse_secrets(environment: Mapping[str, str], where: str) -> None:
    """ContainerError for a variable that anybody who may ask the engine could read."""
    names = secret_names(environment)
    if names:
        raise ContainerError(
            f"{where}.{names[0]} would be shown by 'docker inspect': put the secret into a file, mount that with"
            f" container.volumes, and give {names[0]}_FILE or {names[0]}_PATH instead"
        )
