# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvidia-smi says, and what it means when it says nothing.

Private to the collection.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional, Sequence
from xml.etree import ElementTree

from ansible_collections.trtllm.serving.plugins.module_utils._gpu_models import compute_capability
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_smi import (
    RECREATE,
    SmiError,
    ask,
    find_smi,
    known_failure,
    one_line,
)

# How nvidia-smi says that there is nothing to say.
NOTHING = ("N/A", "[N/A]", "[Not Supported]", "None", "Requested functionality has been deprecated")


def listed(output: str) -> int:
    """GPUs in the output of nvidia-smi -L, or in nvidia-smi's table."""
    table = re.split(r"(?m)^\|\s*Processes:", output)[0]
    bus = re.findall(r"(?m)^\|\s+\d+\s[^|]*\|\s*[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d", table)
    return len(re.findall(r"(?m)^GPU \d+:.*\(UUID: ", output)) or len(bus)


def gpu_lost(rc: int, output: str, wanted_count: int) -> str:
    """Why a container no longer has its GPUs, with the remedy; empty when it has them.

    rc and output (stdout and stderr) are those of nvidia-smi -L, or of nvidia-smi, run inside the container.
    wanted_count 0 asks only that nvidia-smi answers without an error.
    """
    failure = known_failure(output)
    if failure is not None:
        line, meaning, _host, remedy = failure
        return "nvidia-smi in the container says '%s': %s; %s" % (line, meaning, remedy)
    if rc in (124, 137):
        return (
            "nvidia-smi in the container gave no answer in time: a GPU or its driver hangs; look for Xid and NVRM in"
            " the host's dmesg, then reboot the host"
        )
    seen = listed(output)
    # 14: the infoROM of a GPU is corrupted; it works nevertheless.
    if rc != 0 and not (rc == 14 and seen):
        return "nvidia-smi in the container exits with %d and says '%s': look at nvidia-smi on the host, then %s" % (
            rc,
            one_line(output),
            RECREATE,
        )
    if seen < wanted_count:
        return "the container sees %d of %d GPUs: look at nvidia-smi -L on the host, then %s" % (
            seen,
            wanted_count,
            RECREATE,
        )
    return ""


@dataclass(frozen=True)
class Process:
    """A process that holds a GPU."""

    pid: int
    type: str  # C compute, G graphics, M multi-process service
    name: str
    memory_mib: Optional[int]


@dataclass(frozen=True)
class Gpu:
    """One GPU, as nvidia-smi -q -x describes it. What a driver does not tell is empty or None."""

    index: int
    uuid: str
    name: str
    memory_mib: int
    memory_used_mib: Optional[int] = None
    compute_capability: str = ""
    architecture: str = ""
    pci_bus_id: str = ""
    mig: str = ""
    mig_pending: str = ""
    mig_devices: int = 0
    compute_mode: str = ""
    persistence: str = ""
    fabric_state: str = ""
    fabric_status: str = ""
    recovery_action: str = ""
    ecc: str = ""
    ecc_uncorrected: int = 0
    retirement_pending: bool = False
    remap_failure: bool = False
    virtualization: str = ""
    processes: List[Process] = field(default_factory=list)


@dataclass(frozen=True)
class Log:
    """A whole answer of nvidia-smi -q -x."""

    driver: str
    cuda: str
    attached: int
    gpus: List[Gpu]
    # What was said beside the XML, about GPUs that are missing in it.
    words: str = ""

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)


def _text(node: Optional[ElementTree.Element], path: str) -> str:
    """The text at a path; empty for what is missing, and for the ways in which nvidia-smi says that."""
    found = node.find(path) if node is not None else None
    text = one_line(found.text or "") if found is not None else ""
    return "" if text in NOTHING else text


def _number(text: str) -> Optional[int]:
    found = re.match(r"\d+", text)
    return int(found.group()) if found is not None else None


def _total(node: Optional[ElementTree.Element], pattern: str) -> int:
    """The sum of all numbers below a node whose name matches; sums that older drivers give themselves left out."""
    if node is None:
        return 0
    leaves = [leaf for leaf in node.iter() if len(leaf) == 0 and re.search(pattern, leaf.tag)]
    return sum(_number((leaf.text or "").strip()) or 0 for leaf in leaves)


def _clean(text: str) -> str:
    """The XML document alone, with what nvidia-smi is known to leave unescaped put right."""
    start, end = text.find("<nvidia_smi_log"), text.rfind("</nvidia_smi_log>")
    if start < 0 or end < 0:
        raise ValueError("it is not complete")
    if "<!ENTITY" in text:
        raise ValueError("it declares entities")
    # Without the document type, which names a file that nobody has.
    body = text[start : end + len("</nvidia_smi_log>")]
    body = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "?", body)

    def escape(found: re.Match[str]) -> str:
        name = re.sub(r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)", "&amp;", found.group(2))
        return found.group(1) + name.replace("<", "&lt;").replace(">", "&gt;") + found.group(3)

    return re.sub(r"(<process_name>)([^\n]*?)(</process_name>)", escape, body)


def _processes(node: ElementTree.Element) -> List[Process]:
    found = []
    for entry in node.findall("processes/process_info"):
        pid = _number(_text(entry, "pid"))
        if pid is not None:
            memory = _number(_text(entry, "used_memory"))
            found.append(Process(pid, _text(entry, "type"), _text(entry, "process_name"), memory))
    return found


