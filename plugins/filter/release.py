# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters that judge settings against the release matrix, on the controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.trtllm.serving.plugins.module_utils._options import check_options, check_topology
from ansible_collections.trtllm.serving.plugins.module_utils._releases import (
    UnknownRelease,
    all_releases,
    check_flavour,
    get,
)

TABLES = ("convert_checkpoint", "trtllm_build", "launch")


def release(version: str) -> dict[str, Any]:
    """The row of the release matrix, without its option tables."""
    try:
        found = get(str(version))
    except UnknownRelease as error:
        raise AnsibleFilterError(f"trtllm.serving.release: {error}") from error
    return {name: value for name, value in asdict(found).items() if name not in TABLES}


def release_problems(version: str, flavour: str = "engine") -> list[str]:
    """One line for each reason why the release cannot be used with the flavour."""
    return check_flavour(str(version), flavour)


def engine_problems(
    version: str, flavour: str, convert: Mapping[str, Any], build: Mapping[str, Any], gpus: int = 0
) -> list[str]:
    """One line for each option that the release's tools would refuse, and for each split that cannot be."""
    problems = check_flavour(str(version), flavour)
    if problems:
        return problems
    problems = check_options("convert_checkpoint", str(version), convert)
    problems += check_options("trtllm_build", str(version), build)
    if not problems:
        problems += check_topology(
            int(convert["tp_size"]),
            int(convert["pp_size"]),
            int(convert["moe_tp_size"]),
            int(convert["moe_ep_size"]),
            gpus=int(gpus) or None,
        )
    return problems


def serve_problems(version: str, ports: Mapping[str, Any], exit_timeout: int, stop_timeout: int) -> list[str]:
    """One line for each setting of the server that cannot be."""
    problems = []
    try:
        if get(str(version)).config_line is None:
            lines = ", ".join(name for name in all_releases() if get(name).config_line)
            problems.append(f"release '{version}' has no config.pbtxt templates in this collection; use one of {lines}")
    except UnknownRelease as error:
        problems.append(str(error))
    seen: dict[int, str] = {}
    for name, value in ports.items():
        port = int(value)
        if not 0 < port < 65536:
            problems.append(f"triton_serve_{name} {port} is not a TCP port; use 1 to 65535")
        elif port in seen:
            problems.append(f"triton_serve_{name} and triton_serve_{seen[port]} are both {port}; give each its own")
        seen.setdefault(port, name)
    if int(stop_timeout) <= int(exit_timeout):
        problems.append(
            f"triton_serve_stop_timeout {stop_timeout} is not above triton_serve_exit_timeout {exit_timeout};"
            " requests would be cut off; raise it"
        )
    return problems


def reachable_host(address: str) -> str:
    """An address as the host part of a URL: loopback for any, brackets around IPv6."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))
    return f"[{host}]" if ":" in host else host


def command_option(item: Mapping[str, Any]) -> str:
    """An item of a dictionary as one argument of a command line, --KEY=VALUE."""
    return f"--{item['key']}={item['value']}"


class FilterModule:
    """Filters of this collection for releases."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "release": release,
            "release_problems": release_problems,
            "engine_problems": engine_problems,
            "serve_problems": serve_problems,
            "reachable_host": reachable_host,
            "command_option": command_option,
        }
