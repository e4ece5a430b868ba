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
  - Looks at the platform, the Python for the server's backend and its shared library, C(home) and the room below it,
    and the ports. Fails with all findings of the host at once, each with its remedy.
  - Takes the host's lease for this run, so that a second run at the same time is refused. The lease ends with the
    run's C(ansible-playbook) process.
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
"""

RETURN = r"""
host:
  description: What was seen.
  returned: always
  type: dict
  sample: {"os": "Debian GNU/Linux 12 (bookworm)", "machine": "x86_64", "python": "/usr/bin/python3.11",
           "free_mib": 51200, "current": null, "previous": null, "running": null, "problems": []}
"""

import os
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._host import examine
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LockError, RunLease


def take_lease(home: str, run: Dict[str, Any], check_mode: bool) -> str:
    """Takes the lease for this run where home exists already; what is in the way, or the empty string."""
    lease = RunLease(home)
    blocked = lease.blocked_by(str(run["run_id"]))
    if blocked is not None:
        return blocked
    if not check_mode:
        os.makedirs(home, mode=0o750, exist_ok=True)
        lease.acquire(
            str(run["run_id"]),
            controller_machine_id=str(run["machine_id"]),
            controller_pid=int(run["pid"]),
            controller_pid_starttime=run["starttime"],
            who=str(run["who"]),
        )
    return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="str", required=True),
            address=dict(type="str", default="127.0.0.1"),
            ports=dict(type="dict", required=True),
            python=dict(type="str", default=""),
            required_space_mib=dict(type="int", default=0),
            run=dict(type="dict"),
        ),
        supports_check_mode=True,
    )
    params = module.params
    ports = {name: int(port) for name, port in params["ports"].items()}
    record, problems = examine(params["home"], params["address"], ports, params["python"], params["required_space_mib"])
    if not problems and params["run"]:
        try:
            blocked = take_lease(params["home"], params["run"], module.check_mode)
            problems += [blocked] if blocked else []
        except (LockError, OSError) as exc:
            problems.append(str(exc))
    if problems:
        module.fail_json(msg="; ".join(problems), host=record)
    module.exit_json(changed=False, host=record)


if __name__ == "__main__":
    main()
