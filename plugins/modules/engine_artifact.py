#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Get an engine that another host has built, or publish the one that this host has."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: engine_artifact
short_description: Get an engine that another host built, or publish one
version_added: 0.1.0
description:
  - Brings an engine and its tokenizer from a directory that hosts share, or from a registry of the Open Container
    Initiative, to where M(trtllm.serving.trtllm_build) would have made it; or publishes them there.
  - An engine that is on the host and whole is used as it is, and nobody is asked.
  - What comes is verified by hash, piece by piece. After a cut, or when the run was stopped, it goes on where it was.
  - Files are written beside and renamed, with the manifest last, on the host and in the store; so an engine is there
    whole or not at all.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: When something would come, the result is changed with RV(key) and RV(path) null.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) sees to it that the host has the engine and its tokenizer.
      - V(published) sees to it that the store has the engine of O(engine_dir) with the tokenizer of O(weights_dir).
    type: str
    choices: [present, published]
    default: present
  home:
    description: Absolute path below which everything is kept. It must exist.
    type: path
    required: true
  release:
    description: TensorRT-LLM release that the engine must be of.
    type: str
    required: true
  gpu:
    description: GPU of this host, with C(name) and C(compute_capability); an engine for another one is refused.
    type: dict
  distribution:
    description: Where engines are kept for other hosts, a directory that they share (V(shared)) or a V(registry).
    type: str
    choices: [shared, registry]
    required: true
  shared_path:
    description: The directory that hosts share, for O(distribution=shared).
    type: path
    default: ""
  registry:
    description: The registry, for O(distribution=registry).
    type: dict
    suboptions:
      repository:
        description: Repository that engines are kept in, C(HOST:PORT/NAME).
        type: str
        required: true
      mirrors:
        description:
          - Registries that are asked first, in this order, C(HOST:PORT) or C(HOST:PORT/NAME).
          - They are never written to, and get neither O(registry.username) nor its password.
        type: list
        elements: str
        default: []
      auth_file:
        description: C(config.json) of docker on the host with credentials, also by its credential helpers.
        type: path
        default: ""
      username:
        description: User of the registry, instead of O(registry.auth_file).
        type: str
        default: ""
      password_file:
        description: File on the host with that user's password, not readable by everybody.
        type: path
        default: ""
      ca_file:
        description: Certificate authority of the registry, as a file on the host.
        type: path
        default: ""
      plain_http:
        description: Whether registry and mirrors are spoken to without TLS. An address may begin with its own scheme.
        type: bool
        default: false
      workers:
        description: Pieces that are sent or fetched at the same time.
        type: int
        default: 4
      retries:
        description: Further attempts after a broken connection, counted anew whenever something has come.
        type: int
        default: 5
      timeout:
        description: Seconds of silence after which a connection counts as broken.
        type: int
        default: 30
      chunk_mib:
        description: Size of the pieces that large files are published in, in MiB.
        type: int
        default: 256
  key:
    description: Key of the engine. Without it, the engine that was published for O(signature) is meant.
    type: str
  tokenizer:
    description: Key of its tokenizer.
    type: str
  signature:
    description: Hash of all that decides the engine of a host, as M(trtllm.serving.engine_builder) returns it.
    type: str
  optional:
    description: Whether it is no failure that neither host nor store has the engine.
    type: bool
    default: false
  awaited:
    description: Whether the builder has yet to make it, as in check mode, so that nothing can be asked for.
    type: bool
    default: false
  publish_error:
    description: What kept the builder from publishing it, told as the cause when the store does not have it.
    type: str
    default: ""
  engine_dir:
    description: Directory of the engine to publish; may be empty only in check mode.
    type: path
  weights_dir:
    description: Directory of the weights, for its tokenizer; may be empty only in check mode.
    type: path
  engines_dir:
    description: Directory below which engines are kept. The default is C(engines) below O(home).
    type: path
  client_python:
    description:
      - Python on the host that has the package oras, to which the module changes where its own has not.
      - Where that is not there, RV(needs_client) is true and nothing is done.
    type: path
  verify:
    description: V(fast) compares sizes and times with what was recorded, V(full) hashes every file again.
    type: str
    choices: [fast, full]
    default: fast
  progress:
    description: File in which the module tells how far it is.
    type: path
requirements:
  - oras 0.2, for O(distribution=registry) when something is fetched or published
notes:
  - Needs Python 3.9 or newer on the host.
seealso:
  - module: trtllm.serving.trtllm_build
  - module: trtllm.serving.engine_builder
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Publish what was built here
  trtllm.serving.engine_artifact:
    state: published
    home: /opt/trtllm
    release: 1.1.0
    distribution: registry
    registry: {repository: "registry.example.net/trtllm/engines", auth_file: /etc/trtllm/registry.json}
    engine_dir: "{{ engine.path }}"
    weights_dir: "{{ weights.path }}"
  register: published

- name: Get it on another host
  trtllm.serving.engine_artifact:
    home: /opt/trtllm
    release: 1.1.0
    distribution: registry
    registry: {repository: "registry.example.net/trtllm/engines", auth_file: /etc/trtllm/registry.json}
    key: "{{ hostvars.gpu1.published.key }}"
    tokenizer: "{{ hostvars.gpu1.published.tokenizer.key }}"
