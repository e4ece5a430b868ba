#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merge keys into dockerd's daemon.json, and have Docker Engine follow without stopping a container unasked."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: docker_daemon_config
short_description: Merge keys into dockerd's configuration file and have the engine follow
version_added: 0.1.0
description:
  - Merges O(config) into the file. Keys of others, their order, the indentation, mode and owner of the file stay.
  - Has C(dockerd --validate) judge the new file where dockerd has that (23.0 and newer), and refuses keys that the
    engine's command line sets too, with which dockerd would not start.
  - What a running dockerd takes over by a reload is reloaded at once, and the engine is asked whether it did. A reload
    never stops a container. It is also how a dockerd without C(--validate) judges the file; a file that it does not
    take over is replaced by the one of before.
  - What needs a restart is kept in O(marker) until that dockerd process has ended, also when the run fails, and
    restarted only as O(restart) allows. A dockerd that does not start again gets the file back that it ran with.
  - A file with a syntax error is left exactly as it is.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: The file that would be written is judged by C(dockerd --validate) too; nothing is reloaded.
  diff_mode:
    support: full
    details: Passwords in URLs are masked.
  idempotent:
    support: full
options:
  path:
    description: The file. A link is followed, and kept.
    type: path
    default: /etc/docker/daemon.json
  config:
    description:
      - Keys that the file shall have. Objects are merged into those that are there, everything else replaces what is
        there, and null removes a key.
    type: dict
    default: {}
  http_proxy:
    description:
      - Proxy of the engine for http, kept in the key C(proxies), which dockerd knows from 23.0 on.
      - With a password in it the file is readable by its owner alone.
    type: str
    default: ""
  https_proxy:
    description: Proxy of the engine for https, as O(http_proxy).
    type: str
    default: ""
  no_proxy:
    description: Hosts that the engine reaches without a proxy, separated by commas.
    type: str
    default: ""
  reasons:
    description: Further reasons why the running dockerd must be restarted, for example a changed unit.
    type: list
    elements: str
    default: []
  restart:
    description:
      - When a restart that is needed happens. V(never) leaves it to somebody else, V(if_idle) does it while no
        container runs, V(now) whatever runs.
      - Without a need nothing is restarted.
    type: str
    choices: [never, if_idle, now]
    default: never
  start:
    description:
      - Start an engine that does not run. One that does not start with the new file gets the old one back.
    type: bool
    default: false
  backup:
    description: Keep a copy of the file of before beside it, with the time in its name.
    type: bool
    default: true
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
  executable:
    description: The dockerd that judges the file; empty looks for it.
    type: str
    default: ""
  timeout:
    description: Seconds that a restarted engine may take to answer.
    type: int
    default: 60
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: The NVIDIA runtime, and containers that outlive a restart of dockerd
  trtllm.serving.docker_daemon_config:
    config:
      live-restore: true
      runtimes:
        nvidia: {args: [], path: nvidia-container-runtime}

- name: No mirror any more
  trtllm.serving.docker_daemon_config:
    config:
      registry-mirrors: null
    restart: if_idle
"""

RETURN = r"""
action:
  description: What the running dockerd needs to follow the file, before this task did anything about it.
  returned: always
  type: str
  sample: reload
keys:
  description: The keys behind it.
  returned: always
  type: dict
  sample: {"reload": ["runtimes"], "restart": []}
reloaded:
  description: The engine has taken over the keys by a reload, and said so.
  returned: always
  type: bool
restarted:
  description: The engine was restarted.
  returned: always
  type: bool
restart_pending:
  description: A restart is needed still.
  returned: always
  type: bool
reasons:
  description: Why a restart is needed still.
  returned: always
  type: list
  elements: str
backup_file:
  description: Copy of the file of before.
  returned: when one was made
  type: str
"""

import os
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._daemon_config import ConfigError, hide_secrets
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import EngineError, socket_of
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_config import Settings, apply


def wanted(params: Dict[str, Any]) -> Dict[str, Any]:
    """The keys of config, and the proxies in their place."""
    keys = dict(params["config"])
    names = {"http-proxy": "http_proxy", "https-proxy": "https_proxy", "no-proxy": "no_proxy"}
    proxies = {name: params[option] for name, option in names.items() if params[option]}
    if proxies:
        keys["proxies"] = {**(keys.get("proxies") or {}), **proxies}
    return keys


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            path=dict(type="path", default="/etc/docker/daemon.json"),
            config=dict(type="dict", default={}),
            http_proxy=dict(type="str", default="", no_log=True),
            https_proxy=dict(type="str", default="", no_log=True),
            no_proxy=dict(type="str", default=""),
            reasons=dict(type="list", elements="str", default=[]),
            restart=dict(type="str", default="never", choices=["never", "if_idle", "now"]),
            start=dict(type="bool", default=False),
            backup=dict(type="bool", default=True),
            host=dict(type="str", default=""),
            pid_file=dict(type="path", default="/var/run/docker.pid"),
            marker=dict(type="path", default="/run/trtllm-docker-restart.json"),
            executable=dict(type="str", default=""),
            timeout=dict(type="int", default=60),
        ),
        supports_check_mode=True,
    )
    params = module.params
    try:
        settings = Settings(
            path=params["path"],
            socket=socket_of(params["host"], os.environ),
            pid_file=params["pid_file"],
            marker=params["marker"],
            dockerd=params["executable"],
            restart=params["restart"],
            start=params["start"],
            backup=params["backup"],
            timeout=params["timeout"],
            secret="@" in params["http_proxy"] + params["https_proxy"],
        )
        result = apply(settings, wanted(params), params["reasons"], module.check_mode)
    except (ConfigError, EngineError) as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg="%s: %s; run as root (become)" % (exc.filename or params["path"], exc.strerror or exc))
    for warning in result.warnings:
        module.warn(warning)
    answer: Dict[str, Any] = {"backup_file": result.backup} if result.backup else {}
    module.exit_json(
        changed=result.changed,
        action=result.action,
        keys=result.keys,
        reloaded=result.reloaded,
        restarted=result.restarted,
        restart_pending=bool(result.reasons),
        reasons=result.reasons,
        diff={
            "before": hide_secrets(result.before),
            "after": hide_secrets(result.after),
            "before_header": params["path"],
            "after_header": params["path"],
        },
        **answer,
    )


if __name__ == "__main__":
    main()
