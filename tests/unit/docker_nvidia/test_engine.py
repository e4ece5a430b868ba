# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The survey: one look at a recorded host says what is left to do, and everything that stands in the way."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _docker_engine_api as api
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine import (
    RUNTIME,
    decide_policy,
    drop_in_text,
    policy_config,
)
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_host import ETC_CDI, RUN_CDI
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_packages import matches, number

CE = ["docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin"]
CE_RPM = {"docker-ce": "3:28.3.3-1.el9", "docker-ce-cli": "1:28.3.3-1.el9", "containerd.io": "1.7.27-3.1.el9",
          "docker-buildx-plugin": "0.26.1-1.el9"}  # fmt: skip
TOOLKIT_RPM = {"nvidia-container-toolkit": "1.17.8-1"}
RUNNING = api.Unit(argv=("/usr/bin/dockerd",), enabled=True, active=True, exists=True)


# --- systems ---


@pytest.mark.parametrize("name", ["debian", "ubuntu", "ol8", "ol9", "rocky"])
def test_a_bare_host_gets_everything(host: Any, name: str) -> None:
    host.system(name)
    found = host.survey(source="docker-ce", toolkit="stable")
    assert found.problems == []
    todo = found.engine["install"]
    assert todo["engine"] == CE and todo["toolkit"] == ["nvidia-container-toolkit"] and todo["remove"] == []
    assert found.engine["start"] and not todo["new_toolkit"] and not found.engine["cdi"]["generate"]


@pytest.mark.parametrize(("name", "remedy"), [("fedora", "allow_unsupported_os"), ("suse", "source to existing")])
def test_another_system_is_refused_with_the_list(host: Any, name: str, remedy: str) -> None:
    host.system(name)
    found = host.survey(source="docker-ce", toolkit="stable")
    assert len(found.problems) == 1
    for named in (remedy, "Oracle Linux 8 and 9", "Ubuntu 22.04 and 24.04", "Debian 12", "Rocky Linux 9"):
        assert named in found.problems[0]
    allowed = host.survey(source="docker-ce", toolkit="stable", allow_unsupported=True)
    assert bool(allowed.problems) is (name == "suse")


def test_none_and_existing_look_at_no_packages(host: Any) -> None:
    host.system("suse")
    assert host.survey().problems == [] and host.asked == []
    host.answers["docker"] = api.Done(0, "24.0.7\n", "")
    found = host.survey(source="existing")
    assert found.problems == [] and found.engine["version"] == "24.0.7" and found.engine["device_policy"] == "none"
    assert [words[0] for words in host.asked] == ["docker"]


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (api.Done(127, "", "docker: not found"), "said 'docker: not found'"),
        (api.Done(0, "18.09.1\n", ""), "said '18.09.1'"),
        (api.Done(1, "", "Cannot connect to\nthe daemon"), "said 'Cannot connect to the daemon'"),
        (api.Done(0, "", ""), "said 'nothing'"),
    ],
)
def test_an_existing_engine_that_is_not_there(host: Any, done: api.Done, said: str) -> None:
    host.answers["docker"] = done
    problem = host.survey(source="existing").problems[0]
    assert problem.startswith("Docker Engine: 'docker version' " + said) and "version 19.03 or newer" in problem


def test_the_distributions_docker(host: Any) -> None:
    host.system("debian")
    assert host.survey(source="distribution").engine["install"]["engine"] == ["docker.io", "containerd"]
    host.system("ubuntu")
    assert "docker-buildx" in host.survey(source="distribution").engine["install"]["engine"]
    host.system("ol9")
    assert "no Docker Engine among its own packages" in host.survey(source="distribution").problems[0]
    found = host.survey(source="distribution", engine_packages=["docker-engine"])
    assert found.problems == [] and found.engine["install"]["engine"] == ["docker-engine"]


def test_a_host_without_systemd_runs_docker_itself(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "systemd", lambda: False)
    assert "source to existing" in host.survey(source="docker-ce").problems[0]
    host.answers["docker"] = api.Done(0, "24.0.7\n", "")
    assert host.survey(source="existing").problems == []


# --- packages ---


