#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find everything on a host that would make a deployment fail, before it begins."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_preflight
short_description: Find everything on a host that would make a deployment fail
version_added: 0.1.0
description:
  - Fails with all findings of the host at once, each with its remedy. What may only cost something later is a warning.
  - For O(runtime=embedded) it looks at the platform, the Python for the server's backend and its shared library,
    O(home) and the room below it, and the ports.
  - For O(runtime=docker) it looks at the operating system, the GPUs, their driver, kernel module, memory, health and
    processes, NVSwitches and the fabric manager, Docker Engine, the room for weights, checkpoint, engine and image, the
    memory, limits, the ports and the clock. It needs nothing but Python on the host.
  - Takes the host's lease for this run, unless a second run at the same time has it, which RV(host.lease) tells. The
    lease ends with the run's C(ansible-playbook) process where that is on this host, and otherwise when nothing was
    heard of the run for O(lease_ttl).
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: The lease alone is not taken.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Changes nothing but the lease.
  action:
    description: Runs partly on the controller, whose process holds the lease.
    support: full
options:
  home:
    description: Absolute path below which everything is kept, judged as it is written.
    type: str
    required: true
  address:
    description: Address on which the server listens.
    type: str
    default: 127.0.0.1
  ports:
    description: TCP ports of the server by the name of their variable without the prefix C(triton_serve_).
    type: dict
    required: true
  python:
    description: Python for the server's backend; left out, one is looked for.
    type: str
    default: ""
  required_space_mib:
    description: Room that a first deployment needs, in MiB.
    type: int
    default: 0
  runtime:
    description: Whether the server runs as a process of the host or in a container.
    type: str
    choices: [embedded, docker]
    default: embedded
  ignore:
    description:
      - Ids of findings that are warnings instead of errors.
      - "Of the host: V(os), V(machine), V(platform), V(python), V(home), V(space), V(weights), V(memory), V(ports),
        V(clock), V(limits), V(shm), V(become)."
      - "Of the engine: V(docker), V(docker_version), V(docker_gpu), V(docker_cgroups), V(selinux)."
      - "Of the driver: V(nvidia_smi), V(driver_version), V(driver_mismatch), V(nouveau), V(persistence),
        V(fabric_manager), V(fabric_state)."
      - "Of the GPUs: V(gpu_count), V(gpu_unequal), V(gpu_lost), V(compute_capability), V(gpu_fp8), V(gpu_bfloat16),
        V(gpu_memory), V(gpu_memory_used), V(gpu_processes), V(gpu_health), V(gpu_ecc), V(gpu_retirement),
        V(gpu_inforom), V(mig), V(mig_pending), V(compute_mode), V(convert_memory)."
    type: list
    elements: str
    default: []
  release:
    description: TensorRT-LLM release that is to be served; says which driver and which GPUs will do.
    type: str
    default: 1.1.0
  gpus:
    description: GPUs for the server, V(all), V(none), a number of them, or a list of indices, UUIDs or PCI bus ids.
    type: raw
    default: all
  tp_size:
    description: Tensor parallel ranks.
    type: int
    default: 1
  pp_size:
    description: Pipeline parallel ranks.
    type: int
    default: 1
  dtype:
    description: Data type of the checkpoint.
    type: str
    default: float16
  engine_options:
    description: Options of convert_checkpoint.py and trtllm-build together; those about quantization count here.
    type: dict
    default: {}
  max_seq_len:
    description: Tokens of the longest sequence, whose cache must fit beside the weights.
    type: int
    default: 2048
  workers:
    description: Ranks that are converted at the same time.
    type: int
    default: 1
  model:
    description: The model's C(config.json) as far as it gives its shape; left out, the weights on the host tell it.
    type: dict
    default: {}
  assumed_model:
    description: Shape of the model when neither O(model) nor the host tells it; V(none) estimates nothing.
    type: str
    choices: [mixtral-8x7b, none]
    default: none
  weights_path:
    description: Directory on the host with weights that are used where they lie.
    type: str
    default: ""
  image:
    description: Image that will serve, which needs no room when it is on the host; empty is that of O(method).
    type: str
    default: ""
  method:
    description: How the host gets its image, V(pull), V(build) or V(load).
    type: str
    default: ""
  space_mib:
    description:
      - Room in MiB for C(weights), C(checkpoint), C(engine) and C(image), where the estimate is not right. Each counts
        only while it is not there yet.
    type: dict
    default: {}
  docker_source:
    description: Where Docker Engine comes from; with V(none) and V(existing) it must be there already.
    type: str
    default: none
  toolkit:
    description:
      - Where the NVIDIA Container Toolkit comes from; with V(none) it must be there already. Empty is V(none) for an
        engine that must be there, and otherwise it will be installed with it.
    type: str
    default: ""
  device_policy:
    description: How containers get their GPUs.
    type: str
    default: auto
  data_root:
    description: Where Docker will keep images on a host whose engine does not run yet.
    type: str
    default: ""
  shm_size:
    description: Shared memory of the container, for example V(2g).
    type: str
    default: ""
  ulimits:
    description: Limits of the container by name; -1 is unlimited.
    type: dict
    default: {}
  nvidia_smi:
    description: The program C(nvidia-smi), looked for on the PATH and where drivers put it.
    type: str
    default: nvidia-smi
  gpu_timeout:
    description: Seconds that C(nvidia-smi) may take.
    type: int
    default: 60
  lease_ttl:
    description: Seconds that the lease counts after this run was last heard of on the host.
    type: float
    default: 900
  take_over:
    description: Whether the lease of another run that seems to live is taken all the same, with a warning.
    type: bool
    default: false
  run:
    description: Who runs this, filled in on the controller.
    type: dict
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: The host can serve
  trtllm.serving.host_preflight:
    home: /opt/trtllm
    ports: {http_port: 8000, grpc_port: 8001, metrics_port: 8002}
    required_space_mib: 5000

