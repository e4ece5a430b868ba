# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Prometheus has to know of the serving hosts and of their balancers, from their variables."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Given by this collection; job and instance by Prometheus.
OURS = ("pool", "host", "generation", "release", "job", "instance")


def _anywhere(address: str) -> bool:
    return address in ("", "0.0.0.0", "::", "*")


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def _address(host: Mapping[str, Any], listens: str, named: str) -> str:
    if named or not _anywhere(listens):
        return named or listens
    if str(host.get("ansible_connection") or "") == "local":
        return "127.0.0.1"
    return str(host.get("ansible_host") or host.get("inventory_hostname") or "")


def _target(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address and not address.startswith("[") else f"{address}:{port}"


def _unreachable(host: Mapping[str, Any], address: str, named: str, variable: str) -> list[str]:
    local = str(host.get("ansible_connection") or "") == "local"
    if not _loopback(address) or local or named:
        return []
    return [
        f"host {host.get('inventory_hostname')} has its metrics on {address} ({variable}), where no Prometheus reaches"
        f" them: set {variable} to an address of its network, or triton_monitoring_address to what leads there"
    ]


def _of(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _generation(host: Mapping[str, Any]) -> str:
    """What was seen on the host after the rollout; else what the run knows of it."""
    link = _of(host.get("triton_monitoring_current"), "stat", "lnk_target")
    if link:
        return str(link).rstrip("/").rpartition("/")[2]
    if _of(host.get("triton_monitoring_current"), "stat", "exists") is False:
        return ""
    return str(_of(host.get("triton_serve_preflight"), "host", "current") or "")


def _port(host: Mapping[str, Any]) -> int:
    """That of the place of its server which is in service now."""
    port = int(host.get("triton_serve_metrics_port") or 8002)
    for registered in ("triton_serve_restore", "triton_serve_promotion", "triton_serve_switch"):
        slot = _of(host.get(registered), "slot")
        if slot:
            break
    else:
        slot = _of(host.get("triton_serve_preflight"), "host", "slot")
    return port + (int(host.get("triton_serve_surge_port_offset") or 100) if slot == "b" else 0)


def monitoring_targets(
    hosts: Iterable[Mapping[str, Any]],
    balancers: Iterable[Mapping[str, Any]] = (),
    labels: Mapping[str, Any] | None = None,
    address_variable: str = "triton_monitoring_address",
) -> dict[str, Any]:
    """files: for each pool, and for the balancers, what a file of file_sd holds; problems: one line for each."""
    files: dict[str, list[dict[str, Any]]] = {}
    problems = [
        f"triton_monitoring_labels has {name!r}: " + ("that label is this collection's" if name in OURS else "no label")
        + ", choose another name"
        for name in labels or {}
        if name in OURS or not _LABEL.fullmatch(str(name))
    ]  # fmt: skip
    common = {str(name): str(value) for name, value in (labels or {}).items()}
    for host in hosts:
        pool = str(host.get("triton_pool") or "default")
        if not re.fullmatch(r"[A-Za-z0-9_.:-]+", pool):
            problems.append(f"triton_pool {pool!r} cannot be the name of a file: use letters, digits and _ . : -")
            continue
        named = str(host.get(address_variable) or "")
        address = _address(host, str(host.get("triton_serve_address") or "127.0.0.1"), named)
        problems += _unreachable(host, address, named, "triton_serve_address")
        entry = {
            "targets": [_target(address, _port(host))],
            "labels": {
                **common,
                "pool": pool,
                "host": str(host.get("inventory_hostname")),
                "generation": _generation(host) or "none",
                "release": str(host.get("triton_serve_release") or host.get("trtllm_release") or "1.1.0"),
            },
        }
        files.setdefault("pool-" + pool, []).append(entry)
    found = []
    for host in balancers:
        port = host.get("triton_lb_metrics_port")
        if port is not None and int(port) == 0:
            continue
        named = str(host.get(address_variable) or "")
        address = _address(host, str(host.get("triton_lb_metrics_address") or "127.0.0.1"), named)
        problems += _unreachable(host, address, named, "triton_lb_metrics_address")
        found.append(
            {
                "targets": [_target(address, int(port or 8405))],
                "labels": {**common, "balancer": str(host.get("inventory_hostname"))},
            }
        )
    # Always there, so that Prometheus does not complain about a file that is not.
    files["balancers"] = found
    return {"files": {name: files[name] for name in sorted(files)}, "problems": problems}


class FilterModule:
    """Filters of this collection for monitoring."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"monitoring_targets": monitoring_targets}
