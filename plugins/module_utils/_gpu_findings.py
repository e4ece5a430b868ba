# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's GPUs lack for a release and a world size. Pure: facts in, findings out.

Private to the collection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple, Union

from ansible_collections.trtllm.serving.plugins.module_utils._gpu import Gpu, select
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_host import Facts, Holder
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_memory import Model, bytes_each, wants_fp8
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_models import data_centre
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_smi import known_failure
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import Finding, error, warning

# Driver branches that the images' compatibility package knows, on data-centre GPUs, and the first version of each.
COMPAT_BRANCHES = ((470, 57), (525, 85), (535, 86), (545, 23))
# Driver from which any GPU runs the later minor versions of a major version of CUDA.
CUDA_MINIMUM = {"12": "525.60.13", "13": "580.65.06"}
# Memory that may be in use without a process to show for it: the driver's own, and that of a display.
UNEXPLAINED_MIB = 1024
_NOT_AN_ANSWER = re.compile(r"ERR!|Unknown Error|[Gg][Pp][Uu] is lost")


@dataclass(frozen=True)
class Wants:
    """What is to be served."""

    release: str
    driver: str = ""  # the driver column of the release
    cuda: str = ""
    gpus: Union[str, int, Sequence[Union[str, int]]] = "all"
    tp_size: int = 1
    pp_size: int = 1
    dtype: str = "float16"
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Optional[Model] = None
    max_seq_len: int = 2048
    workers: int = 1

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size


def numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _indices(gpus: Sequence[Gpu]) -> str:
    return "GPU %s" % ", ".join(str(gpu.index) for gpu in gpus)


def driver_findings(driver: str, wants: Wants, gpus: Sequence[Gpu]) -> Tuple[List[Finding], List[str]]:
    """Findings and notes about the driver's version against the one that goes with the release."""
    if not driver or not wants.driver or numbers(driver) >= numbers(wants.driver):
        return [], []
    have = numbers(driver)
    seen = "driver %s, release %s goes with %s" % (driver, wants.release, wants.driver)
    remedy = "update the driver to %s or newer" % wants.driver
    listed = [branch for branch in COMPAT_BRANCHES if have[:1] == branch[:1] and have[:2] >= branch]
    compatible = bool(gpus) and all(data_centre(gpu.name) for gpu in gpus)
    names = ", ".join("%d.%d" % branch for branch in COMPAT_BRANCHES)
    if compatible and listed and numbers(wants.driver) < (590,):
        return [], [
            "driver %s is older than %s, and runs release %s by the image's CUDA compatibility package"
            % (driver, wants.driver, wants.release)
        ]
    minimum = CUDA_MINIMUM.get(wants.cuda.partition(".")[0], "")
    too_old = have[:2] < COMPAT_BRANCHES[0] if compatible else bool(minimum) and have < numbers(minimum)
    if too_old:
        why = "the oldest that can run it is %s" % ("%d.%d" % COMPAT_BRANCHES[0] if compatible else minimum)
        return [error("driver_version", "the NVIDIA driver is too old for the image", seen, why + "; " + remedy)], []
    return [
        warning(
            "driver_version",
            "the NVIDIA driver is older than the image's CUDA",
            seen,
            "%s; older ones are known to work on data-centre GPUs with branches %s" % (remedy, names),
        )
    ], []


def capability_findings(wants: Wants, gpus: Sequence[Gpu]) -> List[Finding]:
    findings = []
    release = numbers(wants.release)
    for name, capability in sorted({(gpu.name, gpu.compute_capability) for gpu in gpus}):
        have = numbers(capability)
        if not have:
            findings.append(
                warning(
                    "compute_capability",
                    "the compute capability of the GPU is not known",
                    name,
                    "look it up, and see that release %s supports it" % wants.release,
                )
            )
            continue
        seen = "%s has %s" % (name, capability)
        what = "the GPU is not supported by TensorRT-LLM %s" % wants.release
        if have < (7, 0) or (have < (7, 5) and release >= (0, 16)):
            remedy = "Pascal was never supported" if have < (7, 0) else "use release 0.14.0 or older"
            needs = "it needs compute capability %s; use another GPU" % ("7.5" if release >= (0, 16) else "7.0")
            findings.append(error("compute_capability", what, seen, "%s (%s)" % (needs, remedy)))
        elif have < (7, 5) and release >= (0, 15):
            findings.append(
                warning(
                    "compute_capability", "Volta leaves TensorRT-LLM with 0.15", seen, "use release 0.14.0 or older"
                )
            )
        elif have >= (10, 0) and release < (0, 17):
            findings.append(
                error("compute_capability", what, seen, "Blackwell needs 0.17.0 (CUDA 12.8) or newer; use that")
            )
        if wants_fp8(wants.options) and have < (8, 9):
            findings.append(
                error(
                    "gpu_fp8",
                    "the options ask for FP8, which the GPU does not have",
                    seen,
                    "use float16 or an integer quantization, or a GPU of compute capability 8.9 (Ada, Hopper)",
                )
            )
        if wants.dtype == "bfloat16" and have < (8, 0):
            findings.append(
                error("gpu_bfloat16", "bfloat16 is asked for, which the GPU does not have", seen, "use float16")
            )
    return findings