def test_a_finished_host_has_nothing_to_do(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "unit", lambda: RUNNING)
    host.packages = {**CE_RPM, **TOOLKIT_RPM, "podman": "4.9-1.el9"}
    found = host.survey(source="docker-ce", toolkit="stable")
    assert found.problems == [] and found.engine["install"]["engine"] == found.engine["install"]["toolkit"] == []
    assert not found.engine["start"] and found.engine["version"] == "28.3.3-1.el9"
    # One question to the package manager, none about conflicts.
    assert [words[:2] for words in host.asked] == [["rpm", "-q"]]


@pytest.mark.parametrize(
    ("pin", "version", "same"),
    [
        ("", "1.2", True),
        ("28.3.3", "5:28.3.3-1~ubuntu.24.04~noble", True),
        ("5:28.3.3-1~ubuntu.24.04~noble", "5:28.3.3-1~ubuntu.24.04~noble", True),
        ("28.3.3-1.el9", "3:28.3.3-1.el9", True),
        ("28.3", "5:28.3.3-1~ubuntu", False),
        ("28.3.*", "5:28.3.3-1~ubuntu", True),
        ("1.7.2", "1.7.20-1", False),
        ("20.10.24", "20.10.24+dfsg1-1", True),
    ],
)
def test_versions_match_with_and_without_epoch_and_release(pin: str, version: str, same: bool) -> None:
    assert matches(pin, version) is same


def test_numbers_of_versions() -> None:
    assert number("5:28.3.3-1~x") == (28, 3, 3) and number("20.10.24+dfsg1") == (20, 10, 24)
    assert number("v1.17.8") == (1, 17, 8) and number("") == () and number("29") > number("28.3")


def test_pinned_versions_as_dnf_takes_them(host: Any) -> None:
    versions = {"engine": "28.3.3", "containerd": "1.7.27", "toolkit": "1.17.8"}
    todo = host.survey(source="docker-ce", toolkit="stable", versions=versions).engine["install"]
    assert todo["engine"] == [
        "docker-ce-28.3.3", "docker-ce-cli-28.3.3", "containerd.io-1.7.27", "docker-buildx-plugin",
    ]  # fmt: skip
    assert todo["toolkit"] == ["nvidia-container-toolkit-1.17.8"]


def test_pinned_versions_as_apt_takes_them(host: Any) -> None:
    host.system("debian")
    host.candidates = {"docker-ce": ["5:28.4.0-1~debian.12~bookworm", "5:28.3.3-1~debian.12~bookworm"],
                       "nvidia-container-toolkit": ["1.17.8-1"],
                       "libnvidia-container1": ["1.18.0-1", "1.17.8-1"]}  # fmt: skip
    versions = {"engine": "28.3.3", "toolkit": "1.17.8"}
    todo = host.survey(source="docker-ce", toolkit="stable", versions=versions).engine["install"]
    assert todo["engine"][0] == "docker-ce=5:28.3.3-1~debian.12~bookworm"
    # Without lists the wish itself is asked for, and apt says that it has no such version.
    assert todo["engine"][1] == "docker-ce-cli=28.3.3"
    assert todo["toolkit"] == ["nvidia-container-toolkit=1.17.8-1", "nvidia-container-toolkit-base=1.17.8",
                               "libnvidia-container-tools=1.17.8", "libnvidia-container1=1.17.8-1"]  # fmt: skip


def test_another_version_waits_for_a_drained_host(host: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "unit", lambda: RUNNING)
    monkeypatch.setattr(api, "process", lambda path: api.Process(1, 2, ("dockerd",), "/usr/bin/dockerd"))
    host.packages = {**CE_RPM, **TOOLKIT_RPM}
    engine.info["ContainersRunning"] = 1
    wish = {"source": "docker-ce", "toolkit": "stable", "versions": {"engine": "28.4.0"}, "socket": engine.socket}
    todo = host.survey(**wish).engine["install"]
    assert todo["engine"] == []
    assert todo["changes"] == ["docker-ce 3:28.3.3-1.el9 -> 28.4.0", "docker-ce-cli 1:28.3.3-1.el9 -> 28.4.0"]
    for now in ({"disruptive": True}, {}):
        engine.info["ContainersRunning"] = 1 if now else 0
        todo = host.survey(**wish, **now).engine["install"]
        assert todo["engine"] == ["docker-ce-28.4.0", "docker-ce-cli-28.4.0"] and todo["changes"] == []


