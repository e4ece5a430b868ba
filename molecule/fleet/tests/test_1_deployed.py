# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fleet as converge has left it."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest


def test_each_pool_serves_one_generation_of_its_own(fleet: Any) -> None:
    found = {pool: fleet.settled(pool) for pool in fleet.pools}
    assert len(set(found.values())) == len(fleet.pools), found


def test_the_pools_answer_through_the_balancer(client: Any) -> None:
    with client.load() as load:
        load.more(50)
    for name, target in load.summary()["targets"].items():
        assert target["kinds"]["generate"] and target["kinds"]["generate_stream"], name
        assert len(target["texts"]) == 1, "one model, one prompt, several answers: %s" % target["texts"]


def test_nobody_is_answered_without_the_token(client: Any) -> None:
    """Or the load would not go the way of the pools' users."""
    for port in client.ports.values():
        asked = urllib.request.Request("http://%s:%d/v2/health/ready" % (client.address, port))
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=30)
        assert refused.value.code in (401, 403)
