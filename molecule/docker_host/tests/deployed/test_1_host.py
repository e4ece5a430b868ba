# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The deployed host as its operating system, its Docker Engine and its clients see it."""

from __future__ import annotations

import json
from typing import Any

import pytest

HOME = "/opt/trtllm"
# 127.0.0.1 as the kernel of a little-endian machine writes it.
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")
PORTS = {"HTTP": 8000, "gRPC": 8001, "metrics": 8002}


def read(host: Any, path: str) -> Any:
    return json.loads(host.file("%s/%s" % (HOME, path)).content_string)


def test_packages_come_from_the_repositories(host: Any) -> None:
    installed = "rpm -q %s" if host.exists("dnf") else "dpkg-query -s %s"
    for name in ("docker-ce", "docker-ce-cli", "containerd.io", "nvidia-container-toolkit", "git-lfs"):
        assert host.run(installed, name).rc == 0, name
    assert host.file("/usr/bin/runc").exists and host.run(installed, "runc").rc != 0, "containerd.io has its own runc"


def test_engine_runs_and_knows_the_runtime(host: Any) -> None:
    service = host.service("docker")
    assert service.is_running and service.is_enabled
    config = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert config["runtimes"]["nvidia"]["path"].endswith("nvidia-container-runtime")
    # What was there before is there still.
    assert config["insecure-registries"] == ["registry.example.com:5000"] and config["log-opts"] == {"max-size": "10m"}
    runtimes = json.loads(host.run("docker info --format '{{json .Runtimes}}'").stdout)
    assert "nvidia" in runtimes


def test_service_user_owns_what_is_its_own(host: Any) -> None:
    user = host.user("trtllm")
    assert user.shell.endswith("nologin") and user.uid < 1000
    home = host.file(HOME)
    assert home.user == "trtllm" and home.mode & 0o007 == 0, oct(home.mode)
    for folder in ("engines", "checkpoints", "generations"):
        foreign = host.run("find %s/%s ! -user trtllm", HOME, folder)
        assert foreign.rc == 0 and foreign.stdout == "", foreign.stdout
    assert host.run("find %s -perm -o+w ! -type l", HOME).stdout == ""


def test_image_is_of_the_commit(host: Any, server: Any, outside: Any) -> None:
    image = json.loads(host.run("docker image inspect %s", server.inspect()["Image"]).stdout)[0]
    repository = "/srv/repo/git/tensorrtllm_backend.git"
    commit = outside.docker("exec", outside.repo, "git", "--git-dir", repository, "rev-parse", "v0.12.0^{commit}")
    assert commit in json.dumps(image["Config"]["Labels"]), image["Config"]["Labels"]


def test_container_has_what_it_needs_and_no_more(host: Any, server: Any) -> None:
    found = server.inspect()
    config, limits = found["Config"], found["HostConfig"]
    user = host.user("trtllm")
    assert config["User"] == "%d:%d" % (user.uid, user.gid)
    assert limits["CapDrop"] == ["ALL"] and not limits["CapAdd"] and not limits["Privileged"]
    assert any(option.startswith("no-new-privileges") for option in limits["SecurityOpt"])
    assert limits["NetworkMode"] not in ("host",) and limits["PidMode"] == "" and limits["Init"] is True
    assert limits["RestartPolicy"]["Name"] in ("always", "unless-stopped")
    assert limits["ShmSize"] == 256 * 1024 * 1024
    assert {"Name": "stack", "Hard": 67108864, "Soft": 67108864} in limits["Ulimits"]
    assert config["StopTimeout"] > 10, "not above Triton's own exit timeout"
    assert config["Healthcheck"]["Test"]
    mounts = {mount["Destination"]: mount for mount in found["Mounts"] if mount["Type"] == "bind"}
    assert mounts and not [name for name, mount in mounts.items() if mount["RW"]], mounts
    assert HOME not in {mount["Source"] for mount in mounts.values()}
    for port, bound in limits["PortBindings"].items():
        assert [entry["HostIp"] for entry in bound] == ["127.0.0.1"], (port, bound)
    asked = [request for request in limits["DeviceRequests"] or [] if ["gpu"] in request["Capabilities"]]
    assert asked, limits["DeviceRequests"]


def test_both_ranks_run_in_the_foreground(host: Any, server: Any) -> None:
    assert host.run("docker top %s -eo pid,args", server.name).stdout.count("tritonserver --") >= 2
    user = host.user("trtllm")
    lines = host.run("docker top %s -eo pid,uid", server.name).stdout.splitlines()[1:]
    assert {line.split()[1] for line in lines} == {str(user.uid)}


def test_container_sees_the_gpus(host: Any, server: Any) -> None:
    listed = host.run("docker exec %s nvidia-smi -L", server.name)
    assert listed.rc == 0 and listed.stdout.count("A100-SXM4-40GB") == 2, listed.stdout


def test_engine_says_for_what_it_was_built(host: Any) -> None:
    listed = host.run("ls -d %s/engines/*/", HOME).stdout.split()
    assert len(listed) == 1
    manifest = json.loads(host.file(listed[0] + "manifest.json").content_string)
    assert "A100-SXM4-40GB" in json.dumps(manifest) and {"rank0.engine", "rank1.engine"} <= set(manifest["files"])


@pytest.mark.parametrize("name", PORTS)
def test_port_is_open_on_loopback_only(host: Any, name: str) -> None:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in host.file(table).content_string.splitlines()[1:]:
            address, number = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(number, 16) == PORTS[name]:
                found.add(address)
    assert found and found <= set(LOOPBACK), found


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_model_answers(server: Any, model: str) -> None:
    assert server.ask(model)


def test_container_is_healthy(server: Any, outside: Any) -> None:
    outside.until("healthy", lambda: server.inspect()["State"]["Health"]["Status"] == "healthy")


def test_no_container_of_a_tool_is_left(host: Any, server: Any) -> None:
    assert host.run("docker ps --all --format '{{.Names}}'").stdout.split() == [server.name]
    assert host.run("find %s -name '.*.partial*'", HOME).stdout == ""


def test_ledger_ends_with_the_current_generation(host: Any) -> None:
    last = json.loads(host.file(HOME + "/ledger.jsonl").content_string.splitlines()[-1])
    assert host.file(HOME + "/current").linked_to.endswith(last["generation"]), last
