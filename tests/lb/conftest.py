# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("_balancer", Path(__file__).parent / "_balancer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_balancer"] = module
    spec.loader.exec_module(module)
    return module


BALANCER = _load()


@pytest.fixture(scope="module")
def fleets() -> Iterator[Callable[..., Any]]:
    """Makes fleets that end with the module. Paths of sockets are short, whatever the temporary directory is."""
    made = []
    folders = []

    def make(pools: dict[str, list[str]], balancers: list[str]) -> Any:
        folder = Path(tempfile.mkdtemp(prefix="trtllm-lb-", dir="/tmp"))
        folders.append(folder)
        made.append(BALANCER.Fleet(folder, pools, balancers))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(fleets: Callable[..., Any]) -> Any:
    """Two hosts of one pool and one of another, behind one balancer that the role has configured."""
    found = fleets({"chat": ["gpu1", "gpu2"], "embed": ["gpu3"]}, ["lb1"])
    found.deploy()
    lb = found.balancers["lb1"]
    BALANCER.wait_for(lambda: lb.up("gpu1") and lb.up("gpu2") and lb.up("gpu3", "embed"), "servers are not up")
    return found


def running(server: Any) -> int:
    count: int = server.running
    return count


@pytest.fixture
def lb(fleet: Any) -> Iterator[Any]:
    """The balancer, with every server in service before and after."""
    balancer = fleet.balancers["lb1"]
    yield balancer
    for server in fleet.servers.values():
        server.go.set()
        server.ready = dict.fromkeys(BALANCER.MODELS, True)
    for name, backend in (("gpu1", "chat"), ("gpu2", "chat"), ("gpu3", "embed")):
        balancer.say("set server %s/%s state ready" % (backend, name))
    BALANCER.wait_for(
        lambda: balancer.up("gpu1") and balancer.up("gpu2") and not any(map(running, fleet.servers.values())),
        "servers are not up again",
    )
    for server in fleet.servers.values():
        server.go.clear()
        server.asked.clear()
