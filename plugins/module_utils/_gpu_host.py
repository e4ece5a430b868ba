# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What /proc and /sys tell about GPUs, their driver, NVSwitches and the fabric manager; nothing is changed.

Private to the collection.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set

from ansible_collections.trtllm.serving.plugins.module_utils._gpu import Gpu, Log, Process, query, signature
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_smi import SmiError, ask, find_smi

NVIDIA = "0x10de"
# PCI classes: 3D controller and VGA; "other bridge", which NVSwitches are.
_GPU_CLASSES = ("0x0300", "0x0302")
_BRIDGE_CLASS = "0x0680"
_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")
LIBRARIES = (
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/nvidia",
    "usr/local/nvidia/lib64",
    "run/nvidia/driver/usr/lib/x86_64-linux-gnu",
)


@dataclass(frozen=True)
class FabricManager:
    """The service without which CUDA does not start on a host with NVSwitches."""

    installed: bool = False
    running: bool = False
    version: str = ""


@dataclass(frozen=True)
class Facts:
    """All that is known of a host's GPUs. A failure of nvidia-smi is kept, for there is more to see than its answer."""

    driver: str = ""
    cuda: str = ""
    gpus: List[Gpu] = field(default_factory=list)
    module_version: str = ""
    userland_version: str = ""
    pci_gpus: int = 0
    nvswitches: int = 0
    fabric_manager: FabricManager = field(default_factory=FabricManager)
    nouveau: bool = False
    smi_missing: bool = False
    smi_mismatch: bool = False
    smi_error: str = ""
    smi_remedy: str = ""
    smi_words: str = ""

    def as_dict(self) -> Dict[str, Any]:
        return {**asdict(self), "signature": signature(self.gpus)}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(65536).strip()
    except OSError:
        return ""


def module_version(root: str = "/") -> str:
    """Version of the kernel module that is loaded; empty without one."""
    version = _read(os.path.join(root, "sys/module/nvidia/version"))
    if version:
        return version
    for line in _read(os.path.join(root, "proc/driver/nvidia/version")).splitlines():
        found = _VERSION.search(line)
        if line.startswith("NVRM version:") and found is not None:
            return found.group(1)
    return ""


def userland_version(root: str = "/") -> str:
    """Version of the driver's library, which the next process will load; empty where it is not found."""
    for directory in LIBRARIES:
        link = os.path.join(root, directory, "libnvidia-ml.so.1")
        named = [os.path.realpath(link)] if os.path.exists(link) else []
        for path in named + sorted(glob.glob(os.path.join(root, directory, "libnvidia-ml.so.*.*"))):
            found = re.search(r"libnvidia-ml\.so\.(\d{3,}\.\d+(?:\.\d+)?)$", path)
            if found is not None:
                return found.group(1)
    return ""


def pci_devices(root: str = "/") -> Dict[str, str]:
    """NVIDIA's devices on the PCI bus that no virtual machine holds: address and class."""
    found = {}
    for path in sorted(glob.glob(os.path.join(root, "sys/bus/pci/devices/*"))):
        driver = os.path.basename(os.path.realpath(os.path.join(path, "driver")))
        if _read(os.path.join(path, "vendor")) == NVIDIA and driver != "vfio-pci":
            found[os.path.basename(path)] = _read(os.path.join(path, "class"))
    return found


def count_class(devices: Dict[str, str], *classes: str) -> int:
    return sum(1 for device_class in devices.values() if device_class[:6] in classes)


def nvswitches(root: str = "/", devices: Optional[Dict[str, str]] = None) -> int:
    listed = [
        name
        for name in glob.glob(os.path.join(root, "proc/driver/nvidia-nvswitch/devices/*"))
        if re.search(r"[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.\d$", name)
    ]
    return max(len(listed), count_class(pci_devices(root) if devices is None else devices, _BRIDGE_CLASS))


def _command_names(root: str) -> Set[str]:
    return {_read(path) for path in glob.glob(os.path.join(root, "proc/[0-9]*/comm"))}


def fabric_manager(root: str = "/", timeout: float = 10) -> FabricManager:
    # The kernel keeps 15 characters of a name.
    running = "nv-fabricmanager"[:15] in _command_names(root)
    program = find_smi("nv-fabricmanager") if root == "/" else None
    if program is None:
        return FabricManager(installed=running, running=running)
    _rc, text = ask([program, "--version"], timeout)
    found = _VERSION.search(text)
    return FabricManager(True, running, found.group(1) if found is not None else "")


def look(smi: str = "nvidia-smi", timeout: float = 60, root: str = "/") -> Facts:
    """Everything about the GPUs of this host, within a bound of time."""
    devices = pci_devices(root)
    switches = nvswitches(root, devices)
    log, failure = Log("", "", 0, []), None
    try:
        log = query(smi, timeout)
    except SmiError as exc:
        failure = exc
    return Facts(
        driver=log.driver,
        cuda=log.cuda,
        gpus=log.gpus,
        module_version=module_version(root),
        userland_version=userland_version(root),
        pci_gpus=count_class(devices, *_GPU_CLASSES),
        nvswitches=switches,
        fabric_manager=fabric_manager(root) if switches else FabricManager(),
        nouveau=os.path.isdir(os.path.join(root, "sys/module/nouveau")),
        smi_missing=failure is not None and failure.missing,
        smi_mismatch=failure is not None and failure.mismatch,
        smi_error=str(failure) if failure is not None else "",
        smi_remedy=failure.remedy if failure is not None else "",
        smi_words=log.words,
    )


# --- whose processes --------------------------------------------------------------------------------------------


def containers_of(pid: int, root: str = "/") -> List[str]:
    """The ids of the containers that a process is in, the outermost first."""
    return re.findall(r"\b[0-9a-f]{64}\b", _read(os.path.join(root, "proc/%d/cgroup" % pid)))


def _parent(pid: int, root: str) -> int:
    # The name in parentheses may hold anything.
    fields = _read(os.path.join(root, "proc/%d/stat" % pid)).rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else 0


def is_own(pid: int, containers: Sequence[str], pids: Iterable[int], root: str = "/") -> bool:
    """Whether a process is in one of these containers, or is or descends from one of these processes."""
    if containers and set(containers) & set(containers_of(pid, root)):
        return True
    wanted = set(pids)
    for _generation in range(64):
        if pid in wanted:
            return True
        if pid <= 1:
            return False
        pid = _parent(pid, root)
    return False


def foreign(
    gpus: Sequence[Gpu], containers: Sequence[str] = (), pids: Sequence[int] = (), root: str = "/"
) -> List[Holder]:
    """Processes on these GPUs that are not ours, each once, with all its GPUs."""
    found: Dict[int, Holder] = {}
    for gpu in gpus:
        for process in gpu.processes:
            if is_own(process.pid, containers, pids, root):
                continue
            known = found.get(process.pid)
            if known is None:
                known = found[process.pid] = Holder(process, [], 0)
            known.gpus.append(gpu.index)
            known.memory_mib += process.memory_mib or 0
    return list(found.values())


@dataclass
class Holder:
    """A process and the GPUs that it holds."""

    process: Process
    gpus: List[int]
    memory_mib: int

    @property
    def text(self) -> str:
        return "pid %d (%s) with %d MiB on GPU %s" % (
            self.process.pid,
            self.process.name or "?",
            self.memory_mib,
            ", ".join(str(index) for index in self.gpus),
        )