def test_a_repository_that_another_file_names(host: Any) -> None:
    host.system("debian")
    urls = ["https://download.docker.com/linux", "https://nvidia.github.io/libnvidia-container"]
    host.file("/etc/apt/sources.list.d/trtllm-docker.sources", "URIs: %s/debian\n" % urls[0])
    host.file("/etc/apt/sources.list.d/docker.list", "# deb %s/debian bookworm stable\n" % urls[0])
    assert host.survey(source="docker-ce", repositories=urls).problems == []
    host.file("/etc/apt/sources.list.d/docker.list", "deb [arch=amd64] %s/debian bookworm stable\n" % urls[0])
    problem = host.survey(source="docker-ce", repositories=urls).problems[0]
    assert "/etc/apt/sources.list.d/docker.list names" in problem and "docker_nvidia_manage_repositories" in problem


# --- conflicts ---

RUNC_NEEDED = (
    "buildah|\trunc >= 1.0.0-26 is needed by (installed) buildah-2:1.33.8-4.el8.x86_64\n"
    "podman|\trunc >= 1.0.0-57 is needed by (installed) podman-4:4.9.4-3.el8.x86_64\n"
)


def test_packages_in_the_way_are_listed_with_what_goes_along(host: Any) -> None:
    host.system("ol8")
    host.packages = {"runc": "1:1.1.12-1.el8", "podman": "4:4.9.4-3.el8", "buildah": "2:1.33.8-4.el8"}
    host.removal = RUNC_NEEDED
    found = host.survey(source="docker-ce")
    assert len(found.problems) == 1
    for named in ("runc 1:1.1.12-1.el8 (unused)", "podman 4:4.9.4-3.el8", "buildah", "docker_nvidia_remove_conflicts"):
        assert named in found.problems[0]
    allowed = host.survey(source="docker-ce", remove_conflicts=True)
    assert allowed.problems == [] and allowed.engine["install"]["remove"] == ["runc", "buildah", "podman"]


def test_podman_with_another_runtime_is_not_in_the_way(host: Any) -> None:
    host.packages = {"podman": "4:5.2.2-1.el9", "crun": "1.16-1.el9"}
    assert host.survey(source="docker-ce").problems == []


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("/usr/bin/conmon", "--api-version", "1", "-n", "web", "-c", "abc"), "podman container web"),
        (("buildah", "bud", "."), "buildah bud (pid 77)"),
        (("/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "0123456789abcdef"),
         "containerd container 0123456789ab"),
    ],
)  # fmt: skip
def test_what_is_in_use_is_never_removed(host: Any, argv: tuple[str, ...], named: str) -> None:
    host.packages = {"runc": "1:1.1.12-1.el8", "podman": "4:4.9.4-3.el8"}
    host.removal = RUNC_NEEDED
    host.process(77, *argv)
    problem = host.survey(source="docker-ce", remove_conflicts=True).problems[0]
    assert "in use by " + named in problem and "stop what uses them" in problem


def test_debians_docker_with_a_running_container(host: Any) -> None:
    host.system("debian")
    host.packages = {"docker.io": "20.10.24+dfsg1-1", "containerd": "1.6.20", "runc": "1.1.5"}
    host.removal = "Remv docker.io [20.10.24]\nRemv containerd [1.6.20]\nRemv runc [1.1.5]\n"
    assert host.survey(source="docker-ce", remove_conflicts=True).problems == []
    host.process(9, "/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", "feedfeedfeedfeed")
    assert "docker container feedfeedfeed" in host.survey(source="docker-ce", remove_conflicts=True).problems[0]


# --- GPUs ---


