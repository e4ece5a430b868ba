# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A deployed host is left alone, by check mode and over a reboot."""

from __future__ import annotations

from typing import Any


def test_check_mode_finds_nothing_to_do(playbooks: Any, server: Any) -> None:
    before = server.inspect()["State"]["StartedAt"]
    playbooks.run("site", "--check", "--diff").unchanged()
    assert server.inspect()["State"]["StartedAt"] == before, server.log()


def test_reboot(host: Any, outside: Any, server: Any) -> None:
    """The server answers again without anybody's help."""

    def booted() -> str:
        return str(host.run("systemctl show --property UserspaceTimestamp --value").stdout).strip()

    before = booted()
    started = server.inspect()["State"]["StartedAt"]
    host.run("systemctl reboot")
    outside.until("booted again", lambda: booted() not in ("", before))
    outside.until("an answer", server.ask)
    assert server.inspect()["State"]["StartedAt"] != started


def test_nothing_to_do_after_the_reboot(playbooks: Any) -> None:
    playbooks.run("site", "--diff").unchanged()


def test_prepare_alone_makes_the_same_engine(playbooks: Any, host: Any) -> None:
    before = host.check_output("ls /opt/trtllm/engines")
    playbooks.run("prepare").unchanged()
    assert host.check_output("ls /opt/trtllm/engines") == before