def memory_findings(wants: Wants, gpus: Sequence[Gpu]) -> List[Finding]:
    if wants.model is None or not gpus:
        return []
    each = bytes_each(wants.dtype, wants.options)
    need = wants.model.gpu_mib(each, wants.tp_size, wants.pp_size, wants.max_seq_len)
    least = min(gpu.memory_mib for gpu in gpus)
    seen = "%.1f billion parameters of %s bytes, a sequence of %d tokens on %d GPUs need %d MiB each, %d is there" % (
        wants.model.parameters / 1e9, ("%.2f" % each).rstrip("0").rstrip("."), wants.max_seq_len,
        wants.world_size, need, least,
    )  # fmt: skip
    remedy = "raise mixtral_engine_tp_size, quantize (use_weight_only, FP8), or use larger GPUs"
    if least < need:
        return [error("gpu_memory", "the model does not fit the GPUs' memory", seen, remedy)]
    if least < need * 1.1:
        what = "the model leaves hardly any room for the KV cache"
        return [warning("gpu_memory", what, seen, remedy)]
    return []


def conversion_findings(wants: Wants) -> List[Finding]:
    """Before 0.13 the converter puts the whole model on the GPUs, once for each worker."""
    on_cpu = str(wants.options.get("load_model_on_cpu", "")).lower() in ("true", "yes", "1")
    if wants.model is None or numbers(wants.release) >= (0, 13) or on_cpu or wants.workers < 2:
        return []
    return [
        warning(
            "convert_memory",
            "converting with several workers may run out of GPU memory",
            "%d workers, release %s" % (wants.workers, wants.release),
            "set mixtral_engine_workers to 1, or mixtral_engine_convert_options to {load_model_on_cpu: true}",
        )
    ]


def _state(
    gpus: Sequence[Gpu], bad: Callable[[Gpu], bool], seen: Callable[[Gpu], str]
) -> Optional[Tuple[List[Gpu], str]]:
    """The GPUs of which something is true, and what was seen of them on one line."""
    found = [gpu for gpu in gpus if bad(gpu)]
    if not found:
        return None
    values = sorted({seen(gpu) for gpu in found})
    return found, "%s: %s" % (_indices(found), ", ".join(values))


