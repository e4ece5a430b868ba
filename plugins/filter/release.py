# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters that judge settings against the release matrix, on the controller."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.trtllm.serving.plugins.module_utils import _checkpoint, _containers, _engine, _launch
from ansible_collections.trtllm.serving.plugins.module_utils._gate_settings import gate_problems
from ansible_collections.trtllm.serving.plugins.module_utils._options import check_topology, effective_options
from ansible_collections.trtllm.serving.plugins.module_utils._releases import (
    UnknownRelease,
    all_releases,
    check_flavour,
    get,
)
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import merge_options

TABLES = ("convert_checkpoint", "trtllm_build", "launch")


def release(version: str) -> dict[str, Any]:
    """The row of the release matrix, without its option tables."""
    try:
        found = get(str(version))
    except UnknownRelease as error:
        raise AnsibleFilterError(f"trtllm.serving.release: {error}") from error
    return {name: value for name, value in asdict(found).items() if name not in TABLES}


def release_problems(version: str, flavour: str = "engine", method: str = "") -> list[str]:
    """One line for each reason why the release cannot be used with the flavour, or the flavour with the method."""
    problems = check_flavour(str(version), flavour)
    if not problems and flavour == "llmapi" and method == "reference":
        problems.append(
            "flavour 'llmapi' is not served by the method reference, which has no LLM API; use flavour engine"
        )
    return problems


def _engine_options(
    release: str, tool: Any, typed: Mapping[str, Any], free: object, variable: str
) -> tuple[dict[str, Any], list[str]]:
    """Every option of a tool with its effective value, judged as the module that runs the tool will."""
    if not isinstance(free, Mapping):
        return {}, [f"{variable} {free!r} is not a dictionary: write {{option: value}}"]
    options, problems = merge_options(tool.TOOL, release, {**typed, "options": free}, tool.TYPED, tool.RESERVED)
    workers = typed.get("workers")
    if workers is not None and str(workers).lstrip("-").isdigit() and int(workers) < 1:
        problems.append(f"workers {workers} is not possible: give a whole number from 1")
    return ({}, problems) if problems else (effective_options(tool.TOOL, release, options), [])


def engine_problems(
    version: str,
    flavour: str,
    convert: Mapping[str, Any],
    build: Mapping[str, Any],
    convert_options: object = None,
    build_options: object = None,
    gpu: object = None,
) -> list[str]:
    """One line for each option that the release's tools would refuse, and for each split that cannot be."""
    problems = check_flavour(str(version), flavour)
    if not problems and flavour != "engine":
        problems.append(f"flavour {flavour!r} has no engine to build; use flavour engine")
    if problems:
        return problems
    release = get(str(version)).version
    effective, problems = _engine_options(
        release, _checkpoint, convert, convert_options or {}, "mixtral_engine_convert_options"
    )
    building, wrong = _engine_options(release, _engine, build, build_options or {}, "mixtral_engine_build_options")
    # The workers are one variable for both tools.
    problems += [problem for problem in wrong if problem not in problems]
    count: Any = 0
    if gpu is not None:
        count = gpu.get("count") if isinstance(gpu, Mapping) else None
        if isinstance(count, bool) or not str(count).isdigit():
            problems.append(
                f"mixtral_engine_gpu {gpu!r} has no count: give name, compute_capability, memory_mib and count"
            )
            count = 0
    problems += _engine.option_problems(building)
    if effective:
        split: list[Any] = [effective.get(name) for name in ("tp_size", "pp_size", "moe_tp_size", "moe_ep_size")]
        problems += check_topology(*split, gpus=int(count) or None)
    return problems


def weights_problems(source: str, path: object) -> list[str]:
    """One line for a source of weights that lacks what it needs."""
    if source == "directory" and not os.path.isabs(str(path)):
        return [
            f"mixtral_engine_weights_path {path!r} is not an absolute path: name the Hugging Face directory on the"
            " host, or choose another mixtral_engine_weights_source"
        ]
    if source != "directory" and path:
        return [
            f"mixtral_engine_weights_path {path!r} is given, and mixtral_engine_weights_source is {source!r}:"
            " set that to directory, or drop the path"
        ]
    return []


def _texts(variable: str, value: object, kind: type, form: str) -> list[str]:
    """Whether a list or dictionary that becomes a command line or an environment is one, and of plain values."""
    if not isinstance(value, kind):
        return [f"{variable} {value!r} is not {form}"]
    values = list(value.values() if isinstance(value, Mapping) else value)  # type: ignore[call-overload]
    wrong = [each for each in values if isinstance(each, bool) or not isinstance(each, (str, int, float))]
    return [f"{variable} has {each!r}, which is not a string: quote it" for each in wrong]


