# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The scenario's fleet and its client, one of each for all tests."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.trtllm.serving.tests.fleet.fleet import EPHEMERAL, INVENTORY, NAME, Client, Fleet, docker


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    children = yaml.safe_load(INVENTORY.read_text("utf-8"))["trtllm"]["children"]
    return Fleet({pool: list(group["hosts"]) for pool, group in children.items()})


@pytest.fixture(scope="session")
def client(fleet: Fleet) -> Client:
    """Asks through the balancer, as the pools' users do."""
    template = "{{ range .NetworkSettings.Networks }}{{ .IPAddress }}{{ end }}"
    address = docker("inspect", "--format", template, NAME + "-lb")

    def variables(group: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((INVENTORY.parent / "group_vars" / (group + ".yml")).read_text("utf-8"))
        return found

    token = EPHEMERAL / "token"
    token.write_text(variables("trtllm_lb")["triton_lb_tokens"][0], "ascii")
    ports = {pool: variables(pool)["triton_lb_port"] for pool in fleet.pools}
    return Client(address, ports, fleet.hosts, ["--token-file", str(token)])
