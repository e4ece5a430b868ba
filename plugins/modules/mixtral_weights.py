#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Provide, verify and identify the weights of a Mixtral."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mixtral_weights
short_description: Provide, verify and identify the weights of a Mixtral
version_added: 0.1.0
description:
  - Takes a directory with a Mixtral in Hugging Face's layout, or has an importer make one, verifies that it is whole,
    and returns its identity, which decides the keys of everything made from it.
  - Whole means a C(config.json) with experts, every weights file of the index there and as long as its header says,
    the tensors of the index in them, no git-lfs pointer anywhere, and a tokenizer.
  - Hashes are read once. Later runs trust size and modification time, and read a file again when they differ.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details:
      - Writes nothing. Weights whose hashes are not known yet are read, which takes as long as reading them from disk.
      - When the importer would run, the result is changed with RV(identity) and RV(config) null.
  diff_mode:
    support: full
    details: Names what differs from how the weights were made before.
  idempotent:
    support: full
options:
  path:
    description:
      - A directory that holds the weights. It may be read-only; nothing is written into it.
      - Without it the weights are C(NAME@REVISION) below O(weights_dir).
    type: path
  name:
    description:
      - Name of the model, such as V(mistralai/Mixtral-8x7B-Instruct-v0.1). Part of the identity.
      - Required without O(path). With O(path) the default is V(local).
    type: str
  revision:
    description:
      - Revision of the model. Part of the identity. Required without O(path).
    type: str
  weights_dir:
    description: Directory below which weights are kept. The default is C(weights) below O(home).
    type: path
  importer:
    description:
      - A command, as a list of words, that fills the directory whose path replaces C({output_dir}) in its words.
      - It runs only when the weights are not there, not whole, or made by a command with other words; where a program
        or script lies does not matter. What it makes is verified and appears whole or not at all.
      - A directory that was put there by somebody else is never replaced.
    type: list
    elements: str
  home:
    description:
      - The directory whose lock keeps two runs on one host apart. It must exist when the importer runs.
      - Hashes of directories elsewhere are kept in C(weights/.identity) below it.
    type: path
    required: true
  log_dir:
    description: Where the importer's output is kept, one file a run. The default is C(logs) below O(home).
    type: path
  timeout:
    description: Seconds after which the importer and everything that it started is ended. No limit by default.
    type: float
  environment:
    description:
      - Variables for the importer, added to the task's own.
      - Values of variables whose name says that they are secret (token, secret, password, key) are kept out of
        the log and of the result.
    type: dict
    default: {}
  verify:
    description: V(fast) trusts the known hash of a file with unchanged size and modification time, V(full) reads all.
    type: str
    choices: [fast, full]
    default: fast
notes:
  - Needs Python 3.9 or newer on the host, and no package.
seealso:
  - module: trtllm.serving.convert_checkpoint
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Use weights from a shared, read-only directory
  trtllm.serving.mixtral_weights:
    home: /opt/trtllm
    path: /mnt/models/Mixtral-8x7B-Instruct-v0.1
    name: mistralai/Mixtral-8x7B-Instruct-v0.1
    revision: 41bd4c9e7e4fb318ca40e721131d4933966c2cc1
  register: weights

- name: Have them fetched when they are not there
  trtllm.serving.mixtral_weights:
    home: /opt/trtllm
    name: mistralai/Mixtral-8x7B-Instruct-v0.1
    revision: 41bd4c9e7e4fb318ca40e721131d4933966c2cc1
    importer:
      - huggingface-cli
      - download
      - mistralai/Mixtral-8x7B-Instruct-v0.1
      - --revision=41bd4c9e7e4fb318ca40e721131d4933966c2cc1
      - --local-dir={output_dir}
    environment:
      HF_TOKEN: "{{ hf_token }}"
"""

RETURN = r"""
path:
  description: Directory of the weights; in check mode where they would be.
  returned: success
  type: str
identity:
  description: What decides the keys of everything made from the weights. Null in check mode when they are not there.
  returned: success
  type: dict
  contains:
    name: {description: Name of the model., type: str}
    revision: {description: Revision of the model., type: str}
    files:
      description: For each file its C(size) in bytes and its C(sha256).
      type: dict
config:
  description: Sizes of the model from its C(config.json). Null in check mode when the weights are not there.
  returned: success
  type: dict
  contains:
    heads: {description: Attention heads., type: int}
    kv_heads: {description: Key and value heads., type: int}
    experts: {description: Experts in a layer., type: int}
    experts_per_token: {description: Experts that a token takes., type: int}
    layers: {description: Layers., type: int}
    vocab_size: {description: Tokens in the vocabulary., type: int}
    hidden_size: {description: Width of a layer., type: int}
    intermediate_size: {description: Width of an expert., type: int}
    max_position_embeddings: {description: Longest sequence in tokens., type: int}
    dtype: {description: Data type of the weights., type: str}
weight_bytes:
  description: Size of all weights files in bytes. Null in check mode when the weights are not there.
  returned: success
  type: int
reason:
  description: Why the importer runs (or would run).
  returned: changed
  type: str
command:
  description: The importer's command line.
  returned: changed
  type: list
  elements: str
log_file:
  description: The importer's output; empty when it did not run.
  returned: changed
  type: str
duration_s:
  description: Seconds that the importer ran.
  returned: changed
  type: float
problems:
  description: Each problem on its own, when several are reported in C(msg).
  returned: failure
  type: list
  elements: str
error:
  description: The importer's own error line.
  returned: when the importer failed
  type: str
hint:
  description: Cause and remedy where the cause is known, else empty.
  returned: when the importer failed
  type: str
rc:
  description: The importer's exit code.
  returned: when the importer failed
  type: int
tail:
  description: The last lines of the importer's output.
  returned: when the importer failed
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import run_module
from ansible_collections.trtllm.serving.plugins.module_utils._weights_import import provide


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "name": {"type": "str"},
            "revision": {"type": "str"},
            "weights_dir": {"type": "path"},
            "importer": {"type": "list", "elements": "str"},
            "home": {"type": "path", "required": True},
            "log_dir": {"type": "path"},
            "timeout": {"type": "float"},
            "environment": {"type": "dict", "default": {}},
            "verify": {"type": "str", "choices": ["fast", "full"], "default": "fast"},
        },
        supports_check_mode=True,
    )
    run_module(module, provide)


if __name__ == "__main__":
    main()