- name: The host can serve Mixtral 8x7B from a container
  trtllm.serving.host_preflight:
    home: /opt/trtllm
    ports: {http_port: 8000, grpc_port: 8001, metrics_port: 8002}
    runtime: docker
    release: 0.12.0
    tp_size: 8
    assumed_model: mixtral-8x7b
    image: nvcr.io/nvidia/tritonserver:24.08-trtllm-python-py3
    docker_source: docker-ce
    ignore: [gpu_processes]
"""

RETURN = r"""
host:
  description: What was seen.
  returned: always
  type: dict
  sample: {"os": "Oracle Linux Server 9.4", "machine": "x86_64", "python": "/usr/bin/python3.11", "free_mib": 512000,
           "current": null, "previous": null, "running": null, "driver": "550.127.05",
           "gpu": {"name": "NVIDIA A100-SXM4-40GB", "compute_capability": "8.0", "memory_mib": 40960, "count": 8},
           "problems": [], "findings": [], "notes": []}
  contains:
    gpu:
      description: What engines of this host are built for; null without GPUs, where they differ, and when embedded.
      type: dict
    findings:
      description: Everything found, as C(id), C(severity) (V(error) or V(warning)), C(what), C(seen) and C(remedy).
      type: list
      elements: dict
    problems:
      description: The errors, one line each.
      type: list
      elements: str
    ready:
      description: Whether a server process of the current generation runs.
      type: bool
    slot:
      description: Place of the server on the host, V(a) or V(b); only a surge uses the second one.
      type: str
    unfinished:
      description:
        - Rollout of this host that was begun and not finished, with C(run), C(target) and C(since); null without one.
      type: dict
    staged:
      description: Generation that was assembled last, with C(id) and C(since); null when there is none.
      type: dict
    generations:
      description: Generations that are on the host, the one made last first.
      type: list
      elements: str
    lease:
      description:
        - Whether this run has the host (C(held)) under which name (C(run_id)), or another one that seems to live
          (C(foreign)), which C(message) names.
      type: dict
