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
  - Takes a directory with a Mixtral in Hugging Face's layout, fetches one from a hub of models, or has an importer make
    one, verifies that it is whole, and returns its identity, which decides the keys of everything made from it.
  - Whole means a C(config.json) with experts, every weights file of the index there and as long as its header says,
    the tensors of the index in them, no git-lfs pointer anywhere, and a tokenizer.
  - Hashes are read once. Later runs trust size and modification time, and read a file again when they differ.
  - What comes from a hub is compared with the hub's own hashes. An interrupted download is kept beside the weights, as
    C(NAME@REVISION.download), and goes on where it stopped. Weights that are there are used without asking the hub.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details:
      - Writes nothing. Weights whose hashes are not known yet are read, which takes as long as reading them from disk.
      - When the importer or the hub would be asked, the result is changed with RV(identity) and RV(config) null. The
        network is not used.
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
      - Required without O(path). With O(path) the default is V(local), with O(hub) its repository.
    type: str
  revision:
    description:
      - Revision of the model. Part of the identity. Required without O(path).
      - With O(hub) it must be a commit, all 40 hexadecimal digits. A branch or a tag is refused, and the refusal names
        its commit when the hub says it.
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
  hub:
    description:
      - A hub of models, such as the one at huggingface.co, from which the weights come when they are not there or not
        whole. In place of O(importer).
    type: dict
    suboptions:
      repository:
        description: The repository, as C(OWNER/NAME).
        type: str
        required: true
      endpoint:
        description: Address of the hub, or of a mirror that speaks as it does.
        type: str
        default: https://huggingface.co
      python:
        description: Python on the host that has huggingface_hub 1.0 or newer. The downloads are a process of it.
        type: path
        required: true
      token_file:
        description:
          - File on the host with a token that may read the repository, alone on one line.
          - It must not be readable by everybody.
        type: path
      token:
        description:
          - The token itself. It reaches one process, through a pipe; no command line, environment, log or file has it.
          - O(hub.token_file) keeps it out of what Ansible sends to the host as well.
        type: str
      allow_patterns:
        description:
          - Files that are wanted. A pattern without a slash is for the repository's top folder.
          - By default configuration, tokenizer and safetensors.
        type: list
        elements: str
      ignore_patterns:
        description: Files that are not wanted. By default the same weights in other formats.
        type: list
        elements: str
      workers:
        description: Files that are fetched at the same time.
        type: int
        default: 8
      retries:
        description: Further attempts when a connection breaks, counted anew whenever something has come.
        type: int
        default: 5
      timeout:
        description: Seconds without a byte after which a connection counts as broken.
        type: int
        default: 30
      max_wait:
        description: Seconds that are waited in all for a hub that asks to come again later (429), for each file.
        type: int
        default: 600
      xet:
        description:
          - Whether the client may fetch by the hub's Xet protocol, when its package is there.
          - It speaks to further hosts, which proxies and mirrors may not know, and begins a file again after an
            interruption. Only files above 50 GB need it.
        type: bool
        default: false
  space:
    description:
      - What must fit beside the weights, checked with the hub's own sizes before the first byte comes.
    type: dict
    suboptions:
      checkpoint:
        description: Size of the checkpoint, as a multiple of the weights.
        type: float
        default: 1.0
      engine:
        description: Size of the engine, as a multiple of the weights.
        type: float
        default: 1.0
      checkpoints_dir:
        description: Where checkpoints are made. The default is C(checkpoints) below O(home).
        type: path
      engines_dir:
        description: Where engines are made. The default is C(engines) below O(home).
        type: path
      image_gib:
        description: Size of an image that is still to come, in GiB.
        type: float
        default: 0.0
      image_path:
        description: Where Docker keeps images.
        type: path
        default: /var/lib/docker
      reserve_gib:
        description: What must stay free where the weights are, in GiB.
        type: float
        default: 1.0
  home:
    description:
      - The directory whose lock keeps two runs on one host apart. It must exist when the importer or the hub is asked.
      - Hashes of directories elsewhere are kept in C(weights/.identity) below it.
    type: path
    required: true
  log_dir:
    description: Where the importer's or the hub's output is kept, one file a run. The default is C(logs) below O(home).
    type: path
  timeout:
    description:
      - Seconds after which the importer, or the download, and everything that it started is ended. No limit by default.
    type: float
  environment:
    description:
      - Variables for the importer or the hub's client, added to the task's own, such as C(HTTPS_PROXY), C(NO_PROXY) and
        C(SSL_CERT_FILE).
      - Values of variables whose name says that they are secret (token, secret, password, key) are kept out of
        the log and of the result.
    type: dict
    default: {}
  verify:
    description: V(fast) trusts the known hash of a file with unchanged size and modification time, V(full) reads all.
    type: str
    choices: [fast, full]
    default: fast
  progress:
    description:
      - File on the host in which the module tells how far it is, while it runs. The action plugin of the module gives
        one and reads it now and then.
    type: path
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
    revision: eba92302a2861cdc0098cc54bc9f17cb2c47eb61
  register: weights