def health_findings(gpus: Sequence[Gpu]) -> List[Finding]:
    findings: List[Finding] = []

    def add(
        make: Callable[[str, str, str, str], Finding],
        name: str,
        what: str,
        bad: Callable[[Gpu], bool],
        seen: Callable[[Gpu], str],
        remedy: str,
    ) -> None:
        state = _state(gpus, bad, seen)
        if state is not None:
            findings.append(
                make(name, what, state[1], remedy.replace("{ids}", ",".join(str(g.index) for g in state[0])))
            )

    add(error, "mig", "MIG mode is on, and TensorRT-LLM's ranks need whole GPUs",
        lambda gpu: gpu.mig == "Enabled", lambda gpu: "%d MIG devices" % gpu.mig_devices,
        "stop what uses them and turn it off: nvidia-smi -i {ids} -mig 0")  # fmt: skip
    add(warning, "mig_pending", "MIG mode changes with the next reset of the GPU",
        lambda gpu: gpu.mig_pending not in ("", gpu.mig), lambda gpu: "pending %s" % gpu.mig_pending,
        "decide it now: nvidia-smi -i {ids} -mig 0, then nvidia-smi -i {ids} --gpu-reset")  # fmt: skip
    add(error, "compute_mode", "the GPU takes no compute process",
        lambda gpu: gpu.compute_mode == "Prohibited", lambda gpu: gpu.compute_mode,
        "nvidia-smi -i {ids} -c DEFAULT")  # fmt: skip
    add(warning, "compute_mode", "the GPU takes one process only, and a second one fails with 'devices are busy'",
        lambda gpu: gpu.compute_mode.startswith("Exclusive"), lambda gpu: gpu.compute_mode,
        "nvidia-smi -i {ids} -c DEFAULT")  # fmt: skip
    add(error, "gpu_health", "the driver asks for a recovery of the GPU",
        lambda gpu: bool(gpu.recovery_action), lambda gpu: "recovery action %s" % gpu.recovery_action,
        "stop what uses it, then nvidia-smi -i {ids} --gpu-reset, or reboot where it says so")  # fmt: skip
    add(error, "gpu_health", "the memory of the GPU is broken beyond repair",
        lambda gpu: gpu.remap_failure, lambda gpu: gpu.uuid, "have the GPU replaced")  # fmt: skip
    add(warning, "gpu_retirement", "memory of the GPU waits to be retired",
        lambda gpu: gpu.retirement_pending, lambda gpu: gpu.uuid,
        "reset it when nothing uses it: nvidia-smi -i {ids} --gpu-reset")  # fmt: skip
    add(warning, "gpu_ecc", "the GPU has had memory errors that could not be corrected",
        lambda gpu: gpu.ecc_uncorrected > 0, lambda gpu: "%d since the driver was loaded" % gpu.ecc_uncorrected,
        "look for Xid 48, 63, 94 and 95 in dmesg; reset it, and have it replaced when they come back")  # fmt: skip
    add(error, "gpu_lost", "the GPU does not answer the driver",
        lambda gpu: bool(_NOT_AN_ANSWER.search(" ".join((gpu.name, gpu.uuid, gpu.persistence, gpu.compute_mode)))),
        lambda gpu: gpu.pci_bus_id, "look for Xid 79 in dmesg and reboot")  # fmt: skip
    add(warning, "persistence", "persistence mode is off: the driver loads anew for each process, which is slow",
        lambda gpu: gpu.persistence == "Disabled", lambda gpu: gpu.persistence,
        "systemctl enable --now nvidia-persistenced, or nvidia-smi -pm 1")  # fmt: skip
    return findings


def fabric_findings(facts: Facts, gpus: Sequence[Gpu]) -> List[Finding]:
    findings = []
    manager, driver = facts.fabric_manager, facts.driver or facts.module_version
    if facts.nvswitches:
        seen = "%d NVSwitches" % facts.nvswitches
        what = "the fabric manager does not run, and CUDA fails with error 802 (system not yet initialized)"
        if not manager.running and not manager.installed:
            remedy = "install nvidia-fabricmanager of version %s and enable it" % (driver or "of the driver")
            findings.append(error("fabric_manager", what, seen + ", not installed", remedy))
        elif not manager.running:
            seen += ", version %s installed" % (manager.version or "?")
            remedy = "systemctl enable --now nvidia-fabricmanager, and see its log when it ends"
            if manager.version and driver and manager.version != driver:
                remedy = "install version %s of it, then " % driver + remedy
            findings.append(error("fabric_manager", what, seen, remedy))
        elif manager.version and driver and manager.version != driver:
            findings.append(
                error(
                    "fabric_manager",
                    "the fabric manager is of another version than the driver",
                    "fabric manager %s, driver %s" % (manager.version, driver),
                    "install version %s of nvidia-fabricmanager and restart it (this stops every GPU process)" % driver,
                )
            )
    unregistered = _state(
        gpus,
        lambda gpu: (
            gpu.fabric_state not in ("", "Completed", "Not Supported")
            or gpu.fabric_status not in ("", "Success", "Not Supported")
        ),
        lambda gpu: ("%s %s" % (gpu.fabric_state, gpu.fabric_status)).strip(),
    )
    if unregistered is not None:
        findings.append(
            error(
                "fabric_state",
                "the GPU is not registered with the NVLink fabric, and CUDA fails with error 802",
                unregistered[1],
                "see that the fabric manager runs (on a virtual machine: on its host), then reset the GPU or reboot",
            )
        )
    return findings