@pytest.mark.parametrize(
    ("asked", "version", "enabled", "toolkit", "policy", "bad"),
    [
        ("auto", "20.10.24", None, "1.17.8", "runtime", ""),
        ("auto", "25.0.5", False, "1.17.8", "runtime", ""),
        ("auto", "28.1.1", False, "1.17.8", "runtime", ""),
        ("auto", "28.2.0", True, "1.17.8", "cdi", ""),
        ("auto", "29.1.0", None, "", "cdi", ""),
        ("auto", "28.3.3", False, "1.17.8", "runtime", ""),
        ("auto", "28.3.3", True, "1.11.0", "runtime", ""),
        ("runtime", "28.3.3", True, "1.17.8", "runtime", ""),
        ("cdi", "25.0.5", False, "1.17.8", "cdi", ""),
        ("cdi", "24.0.9", None, "1.17.8", "cdi", "needs Docker Engine 25.0, here is 24.0.9"),
        ("cdi", "28.3.3", True, "1.11.0", "cdi", "needs NVIDIA Container Toolkit 1.12, here is 1.11.0"),
    ],
)
def test_policy(asked: str, version: str, enabled: bool | None, toolkit: str, policy: str, bad: str) -> None:
    decided, problem = decide_policy(asked, version, enabled, toolkit)
    assert decided == policy and bad in problem and bool(problem) is bool(bad)


def test_keys_of_a_policy() -> None:
    assert policy_config("runtime", "28.3.3", True) == RUNTIME
    assert policy_config("cdi", "25.0.5", False) == {"features": {"cdi": True}}
    assert policy_config("cdi", "28.3.3", True) == {}
    assert policy_config("cdi", "28.3.3", False) == {"features": {"cdi": True}}


def test_a_cdi_specification_is_made_again_for_another_driver(host: Any) -> None:
    host.packages = {**CE_RPM, **TOOLKIT_RPM}
    host.gpus()
    wish = {"source": "docker-ce", "toolkit": "stable"}
    first = host.survey(**wish).engine
    assert first["device_policy"] == "cdi" and first["cdi"]["generate"]
    host.file(ETC_CDI, 'kind: "nvidia.com/gpu"\n')
    host.file(ETC_CDI + ".made-from", first["cdi"]["signature"] + "\n")
    assert not host.survey(**wish).engine["cdi"]["generate"]
    for change in (lambda: host.gpus(driver="580.1.1"), lambda: host.gpus(count=3)):
        change()
        assert host.survey(**wish).engine["cdi"]["generate"]
    # NVIDIA's own service keeps this one.
    host.file(RUN_CDI, 'kind: "nvidia.com/gpu"\n')
    assert not host.survey(**wish).engine["cdi"]["generate"]


def test_without_a_driver_there_is_nothing_to_describe(host: Any) -> None:
    host.packages = {**CE_RPM, **TOOLKIT_RPM}
    found = host.survey(source="docker-ce", toolkit="stable")
    assert not found.engine["cdi"]["generate"] and "driver is not loaded" in found.hints[0]


def test_an_existing_toolkit(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host.answers["docker"] = api.Done(0, "24.0.7\n", "")
    host.answers["nvidia-ctk"] = api.Done(0, "NVIDIA Container Toolkit CLI version 1.16.2\ncommit: a\n", "")
    found = host.survey(source="existing", toolkit="existing")
    assert found.problems == [] and found.engine["toolkit_version"] == "1.16.2" and found.engine["config"] == RUNTIME
    host.answers["nvidia-ctk"] = api.Done(127, "", "")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no nvidia-ctk on the PATH" in host.survey(source="existing", toolkit="existing").problems[0]


# --- data-root, unit, boot volume ---


def test_a_data_root_before_the_first_start(host: Any) -> None:
    found = host.survey(source="docker-ce", data_root="/mnt/nvme/docker")
    assert found.problems == []
    assert found.engine["config"] == {"data-root": "/mnt/nvme/docker", "features": {"containerd-snapshotter": False}}
    assert "RequiresMountsFor=/mnt/nvme/docker" in found.engine["drop_in"]
    host.file("/etc/systemd/system/docker.service.d/trtllm.conf", found.engine["drop_in"])
    assert host.survey(source="docker-ce", data_root="/mnt/nvme/docker").engine["drop_in"] == ""


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("image/overlay2/imagedb/content/sha256/aa", "1 image"),
        ("containers/bb/config.v2.json", "1 container"),
        ("volumes/cc/_data/x", "1 volume"),
    ],
)
def test_a_data_root_is_not_left_with_something_in_it(host: Any, name: str, held: str) -> None:
    host.file("/var/lib/docker/volumes/metadata.db", "")
    host.file("/var/lib/docker/overlay2/l/x", "")
    assert host.survey(source="docker-ce", data_root="/mnt/docker").problems == []
    host.file("/var/lib/docker/" + name, "")
    problem = host.survey(source="docker-ce", data_root="/mnt/docker").problems[0]
    assert "/var/lib/docker, holds %s: nothing is moved" % held in problem
    # Already there: the other directory is nobody's business.
    host.file("/etc/docker/daemon.json", '{"data-root": "/mnt/docker"}')
    assert host.survey(source="docker-ce", data_root="/mnt/docker").problems == []


