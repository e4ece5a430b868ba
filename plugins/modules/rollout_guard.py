#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say which hosts of a rollout's batch may go."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollout_guard
short_description: Say which hosts of a rollout's batch may go
version_added: 0.1.0
description:
  - The first task of each batch. Counts the hosts of the pool that failed or were lost before it, those of earlier
    plays among them, which Ansible's own C(max_fail_percentage) does not do.
  - A pool with more of them than it may have is not touched any further; other pools go on. A host that serves stays in
    service while more hosts are out than the plan knew, up to C(max_unavailable) and C(min_available).
  - Never fails. Contacts no host and changes nothing. Meant for C(run_once), which holds once for each batch.
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
    description: Runs on the controller alone, and reads C(triton_serve_outcome) of the pool's hosts.
    support: full
options:
  plan:
    description: What M(trtllm.serving.rollout_plan) returned.
    type: dict
    required: true
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Which hosts of this batch may go
  trtllm.serving.rollout_guard:
    plan: "{{ triton_pool_plan }}"
  run_once: true
  register: triton_pool_guard

- name: Roll out
  ansible.builtin.include_role:
    name: trtllm.serving.triton_serve
    tasks_from: rollout
  when: triton_pool_guard.hosts[inventory_hostname].go
"""

RETURN = r"""
hosts:
  description: For each host of the batch whether it may C(go), and the C(cause) if not.
  returned: always
  type: dict
  sample: {"chat2": {"go": true, "cause": ""}}
stopped:
  description: For each pool of which hosts may not go the causes.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec=dict(plan=dict(type="dict", required=True)), supports_check_mode=True)
    module.fail_json(msg="rollout_guard runs on the controller only: use it as a task of a play")


if __name__ == "__main__":
    main()
