#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give a host back that this run has leased."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run_lease
short_description: Give a host back that this run has leased
version_added: 0.1.0
description:
  - M(trtllm.serving.host_preflight) takes the host's lease for a run, so that no second run changes the host at the
    same time. This module gives it back before the run ends.
  - A lease of another run is left alone.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    description: Runs partly on the controller, whose process holds the lease.
    support: full
options:
  home:
    description: Absolute path below which everything is kept.
    type: path
    required: true
  state:
    description: V(released) gives the lease back.
    type: str
    choices: [released]
    default: released
  run:
    description: Identity of this run, filled in on the controller.
    type: str
    default: ""
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Other runs may have the host
  trtllm.serving.run_lease:
    home: /opt/trtllm
    state: released
"""

RETURN = r"""
released:
  description: Whether this run had the lease and gave it back.
  returned: always
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LockError, RunLease


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="path", required=True),
            state=dict(type="str", choices=["released"], default="released"),
            run=dict(type="str", default=""),
        ),
        supports_check_mode=True,
    )
    lease, run = RunLease(module.params["home"]), module.params["run"]
    try:
        if module.check_mode:
            held = lease.read()
            released = held.get("run_id") == run and not held.get("released")
        else:
            released = lease.release(run)
    except LockError as exc:
        module.fail_json(msg=str(exc))
    # A lease is of the run, not of the host's configuration.
    module.exit_json(changed=False, released=released)


if __name__ == "__main__":
    main()
