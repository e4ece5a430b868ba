#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lay out the batches of a rollout."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollout_plan
short_description: Lay out the batches of a rollout
version_added: 0.1.0
description:
  - Works out from the inventory, and from what M(trtllm.serving.host_preflight) and M(trtllm.serving.triton_generation)
    have registered, which hosts of each pool need something, in which batches they get it, and whether enough hosts
    keep serving meanwhile.
  - A pool's settings are the variables C(triton_pool_*) of its hosts, which must be the same on all of them. Batches
    never mix pools. Hosts that serve nothing come first, and hosts that are done count as the first batches, so that
    a run which is repeated goes on where it ended.
  - Contacts no host and changes nothing. Meant for C(run_once), on the play that all hosts take part in.
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
    description: Runs on the controller alone.
    support: full
options:
  state:
    description:
      - V(validated) judges the settings alone, as if all hosts served and needed something.
      - V(foreseen) judges what is known before hosts are prepared, such as another run at work, or too few GPUs for two
        servers.
      - V(planned) lays out the batches.
    type: str
    choices: [validated, foreseen, planned]
    default: planned
  target:
    description: >-
      V(new) is the generation that was assembled, V(previous) what each host served before; anything else is the id
      of a generation.
    type: str
    default: new
  hosts:
    description: Hosts that share pools with those of the play, which may have been limited; empty is those of the play.
    type: list
    elements: str
    default: []
  settings:
    description: Values by the names of the variables, for hosts of which the inventory says nothing.
    type: dict
    default: {}
  take_over:
    description: Whether another run that is at work on a host is no reason to refuse.
    type: bool
    default: false
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Batches of the rollout
  trtllm.serving.rollout_plan:
    target: previous
  run_once: true
  register: triton_pool_plan
"""

RETURN = r"""
hosts:
  description: Hosts that need something, in the order of the batches.
  returned: when O(state=planned)
  type: list
  elements: str
  sample: [chat1, chat2, chat3, embed1]
serial:
  description: Sizes of the batches.
  returned: when O(state=planned)
  type: list
  elements: int
  sample: [1, 2, 1]
pools:
  description: >-
    For each pool its C(hosts), C(batches), C(release), C(strategy), C(bake), the numbers of hosts C(max_unavailable),
    C(min_available) and C(max_failures), the hosts that are C(serving), C(unchanged) and C(lost) (with C(causes)),
    those that are C(blocked) and by what, why the pool is C(stopped), and C(moves) C(from) and C(to) of each host and
    C(why).
  returned: when O(state=planned)
  type: dict
target:
  description: What O(target) was.
  returned: always
  type: str
lines:
  description: The plan for a person, one line for each batch.
  returned: when O(state=planned)
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["validated", "foreseen", "planned"], default="planned"),
            target=dict(type="str", default="new"),
            hosts=dict(type="list", elements="str", default=[]),
            settings=dict(type="dict", default={}),
            take_over=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    module.fail_json(msg="rollout_plan runs on the controller only: use it as a task of a play")


if __name__ == "__main__":
    main()
