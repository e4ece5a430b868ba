#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the host that builds an engine. All of it is in the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: engine_builder
short_description: Choose which host builds the engine for those that need the same
version_added: 0.1.0
description:
  - With O(decides), tells the signature of a host, a hash of all that decides its engine.
  - Without it, groups the hosts of the play by the signatures that were registered as C(mixtral_engine_signature), and
    names a builder for each group among those that are left. Run it once, register it as C(mixtral_engine_builders),
    and again after a builder was lost or failed; then the next host of the group is named.
  - Runs on the controller only, and contacts no host.
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
  decides:
    description:
      - What decides the engine; the GPU, the image, the release, the options and where the weights come from.
      - Left out, builders are chosen.
    type: dict
  builder:
    description: Host that the inventory names as the builder; empty takes the first of its kind.
    type: str
    default: ""
  attempts:
    description: Builders of one kind that may fail before the rest of their kind fails too.
    type: int
    default: 3
seealso:
  - module: trtllm.serving.engine_artifact
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: What decides the engine
  trtllm.serving.engine_builder:
    decides:
      gpu: "{{ mixtral_engine_gpu }}"
      release: 1.1.0
      weights: {source: huggingface, name: mistralai/Mixtral-8x7B-Instruct-v0.1, revision: "{{ commit }}"}
  register: mixtral_engine_signature

- name: Builder of each kind of host
  trtllm.serving.engine_builder:
  register: mixtral_engine_builders
  run_once: true
"""

RETURN = r"""
signature:
  description: The hash.
  returned: with O(decides)
  type: str
decides:
  description: What it was made of.
  returned: with O(decides)
  type: dict
resolvable:
  description: Whether the signature alone leads to an engine; not with weights of a directory or files as options.
  returned: with O(decides)
  type: bool
groups:
  description: Hosts of each signature, with C(signature), C(hosts), C(builder) and C(tried).
  returned: without O(decides)
  type: list
  elements: dict
builder_of:
  description: The builder of each host.
  returned: without O(decides)
  type: dict
problems:
  description: Why a host gets no engine, in one line, by host.
  returned: without O(decides)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "decides": {"type": "dict"},
            "builder": {"type": "str", "default": ""},
            "attempts": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    module.fail_json(msg="engine_builder runs on the controller only: call it as an action of a task")


if __name__ == "__main__":
    main()
