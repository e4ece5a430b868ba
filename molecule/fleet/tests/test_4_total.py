# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all phases come to in which every request had to be answered."""

from __future__ import annotations

from typing import Any

from ansible_collections.trtllm.serving.tests.fleet.fleet import WANTED, Fleet


def test_enough_requests_were_sent(fleet: Fleet, client: Any) -> None:
    if client.answered < WANTED:
        with client.load(rate=60) as load:
            load.more((WANTED - client.answered) // len(fleet.pools) + 1)
    print("%d requests, each of them answered" % client.answered)
    assert client.answered >= WANTED


def test_both_pools_have_settled(fleet: Fleet) -> None:
    assert len({fleet.settled(pool) for pool in fleet.pools}) == len(fleet.pools)
