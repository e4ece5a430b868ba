#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what a run has done, and keep it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollout_report
short_description: Show what a run has done, and keep it
version_added: 0.1.0
description:
  - Prints a table of the hosts, with what each stage took, and writes it as JSON (C(report.json)), as JSON lines
    (C(report.jsonl)) and as one HTML page with a timeline (C(report.html)) into the directory of the run.
  - Reads the journal of the run and C(triton_serve_outcome) of its hosts.
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
  plan:
    description: What M(trtllm.serving.rollout_plan) returned; empty when the run ended before.
    type: dict
    default: {}
  run:
    description: What M(trtllm.serving.rollout_begin) returned.
    type: dict
    default: {}
  hosts:
    description: Hosts to tell of; those of the play where it is empty.
    type: list
    elements: str
    default: []
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Report
  trtllm.serving.rollout_report:
    plan: "{{ triton_pool_plan }}"
    run: "{{ triton_pool_run }}"
  run_once: true
  register: triton_pool_report
"""

RETURN = r"""
rows:
  description: One for each host.
  returned: always
  type: list
  elements: dict
lines:
  description: The table that was printed.
  returned: always
  type: list
  elements: str
failed_hosts:
  description: Why, by host, for those that failed, were lost or were not begun.
  returned: always
  type: dict
page:
  description: Path of the HTML page on the controller; empty when none was written.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            plan=dict(type="dict", default={}),
            run=dict(type="dict", default={}),
            hosts=dict(type="list", elements="str", default=[]),
        ),
        supports_check_mode=True,
    )
    module.fail_json(msg="rollout_report runs on the controller, as an action of this collection")


if __name__ == "__main__":
    main()
