#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give a run its identity and its directory."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollout_begin
short_description: Give a run its identity and its directory
version_added: 0.1.0
description:
  - The directory is on the controller and holds the journal of the run (C(events.jsonl)) and its report. None is made
    in check mode, nor where O(directory) is empty; then there is no journal.
  - Where C(triton_pool_run) is known already, from an earlier play of the run, that is returned.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: N/A
    description: It tells of a run, and each run is another one.
  action:
    description: Runs on the controller alone.
    support: full
options:
  directory:
    description: Directory on the controller, below which each run gets its own; C(~) is the user's home.
    type: path
    default: ""
  keep:
    description: Directories of runs that are kept below O(directory), this one counted; V(0) keeps all.
    type: int
    default: 0
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: The run begins
  trtllm.serving.rollout_begin:
    directory: ~/.trtllm/rollouts
  run_once: true
  register: triton_pool_run
"""

RETURN = r"""
id:
  description: Time and a random part, which names the run.
  returned: always
  type: str
  sample: 20261122-235501-1f2e3d
dir:
  description: Directory of the run on the controller; empty when there is none.
  returned: always
  type: str
started:
  description: Seconds since 1970 on the controller's clock.
  returned: always
  type: float
controller:
  description: The process of the run.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(directory=dict(type="path", default=""), keep=dict(type="int", default=0)),
        supports_check_mode=True,
    )
    module.fail_json(msg="rollout_begin runs on the controller, as an action of this collection")


if __name__ == "__main__":
    main()
