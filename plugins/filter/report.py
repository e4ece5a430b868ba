# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report that ends a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

HEADER = ("host", "before", "now", "what", "seconds")


def _row(host: Mapping[str, Any]) -> tuple[str, ...]:
    name = str(host.get("inventory_hostname", "?"))
    generation = host.get("triton_serve_generation") or {}
    switch = host.get("triton_serve_switch") or {}
    preflight = (host.get("triton_serve_preflight") or {}).get("host") or {}
    before = (switch.get("before") or {}).get("current") or generation.get("current") or preflight.get("current")
    now = switch.get("generation") or generation.get("id")
    if not switch:
        what = "unchanged" if generation else "not reached"
    elif not now:
        what = "would be deployed"
    elif before == now:
        what = "restarted"
    else:
        what = "switched" if before else "deployed"
    ready = (host.get("triton_serve_ready") or {}).get("ready_s")
    seconds = f"{float(switch.get('duration_s') or 0) + float(ready or 0):.1f}" if switch else "-"
    return (name, str(before or "-"), str(now or "-"), what, seconds)


def report_table(hosts: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each host: what it served before, what it serves now, what was done and how long it took."""
    rows = [HEADER, *(_row(host) for host in hosts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


class FilterModule:
    """Filters of this collection for reports."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"report_table": report_table}
