# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens to a host that serves: it serves on, or says what is wrong and how to go on."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

HOME = "/opt/trtllm"
DAEMON_JSON = "/etc/docker/daemon.json"
STANDIN = "/etc/nvidia-standin.conf"
# Each of these takes long, and needs only one of the two hosts.
DEBIAN = pytest.mark.skipif(os.environ["MOLECULE_SCENARIO_NAME"] != "debian", reason="done on the host with apt")
REDHAT = pytest.mark.skipif(os.environ["MOLECULE_SCENARIO_NAME"] != "redhat", reason="done on the host with dnf")


def started(server: Any) -> str:
    return str(server.inspect()["State"]["StartedAt"])


def ranks(host: Any, server: Any) -> list[int]:
    """Process ids on the host of the servers, one for each rank."""
    lines = host.run("docker top %s -eo pid,args", server.name).stdout.splitlines()
    return sorted(int(line.split()[0]) for line in lines if "tritonserver --" in line and "mpirun" not in line)


def test_container_is_killed(host: Any, outside: Any, server: Any) -> None:
    """Its first process, as the kernel's out-of-memory killer would."""
    before = started(server)
    assert host.run("kill -KILL %s", str(server.inspect()["State"]["Pid"])).rc == 0
    outside.until("started again", lambda: started(server) != before)
    outside.until("an answer", server.ask)


def test_rank_dies(host: Any, outside: Any, server: Any) -> None:
    before = started(server)
    assert host.run("kill -KILL %s", str(ranks(host, server)[-1])).rc == 0
    outside.until("started again", lambda: started(server) != before)
    outside.until("an answer", server.ask)


def gpus(host: Any, server: Any) -> str:
    """What nvidia-smi says in the container; its exit code 255 would be taken for that of ssh."""
    return str(host.run("docker exec %s nvidia-smi -L || true", server.name).stdout)


def test_gpu_is_lost_in_the_container(host: Any, outside: Any, server: Any) -> None:
    """The host sees its GPUs and the container does not any more: that is seen, said, and ended by a new start."""
    before, container = started(server), server.inspect()["Id"]
    assert host.run("echo fault=nvml >> /run/nvidia-standin/%s.conf", container).rc == 0
    assert "Failed to initialize NVML" in gpus(host, server)
    assert host.run("nvidia-smi -L").stdout.count("GPU ") == 2
    outside.until("started again", lambda: started(server) != before)
    assert "Failed to initialize NVML" in host.run("docker logs %s 2>&1", server.name).stdout
    outside.until("an answer", server.ask)
    assert gpus(host, server).count("A100") == 2


@DEBIAN
def test_docker_does_not_restart(host: Any, playbooks: Any, server: Any) -> None:
    """A setting that this engine does not take: the file is as it was, what was served is served again."""
    good = host.file(DAEMON_JSON).content_string
    recap = playbooks.run("site", docker_nvidia_daemon_config={"storage-driver": "nonsense"})
    recap.failed("Docker Engine did not start again", "is as it was before", "(serves ")
    assert host.file(DAEMON_JSON).content_string == good
    assert server.ask()
    playbooks.run("site", "--diff").unchanged()


def test_engine_configuration_has_a_syntax_error(host: Any, playbooks: Any, server: Any) -> None:
    good = host.file(DAEMON_JSON).content_string
    bad = good.replace("}", "", 1)
    with pytest.raises(ValueError):
        json.loads(bad)
    host.run("printf '%%s' %s > %s", bad, DAEMON_JSON)
    try:
        playbooks.run("site").failed(DAEMON_JSON)
        assert host.file(DAEMON_JSON).content_string == bad
        assert server.ask()
    finally:
        host.run("printf '%%s' %s > %s", good, DAEMON_JSON)


@DEBIAN
def test_engine_of_another_gpu(host: Any, playbooks: Any, server: Any) -> None:
    """The host gets other GPUs: an engine of their own is built, the old one is not served on them."""
    before = host.run("ls %s/engines", HOME).stdout.split()
    good = host.file(STANDIN).content_string
    other = good.replace("NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3").replace("memory=40960", "memory=81559")
    other = other.replace("compute=8.0", "compute=9.0")
    # In place: containers see this very file.
    host.run("printf '%%s' %s > %s && testbed-nvidia", other, STANDIN)
    try:
        playbooks.run("site").succeeded()
        engines = host.run("ls %s/engines", HOME).stdout.split()
        assert len(engines) == len(before) + 1
        new = (set(engines) - set(before)).pop()
        assert "H100" in host.file("%s/engines/%s/manifest.json" % (HOME, new)).content_string
        assert server.ask()
        assert new in json.dumps(server.inspect()["Mounts"])
    finally:
        host.run("printf '%%s' %s > %s && testbed-nvidia", good, STANDIN)
    playbooks.run("site").succeeded()
    assert host.run("ls %s/engines", HOME).stdout.split() == engines, "built again what was there"
    assert server.ask()


@REDHAT
def test_host_reboots_during_the_build(host: Any, outside: Any, playbooks: Any, server: Any) -> None:
    """The run is lost with the host; the next one finds nothing half done, and the server was never away but for it."""
    slow = {
        "tensorrtllm_backend_build_build_args": {
            "BASE_IMAGE": "127.0.0.1:5000/nvidia/tritonserver", "TORCH_INSTALL_TYPE": "src_cxx11_abi",
        },
    }  # fmt: skip
    with playbooks.running("site", **slow) as process:
        outside.until("the build runs", lambda: host.run("pgrep -f 'install_pytorch.sh src_cxx11_abi'").rc == 0)
        host.run("systemctl reboot")
        output = process.communicate(timeout=120)[0]
        assert process.returncode != 0, output
    outside.until("an answer", server.ask)
    playbooks.run("site").succeeded()
    assert host.run("find %s -name '.*.partial*'", HOME).stdout == ""
    assert server.ask()
