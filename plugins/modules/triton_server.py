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
  - Runs C(tritonserver) detached from the generation that C(HOME/current) points to, under supervisord or in a
    container.
  - A container is made from C(launch.json) of its generation, which holds all of it, so that a switch back restores it
    whole. Docker's restart policy keeps it up, also after the host was rebooted. Under C(mpirun) the server of rank 0
    is asked to end first, so that it can finish its requests.
  - A switch stops the old server, points C(current) and C(previous), and starts the new one. Signals that come
    meanwhile wait until the server is started, so that a host is never left with half a switch.
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
    details: O(state=settled) writes a line to the ledger each time.
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
      - V(started) has the server run from O(generation).
      - V(settled) records that O(generation) passed its gate, and removes old generations above O(keep). Until then a
        generation does not count as one that served, also when the run breaks off.
      - V(restored) goes back to O(before) after a gate that failed.
      - V(stopped) stops it, and removes its container. V(absent) stops it and removes everything that the collection
        made below O(home), with O(images) the images of its generations too.
    type: str
    choices: [started, settled, restored, stopped, absent]
    default: started
  generation:
    description: An id below C(HOME/generations), or V(current) or V(previous).
    type: str
    default: current
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
    - What C(current) and C(previous) named, and which generation ran, before the task.
    - A current generation that never passed its gate is left out in favour of the one before it.
  returned: always
  type: dict
  sample: {"current": "0123456789abcdef", "previous": null, "running": "0123456789abcdef"}
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

import contextlib
import signal
import time
from pathlib import Path
from typing import Any, Dict, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError
from ansible_collections.trtllm.serving.plugins.module_utils._generation import prune
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, LockError
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import BaseServer, ServerError


def started(server: BaseServer, params: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    before = server.before()
    if check_mode and not server.known(params["generation"]):
        # Only check mode comes here before the generation is assembled.
        return {"changed": True, "generation": None}
    generation = server.resolve(params["generation"])
    running = server.running()
    changed = running != generation or server.links()["current"] != generation or params["restart"]
    if changed and not check_mode:
        server.prepare(generation)
        begun = time.monotonic()
        server.switch(generation, before, params["stop_timeout"])
        server.ledger(
            "switch", generation, "started", time.monotonic() - begun, before=before["current"], reason=params["reason"]
        )
    return {"changed": changed, "generation": generation}


def settled(server: BaseServer, params: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    if check_mode:
        return {"changed": False, "generation": server.running(), "pruned": []}
    server.settle()
    server.ledger("gate", params["generation"], "passed", 0.0)
    pruned = prune(server.home, params["keep"])
    return {"changed": bool(pruned), "generation": server.running(), "pruned": pruned}


def restored(server: BaseServer, params: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    before = params["before"]
    if not before or not server.switching():
        return again(server, params, check_mode)
    failed = server.links()["current"]
    if check_mode:
        return {"changed": True, "generation": before.get("current")}
    begun = time.monotonic()
    wanted = {name: before.get(name) for name in ("current", "previous")}
    target = server.restore(wanted, params["stop_timeout"])
    server.ledger("restore", target, "failed %s" % failed, time.monotonic() - begun, reason=params["reason"])
    return {"changed": True, "generation": target}


def again(server: BaseServer, params: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    """No switch was begun: nothing was touched, but for a server that was stopped for something else."""
    current = server.before()["current"]
    if not params["restart"] or current is None or server.running() == current:
        return {"changed": False, "generation": server.running()}
    if not check_mode:
        begun = time.monotonic()
        server.start(server.resolve(current))
        server.ledger("restore", current, "started again", time.monotonic() - begun, reason=params["reason"])
    return {"changed": True, "generation": current}


def stopped(server: BaseServer, params: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    alive = server.alive()
    if not check_mode and (alive or server.home.is_dir()):
        begun = time.monotonic()
        server.stop(params["stop_timeout"])
        if alive:
            # Stopping and removing is the way out of a full disk, so the line in the ledger may be lost.
            with contextlib.suppress(OSError):
                server.ledger("stop", server.links()["current"], "stopped", time.monotonic() - begun)
    return {"changed": alive, "generation": None}


def absent(server: BaseServer, params: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    result = stopped(server, params, check_mode)
    images = params["images"]
    outside = (server.leftovers() if images else []) if check_mode else server.clear(images)
    removed = server.own() if check_mode else server.remove()
    result["changed"] = bool(removed or outside) or result["changed"]
    return result


class Absent(BaseServer):
    """A server in a container on a host that has no Docker yet: only check mode comes there."""

    def running(self) -> Optional[str]:
        return None

    def alive(self) -> bool:
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
            state=dict(type="str", default="started", choices=["started", "settled", "restored", "stopped", "absent"]),
            generation=dict(type="str", default="current"),
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
    actions = {"started": started, "settled": settled, "restored": restored, "stopped": stopped, "absent": absent}
    action = actions[params["state"]]
    server = server_of(params, module.check_mode)
    try:
        before: Dict[str, Optional[str]] = {**server.before(), "running": server.running()}
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
                result = action(server, params, False)
    except (ServerError, ArtifactError, LockError, OSError) as exc:
        module.fail_json(msg=str(exc), before=before)
    result["before"] = before
    result["duration_s"] = round(time.monotonic() - begun, 3)
    result["diff"] = {
        "before": "%s\n" % (before["running"] or "not running"),
        "after": "%s\n" % (result["generation"] or "not running"),
    }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