- name: Fetch them, with a token that lies on the host
  trtllm.serving.mixtral_weights:
    home: /opt/trtllm
    revision: eba92302a2861cdc0098cc54bc9f17cb2c47eb61
    hub:
      repository: mistralai/Mixtral-8x7B-Instruct-v0.1
      python: /opt/trtllm/venv/bin/python
      token_file: /etc/trtllm/hub-token
    environment:
      HTTPS_PROXY: http://proxy.example.com:3128
    timeout: 14400

- name: Have them made when they are not there
  trtllm.serving.mixtral_weights:
    home: /opt/trtllm
    name: tiny-mixtral
    revision: "1"
    importer: [/usr/local/bin/generate-tiny, --output_dir, "{output_dir}"]
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
  description: Why the importer or the hub is asked (or would be).
  returned: changed
  type: str
command:
  description: The importer's command line.
  returned: changed by an importer
  type: list
  elements: str
log_file:
  description: The importer's or the hub's output; empty when nothing ran.
  returned: changed
  type: str
duration_s:
  description: Seconds that it took.
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
kind:
  description:
    - What the hub or the network refused, in one word, such as V(gated), V(unauthorized), V(revision), V(limit),
      V(cut), V(proxy), V(tls) or V(hash).
  returned: when the hub failed
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
from ansible_collections.trtllm.serving.plugins.module_utils import _hub
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import run_module
from ansible_collections.trtllm.serving.plugins.module_utils._weights_import import provide

HUB = {
    "repository": {"type": "str", "required": True},
    "endpoint": {"type": "str", "default": _hub.ENDPOINT},
    "python": {"type": "path", "required": True},
    "token_file": {"type": "path", "no_log": False},
    "token": {"type": "str", "no_log": True},
    "allow_patterns": {"type": "list", "elements": "str"},
    "ignore_patterns": {"type": "list", "elements": "str"},
    "workers": {"type": "int", "default": 8},
    "retries": {"type": "int", "default": 5},
    "timeout": {"type": "int", "default": 30},
    "max_wait": {"type": "int", "default": 600},
    "xet": {"type": "bool", "default": False},
}
SPACE = {
    "checkpoint": {"type": "float", "default": 1.0},
    "engine": {"type": "float", "default": 1.0},
    "checkpoints_dir": {"type": "path"},
    "engines_dir": {"type": "path"},
    "image_gib": {"type": "float", "default": 0.0},
    "image_path": {"type": "path", "default": "/var/lib/docker"},
    "reserve_gib": {"type": "float", "default": 1.0},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "name": {"type": "str"},
            "revision": {"type": "str"},
            "weights_dir": {"type": "path"},
            "importer": {"type": "list", "elements": "str"},
            "hub": {"type": "dict", "options": HUB},
            "space": {"type": "dict", "options": SPACE},
            "home": {"type": "path", "required": True},
            "log_dir": {"type": "path"},
            "timeout": {"type": "float"},
            "environment": {"type": "dict", "default": {}},
            "verify": {"type": "str", "choices": ["fast", "full"], "default": "fast"},
            "progress": {"type": "path"},
        },
        mutually_exclusive=[("hub", "importer"), ("hub", "path")],
        supports_check_mode=True,
    )
    # The proxies' passwords too must not be in any result.
    module.no_log_values.update(_hub.proxy_secrets(module.params["environment"]))
    run_module(module, provide)


if __name__ == "__main__":
    main()