def test_a_running_engine_counts_for_itself(host: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "process", lambda path: api.Process(1, 2, ("dockerd",), "/usr/bin/dockerd"))
    engine.info.update(Images=2, Containers=0)
    engine.volumes = [{"Name": "v"}]
    wish = {"source": "docker-ce", "data_root": "/mnt/docker", "socket": engine.socket}
    assert "holds 2 images, 1 volume" in host.survey(**wish).problems[0]
    engine.volumes, engine.info["Images"] = [], 0
    assert host.survey(**wish).problems == []


def test_what_the_unit_is_told() -> None:
    assert drop_in_text("", False) == ""
    text = drop_in_text("/data", True)
    assert "[Unit]" in text and "EnvironmentFile=/etc/docker/trtllm-proxy.env" in text
    assert "[Unit]" not in drop_in_text("", True)


@pytest.mark.parametrize(("version", "place"), [("3:20.10.24-3.el9", "unit"), ("3:28.3.3-1.el9", "file")])
def test_proxies_are_where_the_engine_reads_them(host: Any, version: str, place: str) -> None:
    host.packages = {**CE_RPM, "docker-ce": version}
    assert host.survey(source="docker-ce", proxies=True).engine["proxies"] == place


@pytest.mark.parametrize("lvm", [False, True])
def test_a_boot_volume_that_has_not_grown(host: Any, lvm: bool) -> None:
    gib = 2 * 1024 * 1024
    host.file("/proc/self/mountinfo", "1 0 252:0 / / rw - xfs /dev/x rw\n")
    for name, start, size in (("sda1", 2048, gib), ("sda3", gib + 2048, 45 * gib)):
        host.file("/sys/devices/sda/%s/start" % name, "%d\n" % start)
        host.file("/sys/devices/sda/%s/size" % name, "%d\n" % size)
        host.file("/sys/devices/sda/%s/partition" % name, "1\n")
    host.file("/sys/devices/sda/size", "%d\n" % (1000 * gib))
    links = {"sda": "devices/sda", "sda1": "devices/sda/sda1", "sda3": "devices/sda/sda3"}
    if lvm:
        host.file("/sys/devices/dm-0/size", "%d\n" % (35 * gib))
        host.file("/sys/devices/dm-0/slaves/sda3", "")
        links["dm-0"] = "devices/dm-0"
    (host.root / "sys/class/block").mkdir(parents=True)
    (host.root / "sys/dev/block").mkdir(parents=True)
    for name, target in links.items():
        (host.root / "sys/class/block" / name).symlink_to(host.root / "sys" / target)
    (host.root / "sys/dev/block/252:0").symlink_to(host.root / "sys" / links["dm-0" if lvm else "sda3"])
    assert host.survey().hints == []
    host.file("/sys/class/dmi/id/chassis_asset_tag", "OracleCloud.com\n")
    hint = host.survey().hints[0]
    assert "sda has 1000 GiB, and 953 GiB" in hint and "/usr/libexec/oci-growfs -y" in hint
    host.file("/sys/devices/sda/sda3/size", "%d\n" % (998 * gib))
    assert host.survey().hints == []
