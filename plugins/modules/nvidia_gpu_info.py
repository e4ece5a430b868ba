#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell a host's NVIDIA GPUs, driver and fabric."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: nvidia_gpu_info
short_description: Tell a host's NVIDIA GPUs, driver and fabric
version_added: 0.1.0
description:
  - Reads C(nvidia-smi -q -x), C(/proc) and C(/sys), and changes nothing. Needs nothing but Python on the host.
  - A host without GPUs or without a driver is no failure unless O(required) says so; RV(problem) then tells why.
  - C(nvidia-smi) hangs when a GPU does; it is given O(timeout) seconds.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  nvidia_smi:
    description: The program C(nvidia-smi), looked for on the PATH and where drivers put it.
    type: str
    default: nvidia-smi
  timeout:
    description: Seconds that C(nvidia-smi) may take.
    type: int
    default: 60
  gpus:
    description: GPUs that RV(signature) and RV(foreign_processes) are about, V(all), a number of them, or a list of
      indices, UUIDs or PCI bus ids.
    type: raw
    default: all
  home:
    description: Processes in containers of this deployment directory are not foreign; left out, every process is.
    type: str
    default: ""
  required:
    description: Whether a host without a working GPU is a failure.
    type: bool
    default: false
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: GPUs
  trtllm.serving.nvidia_gpu_info:
  register: gpu_info

- name: Built for these GPUs
  ansible.builtin.debug:
    var: gpu_info.signature
"""

RETURN = r"""
gpus:
  description: Every GPU that the driver knows.
  returned: always
  type: list
  elements: dict
  sample:
    - {"index": 0, "uuid": "GPU-00000000-0000-0000-0000-000000000000", "name": "NVIDIA H100 80GB HBM3",
       "memory_mib": 81559, "memory_used_mib": 0, "compute_capability": "9.0", "architecture": "Hopper",
       "pci_bus_id": "00000000:00:06.0", "mig": "Disabled", "compute_mode": "Default", "persistence": "Enabled",
       "fabric_state": "Completed", "fabric_status": "Success", "recovery_action": "", "processes": []}
signature:
  description: What an engine for these GPUs is built for; null without GPUs, or where they differ.
  returned: always
  type: dict
  sample: {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "memory_mib": 81559, "count": 2}
driver:
  description: Version of the driver, as C(nvidia-smi) tells it.
  returned: always
  type: str
  sample: 580.159.04
cuda:
  description: Newest CUDA that the driver runs by itself.
  returned: always
  type: str
  sample: "13.0"
module_version:
  description: Version of the kernel module that is loaded; empty without one.
  returned: always
  type: str
  sample: 580.159.04
userland_version:
  description: Version of the driver's library C(libnvidia-ml); empty where it is not found.
  returned: always
  type: str
  sample: 580.159.04
pci_gpus:
  description: GPUs on the PCI bus, whether the driver knows them or not.
  returned: always
  type: int
  sample: 2
nvswitches:
  description: NVSwitches that this host sees.
  returned: always
  type: int
  sample: 6
fabric_manager:
  description: The fabric manager, which a host with NVSwitches needs.
  returned: always
  type: dict
  sample: {"installed": true, "running": true, "version": "580.159.04"}
nouveau:
  description: Whether the driver nouveau is loaded.
  returned: always
  type: bool
  sample: false
foreign_processes:
  description: Processes on the GPUs that are not of O(home).
  returned: always
  type: list
  elements: dict
  sample: [{"pid": 586, "type": "C", "name": "python3", "memory_mib": 1634, "gpus": [1]}]
problem:
  description: Why C(nvidia-smi) gave no answer; empty when it did.
  returned: always
  type: str
  sample: ""
remedy:
  description: What to do about RV(problem).
  returned: always
  type: str
  sample: ""
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._gpu import select, signature
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_host import Facts, foreign, look
from ansible_collections.trtllm.serving.plugins.module_utils._host_engine import look as look_at_engine


def result_of(facts: Facts, params: Dict[str, Any]) -> Dict[str, Any]:
    chosen = select(facts.gpus, params["gpus"])
    containers = look_at_engine(params["home"]).containers if params["home"] else []
    known = facts.as_dict()
    return {
        **{name: value for name, value in known.items() if not name.startswith("smi_")},
        "signature": signature(chosen),
        "foreign_processes": [
            {
                "pid": holder.process.pid,
                "type": holder.process.type,
                "name": holder.process.name,
                "memory_mib": holder.memory_mib,
                "gpus": holder.gpus,
            }
            for holder in foreign(chosen, containers)
        ],
        "problem": facts.smi_error,
        "remedy": facts.smi_remedy,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            nvidia_smi=dict(type="str", default="nvidia-smi"),
            timeout=dict(type="int", default=60),
            gpus=dict(type="raw", default="all"),
            home=dict(type="str", default=""),
            required=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    params = module.params
    result = result_of(look(params["nvidia_smi"], params["timeout"]), params)
    if params["required"] and not result["gpus"]:
        problem = result["problem"] or "the driver finds no GPU"
        module.fail_json(msg="%s: %s" % (problem, result["remedy"] or "look for NVRM in dmesg"), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
