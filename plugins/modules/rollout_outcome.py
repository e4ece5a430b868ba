#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record what became of a host in a rollout."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollout_outcome
short_description: Record what became of a host in a rollout
version_added: 0.1.0
description:
  - What it returns, registered as C(triton_serve_outcome), is what M(trtllm.serving.rollout_guard) counts before the
    next batch, and what M(trtllm.serving.rollout_report) shows.
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
  outcome:
    description: V(done), V(unchanged), V(failed), V(lost) (no connection any more) or V(skipped) (not begun).
    type: str
    choices: [done, unchanged, failed, lost, skipped]
    required: true
  cause:
    description: Why, in one line; of a longer text the first line is kept.
    type: str
    default: ""
  from:
    description: Generation that served before.
    type: str
    default: ""
  to:
    description: Generation that it was to serve.
    type: str
    default: ""
  left:
    description: How the host was left, for example V(serves 0123456789abcdef).
    type: str
    default: ""
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Outcome
  trtllm.serving.rollout_outcome:
    outcome: done
    from: 0123456789abcdef
    to: fedcba9876543210
    left: serves fedcba9876543210
  register: triton_serve_outcome
"""

RETURN = r"""
outcome:
  description: As given; so are RV(cause), RV(from), RV(to) and RV(left).
  returned: always
  type: str
cause:
  description: One line.
  returned: always
  type: str
from:
  description: Generation that served before.
  returned: always
  type: str
to:
  description: Generation that it was to serve.
  returned: always
  type: str
left:
  description: How the host was left.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            outcome=dict(type="str", required=True, choices=["done", "unchanged", "failed", "lost", "skipped"]),
            cause=dict(type="str", default=""),
            to=dict(type="str", default=""),
            left=dict(type="str", default=""),
            **{"from": dict(type="str", default="")},
        ),
        supports_check_mode=True,
    )
    module.fail_json(msg="rollout_outcome runs on the controller, as an action of this collection")


if __name__ == "__main__":
    main()
