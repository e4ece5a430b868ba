# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operating system, disk, memory, limits and clock of a host that serves from containers.

Private to the collection.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import existing_parent, free_bytes, read_manifest
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_memory import MIB
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import Finding, error, warning

# os-release's ID, and the versions (the number before the point, or the whole) that the roles are made for.
SYSTEMS = {
    "ol": ("8", "9"),
    "rhel": ("8", "9"),
    "rocky": ("8", "9"),
    "almalinux": ("8", "9"),
    "centos": ("8", "9"),
    "ubuntu": ("22.04", "24.04"),
    "debian": ("12",),
}
SUPPORTED = "Oracle Linux, RHEL, Rocky, AlmaLinux, CentOS 8 and 9, Ubuntu 22.04 and 24.04, Debian 12"
CAP_SYS_RESOURCE = 24
# Upstream starts its containers with 1 to 2 GiB; Docker's own default of 64 MiB is too little for NCCL.
NCCL_SHM_MIB = 1024
# Seconds that the host's clock may be apart from the controller's.
SKEW, WRONG = 120, 86400
_UNSYNCHRONIZED = 0x40


def os_release(root: str = "/") -> Dict[str, str]:
    try:
        with open(os.path.join(root, "etc/os-release"), encoding="utf-8", errors="replace") as stream:
            pairs = re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', stream.read())
    except OSError:
        return {}
    return dict(pairs)


def system_findings(release: Mapping[str, str], machine: str, managed: bool) -> List[Finding]:
    """Whether the roles know this system; where Docker is there already, another one is only unknown."""
    findings = []
    name, version = release.get("ID", ""), release.get("VERSION_ID", "")
    if version not in SYSTEMS.get(name, ()) and version.partition(".")[0] not in SYSTEMS.get(name, ()):
        seen = release.get("PRETTY_NAME") or "%s %s" % (name or "unknown", version)
        remedy = "use %s" % SUPPORTED
        if managed:
            remedy += "; or install Docker and the NVIDIA toolkit by hand (docker_nvidia_docker_source: none)"
        make = error if managed else warning
        findings.append(make("os", "the operating system is none that is supported", seen, remedy))
    if machine not in ("x86_64", "aarch64"):
        findings.append(
            error("machine", "Triton's images exist for x86_64 and aarch64 only", machine, "use another host")
        )
    return findings


def present(home: str, kind: str) -> bool:
    """Whether a finished artefact of a kind (weights, checkpoints, engines) is below the home."""
    try:
        names = os.listdir(os.path.join(home, kind))
    except OSError:
        return False
    return any(not name.startswith(".") and read_manifest(os.path.join(home, kind, name)) is not None for name in names)


def partial_mib(home: str, kind: str) -> int:
    """What an interrupted download has left, which goes on from there."""
    size = 0
    for directory, _names, files in os.walk(os.path.join(home, kind)):
        if ".partial" in directory:
            for name in files:
                try:
                    size += os.stat(os.path.join(directory, name)).st_blocks * 512
                except OSError:
                    continue
    return size // MIB


def space_findings(needs: Sequence[Tuple[str, str, int]]) -> List[Finding]:
    """needs: what for, directory, MiB. Those on one file system are added up."""
    by_device: Dict[int, List[Tuple[str, str, int]]] = {}
    for need in needs:
        if need[2] > 0:
            by_device.setdefault(os.stat(existing_parent(need[1])).st_dev, []).append(need)
    findings = []
    for parts in by_device.values():
        place = parts[0][1]
        free, needed = free_bytes(place) // MIB, sum(part[2] for part in parts)
        if free >= needed:
            continue
        listed = ", ".join("%s %d" % (label, mib) for label, _path, mib in parts)
        places = " and ".join(sorted({"'%s'" % path for _label, path, _mib in parts}))
        findings.append(
            error(
                "space",
                "%d MiB are free below %s, %d MiB are needed" % (free, places, needed),
                listed,
                "free some, grow the file system, or choose another trtllm_home or Docker data-root"
                " (docker_nvidia_data_root); triton_serve_preflight_space_mib has other figures",
            )
        )
    return findings