def driver_state_findings(facts: Facts) -> List[Finding]:
    findings = []
    module, userland = facts.module_version, facts.userland_version
    mismatch = bool(module and userland and module != userland)
    if mismatch or facts.smi_mismatch:
        seen = "module %s, libraries %s" % (module or "?", userland or "?")
        if not module and not userland:
            seen = facts.smi_error.partition("': ")[0] + "'"
        findings.append(
            error(
                "driver_mismatch",
                "the loaded NVIDIA module is of another version than the driver's libraries",
                seen,
                "stop what uses the GPUs and reload the modules (rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia;"
                " modprobe nvidia), or reboot",
            )
        )
    if facts.nouveau and not module:
        findings.append(
            error(
                "nouveau",
                "the nouveau driver holds the GPU",
                "no nvidia module is loaded",
                "blacklist nouveau (modprobe.d: 'blacklist nouveau', 'options nouveau modeset=0'), write the initramfs"
                " again and reboot",
            )
        )
    elif facts.nouveau:
        findings.append(warning("nouveau", "the nouveau driver is loaded beside nvidia's", "", "blacklist nouveau"))
    if facts.smi_missing:
        seen = "%d GPUs on the PCI bus" % facts.pci_gpus
        findings.append(error("nvidia_smi", "there is no nvidia-smi", seen, "install the NVIDIA driver"))
    elif facts.smi_error and not facts.smi_mismatch:
        findings.append(error("nvidia_smi", facts.smi_error, "", facts.smi_remedy))
    said = known_failure(facts.smi_words)
    if said is not None:
        findings.append(error("gpu_lost", said[1], "nvidia-smi says '%s'" % said[0], said[2]))
    elif "infoROM is corrupted" in facts.smi_words:
        what = "the infoROM of a GPU is corrupted, and its counters of errors are lost"
        findings.append(
            warning("gpu_inforom", what, facts.smi_words, "have the GPU replaced when other findings join it")
        )
    return findings


def count_findings(facts: Facts, wants: Wants, gpus: Sequence[Gpu]) -> List[Finding]:
    findings = []
    if facts.smi_error:
        return []
    if not facts.gpus:
        findings.append(
            error(
                "gpu_count",
                "the driver finds no GPU",
                "%d on the PCI bus" % facts.pci_gpus,
                "look for NVRM in dmesg, and at the shape of the machine",
            )
        )
        return findings
    if facts.pci_gpus > len(facts.gpus):
        findings.append(
            error(
                "gpu_lost",
                "the driver sees fewer GPUs than the PCI bus",
                "%d of %d" % (len(facts.gpus), facts.pci_gpus),
                "look for Xid 79 and NVRM in dmesg, then reboot; have the GPU replaced when it comes back",
            )
        )
    if len(gpus) < wants.world_size:
        findings.append(
            error(
                "gpu_count",
                "the engine needs more GPUs than there are for it",
                "tensor %d x pipeline %d, there are %d" % (wants.tp_size, wants.pp_size, len(gpus)),
                "lower mixtral_engine_tp_size or mixtral_engine_pp_size, or use a host with %d GPUs" % wants.world_size,
            )
        )  # fmt: skip
    kinds = sorted({"%s, %d MiB" % (gpu.name, gpu.memory_mib) for gpu in gpus})
    if len(kinds) > 1:
        findings.append(
            error(
                "gpu_unequal",
                "the GPUs are not equal, and an engine is built for one kind",
                "; ".join(kinds),
                "choose GPUs of one kind (triton_serve_gpus)",
            )
        )
    return findings


def process_findings(gpus: Sequence[Gpu], holders: Sequence[Holder]) -> List[Finding]:
    findings = []
    compute = [holder for holder in holders if holder.process.type != "G"]
    graphics = [holder for holder in holders if holder.process.type == "G"]
    remedy = "stop them, or choose other GPUs; with tensor parallelism a second process can hang the server"
    if compute:
        seen = "; ".join(holder.text for holder in compute[:8])
        findings.append(error("gpu_processes", "other processes use the GPUs", seen, remedy))
    if graphics:
        seen = "; ".join(holder.text for holder in graphics[:8])
        remedy = "stop the display server (systemctl set-default multi-user.target), or leave room for it"
        findings.append(warning("gpu_processes", "a display uses the GPUs", seen, remedy))
    hidden = _state(
        gpus,
        lambda gpu: not gpu.processes and (gpu.memory_used_mib or 0) > UNEXPLAINED_MIB,
        lambda gpu: "%d MiB" % (gpu.memory_used_mib or 0),
    )
    if hidden is not None:
        remedy = "look for a process of another container or a zombie (fuser -v /dev/nvidia*), or reset the GPU"
        findings.append(
            warning("gpu_memory_used", "GPU memory is in use by no process that is seen", hidden[1], remedy)
        )
    return findings


def judge(facts: Facts, wants: Wants, holders: Sequence[Holder]) -> Tuple[List[Finding], List[str]]:
    """Everything that is wrong with the GPUs, and notes on what is unusual and right."""
    gpus = select(facts.gpus, wants.gpus)
    findings = driver_state_findings(facts) + count_findings(facts, wants, gpus)
    driver, notes = driver_findings(facts.driver, wants, gpus)
    findings += driver + capability_findings(wants, gpus) + fabric_findings(facts, gpus)
    findings += health_findings(gpus) + process_findings(gpus, holders) + memory_findings(wants, gpus)
    findings += conversion_findings(wants)
    return findings, notes