"""

RETURN = r"""
key:
  description: The engine's key; null when it is not known or not there.
  returned: success
  type: str
path:
  description: Directory of the engine.
  returned: success
  type: str
world_size:
  description: Number of ranks.
  returned: success
  type: int
ranks:
  description: Names of the ranks' engine files.
  returned: success
  type: list
  elements: str
engine:
  description: What the engine was built with, as M(trtllm.serving.trtllm_build) returns it.
  returned: when it is there
  type: dict
tokenizer:
  description: C(key) and C(path) of the tokenizer.
  returned: success
  type: dict
found:
  description: Whether the host has the engine now.
  returned: success
  type: bool
origin:
  description: Where it came from; empty when it was there.
  returned: success
  type: str
bytes:
  description: Bytes that were fetched.
  returned: when something was fetched
  type: int
duration_s:
  description: Seconds that fetching or publishing took.
  returned: when something was fetched or published
  type: float
reason:
  description: Why something was (or would be) fetched.
  returned: when something was, or would be
  type: str
published:
  description: Whether the store has the engine now.
  returned: for O(state=published)
  type: bool
publish_error:
  description: Why not, in one line.
  returned: for O(state=published)
  type: str
expected:
  description: In check mode, C(key) and C(tokenizer) of what would come.
  returned: in check mode when the store has it
  type: dict
needs_client:
  description: Whether nothing was done because neither this Python nor O(client_python) has oras.
  returned: success
  type: bool
signature:
  description: O(signature).
  returned: success
  type: str
stages:
  description: What took time, each with C(name), C(offset_s) and C(seconds).
  returned: success
  type: list
  elements: dict
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, respawn_module
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError, describe_os_error
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_work import NeedsClient, Work
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LockError
from ansible_collections.trtllm.serving.plugins.module_utils._oci_words import problems_of
from ansible_collections.trtllm.serving.plugins.module_utils._progress import Progress
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Cancelled
from ansible_collections.trtllm.serving.plugins.module_utils._weights import WeightsError

REGISTRY = {
    "repository": {"type": "str", "required": True},
    "mirrors": {"type": "list", "elements": "str", "default": []},
    "auth_file": {"type": "path", "default": "", "no_log": False},
    "username": {"type": "str", "default": ""},
    "password_file": {"type": "path", "default": "", "no_log": False},
    "ca_file": {"type": "path", "default": ""},
    "plain_http": {"type": "bool", "default": False},
    "workers": {"type": "int", "default": 4},
    "retries": {"type": "int", "default": 5},
    "timeout": {"type": "int", "default": 30},
    "chunk_mib": {"type": "int", "default": 256},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "published"], "default": "present"},
            "home": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "gpu": {"type": "dict"},
            "distribution": {"type": "str", "choices": ["shared", "registry"], "required": True},
            "shared_path": {"type": "path", "default": ""},
            "registry": {"type": "dict", "options": REGISTRY},
            "key": {"type": "str", "no_log": False},
            "tokenizer": {"type": "str", "no_log": False},
            "signature": {"type": "str"},
            "optional": {"type": "bool", "default": False},
            "awaited": {"type": "bool", "default": False},
            "publish_error": {"type": "str", "default": ""},
            "engine_dir": {"type": "path"},
            "weights_dir": {"type": "path"},
            "engines_dir": {"type": "path"},
            "client_python": {"type": "path"},
            "verify": {"type": "str", "choices": ["fast", "full"], "default": "fast"},
            "progress": {"type": "path"},
        },
        required_if=[("distribution", "registry", ["registry"])],
        supports_check_mode=True,
    )
    params = module.params
    problems = problems_of(params["distribution"], params["shared_path"], params["registry"] or {})
    if problems:
        module.fail_json(msg="; ".join(problems), problems=problems)
    progress = Progress(params["progress"])

    def tell(what: str, done: int, total: int) -> None:
        progress.update(what=what, done=done, total=total, unit="bytes")

    with Cancellation() as cancellation:
        work = Work(
            params, module.check_mode, cancellation, tell, warn=module.warn, hide=module.no_log_values.update
        )  # fmt: skip
        try:
            result: dict[str, Any] = work.run()
        except NeedsClient as exc:
            python = str(params["client_python"] or "")
            if python and os.access(python, os.X_OK) and not has_respawned():
                respawn_module(python)
            if (not python or has_respawned()) and not module.check_mode:
                module.fail_json(msg=f"oras is not in the host's environment ({exc}): install oras 0.2 there")
            if module.check_mode:
                result = work.unknown(f"its store cannot be asked without a client that is yet to come ({exc})")
            else:
                result = {**work.nothing(), "changed": False, "needs_client": True, "found": False, "origin": ""}
        except Cancelled as exc:
            module.fail_json(msg=f"{exc}; run again to go on")
        except (ArtifactError, LockError, WeightsError) as exc:
            module.fail_json(msg=str(exc))
        except OSError as exc:
            module.fail_json(msg=str(describe_os_error(exc, params["home"])))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