def _gpu(index: int, node: ElementTree.Element, capabilities: Dict[str, str]) -> Gpu:
    uuid, name = _text(node, "uuid"), _text(node, "product_name")
    architecture = _text(node, "product_architecture")
    volatile = node.find("ecc_errors/volatile")
    corrected_before_turing = volatile.find("double_bit/total") if volatile is not None else None
    if corrected_before_turing is not None:
        uncorrected = _number((corrected_before_turing.text or "").strip()) or 0
    else:
        uncorrected = _total(volatile, "uncorrectable")
    retirement = _text(node, "retired_pages/pending_retirement") or _text(node, "retired_pages/pending_blacklist")
    reset = _text(node, "gpu_reset_status/reset_required")
    return Gpu(
        index=index,
        uuid=uuid,
        name=name,
        memory_mib=_number(_text(node, "fb_memory_usage/total")) or 0,
        memory_used_mib=_number(_text(node, "fb_memory_usage/used")),
        compute_capability=capabilities.get(uuid)
        or compute_capability(_text(node, "pci/pci_device_id"), architecture, name),
        architecture=architecture,
        pci_bus_id=_text(node, "pci/pci_bus_id") or node.get("id", ""),
        mig=_text(node, "mig_mode/current_mig"),
        mig_pending=_text(node, "mig_mode/pending_mig"),
        mig_devices=len(node.findall("mig_devices/mig_device")),
        compute_mode=_text(node, "compute_mode"),
        persistence=_text(node, "persistence_mode"),
        fabric_state=_text(node, "fabric/state"),
        fabric_status=_text(node, "fabric/status"),
        recovery_action=_text(node, "gpu_recovery_action") or ("Reset" if reset == "Yes" else ""),
        ecc=_text(node, "ecc_mode/current_ecc"),
        ecc_uncorrected=uncorrected,
        retirement_pending=retirement == "Yes" or _text(node, "remapped_rows/remapped_row_pending") == "Yes",
        remap_failure=_text(node, "remapped_rows/remapped_row_failure") == "Yes"
        or _text(node, "ecc_errors/unrepairable_memory") == "Yes",
        virtualization=_text(node, "gpu_virtualization_mode/virtualization_mode"),
        processes=_processes(node),
    )


def parse_log(text: str, capabilities: Optional[Dict[str, str]] = None) -> Log:
    """What nvidia-smi -q -x printed, of any driver since 418. SmiError when it is no such thing."""
    try:
        root = ElementTree.fromstring(_clean(text))
    except (ValueError, ElementTree.ParseError) as exc:
        failure = known_failure(text)
        if failure is not None:
            line, meaning, remedy, _container = failure
            raise SmiError(
                "nvidia-smi says '%s': %s" % (line, meaning), remedy, mismatch="version mismatch" in line
            ) from None
        raise SmiError(
            "the answer of nvidia-smi -q -x cannot be read (%s): '%s'" % (one_line(str(exc)), one_line(text)),
            "run nvidia-smi -q -x by hand; reinstall the driver when it is no XML",
        ) from None
    gpus = [_gpu(index, node, capabilities or {}) for index, node in enumerate(root.findall("gpu"))]
    return Log(
        driver=_text(root, "driver_version"),
        cuda=_text(root, "cuda_version"),
        attached=_number(_text(root, "attached_gpus")) or len(gpus),
        gpus=gpus,
        words=one_line(re.sub(r"(?s)(?:<\?xml|<!DOCTYPE|<nvidia_smi_log).*</nvidia_smi_log>", "", text)),
    )


def parse_capabilities(text: str) -> Dict[str, str]:
    """uuid: compute capability, from --query-gpu=uuid,compute_cap --format=csv,noheader; empty from older drivers."""
    return dict(re.findall(r"(?m)^(GPU-[0-9A-Za-z-]+), *(\d+\.\d+) *$", text))


def query(named: str = "nvidia-smi", timeout: float = 60) -> Log:
    """Asks nvidia-smi, within a bound of time."""
    smi = find_smi(named)
    if smi is None:
        raise SmiError("there is no %s" % named, "install the NVIDIA driver", missing=True)
    deadline = time.monotonic() + timeout
    rc, text = ask([smi, "-q", "-x"], timeout)
    if rc == 124:
        raise SmiError(
            "nvidia-smi gave no answer in %d s: a GPU or its driver hangs" % timeout,
            "look for Xid and NVRM in dmesg, then reboot; where it is only slow, turn persistence mode on, or raise"
            " triton_serve_preflight_gpu_timeout",
        )
    log = parse_log(text)
    if log.gpus:
        _rc, answer = ask(
            [smi, "--query-gpu=uuid,compute_cap", "--format=csv,noheader"], max(1.0, deadline - time.monotonic())
        )
        capabilities = parse_capabilities(answer)
        log = parse_log(text, capabilities) if capabilities else log
    return log


def signature(gpus: Sequence[Gpu]) -> Optional[Dict[str, Any]]:
    """What an engine is built for; None without GPUs, or where they differ."""
    kinds = {(gpu.name, gpu.compute_capability, gpu.memory_mib) for gpu in gpus}
    if len(kinds) != 1:
        return None
    name, capability, memory = next(iter(kinds))
    return {"name": name, "compute_capability": capability, "memory_mib": memory, "count": len(gpus)}


def select(gpus: Sequence[Gpu], wanted: str | int | Sequence[str | int]) -> List[Gpu]:
    """Those of the GPUs that are meant: all, none, the first so many, or a list of indices, UUIDs or PCI bus ids."""
    if isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdigit()):
        return list(gpus)[: int(wanted)]
    if isinstance(wanted, str) and wanted in ("all", "none", ""):
        return list(gpus) if wanted == "all" else []
    names = {str(name) for name in ([wanted] if isinstance(wanted, str) else wanted)}
    return [gpu for gpu in gpus if names & {str(gpu.index), gpu.uuid, gpu.pci_bus_id}]