"""

import os
import socket
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._generation import STAGED, generations
from ansible_collections.trtllm.serving.plugins.module_utils._host import survey
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import Finding, conclude
from ansible_collections.trtllm.serving.plugins.module_utils._lock import Locked, LockError, RunLease
from ansible_collections.trtllm.serving.plugins.module_utils._server_state import active_slot, read_record, read_rollout


def take_lease(params: Dict[str, Any], check_mode: bool) -> Tuple[Dict[str, Any], str]:
    """What is known of the host's lease after this run tried to take it, and a warning; check mode only looks."""
    run = params["run"]
    lease, run_id, gone = RunLease(params["home"]), str(run["run_id"]), str(run.get("gone") or "")
    blocked = lease.blocked_by(run_id, gone)
    if check_mode or (blocked is not None and not params["take_over"]):
        found = lease.read() if blocked is not None else {}
        message = lease.holder(found) if found else ""
        return {
            "held": False, "run_id": run_id, "foreign": blocked is not None, "message": message, "holder": found,
        }, ""  # fmt: skip
    try:
        os.makedirs(params["home"], mode=0o750, exist_ok=True)
        replaced = lease.acquire(
            run_id,
            controller_machine_id=str(run["machine_id"]),
            controller_pid=int(run["pid"]),
            controller_pid_starttime=run["starttime"],
            controller_pid_namespace=str(run.get("namespace") or ""),
            who=str(run["who"]),
            ttl=params["lease_ttl"],
            take_over=params["take_over"],
            gone=gone,
        )
    except Locked as exc:
        return {
            "held": False, "run_id": run_id, "foreign": True, "message": lease.holder(exc.holder), "holder": exc.holder,
        }, ""  # fmt: skip
    warning = "taken over from another run that seems to live: %s" % lease.holder(replaced) if replaced else ""
    return {"held": True, "run_id": run_id, "foreign": False, "message": ""}, warning


def rollout_state(home: Path) -> Dict[str, Any]:
    """How far a rollout has come on this host."""
    return {
        "unfinished": read_rollout(home) or None,
        "staged": read_record(home, STAGED) or None,
        "generations": [path.name for path in generations(home)],
        "slot": active_slot(home),
    }


def look(params: Dict[str, Any]) -> Tuple[Dict[str, Any], List[Finding]]:
    ports = {name: int(port) for name, port in params["ports"].items()}
    if params["runtime"] == "docker":
        # Only here: an embedded host's preflight starts without it.
        from ansible_collections.trtllm.serving.plugins.module_utils._host_docker import examine, plan_of

        return examine(plan_of(params, ports))
    return survey(params["home"], params["address"], ports, params["python"], params["required_space_mib"])


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="str", required=True),
            address=dict(type="str", default="127.0.0.1"),
            ports=dict(type="dict", required=True),
            python=dict(type="str", default=""),
            required_space_mib=dict(type="int", default=0),
            runtime=dict(type="str", choices=["embedded", "docker"], default="embedded"),
            ignore=dict(type="list", elements="str", default=[]),
            release=dict(type="str", default="1.1.0"),
            gpus=dict(type="raw", default="all"),
            tp_size=dict(type="int", default=1),
            pp_size=dict(type="int", default=1),
            dtype=dict(type="str", default="float16"),
            engine_options=dict(type="dict", default={}),
            max_seq_len=dict(type="int", default=2048),
            workers=dict(type="int", default=1),
            model=dict(type="dict", default={}),
            assumed_model=dict(type="str", choices=["mixtral-8x7b", "none"], default="none"),
            weights_path=dict(type="str", default=""),
            image=dict(type="str", default=""),
            method=dict(type="str", default=""),
            space_mib=dict(type="dict", default={}),
            docker_source=dict(type="str", default="none"),
            toolkit=dict(type="str", default=""),
            device_policy=dict(type="str", default="auto"),
            data_root=dict(type="str", default=""),
            shm_size=dict(type="str", default=""),
            ulimits=dict(type="dict", default={}),
            nvidia_smi=dict(type="str", default="nvidia-smi"),
            gpu_timeout=dict(type="int", default=60),
            lease_ttl=dict(type="float", default=900),
            take_over=dict(type="bool", default=False),
            run=dict(type="dict"),
        ),
        supports_check_mode=True,
    )
    params = module.params
    try:
        record, findings = look(params)
    except ValueError as exc:
        module.fail_json(msg=str(exc))
    problems, warnings = conclude(record, findings, params["ignore"])
    # Ansible shows warnings without their host.
    name = (params["run"] or {}).get("host") or socket.gethostname()
    for warning in warnings:
        module.warn("%s: %s" % (name, warning))
    record.update(rollout_state(Path(params["home"])))
    record["ready"] = record["running"] is not None and record["running"] == record["current"]
    record["lease"] = {"held": False, "run_id": "", "foreign": False, "message": ""}
    if not problems and params["run"]:
        try:
            record["lease"], warning = take_lease(params, module.check_mode)
        except (LockError, OSError) as exc:
            problems.append(str(exc))
        else:
            if warning:
                module.warn("%s: %s" % (name, warning))
    if problems:
        module.fail_json(msg="; ".join(problems), host=record)
    module.exit_json(changed=False, host=record)


if __name__ == "__main__":
    main()
