#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, stop and switch the Triton server of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: triton_server
short_description: Start, stop and switch the Triton server of a host
version_added: 0.1.0
description:
  - Runs C(tritonserver) detached from a generation, the one that C(HOME/current) points to, under supervisord or in a
    container.
  - A container is made from C(launch.json) of its generation, which holds all of it, so that a switch back restores it
    whole. Docker's restart policy keeps it up, also after the host was rebooted. Under C(mpirun) the server of rank 0
    is asked to end first, so that it can finish its requests.
  - A switch stops the old server, points C(current) and C(previous), and starts the new one. Signals that come
    meanwhile wait until the server is started, so that a host is never left with half a switch.
  - A host has two slots for servers, V(a) and V(b). One of them is active. In the other one a surge starts the next
    generation beside the old one, on ports that are higher by C(surge_port_offset) of C(launch.json) (100 without it),
    and in a container of its own, named C(CONTAINER-b) in slot V(b), with the GPUs after those of slot V(a). Once it is
    promoted its slot is the active one, also after a restart of the host; the next surge goes back to the other.
  - Each switch is a line in C(HOME/ledger.jsonl).
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: O(state=intended) and O(state=settled) say nothing of the records that they write and remove.
options:
  home:
    description: Absolute path below which everything is kept.
    type: path
    required: true
  runtime:
    description: What the server runs in, V(embedded) (under supervisord) or V(docker).
    type: str
    choices: [embedded, docker]
    default: embedded
  container:
    description: Name of the server's container; for O(runtime=docker).
    type: str
    default: trtllm-triton
  state:
    description:
      - V(started) has the server run from O(generation), in the active slot.
      - V(intended) records in C(HOME/run/rollout.json) that the host is going to be switched to O(generation), before
        it is taken out of service for it. V(settled) removes the record, so that a rollout that broke off is seen.
      - V(surged) starts O(generation) in the free slot beside the server that is in service, which is left alone.
      - V(promoted) makes the server that was V(surged) the host's, and then stops the old one. V(dropped) stops what
        was V(surged) instead.
      - V(settled) records that O(generation) passed its gate, ends what a surge that broke off has left, removes old
        generations above O(keep), and gives back the lease of O(run). Until then a generation does not count as one
        that served, also when the run breaks off.
      - V(restored) goes back to O(before) after a gate that failed.
      - V(stopped) stops every server, and removes its container. V(absent) stops them and removes everything that the
        collection made below O(home), with O(images) the images of its generations too.
    type: str
    choices: [started, intended, surged, promoted, dropped, settled, restored, stopped, absent]
    default: started
  generation:
    description: An id below C(HOME/generations), or V(current) or V(previous).
    type: str
    default: current
  slot:
    description:
      - Where O(generation) is started. V(auto) is the active slot, with O(state=surged) the free one. With
        O(state=started) another slot than the active one becomes the active one.
    type: str
    choices: [auto, a, b]
    default: auto
  rollback:
    description:
      - Whether O(state=started) and O(state=promoted) go back. C(previous) then names O(generation) too, so that a
        second rollback changes nothing.
    type: bool
    default: false
  run:
    description:
      - Identity of this run, as M(trtllm.serving.host_preflight) returned it with the host's lease. A run that has lost
        the host to another one is refused.
    type: str
    default: ""
  restart:
    description:
      - Restart a server that already runs from O(generation).
      - With O(state=restored), start the current generation again where it was stopped before any switch.
    type: bool
    default: false
  before:
    description:
      - What RV(before) of the switch was; for O(state=restored). Nothing is done when no switch was begun, unless
        O(restart) is set and the server does not run.
    type: dict
  reason:
    description: Why the gate failed, or why the server is started again; kept in the ledger.
    type: str
    default: ""
  images:
    description: Whether O(state=absent) removes the images of the generations from the engine.
    type: bool
    default: false
  keep:
    description: How many generations are kept; current and previous always are.
    type: int
    default: 3
  stop_timeout:
    description: Seconds that the server may take to finish its requests when it is stopped.
    type: int
    default: 60
requirements:
  - docker and requests, for O(runtime=docker)
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Serve a generation
  trtllm.serving.triton_server:
    home: /opt/trtllm
    generation: 0123456789abcdef

- name: Serve the previous one again
  trtllm.serving.triton_server:
    home: /opt/trtllm
    generation: previous

- name: Serve a generation in a container
  trtllm.serving.triton_server:
    home: /opt/trtllm
    generation: 0123456789abcdef
    runtime: docker
    container: trtllm-triton
  vars:
    ansible_python_interpreter: /opt/trtllm/venv/bin/python

