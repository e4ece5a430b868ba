# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host where nothing is installed yet, and what can be wrong around it: it stays as it was, and the run says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def packages(host: Any) -> set[str]:
    """Docker's and NVIDIA's that are installed."""
    dnf = host.exists("rpm")
    listed = host.run("rpm -qa --qf '%{NAME}\\n'" if dnf else "dpkg-query -W -f '${Package}\\n'")
    return {name for name in listed.stdout.split() if name.startswith(("docker", "containerd", "nvidia", "runc"))}


@pytest.fixture(autouse=True)
def untouched(host: Any) -> Iterator[None]:
    before = packages(host)
    assert before == {"runc"}, "check mode has installed something"
    yield
    assert packages(host) == before
    # The folder itself is there: whoever deploys holds a lease in it.
    assert host.run("ls /opt/trtllm").stdout.split() in ([], ["run"])


def fingerprint(outside: Any, name: str) -> str:
    return str(outside.docker("exec", outside.repo, "cat", "/srv/repo/keys/%s.fingerprint" % name))


def test_repository_is_down(outside: Any, playbooks: Any) -> None:
    outside.docker("stop", "--time", "1", outside.repo)
    try:
        recap = playbooks.run("site")
    finally:
        outside.docker("start", outside.repo)
    recap.failed("http://repo")


def test_key_is_another_one(outside: Any, playbooks: Any) -> None:
    wrong, right = fingerprint(outside, "wrong"), fingerprint(outside, "docker")
    playbooks.run("site", docker_nvidia_docker_key_fingerprints=[wrong]).failed(wrong, right)


def test_packages_are_signed_with_another_key(outside: Any, playbooks: Any) -> None:
    """The key is the one that was asked for, and what it should have signed is not signed by it."""
    wrong = fingerprint(outside, "wrong")
    playbooks.run(
        "site", docker_nvidia_docker_key_url="http://repo/keys/wrong.asc", docker_nvidia_docker_key_fingerprints=[wrong]
    ).failed()
