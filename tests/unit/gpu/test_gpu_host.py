# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What /proc and /sys tell, in a directory laid out as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _gpu_host
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_host import (
    FabricManager,
    containers_of,
    fabric_manager,
    foreign,
    is_own,
    look,
    module_version,
    nvswitches,
    pci_devices,
    userland_version,
)

from .conftest import Install, fixture, gpus

CONTAINER = "0123456789abcdef" * 4


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def device(root: Path, address: str, device_class: str, vendor: str = "0x10de", driver: str = "nvidia") -> None:
    path = root / "sys/bus/pci/devices" / address
    write(path / "vendor", vendor + "\n")
    write(path / "class", device_class + "\n")
    (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
    (path / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)


def process(root: Path, pid: int, name: str = "x", parent: int = 1, cgroup: str = "0::/user.slice\n") -> None:
    write(root / "proc" / str(pid) / "comm", name + "\n")
    write(root / "proc" / str(pid) / "stat", "%d (%s) S %d 1 1\n" % (pid, name, parent))
    write(root / "proc" / str(pid) / "cgroup", cgroup)


def test_the_loaded_module(root: Path) -> None:
    assert module_version(str(root)) == ""
    write(root / "proc/driver/nvidia/version", fixture("proc_driver_nvidia_version.txt"))
    assert module_version(str(root)) == "580.159.04"
    closed = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12\n"
    )
    write(root / "proc/driver/nvidia/version", closed)
    assert module_version(str(root)) == "535.183.01"
    write(root / "sys/module/nvidia/version", "550.54.15\n")
    assert module_version(str(root)) == "550.54.15"


@pytest.mark.parametrize("directory", ["usr/lib64", "usr/lib/x86_64-linux-gnu"])
def test_the_library_that_the_next_process_loads(root: Path, directory: str) -> None:
    assert userland_version(str(root)) == ""
    for version in ("550.144.03", "535.183.01"):
        write(root / directory / ("libnvidia-ml.so." + version), "")
    (root / directory / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.550.144.03")
    assert userland_version(str(root)) == "550.144.03", "the link decides between leftovers"
    (root / directory / "libnvidia-ml.so.1").unlink()
    assert userland_version(str(root)) == "535.183.01"


def test_nvswitches_and_gpus_on_the_bus(root: Path) -> None:
    assert nvswitches(str(root)) == 0
    for number in range(6):
        device(root, "0000:c%d:00.0" % number, "0x068000", driver="nvidia-nvswitch")
    device(root, "0000:0f:00.0", "0x030200")
    device(root, "0000:15:00.0", "0x030000")
    device(root, "0000:50:00.0", "0x030200", driver="vfio-pci")
    device(root, "0000:60:00.0", "0x068000", vendor="0x8086")
    device(root, "0000:61:00.0", "0x040300", driver="snd_hda_intel")
    assert nvswitches(str(root)) == 6
    facts = look("no-such-program", root=str(root))
    assert (facts.pci_gpus, facts.nvswitches) == (2, 6), "a GPU of a virtual machine and a sound card are none of ours"
    assert facts.smi_missing and facts.smi_error
    assert len(pci_devices(str(root))) == 9


def test_nvswitches_by_their_driver(root: Path) -> None:
    (root / "proc/driver/nvidia-nvswitch/devices/0000:c1:00.0").mkdir(parents=True)
    (root / "proc/driver/nvidia-nvswitch/permissions").mkdir()
    assert nvswitches(str(root)) == 1


def test_the_fabric_manager(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fabric_manager(str(root)) == FabricManager()
    process(root, 20282, "nv-fabricmanage")
    assert fabric_manager(str(root)) == FabricManager(installed=True, running=True)
    program = tmp_path / "nv-fabricmanager"
    program.write_text("#!/bin/sh\necho\necho 'Fabric Manager version is : 535.161.08'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "%s%s%s" % (tmp_path, os.pathsep, os.environ["PATH"]))
    monkeypatch.setattr(_gpu_host, "_command_names", lambda root: {"systemd"})
    assert fabric_manager() == FabricManager(installed=True, running=False, version="535.161.08")


def test_nouveau(root: Path) -> None:
    assert not look("no-such-program", root=str(root)).nouveau
    (root / "sys/module/nouveau").mkdir(parents=True)
    assert look("no-such-program", root=str(root)).nouveau


def test_a_host_in_one_look(root: Path, smi: Install) -> None:
    smi("a100x8.xml")
    write(root / "sys/module/nvidia/version", "535.183.01\n")
    facts = look(root=str(root))
    assert (facts.driver, facts.cuda, facts.module_version, len(facts.gpus)) == ("535.183.01", "12.2", "535.183.01", 8)
    known = facts.as_dict()
    assert known["signature"]["count"] == 8 and known["gpus"][7]["pci_bus_id"] == "00000000:DA:00.0"
    assert not facts.smi_error


def test_a_failing_nvidia_smi_leaves_the_rest(root: Path, smi: Install) -> None:
    smi("error_mismatch.txt", rc=18)
    write(root / "sys/module/nvidia/version", "535.183.01\n")
    facts = look(root=str(root))
    assert facts.smi_mismatch and not facts.smi_missing and facts.module_version == "535.183.01"
    assert facts.gpus == [] and "version mismatch" in facts.smi_error and facts.smi_remedy


# --- whose processes ---


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/system.slice/docker-%s.scope\n" % CONTAINER,
        "12:devices:/docker/%s\n0::/docker/%s\n" % (CONTAINER, CONTAINER),
        "0::/../docker-%s.scope/init\n" % CONTAINER,
        "0::/docker/%s/docker/%s\n" % ("e" * 64, CONTAINER),
    ],
)
def test_the_container_of_a_process(root: Path, cgroup: str) -> None:
    process(root, 10, cgroup=cgroup)
    process(root, 11)
    assert containers_of(10, str(root))[-1] == CONTAINER
    assert containers_of(11, str(root)) == containers_of(12, str(root)) == []
    assert is_own(10, [CONTAINER], [], str(root))
    assert not is_own(10, ["f" * 64], [], str(root)) and not is_own(11, [CONTAINER], [], str(root))


def test_descendants_are_own(root: Path) -> None:
    process(root, 20)
    process(root, 21, "strange) S 1 (name", parent=20)
    process(root, 22, parent=21)
    assert is_own(22, [], [20], str(root)) and is_own(20, [], [20], str(root))
    assert not is_own(22, [], [23], str(root))
    assert not is_own(99, [], [20], str(root)), "a process that has ended"


def test_foreign_processes_are_told_once(root: Path) -> None:
    text = fixture("h100x2_busy.xml")
    part = text[text.index("<process_info>") : text.index("</process_info>") + len("</process_info>")]
    both = text.replace("<processes>\n\t\t</processes>", "<processes>\n%s</processes>" % part, 1)
    from ansible_collections.trtllm.serving.plugins.module_utils._gpu import parse_log

    (holder,) = foreign(parse_log(both).gpus, root=str(root))
    assert holder.text == "pid 586 (python3) with 3268 MiB on GPU 0, 1"
    process(root, 586, cgroup="0::/system.slice/docker-%s.scope\n" % CONTAINER)
    assert foreign(gpus("h100x2_busy"), [CONTAINER], root=str(root)) == []
    assert len(foreign(gpus("h100x2_busy"), ["f" * 64], root=str(root))) == 1
    assert foreign(gpus("h100x2_busy"), pids=[586], root=str(root)) == []
    assert foreign(gpus("h100x2"), root=str(root)) == []