- name: Start a generation beside the one in service
  trtllm.serving.triton_server:
    home: /opt/trtllm
    generation: 0123456789abcdef
    state: surged

- name: Have it serve in place of the old one, which is stopped
  trtllm.serving.triton_server:
    home: /opt/trtllm
    generation: 0123456789abcdef
    state: promoted

- name: Stop serving
  trtllm.serving.triton_server:
    home: /opt/trtllm
    state: stopped
"""

RETURN = r"""
generation:
  description: Generation that the server runs from after the task; null when it does not run.
  returned: always
  type: str
before:
  description:
    - What C(current) and C(previous) named, which generation ran, and in which slot, before the task.
    - A current generation that never passed its gate is left out in favour of the one before it.
  returned: always
  type: dict
  sample: {"current": "0123456789abcdef", "previous": null, "running": "0123456789abcdef", "slot": "a"}
slot:
  description: Slot that the task was about, of V(surged) the new server's, otherwise the active one.
  returned: always
  type: str
  sample: a
url:
  description: Where the server of RV(generation) is asked in that slot; null where its C(launch.json) does not say.
  returned: always
  type: str
  sample: http://127.0.0.1:8000
http_port:
  description: Its port for HTTP, on the host; null where it is not known.
  returned: always
  type: int
  sample: 8000
metrics_port:
  description: Its port for Prometheus metrics, on the host; null where it is not known.
  returned: always
  type: int
  sample: 8002
stages:
  description: What was done, in its order.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "stop", "offset_s": 0.01, "seconds": 1.2}, {"name": "start", "offset_s": 1.21, "seconds": 0.4}]
released:
  description: Whether the lease of O(run) was given back.
  returned: when O(state=settled)
  type: bool
pruned:
  description: Generations that were removed.
  returned: when O(state=settled)
  type: list
  elements: str
duration_s:
  description: Seconds from the first change to the started server.
  returned: always
  type: float
"""

import signal
import time
from pathlib import Path
from typing import Any, Dict, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, LockError
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server
from ansible_collections.trtllm.serving.plugins.module_utils._server_actions import ACTIONS, FENCED, fence, place
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import BaseServer, ServerError


class Absent(BaseServer):
    """A server in a container on a host that has no Docker yet: only check mode comes there."""

    def running(self, slot: Optional[str] = None) -> Optional[str]:
        return None

    def alive(self, slot: Optional[str] = None) -> bool:
        return False


def server_of(params: Dict[str, Any], check_mode: bool) -> BaseServer:
    home = Path(params["home"])
    if params["runtime"] == "embedded":
        return Server(home)
    # Only with a container; what runs without one does not wait for it.
    from ansible_collections.trtllm.serving.plugins.module_utils._docker_server import DockerServer

    if check_mode:
        try:
            client = _containers.connect()
        except _containers.ContainerError:
            return Absent(home)
        return DockerServer(home, params["container"], lambda: client)
    return DockerServer(home, params["container"])


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="path", required=True),
            runtime=dict(type="str", default="embedded", choices=["embedded", "docker"]),
            container=dict(type="str", default="trtllm-triton"),
            state=dict(type="str", default="started", choices=list(ACTIONS)),
            generation=dict(type="str", default="current"),
            slot=dict(type="str", default="auto", choices=["auto", "a", "b"]),
            rollback=dict(type="bool", default=False),
            run=dict(type="str", default=""),
            restart=dict(type="bool", default=False),
            before=dict(type="dict"),
            reason=dict(type="str", default=""),
            images=dict(type="bool", default=False),
            keep=dict(type="int", default=3),
            stop_timeout=dict(type="int", default=60),
        ),
        supports_check_mode=True,
    )
    params = module.params
    action = ACTIONS[params["state"]]
    server = server_of(params, module.check_mode)
    try:
        before: Dict[str, Optional[str]] = {**server.before(), "running": server.running(), "slot": server.slot}
    except ServerError as exc:
        module.fail_json(msg=str(exc))
    begun = time.monotonic()
    # A switch is finished once begun: a host must not be left between two generations.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        if module.check_mode or not server.home.is_dir():
            result = action(server, params, module.check_mode)
        else:
            with HostLock(server.home, "server: %s" % params["state"]):
                if params["state"] in FENCED:
                    fence(server, params)
                result = action(server, params, False)
        result.update(place(server, result))
    except (ServerError, ArtifactError, LockError, OSError) as exc:
        module.fail_json(msg=str(exc), before=before, stages=server.stages)
    result["before"] = before
    result["stages"] = server.stages
    result["duration_s"] = round(time.monotonic() - begun, 3)
    result["diff"] = {
        "before": "%s\n" % (before["running"] or "not running"),
        "after": "%s\n" % (result["generation"] or "not running"),
    }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
