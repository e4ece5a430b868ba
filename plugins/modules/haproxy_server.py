#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drain a server of an HAProxy backend, and put it back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: haproxy_server
short_description: Drain a server of an HAProxy backend, and put it back
version_added: 0.1.0
description:
  - Runs where HAProxy's stats socket can be reached, usually by C(delegate_to) on the balancer.
  - A drain waits until the last session and the last queued request of the server have ended, also those in processes
    that a reload of HAProxy has replaced and that only finish their requests (seen when the module runs on the balancer
    itself as a user who may look at them).
  - A state that a reload has lost meanwhile is set again.
  - A server that is in maintenance, or drained already, is left as it is by O(state=drained); RV(before_state) tells.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: Looks without waiting, and refuses what it would refuse.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  socket:
    description:
      - HAProxy's stats socket, with C(level admin); a path, or an address as V(ipv4@10.0.0.5:9999).
    type: str
    default: /run/haproxy/admin.sock
  backend:
    description: Name of the backend.
    type: str
    required: true
  server:
    description: Name of the server in the backend.
    type: str
    required: true
  state:
    description:
      - V(drained) sends no new request there and waits for the running ones. V(ready) puts it back. V(maint) takes it
        out at once, its health checks too, and waits for nothing. V(query) only looks.
    type: str
    choices: [drained, ready, maint, query]
    default: query
  timeout:
    description: Seconds to wait for sessions to end, or for the health check to pass.
    type: float
    default: 120
  wait_interval:
    description: Seconds between two looks.
    type: float
    default: 0.1
  on_timeout:
    description:
      - What happens when sessions are left after O(timeout). With V(fail) the task fails, and the server stays drained;
        C(changed) tells whether there is something to undo. V(continue) goes on.
    type: str
    choices: [fail, continue]
    default: fail
  min_up:
    description:
      - Other servers of the backend that must be up and ready; with fewer, the server is not taken out, unless it is
        down itself.
    type: int
    default: 0
  expect_healthy:
    description: With O(state=ready), whether to wait until HAProxy's health check of the server has passed.
    type: bool
    default: false
  state_file:
    description:
      - HAProxy's C(server-state-file). When given, the states of all servers are written there, so that a reload keeps
        them; needs C(load-server-state-from-file global) in HAProxy's configuration.
    type: path
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: No new request for this host, and the running ones have ended
  trtllm.serving.haproxy_server:
    socket: /run/haproxy/admin.sock
    backend: chat
    server: "{{ inventory_hostname }}"
    state: drained
    timeout: 300
    state_file: /var/lib/haproxy/trtllm-servers
  delegate_to: "{{ item }}"
  loop: "{{ groups.trtllm_lb }}"

- name: Requests again, once the balancer has seen it healthy
  trtllm.serving.haproxy_server:
    backend: chat
    server: gpu-1
    state: ready
    expect_healthy: true
  delegate_to: balancer-1
"""

RETURN = r"""
before_state:
  description: State of the server when the task began, V(ready), V(drain) or V(maint).
  returned: when the server was found
  type: str
server:
  description: Name of the server.
  returned: when the server was found
  type: str
state:
  description: Its state when the task ended.
  returned: when the server was found
  type: str
sessions:
  description: Its sessions when it was looked at last.
  returned: when the server was found
  type: int
queued:
  description: Requests that wait in its own queue.
  returned: when the server was found
  type: int
old_sessions:
  description: Connections to it of HAProxy's processes from before a reload, as far as they can be seen.
  returned: after a drain
  type: int
reasserted:
  description: How often the state was lost to a reload, and set again.
  returned: when it was
  type: int
health:
  description: What HAProxy's health check says.
  returned: when the server was found
  type: str
  sample: UP L7OK
address:
  description: Where HAProxy sends the requests.
  returned: when the server was found
  type: str
expired:
  description: The time was over before the sessions were.
  returned: when it was
  type: bool
waited_s:
  description: Seconds that it took.
  returned: when the server was found
  type: float
stages:
  description: What took how long, for the report of a rollout.
  returned: success
  type: list
  elements: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import HaproxyError, Runtime
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy_drain import Change
from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import Cancelled
from ansible_collections.trtllm.serving.plugins.module_utils._runner_cancel import Cancellation


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "str", "default": "/run/haproxy/admin.sock"},
            "backend": {"type": "str", "required": True},
            "server": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "ready", "maint", "query"], "default": "query"},
            "timeout": {"type": "float", "default": 120},
            "wait_interval": {"type": "float", "default": 0.1},
            "on_timeout": {"type": "str", "choices": ["fail", "continue"], "default": "fail"},
            "min_up": {"type": "int", "default": 0},
            "expect_healthy": {"type": "bool", "default": False},
            "state_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    state = params["state"]
    known: Dict[str, Any] = {}
    with Cancellation() as cancellation:
        try:
            change = Change(
                Runtime(params["socket"], cancellation.check),
                params["backend"],
                params["server"],
                timeout=params["timeout"],
                interval=max(0.02, params["wait_interval"]),
                state_file=params["state_file"] or "",
                check=cancellation.check,
                result=known,
            )
            if state == "query":
                change.query()
            elif module.check_mode:
                change.predict(state, params["min_up"])
            elif state == "drained":
                change.drain(params["on_timeout"], params["min_up"])
            elif state == "ready":
                change.ready(params["expect_healthy"])
            else:
                change.maint(params["min_up"])
        except (HaproxyError, Cancelled) as exc:
            module.fail_json(msg=str(exc), **known)
    if known.get("expired"):
        module.warn(
            "%s/%s has %d requests still after %g s, and is taken for drained"
            % (params["backend"], params["server"], known["sessions"] + known["queued"], params["timeout"])
        )
    where = "%s/%s at %s" % (params["backend"], params["server"], params["socket"])
    after = {"drained": "drain", "ready": "ready", "maint": "maint"}.get(state)
    module.exit_json(
        **known,
        stages=[{"name": state, "offset_s": 0.0, "seconds": known["waited_s"]}],
        diff={
            "before": "%s\n" % known["before_state"],
            "after": "%s\n" % (after if known["changed"] and after else known["before_state"]),
            "before_header": where,
            "after_header": where,
        },
    )


if __name__ == "__main__":
    main()