def memory(root: str = "/") -> Dict[str, int]:
    """MemTotal, MemAvailable and SwapTotal in MiB."""
    try:
        with open(os.path.join(root, "proc/meminfo"), encoding="ascii", errors="replace") as stream:
            found = re.findall(r"(?m)^(\w+): +(\d+) kB$", stream.read())
    except OSError:
        return {}
    return {name: int(value) // 1024 for name, value in found}


def memory_findings(have: Mapping[str, int], checkpoint_mib: int, world_size: int, workers: int) -> List[Finding]:
    """Whether a checkpoint can be converted in the host's memory: a rank at a time, better all of it."""
    if not have.get("MemTotal") or checkpoint_mib <= 0:
        return []
    total = have["MemTotal"] + have.get("SwapTotal", 0)
    available = have.get("MemAvailable", have["MemTotal"]) + have.get("SwapTotal", 0)
    ranks = checkpoint_mib // max(1, world_size) * max(1, workers)
    if total < ranks:
        return [
            error(
                "memory",
                "the host has too little memory to convert the checkpoint, which the kernel would kill",
                "%d MiB with swap, %d at a time in %d workers take %d" % (total, workers, workers, ranks),
                "lower mixtral_engine_workers, add memory or swap, or convert on another host",
            )
        ]
    if available < checkpoint_mib:
        return [
            warning(
                "memory",
                "the checkpoint is larger than the memory that is free, and converting it may be slow or be killed",
                "%d MiB free, the checkpoint has %d" % (available, checkpoint_mib),
                "convert with 1 worker (mixtral_engine_workers), or add memory or swap",
            )
        ]
    return []


def _capability(number: int) -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
            found = re.search(r"(?m)^CapBnd:\s*([0-9a-fA-F]+)$", stream.read())
    except OSError:
        return True
    return found is None or bool(int(found.group(1), 16) >> number & 1)


def limit_findings(
    ulimits: Mapping[str, Any], shm_mib: int, have: Mapping[str, int], world_size: int = 1
) -> List[Finding]:
    findings = []
    names = {"memlock": resource.RLIMIT_MEMLOCK, "stack": resource.RLIMIT_STACK, "nofile": resource.RLIMIT_NOFILE}
    if not _capability(CAP_SYS_RESOURCE):
        for name, number in names.items():
            wanted = ulimits.get(name)
            wanted = wanted.get("hard") if isinstance(wanted, dict) else wanted
            hard = resource.getrlimit(number)[1]
            if wanted is None or hard == resource.RLIM_INFINITY:
                continue
            if int(wanted) < 0 or int(wanted) > hard:
                findings.append(
                    warning(
                        "limits",
                        "this host may not grant a container's limit",
                        "%s %s, %d at most without CAP_SYS_RESOURCE" % (name, wanted, hard),
                        "lower %s in the ulimits, or raise the limit of the machine that this host is in" % name,
                    )
                )
    if world_size > 1 and 0 < shm_mib < NCCL_SHM_MIB:
        what, seen = "NCCL may run out of shared memory", "%d MiB for %d ranks" % (shm_mib, world_size)
        findings.append(warning("shm", what, seen, "set the shm_size to %dm or more" % NCCL_SHM_MIB))
    if have.get("MemTotal") and shm_mib > have["MemTotal"] // 2:
        seen = "%d MiB of %d" % (shm_mib, have["MemTotal"])
        findings.append(warning("shm", "shared memory may take most of the host's memory", seen, "lower the shm_size"))
    return findings


def clock_synchronized() -> Optional[bool]:
    """Whether the kernel's clock is kept right by NTP; None where it cannot be asked."""
    # struct timex; with modes 0 nothing is changed, and its status lies behind five longs.
    buffer = ctypes.create_string_buffer(512)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    offset = ctypes.sizeof(ctypes.c_long) * 5
    status = ctypes.c_int.from_buffer(buffer, offset).value
    return not status & _UNSYNCHRONIZED


def newest_file(paths: Sequence[str] = ("/etc/ld.so.cache", "/var/lib", "/etc", "/run")) -> float:
    """When something was last written on this host, as far as a few places tell."""
    times = [0.0]
    for path in paths:
        try:
            times.append(os.stat(path).st_mtime)
        except OSError:
            continue
    return max(times)


def clock_findings(
    now: float, controller: Optional[float], synchronized: Optional[bool], written: float
) -> List[Finding]:
    """now and controller were taken seconds apart: the controller's when it started this."""
    remedy = "enable NTP: timedatectl set-ntp true, or systemctl enable --now chronyd"
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if controller is not None and abs(now - controller) > SKEW:
        apart = int(abs(now - controller))
        seen = "it is %s here, %d s %s the controller's" % (shown, apart, "before" if now < controller else "after")
        make = error if apart > WRONG else warning
        return [make("clock", "the host's clock is wrong, and certificates and downloads fail with it", seen, remedy)]
    if now < written - SKEW:
        seen = "it is %s here, and files are %d s younger" % (shown, int(written - now))
        make = error if written - now > WRONG else warning
        return [make("clock", "the host's clock went back", seen, remedy)]
    if synchronized is False:
        return [warning("clock", "the host's clock is not synchronized", "it is %s here" % shown, remedy)]
    return []


def machine() -> str:
    return platform.machine()
