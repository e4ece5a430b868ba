# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a load balancer has to know of the serving hosts, from their variables."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
NAME = re.compile(r"[A-Za-z0-9_.:-]+")
MODEL = re.compile(r"[A-Za-z0-9_.-]+")
KEYS = {"name", "port", "models", "servers"}


def _anywhere(address: str) -> bool:
    return address in ("", "0.0.0.0", "::", "*")


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def _address(host: Mapping[str, Any], otherwise: str = "") -> str:
    """Where the balancer reaches the host's server."""
    named = str(host.get("triton_lb_server_address") or otherwise)
    if named:
        return named
    listens = str(host.get("triton_serve_address") or "127.0.0.1")
    if not _anywhere(listens):
        return listens
    if str(host.get("ansible_connection") or "") == "local":
        return "127.0.0.1"
    return str(host.get("ansible_host") or host.get("inventory_hostname") or "")


def _servers(host: Mapping[str, Any], otherwise: str) -> list[dict[str, Any]]:
    name = str(host.get("inventory_hostname"))
    port = int(host.get("triton_serve_http_port") or 8000)
    server = {"name": name, "address": _address(host, otherwise), "port": port, "spare": False}
    if str(host.get("triton_pool_strategy") or "in_place") != "surge":
        return [server]
    # The second place of a host gets requests only when a rollout says so.
    second = port + int(host.get("triton_serve_surge_port_offset") or 100)
    return [server, {**server, "name": name + "-b", "port": second, "spare": True}]


def lb_pools(
    hosts: Iterable[Mapping[str, Any]], port: int = 8080, models: Sequence[str] = MODELS, server_address: str = ""
) -> list[dict[str, Any]]:
    """A backend for each pool: its name, the port of its frontend, the models that must be ready, and its servers."""
    pools: dict[str, dict[str, Any]] = {}
    for host in hosts:
        name = str(host.get("triton_pool") or "default")
        pool = pools.setdefault(
            name,
            {
                "name": name,
                "port": int(host.get("triton_lb_port") or port),
                "models": list(host.get("triton_lb_models") or models),
                "servers": [],
            },
        )
        pool["servers"] += _servers(host, server_address)
    return [pools[name] for name in sorted(pools)]


def _port_problem(what: str, value: object) -> list[str]:
    number = int(str(value)) if str(value).isdecimal() else 0
    return [] if 0 < number < 65536 else [f"{what} {value!r} is no port: give a number from 1 to 65535"]


def _pool_problems(pool: Mapping[str, Any]) -> list[str]:
    name = str(pool.get("name") or "")
    if not NAME.fullmatch(name):
        return [f"pool {name!r} cannot be a name in HAProxy: use letters, digits and _ . : - in triton_pool"]
    missing = sorted(KEYS - set(pool))
    if missing:
        return [f"pool {name} of triton_lb_pools has no {missing[0]!r}: give {', '.join(sorted(KEYS))}"]
    problems = _port_problem(f"triton_lb_port of pool {name}", pool["port"])
    for model in pool["models"]:
        if not MODEL.fullmatch(str(model)):
            problems.append(f"triton_lb_models of pool {name} has {model!r}: use letters, digits and _ . -")
    if not pool["servers"]:
        problems.append(f"pool {name} of triton_lb_pools has no servers: name its hosts")
    for server in pool["servers"]:
        address = str(server.get("address") or "")
        if not NAME.fullmatch(str(server.get("name") or "")):
            problems.append(f"server {server.get('name')!r} of pool {name} is no name for HAProxy: rename the host")
        if not address or re.search(r"[\s#\"'\\]", address):
            problems.append(f"server {server.get('name')} of pool {name} has address {address!r}: give a name or an IP")
        problems += _port_problem(f"port of server {server.get('name')} of pool {name}", server.get("port"))
    return problems


def lb_problems(
    pools: Iterable[Mapping[str, Any]],
    metrics_port: int = 0,
    hosts: Iterable[Mapping[str, Any]] = (),
    allowed_paths: str = "",
    certificate: str = "",
) -> list[str]:
    """One line for each reason why a balancer cannot be configured so."""
    problems = []
    taken: dict[int, str] = {int(metrics_port): "triton_lb_metrics_port"} if metrics_port else {}
    for pool in pools:
        found = _pool_problems(pool)
        problems += found
        if found:
            continue
        port = int(pool["port"])
        if port in taken:
            problems.append(
                f"{taken[port]} and pool {pool['name']} want port {port}: set triton_lb_port in the pool's group_vars"
            )
        taken[port] = f"pool {pool['name']}"
    for host in hosts:
        name = str(host.get("inventory_hostname"))
        address = str(host.get("triton_serve_address") or "127.0.0.1")
        local = str(host.get("ansible_connection") or "") == "local"
        if _loopback(address) and not local and not host.get("triton_lb_server_address"):
            problems.append(
                f"host {name} listens on {address} (triton_serve_address), where no balancer reaches it: set "
                "triton_serve_address to an address of its network, or triton_lb_server_address to what leads there"
            )
    try:
        re.compile(allowed_paths)
    except re.error as exc:
        problems.append(f"triton_lb_allowed_paths {allowed_paths!r} is no regular expression ({exc}): correct it")
    for what, value in (("triton_lb_allowed_paths", allowed_paths), ("triton_lb_certificate", certificate)):
        if re.search(r"[\s\"'\\#]", value.replace("\\", "") if what.endswith("paths") else value):
            problems.append(f"{what} {value!r} has a space, a quote or a #, which HAProxy takes apart: leave it out")
    return problems


class FilterModule:
    """Filters of this collection for load balancers."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"lb_pools": lb_pools, "lb_problems": lb_problems}
