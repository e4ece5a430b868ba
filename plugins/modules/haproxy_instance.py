#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An HAProxy that runs with a given configuration."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: haproxy_instance
short_description: An HAProxy that runs with a given configuration
version_added: 0.1.0
description:
  - Has C(haproxy -c) judge a configuration, writes it and what belongs to it, and reloads HAProxy, which cuts off no
    request. A HAProxy that does not run is started.
  - Before a reload the states of all servers are kept, so that what is drained stays drained.
  - A configuration with which HAProxy does not come up is taken back; it is kept with C(.refused) behind its name.
  - Role P(trtllm.serving.triton_lb#role) uses it.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: HAProxy judges the configuration, where HAProxy and what the configuration names are there already.
  diff_mode:
    support: full
    details: Of tokens only that they changed.
  idempotent:
    support: full
    details: A reload that a broken off run owes is made up for.
options:
  state:
    description: V(surveyed) only looks. V(running) does the rest.
    type: str
    choices: [surveyed, running]
    default: running
  executable:
    description: The program, by name or path.
    type: str
    default: haproxy
  config:
    description: Text of the configuration; needed with O(state=running). Its first line is O(marker).
    type: str
    default: ""
  config_path:
    description: Where HAProxy's service reads it.
    type: path
    default: /etc/haproxy/haproxy.cfg
  marker:
    description: The line by which a configuration is known as one's own.
    type: str
    default: "# Written by Ansible role trtllm.serving.triton_lb."
  replace:
    description: Whether a configuration of somebody else is replaced.
    type: bool
    default: false
  token_digests:
    description: Digests (SHA-256 in upper case hexadecimals) of bearer tokens.
    type: list
    elements: str
    default: []
  token_file:
    description: File on this host with further tokens themselves, one a line.
    type: path
  token_digests_path:
    description: Where the digests of all tokens are written for HAProxy; without it there are none.
    type: path
  files:
    description: Further files that belong to it. Those that end in C(.conf) are systemd's.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
      mode:
        description: Its mode, octal.
        type: str
        default: "0644"
  watched:
    description: Files of others whose change needs a reload, such as certificates.
    type: list
    elements: path
    default: []
  socket:
    description: HAProxy's stats socket, a path.
    type: path
    default: /run/haproxy/admin.sock
  state_file:
    description: HAProxy's C(server-state-file).
    type: path
    default: /var/lib/haproxy/trtllm-servers
  state_script:
    description: The program that keeps servers' states; one of O(files).
    type: path
    default: /etc/haproxy/trtllm-state.py
  manager:
    description: Who starts HAProxy. V(auto) is V(systemd) where that runs, otherwise V(direct).
    type: str
    choices: [auto, systemd, direct]
    default: auto
  service:
    description: systemd's unit.
    type: str
    default: haproxy
  pid_file:
    description: File with the process id, with O(manager=direct).
    type: path
    default: /run/haproxy.pid
  timeout:
    description: Seconds that a started or reloaded HAProxy may take to answer.
    type: float
    default: 30
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: What is there
  trtllm.serving.haproxy_instance:
    state: surveyed
  register: found

- name: HAProxy with this configuration
  trtllm.serving.haproxy_instance:
    config: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
    files:
      - path: /etc/haproxy/trtllm-state.py
        content: "{{ lookup('ansible.builtin.file', 'haproxy_state.py', rstrip=false) }}"
"""

RETURN = r"""
installed:
  description: Whether the program is there.
  returned: success
  type: bool
version:
  description: HAProxy's version.
  returned: when it is installed
  type: str
owner:
  description: Whose the configuration was, V(absent), V(ours), V(pristine) (as the package brought it) or V(foreign).
  returned: success
  type: str
python:
  description: The interpreter that this module ran with.
  returned: success
  type: str
systemd:
  description: Whether systemd manages HAProxy.
  returned: success
  type: bool
action:
  description: What happened, or would, V(none), V(start) or V(reload).
  returned: with O(state=running)
  type: str
written:
  description: Files that were written.
  returned: with O(state=running)
  type: list
  elements: str
backup_file:
  description: Copy of the configuration of before.
  returned: when one was made
  type: str
servers:
  description: Servers of all backends with their states, as C(backend/server).
  returned: with O(state=running), except in check mode
  type: dict
  sample: {"chat/gpu-1": "ready", "chat/gpu-2": "drain"}
"""

import os
import sys
from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils import _haproxy_config as config_of
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import HaproxyError, Runtime
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy_instance import File, Instance, Settings
from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import Cancelled
from ansible_collections.trtllm.serving.plugins.module_utils._runner_cancel import Cancellation

NOWHERE = config_of.Program("haproxy", "", frozenset())


def mode_of(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise HaproxyError("mode %r is not octal: write it as '0644'" % text) from None


def token_file(params: Dict[str, Any]) -> Optional[File]:
    """The digests of all tokens."""
    if not params["token_digests_path"]:
        return None
    plain = None
    if params["token_file"]:
        plain = config_of.read(params["token_file"])
        if plain is None:
            raise HaproxyError("token_file %s is not there: put one token a line into it" % params["token_file"])
    given = "".join(digest.upper() + "\n" for digest in params["token_digests"])
    text = "".join(sorted(set((given + config_of.token_digests([], plain)).splitlines(True))))
    if not text:
        raise HaproxyError("there is no token in %s: put one in, or nobody gets in" % params["token_file"])
    return File(params["token_digests_path"], text, 0o600, secret=True)


def settings_of(params: Dict[str, Any], check: Any) -> Settings:
    names = ("config_path", "socket", "state_file", "manager", "service", "pid_file", "state_script", "timeout")
    return Settings(**{name: params[name] for name in names}, check=check)


def running(module: AnsibleModule, instance: Instance, before: Optional[str]) -> Dict[str, Any]:
    params = module.params
    config = File(params["config_path"], params["config"].rstrip("\n") + "\n", 0o640)
    tokens = token_file(params)
    helpers = [File(each["path"], each["content"], mode_of(each["mode"])) for each in params["files"]]
    helpers += [tokens] if tokens else []
    # What the process has read; a drop-in of systemd or the script that keeps states needs no reload.
    watched = [config.path, *([tokens.path] if tokens else []), *params["watched"]]
    missing = [path for path in params["watched"] if not os.path.exists(path)]
    if missing and not module.check_mode:
        raise HaproxyError("%s is not there: put it on the balancer first" % missing[0])
    changed = instance.changed_files([*helpers, config])
    beside = any(file in (config, tokens) for file in changed)
    todo = instance.behind(watched)
    todo = "reload" if todo == "none" and beside else todo
    if instance.program is not NOWHERE and not missing and (beside or todo != "none"):
        state_file = {} if os.path.exists(params["state_file"]) else {params["state_file"]: os.devnull}
        problem = instance.judge_beside(config, tokens, state_file) or instance.taken(config.text, before or "")
        if problem:
            raise HaproxyError("HAProxy does not take the configuration: %s; nothing was changed" % problem)
    shown = config_of.read(tokens.path) if tokens else ""
    note = "tokens: %s\n"
    result: Dict[str, Any] = {
        "action": todo,
        "changed": bool(changed) or todo != "none",
        "written": [file.path for file in changed],
        "diff": {
            "before": (before or "") + (note % ("those of before" if shown else "none") if tokens in changed else ""),
            "after": config.text + (note % "those that were given" if tokens in changed else ""),
            "before_header": config.path,
            "after_header": config.path,
        },
    }
    if not module.check_mode:
        outcome = instance.bring(config, helpers, watched, todo)
        result["changed"] = outcome.changed
        if outcome.backup:
            result["backup_file"] = outcome.backup
        servers = Runtime(params["socket"]).servers()
        result["servers"] = {"%s/%s" % (each.backend, each.name): each.state for each in servers}
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["surveyed", "running"], "default": "running"},
            "executable": {"type": "str", "default": "haproxy"},
            "config": {"type": "str", "default": ""},
            "config_path": {"type": "path", "default": "/etc/haproxy/haproxy.cfg"},
            "marker": {"type": "str", "default": "# Written by Ansible role trtllm.serving.triton_lb."},
            "replace": {"type": "bool", "default": False},
            "token_digests": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "token_file": {"type": "path", "no_log": False},
            "token_digests_path": {"type": "path", "no_log": False},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "watched": {"type": "list", "elements": "path", "default": []},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "state_file": {"type": "path", "default": "/var/lib/haproxy/trtllm-servers"},
            "state_script": {"type": "path", "default": "/etc/haproxy/trtllm-state.py"},
            "manager": {"type": "str", "choices": ["auto", "systemd", "direct"], "default": "auto"},
            "service": {"type": "str", "default": "haproxy"},
            "pid_file": {"type": "path", "default": "/run/haproxy.pid"},
            "timeout": {"type": "float", "default": 30},
        },
        required_if=[("state", "running", ["config"])],
        supports_check_mode=True,
    )
    params = module.params
    result: Dict[str, Any] = {"changed": False}
    with Cancellation() as cancellation:
        try:
            found = config_of.program(params["executable"])
            before = config_of.read(params["config_path"])
            instance = Instance(found or NOWHERE, settings_of(params, cancellation.check))
            known: List[str] = config_of.shortcomings(found, params["config"]) if found else []
            owner = config_of.whose(params["config_path"], before, params["marker"])
            if known and params["state"] == "running":
                raise HaproxyError("; ".join(known))
            if owner == "foreign" and not params["replace"]:
                raise HaproxyError(
                    "%s is in use and not this role's: move what it serves elsewhere, or set triton_lb_replace_config "
                    "to true, which keeps a copy of it" % params["config_path"]
                )
            result.update(
                installed=found is not None, version=found.version if found else "", owner=owner,
                python=sys.executable, systemd=instance.systemd,
            )  # fmt: skip
            if params["state"] == "running":
                if found is None and not module.check_mode:
                    raise HaproxyError(
                        "there is no program %s: set triton_lb_package, or install HAProxy" % params["executable"]
                    )
                result.update(running(module, instance, before))
        except (HaproxyError, Cancelled) as exc:
            module.fail_json(msg=str(exc))
        except OSError as exc:
            module.fail_json(msg="%s: %s; become root" % (exc.filename or "HAProxy", exc.strerror or exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
