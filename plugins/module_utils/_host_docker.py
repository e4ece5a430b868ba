# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that serves from a container: GPUs, driver, engine, disk, memory, limits, clock and ports, all at once.

Private to the collection.
"""

from __future__ import annotations

import glob
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible_collections.trtllm.serving.plugins.module_utils import _gpu_findings, _host_engine, _host_system
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import free_bytes, owner_name
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError, size_bytes
from ansible_collections.trtllm.serving.plugins.module_utils._generation import link_target
from ansible_collections.trtllm.serving.plugins.module_utils._gpu import select, signature
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_findings import Wants
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_host import Facts, foreign, is_own
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_host import look as look_at_gpus
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_memory import (
    MIB,
    MIXTRAL_8X7B,
    Model,
    from_config,
    read_config,
    space_mib,
)
from ansible_collections.trtllm.serving.plugins.module_utils._host import check_home, check_port, os_name, port_owner
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import Finding, error, from_lines
from ansible_collections.trtllm.serving.plugins.module_utils._releases import UnknownRelease, get

# An image of 14 to 34 GB, and as much while it is unpacked or built.
IMAGE_MIB = 40000
# Generations and logs, where everything else is there.
UPKEEP_MIB = 256


@dataclass(frozen=True)
class Plan:
    """What is to be deployed."""

    home: str
    address: str
    ports: Mapping[str, int]
    wants: Wants
    image: str = ""
    # Weights that are used where they lie.
    weights_path: str = ""
    # Whether the role docker_nvidia is about to install the engine, and the toolkit.
    engine_managed: bool = False
    toolkit_managed: bool = False
    device_policy: str = "auto"
    data_root: str = ""
    # Room in MiB by weights, checkpoint, engine and image, where the estimate is not right; other: without a model.
    space: Mapping[str, int] = field(default_factory=dict)
    shm_mib: int = 0
    ulimits: Mapping[str, Any] = field(default_factory=dict)
    smi: str = "nvidia-smi"
    gpu_timeout: float = 60
    controller_time: Optional[float] = None


def shape(home: str, weights_path: str, config: Mapping[str, Any], assumed: str) -> Optional[Model]:
    """The model's shape: as given, as in the weights' config.json on this host, or as assumed."""
    if config:
        return from_config(config)
    found = [os.path.join(weights_path, "config.json")] if weights_path else []
    found += glob.glob(os.path.join(glob.escape(home), "weights", "*", "config.json"))
    models = [model for model in (read_config(path) for path in found) if model is not None]
    if weights_path and models:
        return models[0]
    # Of several nobody knows which is meant.
    if len(set(models)) == 1:
        return models[0]
    return MIXTRAL_8X7B if assumed == "mixtral-8x7b" else None


def plan_of(params: Mapping[str, Any], ports: Mapping[str, int]) -> Plan:
    """What is to be deployed, as the parameters say it. ValueError with one line for one that cannot be."""
    try:
        release = get(params["release"])
        shm = size_bytes(params["shm_size"]) if params["shm_size"] else 0
        space = {name: int(mib) for name, mib in params["space_mib"].items() if mib is not None}
    except (UnknownRelease, ContainerError, TypeError, ValueError) as exc:
        raise ValueError(str(exc)) from exc
    image = params["image"]
    if not image and params["method"] == "build":
        image = "triton_trt_llm:" + release.version
    elif not image and params["method"] == "pull" and release.images:
        image = release.images[0]
    source = params["docker_source"]
    managed = source in ("docker-ce", "distribution")
    # The role is not run at all for the source none.
    toolkit = "none" if source in ("", "none") else params["toolkit"] or ("stable" if managed else "none")
    wants = Wants(
        release=release.version,
        driver=release.driver,
        cuda=release.cuda,
        gpus="none" if params["gpus"] is None else params["gpus"],
        tp_size=params["tp_size"],
        pp_size=params["pp_size"],
        dtype=params["dtype"],
        options=params["engine_options"],
        model=shape(params["home"], params["weights_path"], params["model"], params["assumed_model"]),
        max_seq_len=params["max_seq_len"],
        workers=params["workers"],
    )
    return Plan(
        home=params["home"],
        address=params["address"],
        ports=ports,
        wants=wants,
        image=image,
        weights_path=params["weights_path"],
        engine_managed=managed,
        toolkit_managed=toolkit not in ("", "none"),
        device_policy=params["device_policy"],
        data_root=params["data_root"],
        space={"other": params["required_space_mib"], **space},
        shm_mib=shm // (1024 * 1024),
        ulimits=params["ulimits"],
        smi=params["nvidia_smi"],
        gpu_timeout=params["gpu_timeout"],
        controller_time=(params["run"] or {}).get("now"),
    )


def _space(wanted: Plan, engine: _host_engine.Engine, current: Optional[str]) -> Tuple[List[Finding], int]:
    """What is missing on the disks, and the MiB of a checkpoint that is still to be made."""
    needs: List[Tuple[str, str, int]] = []
    checkpoint = 0
    wants = wanted.wants
    if wants.model is not None:
        sizes = {**space_mib(wants.model, wants.dtype, wants.options), **wanted.space}
        for label, kind in (("weights", "weights"), ("checkpoint", "checkpoints"), ("engine", "engines")):
            if label == "weights" and wanted.weights_path:
                continue
            if not _host_system.present(wanted.home, kind):
                size = max(0, sizes[label] - _host_system.partial_mib(wanted.home, kind))
                checkpoint = sizes[label] if kind == "checkpoints" else checkpoint
                needs.append((label, wanted.home, size))
    elif current is None:
        needs.append(("all", wanted.home, wanted.space.get("other", 0)))
    needs.append(("generations", wanted.home, UPKEEP_MIB))
    # An archive's image has no name before it is loaded.
    if not engine.image_present and (wanted.image or current is None):
        root = engine.data_root or wanted.data_root or "/var/lib/docker"
        needs.append(("image", root, wanted.space.get("image", IMAGE_MIB)))
    return _host_system.space_findings(needs), checkpoint


def _ports(wanted: Plan, engine: _host_engine.Engine) -> List[Finding]:
    lines: List[str] = []
    for name, port in wanted.ports.items():
        if port in engine.ports:
            continue
        holder = port_owner(port)
        own = holder if holder is not None and is_own(holder, engine.containers, ()) else None
        lines += [line for line in check_port(name, wanted.address, port, own) if line not in lines]
    return from_lines("ports", lines)


def examine(wanted: Plan) -> Tuple[Dict[str, Any], List[Finding]]:
    """The host's record, and every finding."""
    home_findings = from_lines("home", check_home(wanted.home))
    engine = _host_engine.look(wanted.home, wanted.image)
    want_gpus = wanted.wants.gpus not in ("none", "", []) and wanted.wants.gpus is not None
    facts = look_at_gpus(wanted.smi, wanted.gpu_timeout) if want_gpus else Facts()
    chosen = select(facts.gpus, wanted.wants.gpus) if want_gpus else []
    links = {name: link_target(Path(wanted.home), name) for name in ("current", "previous")}

    findings = _host_system.system_findings(_host_system.os_release(), _host_system.machine(), wanted.engine_managed)
    findings += home_findings
    if os.geteuid() != 0:
        what, remedy = "a Docker host is deployed as root", "set ansible_become: true for it, or ansible_user: root"
        findings.append(error("become", what, "this is %s" % owner_name(os.geteuid()), remedy))
    findings += _host_engine.judge(
        engine, wanted.home, wanted.engine_managed, wanted.toolkit_managed, wanted.device_policy, want_gpus
    )
    if wanted.weights_path and not os.path.isfile(os.path.join(wanted.weights_path, "config.json")):
        what, remedy = (
            "the weights are not there",
            "put a Hugging Face directory there, or set mixtral_engine_weights_path",
        )
        findings.append(error("weights", what, "no config.json in '%s'" % wanted.weights_path, remedy))
    notes: List[str] = []
    if want_gpus:
        holders = foreign(chosen, engine.containers)
        gpu_findings, notes = _gpu_findings.judge(facts, wanted.wants, holders)
        findings += gpu_findings
    have = _host_system.memory()
    free = 0
    if not home_findings:
        free = free_bytes(wanted.home) // MIB
        space, checkpoint = _space(wanted, engine, links["current"])
        findings += space
        findings += _host_system.memory_findings(have, checkpoint, wanted.wants.world_size, wanted.wants.workers)
    findings += _host_system.limit_findings(wanted.ulimits, wanted.shm_mib, have, wanted.wants.world_size)
    findings += _ports(wanted, engine)
    findings += _host_system.clock_findings(
        time.time(), wanted.controller_time, _host_system.clock_synchronized(), _host_system.newest_file()
    )
    record = {
        "os": os_name(),
        "machine": _host_system.machine(),
        "python": sys.executable,
        "free_mib": free,
        "memory_mib": have.get("MemTotal", 0),
        "current": links["current"],
        "previous": links["previous"],
        "running": engine.generation,
        "gpu": signature(chosen),
        "gpus": [
            {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name, "memory_mib": gpu.memory_mib} for gpu in facts.gpus
        ],
        "driver": facts.driver or facts.module_version,
        "docker": engine.version,
        "notes": notes,
    }
    return record, findings
