#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a host's Docker Engine and NVIDIA Container Toolkit, and say what is left to do."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: docker_engine
short_description: Survey Docker Engine and the NVIDIA Container Toolkit of a host
version_added: 0.1.0
description:
  - Looks at the operating system, the packages that matter, what is in their way and whether it is in use, the running
    engine, its unit and its command line, the toolkit, CDI, the data-root and the boot volume, in one go.
  - Fails with all findings at once, each with its remedy. Otherwise says what an installation and a configuration still
    have to do, which on a finished host is nothing.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: Changes nothing in any mode.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  source:
    description: Where Docker Engine comes from.
    type: str
    choices: [none, existing, distribution, docker-ce]
    default: none
  toolkit:
    description: Where the NVIDIA Container Toolkit comes from.
    type: str
    choices: [none, existing, stable, experimental]
    default: none
  executable:
    description: Docker's command line client, asked when O(source=existing).
    type: str
    default: docker
  minimum_version:
    description: Oldest version of an existing Docker Engine that is accepted.
    type: str
    default: "19.03"
  device_policy:
    description:
      - How containers get GPUs. V(auto) is V(cdi) where the engine has CDI by default, from 28.2 on, and V(runtime) for
        older ones.
    type: str
    choices: [auto, cdi, runtime]
    default: auto
  versions:
    description: Versions by C(engine), C(cli), C(containerd) and C(toolkit); an empty one takes what is there.
    type: dict
    default: {}
  engine_packages:
    description: Packages of the engine, instead of those that are known for the system; the first is the engine itself.
    type: list
    elements: str
    default: []
  toolkit_packages:
    description: Packages of the toolkit, instead of those that are known.
    type: list
    elements: str
    default: []
  repositories:
    description: Addresses of repositories that are about to be written; no other file of apt's may name them.
    type: list
    elements: str
    default: []
  data_root:
    description: Where the engine shall keep its data; empty leaves it where it is.
    type: str
    default: ""
  config_path:
    description: The engine's configuration file.
    type: path
    default: /etc/docker/daemon.json
  proxies:
    description: The engine shall use proxies.
    type: bool
    default: false
  remove_conflicts:
    description: Packages that are in the way may be removed when nothing uses them.
    type: bool
    default: false
  allow_unsupported:
    description: Try it on a system that is not on the list too.
    type: bool
    default: false
  disruptive:
    description: An engine with running containers may get another version now.
    type: bool
    default: false
  host:
    description: Address of the engine, C(unix:///PATH); empty takes C(DOCKER_HOST), or the usual socket.
    type: str
    default: ""
  pid_file:
    description: File in which dockerd keeps its process id.
    type: path
    default: /var/run/docker.pid
  marker:
    description: File that remembers what the running dockerd does not follow yet.
    type: path
    default: /run/trtllm-docker-restart.json
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: What is left to do
  trtllm.serving.docker_engine:
    source: docker-ce
    toolkit: stable
  register: survey
"""

RETURN = r"""
engine:
  description: What was seen, and what is left to do.
  returned: always
  type: dict
  sample:
    version: 28.3.3
    device_policy: cdi
    config: {}
    containers_running: 1
    restart_pending: false
    reasons: []
    start: false
    install: {"engine": [], "toolkit": [], "remove": [], "new_toolkit": false, "changes": []}
    cdi: {"enabled": true, "specification": "/etc/cdi/nvidia.yaml", "signature": "0123456789abcdef", "generate": false}
problems:
  description: What stands in the way, each with its remedy.
  returned: on failure
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine import Survey, Wish
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import EngineError, socket_of
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_host import Host


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            source=dict(type="str", default="none", choices=["none", "existing", "distribution", "docker-ce"]),
            toolkit=dict(type="str", default="none", choices=["none", "existing", "stable", "experimental"]),
            executable=dict(type="str", default="docker"),
            minimum_version=dict(type="str", default="19.03"),
            device_policy=dict(type="str", default="auto", choices=["auto", "cdi", "runtime"]),
            versions=dict(type="dict", default={}),
            engine_packages=dict(type="list", elements="str", default=[]),
            toolkit_packages=dict(type="list", elements="str", default=[]),
            repositories=dict(type="list", elements="str", default=[]),
            data_root=dict(type="str", default=""),
            config_path=dict(type="path", default="/etc/docker/daemon.json"),
            proxies=dict(type="bool", default=False),
            remove_conflicts=dict(type="bool", default=False),
            allow_unsupported=dict(type="bool", default=False),
            disruptive=dict(type="bool", default=False),
            host=dict(type="str", default=""),
            pid_file=dict(type="path", default="/var/run/docker.pid"),
            marker=dict(type="path", default="/run/trtllm-docker-restart.json"),
        ),
        supports_check_mode=True,
    )
    params = dict(module.params)
    host = params.pop("host")
    params["versions"] = {name: str(version) for name, version in params["versions"].items() if version}
    try:
        finding = Survey(Wish(socket=socket_of(host, os.environ), **params), Host()).look()
    except EngineError as exc:
        module.fail_json(msg=str(exc))
    for hint in finding.hints:
        module.warn(hint)
    if finding.problems:
        module.fail_json(msg="; ".join(finding.problems), engine=finding.engine, problems=finding.problems)
    module.exit_json(changed=False, engine=finding.engine)


if __name__ == "__main__":
    main()