def serve_problems(
    version: str,
    ports: Mapping[str, Any],
    exit_timeout: int,
    stop_timeout: int,
    smoke_expect: str = "",
    arguments: object = None,
    environment: object = None,
    kv_cache_fraction: object = None,
    container: object = None,
    gate: object = None,
    surge_port_offset: object = 0,
) -> list[str]:
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
    problems += _surge_problems({name: int(value) for name, value in ports.items()}, int(str(surge_port_offset)))
    if int(stop_timeout) <= int(exit_timeout):
        problems.append(
            f"triton_serve_stop_timeout {stop_timeout} is not above triton_serve_exit_timeout {exit_timeout};"
            " requests would be cut off; raise it"
        )
    try:
        re.compile(str(smoke_expect))
    except re.error as error:
        problems.append(f"triton_serve_smoke_expect {smoke_expect!r} is no regular expression ({error}); correct it")
    problems += _texts("triton_serve_arguments", arguments or [], list, "a list: write ['--name=value']")
    problems += _texts("triton_serve_environment", environment or {}, Mapping, "a dictionary: write {NAME: value}")
    if kv_cache_fraction is not None:
        try:
            fits = 0 < float(str(kv_cache_fraction)) <= 1
        except ValueError:
            fits = False
        if not fits:
            problems.append(
                f"triton_serve_kv_cache_free_gpu_mem_fraction {kv_cache_fraction!r} is not a share of the memory;"
                " give a number above 0 and at most 1"
            )
    if isinstance(container, Mapping) and container:
        problems += _container_problems(container)
    if isinstance(gate, Mapping) and gate:
        problems += gate_problems(**gate)
    return problems


def _surge_problems(ports: Mapping[str, int], offset: int) -> list[str]:
    """A second server beside the first needs ports of its own; without a surge there is none, and the offset is 0."""
    if offset < 0:
        return [f"triton_serve_surge_port_offset {offset} is negative; give a number above 0"]
    names = {port: name for name, port in ports.items()}
    problems = []
    for name, port in ports.items() if offset else ():
        if not 0 < port + offset < 65536:
            problems.append(
                f"triton_serve_surge_port_offset {offset} leads from triton_serve_{name} {port} to {port + offset},"
                " which is not a TCP port; lower it"
            )
        elif port + offset in names:
            problems.append(
                f"triton_serve_surge_port_offset {offset} leads from triton_serve_{name} {port} to"
                f" triton_serve_{names[port + offset]} {port + offset}; choose another one"
            )
    return problems


def _container_problems(given: Mapping[str, Any]) -> list[str]:
    """One line for each setting of a server's container that cannot be."""
    problems = []
    address, user, name = str(given.get("address")), str(given.get("user")), str(given.get("name"))
    try:
        ipaddress.ip_address(address)
    except ValueError:
        problems.append(
            f"triton_serve_address {address!r} is no IP address, and Docker publishes ports on nothing else: give one"
            " of the host's, or 0.0.0.0 for all"
        )
    if user in ("root", "0") or user.startswith("0:"):
        problems.append(f"triton_serve_user {user!r} is root: name a user that owns nothing but triton_serve_home")
    if not re.match(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$", name):
        problems.append(
            f"triton_serve_container_name {name!r} is no name of a container: use letters, digits, '_', '.', '-'"
        )
    checks: list[tuple[str, Callable[[Any], object]]] = [
        ("shm_size", _containers.size_bytes), ("gpus", _containers.parse_gpus), ("ulimits", _check_ulimits),
    ]  # fmt: skip
    if given.get("memory"):
        checks.append(("memory", _containers.size_bytes))
    for option, check in checks:
        try:
            check(given.get(option))
        except _containers.ContainerError as error:
            problems.append(f"triton_serve_{option}: {error}")
    problems += _texts(
        "triton_serve_mpirun_arguments", given.get("mpirun_arguments") or [], list, "a list: write ['--oversubscribe']"
    )
    tmpfs = given.get("tmpfs") or {}
    problems += _texts("triton_serve_tmpfs", tmpfs, Mapping, "a dictionary: write {/tmp: options}")
    if given.get("read_only") and isinstance(tmpfs, Mapping) and "/tmp" not in tmpfs:
        problems.append(
            "triton_serve_tmpfs has no /tmp, where mpirun, Triton and the health check write: add it, or set"
            " triton_serve_read_only to false"
        )
    return problems


def _check_ulimits(limits: object) -> None:
    if not isinstance(limits, Mapping):
        raise _containers.ContainerError(f"{limits!r} is not a dictionary: write {{memlock: -1}}")
    for name, value in limits.items():
        numbers = list(value.values()) if isinstance(value, Mapping) else [value]
        if not numbers or not all(re.match(r"^-?\d+$", str(number)) for number in numbers):
            raise _containers.ContainerError(f"{name} {value!r} is no number: give one, or soft and hard")


def server_command(world_size: Any, **settings: Any) -> list[str]:
    """The command line of a server in a container: tritonserver, or mpirun with a rank for each of the world size."""
    try:
        return _launch.server_command(int(world_size), **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"trtllm.serving.server_command: {error}") from error


def server_environment(world_size: Any) -> dict[str, str]:
    """The environment of a server in a container."""
    return _launch.server_environment(int(world_size))


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
            "weights_problems": weights_problems,
            "serve_problems": serve_problems,
            "reachable_host": reachable_host,
            "server_command": server_command,
            "server_environment": server_environment,
            "command_option": command_option,
        }
