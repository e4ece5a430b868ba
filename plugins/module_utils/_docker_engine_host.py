# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host's own files say to Docker's installation: containers of others, data-root, boot volume, GPUs, CDI.

Read-only. Every path is below a root, so that recorded hosts can be read too. Private to the collection.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ETC_CDI = "/etc/cdi/nvidia.yaml"
# NVIDIA Container Toolkit 1.18 and newer keep this one up to date by a service of theirs, nvidia-cdi-refresh.
RUN_CDI = "/var/run/cdi/nvidia.yaml"
CDI_KIND = "nvidia.com/gpu"
GROWFS = "/usr/libexec/oci-growfs"
OWN_SOURCES = "trtllm-"
ORACLE_CLOUD = "OracleCloud.com"

_SECTOR = 512
_GIB = 1024**3
# Less than this is rounding, alignment and a partition table.
_WORTH_GROWING = 10 * _GIB


class Host:
    """The file system of a host."""

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str:
        try:
            return self.path(name).read_text("utf-8", "replace")
        except OSError:
            return ""

    def exists(self, name: str) -> bool:
        return os.path.exists(str(self.path(name)))

    def names(self, name: str) -> list[str]:
        try:
            return sorted(os.listdir(str(self.path(name))))
        except OSError:
            return []

    # --- containers that are not Docker's -------------------------------------------------------------------------

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        for name in self.names("/proc"):
            if name.isdigit():
                argv = self.read("/proc/%s/cmdline" % name).rstrip("\0").split("\0")
                if argv[0]:
                    yield int(name), argv

    def container_users(self) -> dict[str, list[str]]:
        """Running containers by what runs them: each Podman container has a conmon, each of containerd a shim."""
        found: dict[str, list[str]] = {"podman": [], "containerd": [], "docker": []}
        for pid, argv in self.processes():
            name = os.path.basename(argv[0])
            if name == "conmon":
                found["podman"].append("podman container %s" % (_after(argv, "-n", "--name") or "of pid %d" % pid))
            elif name in ("podman", "buildah", "crio") and len(argv) > 1:
                found["podman"].append("%s %s (pid %d)" % (name, argv[1], pid))
            elif name.startswith("containerd-shim"):
                space, container = _after(argv, "-namespace"), _after(argv, "-id")
                kind = "docker" if space in ("moby", "plugins.moby") else "containerd"
                found[kind].append("%s container %s" % (kind, container[:12] or "of pid %d" % pid))
        return found

    # --- apt --------------------------------------------------------------------------------------------------------

    def second_source(self, repositories: Sequence[str]) -> str:
        """apt gives up on a repository that two files name with different keys."""
        folder = "/etc/apt/sources.list.d"
        for name in self.names(folder):
            lines = [line for line in self.read("%s/%s" % (folder, name)).splitlines() if not line.startswith("#")]
            for url in repositories:
                if not name.startswith(OWN_SOURCES) and any(url in line for line in lines):
                    return (
                        "%s/%s names %s already, and apt refuses one repository with two keys: remove that file, or set"
                        " docker_nvidia_manage_repositories to false to use it" % (folder, name, url)
                    )
        return ""

    # --- data-root ------------------------------------------------------------------------------------------------

    def holdings(self, data_root: str) -> list[str]:
        """What a data-root of an engine that does not run holds: images, containers and volumes."""
        images = sum(
            len(self.names("%s/image/%s/imagedb/content/sha256" % (data_root, driver)))
            for driver in self.names(data_root + "/image")
        )
        containers = len(self.names(data_root + "/containers"))
        volumes = sum(
            1 for name in self.names(data_root + "/volumes") if self.path("%s/volumes/%s" % (data_root, name)).is_dir()
        )
        return count_holdings(images, containers, volumes)

    # --- the boot volume ------------------------------------------------------------------------------------------

    def growth_hint(self) -> str:
        """On Oracle Cloud a boot volume comes larger than its partition, until it is told to grow."""
        if self.read("/sys/class/dmi/id/chassis_asset_tag").strip() != ORACLE_CLOUD:
            return ""
        disk = self._root_disk()
        if not disk:
            return ""
        total = _int(self.read("/sys/class/block/%s/size" % disk)) * _SECTOR
        ends = [
            _int(self.read("/sys/class/block/%s/%s/start" % (disk, name)))
            + _int(self.read("/sys/class/block/%s/%s/size" % (disk, name)))
            for name in self.names("/sys/class/block/" + disk)
            if self.exists("/sys/class/block/%s/%s/partition" % (disk, name))
        ]
        unused = total - max(ends, default=0) * _SECTOR
        if unused < _WORTH_GROWING or not ends:
            return ""
        return "the boot volume %s has %d GiB, and %d GiB of them are in no partition: run '%s -y' on the host" % (
            disk, total // _GIB, unused // _GIB, GROWFS,
        )  # fmt: skip

    def _root_disk(self) -> str:
        """The disk that / is on, through partitions and LVM."""
        device = ""
        for line in self.read("/proc/self/mountinfo").splitlines():
            fields = line.split(" ")
            if len(fields) > 4 and fields[4] == "/":
                device = fields[2]
        name = os.path.basename(os.path.realpath(str(self.path("/sys/dev/block/" + device)))) if device else ""
        for _step in range(8):
            below = self.names("/sys/class/block/%s/slaves" % name) if name else []
            if not below:
                break
            name = below[0]
        if name and self.exists("/sys/class/block/%s/partition" % name):
            name = os.path.basename(os.path.dirname(os.path.realpath(str(self.path("/sys/class/block/" + name)))))
        return name if name and self.exists("/sys/class/block/%s/size" % name) else ""

    # --- GPUs and CDI ---------------------------------------------------------------------------------------------

    def driver(self) -> str:
        """Version of the loaded NVIDIA driver."""
        found = re.search(r"(?m)^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", self.read("/proc/driver/nvidia/version"))
        return found.group(1) if found else ""

    def gpus(self) -> list[str]:
        """UUIDs of the GPUs that the driver has."""
        texts = [self.read("/proc/driver/nvidia/gpus/%s/information" % bus) for bus in
                 self.names("/proc/driver/nvidia/gpus")]  # fmt: skip
        return sorted(found.group(1) for found in (re.search(r"GPU UUID:\s*(\S+)", text) for text in texts) if found)

    def signature(self, toolkit: str) -> str:
        """What a CDI specification is made from: another driver, GPU, MIG layout or toolkit needs another one."""
        driver = self.driver()
        if not driver:
            return ""
        mig = [line.strip() for line in self.read("/proc/driver/nvidia/capabilities/mig/config").splitlines()]
        instances = [name for bus in self.names("/proc/driver/nvidia/capabilities")
                     for name in self.names("/proc/driver/nvidia/capabilities/%s/mig" % bus)]  # fmt: skip
        parts = ["driver %s" % driver, "toolkit %s" % toolkit, *self.gpus(), *mig, *instances]
        return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()[:32]

    def cdi_specification(self) -> str:
        """The file that describes NVIDIA's GPUs to container engines, where one does."""
        for name in (RUN_CDI, ETC_CDI):
            if CDI_KIND in self.read(name)[:4096]:
                return name
        return ""


def count_holdings(images: int, containers: int, volumes: int) -> list[str]:
    counted = (("image", images), ("container", containers), ("volume", volumes))
    return ["%d %s%s" % (count, name, "" if count == 1 else "s") for name, count in counted if count]


def _after(argv: list[str], *names: str) -> str:
    for place, word in enumerate(argv[:-1]):
        if word in names:
            return argv[place + 1]
    return ""


def _int(text: str) -> int:
    return int(text.strip()) if text.strip().isdigit() else 0
