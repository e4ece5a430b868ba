# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each state of module triton_server does with a host's server. In check mode nothing is done.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Dict, Optional

from ansible_collections.trtllm.serving.plugins.module_utils import _server_state as state
from ansible_collections.trtllm.serving.plugins.module_utils._generation import prune
from ansible_collections.trtllm.serving.plugins.module_utils._lock import RunLease
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import BaseServer, ServerError

Params = Dict[str, Any]
Result = Dict[str, Any]


def fence(server: BaseServer, params: Params) -> None:
    """A run that lost the host to another one must not go on with it."""
    refusal = RunLease(server.home).fenced_off(params["run"]) if params["run"] else None
    if refusal:
        raise ServerError(refusal)


def intended(server: BaseServer, params: Params, check_mode: bool) -> Result:
    generation: Optional[str] = params["generation"]
    if check_mode and not server.known(params["generation"]):
        generation = None
    else:
        generation = server.resolve(params["generation"])
    if not check_mode:
        state.begin_rollout(server.home, params["run"], generation)
    return {"changed": False, "generation": server.running()}


def started(server: BaseServer, params: Params, check_mode: bool) -> Result:
    before = server.before()
    if check_mode and not server.known(params["generation"]):
        # Only check mode comes here before the generation is assembled.
        return {"changed": True, "generation": None}
    generation = server.resolve(params["generation"])
    slot = None if params["slot"] in ("auto", server.slot) else params["slot"]
    replaced = (
        server.running() != generation
        or server.links()["current"] != generation
        or params["restart"]
        or slot is not None
    )
    # What a surge that broke off has left beside the server that is wanted.
    spare = not replaced and server.alive(state.other(server.slot))
    if check_mode:
        return {"changed": replaced or spare, "generation": generation}
    if spare:
        server.drop(params["stop_timeout"])
    if replaced:
        server.prepare(generation, slot)
        if params["run"]:
            state.begin_rollout(server.home, params["run"], generation)
        begun = time.monotonic()
        server.switch(generation, before, params["stop_timeout"], params["rollback"], slot)
        state.end_surge(server.home)
        server.ledger(
            "switch", generation, "started", time.monotonic() - begun, before=before["current"], reason=params["reason"]
        )
    return {"changed": replaced or spare, "generation": generation}


def surged(server: BaseServer, params: Params, check_mode: bool) -> Result:
    free = state.other(server.slot)
    if params["slot"] not in ("auto", free):
        raise ServerError(
            "slot %s of %s is in service: a second server can only start in slot %s" % (server.slot, server.home, free)
        )
    if check_mode and not server.known(params["generation"]):
        return {"changed": True, "generation": None, "slot": free}
    generation = server.resolve(params["generation"])
    if server.running() == generation == server.links()["current"]:
        # Promoted already, by a run that broke off after that.
        return {"changed": False, "generation": generation}
    if check_mode:
        return {"changed": server.surged() != generation, "generation": generation, "slot": free}
    server.prepare(generation, free)
    if params["run"]:
        state.begin_rollout(server.home, params["run"], generation)
    begun = time.monotonic()
    changed = server.surge(generation, params["stop_timeout"])
    if changed:
        server.ledger("surge", generation, "started", time.monotonic() - begun, slot=free, reason=params["reason"])
    return {"changed": changed, "generation": generation, "slot": free}


def promoted(server: BaseServer, params: Params, check_mode: bool) -> Result:
    if check_mode and not server.known(params["generation"]):
        return {"changed": True, "generation": None}
    generation = server.resolve(params["generation"])
    if server.running() == generation == server.links()["current"] and server.surged() != generation:
        # Done before; but the run that did it may have broken off before the old server was stopped.
        changed = server.alive(state.other(server.slot)) if check_mode else server.drop(params["stop_timeout"])
        return {"changed": changed, "generation": generation}
    if server.surged() != generation:
        raise ServerError(
            "generation %s does not run beside the server of %s (there runs %s): start it with state surged first"
            % (generation, server.home, server.surged() or "nothing")
        )
    if not check_mode:
        before = server.before()
        begun = time.monotonic()
        server.promote(generation, before, params["stop_timeout"], params["rollback"])
        server.ledger(
            "promote", generation, "in slot " + server.slot, time.monotonic() - begun, before=before["current"]
        )
    return {"changed": True, "generation": generation}


def dropped(server: BaseServer, params: Params, check_mode: bool) -> Result:
    failed = server.surged() or state.read_surge(server.home).get("generation")
    changed = server.alive(state.other(server.slot))
    if not check_mode:
        begun = time.monotonic()
        server.drop(params["stop_timeout"])
        if changed:
            server.ledger("surge", failed, "dropped", time.monotonic() - begun, reason=params["reason"])
    return {"changed": changed, "generation": server.running()}


def settled(server: BaseServer, params: Params, check_mode: bool) -> Result:
    if check_mode:
        return {"changed": False, "generation": server.running(), "pruned": [], "released": False}
    generation = server.links()["current"] if params["generation"] == "current" else params["generation"]
    # After a way back there was nothing that passed.
    passed = server.switching() or state.read_rollout(server.home).get("target") == generation
    ended = server.alive(state.other(server.slot)) and server.drop(params["stop_timeout"])
    server.settle()
    if passed:
        server.ledger("gate", generation, "passed", 0.0)
    pruned = prune(server.home, params["keep"])
    state.end_rollout(server.home)
    released = bool(params["run"]) and RunLease(server.home).release(params["run"])
    return {
        "changed": bool(pruned) or ended, "generation": server.running(), "pruned": pruned, "released": released,
    }  # fmt: skip


def restored(server: BaseServer, params: Params, check_mode: bool) -> Result:
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


def again(server: BaseServer, params: Params, check_mode: bool) -> Result:
    """No switch was begun: nothing was touched, but for a server that was stopped for something else."""
    current = server.before()["current"]
    if not params["restart"] or current is None or server.running() == current:
        return {"changed": False, "generation": server.running()}
    if not check_mode:
        begun = time.monotonic()
        with server.stage("start"):
            server.start(server.resolve(current))
        server.ledger("restore", current, "started again", time.monotonic() - begun, reason=params["reason"])
    return {"changed": True, "generation": current}


def stopped(server: BaseServer, params: Params, check_mode: bool) -> Result:
    alive = server.alive()
    if not check_mode and (alive or server.home.is_dir()):
        begun = time.monotonic()
        with server.stage("stop"):
            server.stop(params["stop_timeout"])
        state.end_surge(server.home)
        if alive:
            # Stopping and removing is the way out of a full disk, so the line in the ledger may be lost.
            with contextlib.suppress(OSError):
                server.ledger("stop", server.links()["current"], "stopped", time.monotonic() - begun)
    return {"changed": alive, "generation": None}


def absent(server: BaseServer, params: Params, check_mode: bool) -> Result:
    result = stopped(server, params, check_mode)
    images = params["images"]
    outside = (server.leftovers() if images else []) if check_mode else server.clear(images)
    removed = server.own() if check_mode else server.remove()
    result["changed"] = bool(removed or outside) or result["changed"]
    return result


ACTIONS: Dict[str, Callable[[BaseServer, Params, bool], Result]] = {
    "started": started, "intended": intended, "surged": surged, "promoted": promoted, "dropped": dropped,
    "settled": settled, "restored": restored, "stopped": stopped, "absent": absent,
}  # fmt: skip
# What switches a host, and so is refused to a run that has lost it. What ends a server may always be done.
FENCED = ("started", "intended", "surged", "promoted", "dropped", "settled", "restored")


def place(server: BaseServer, result: Result) -> Result:
    """The slot of the generation that a task is about, and where its server is asked."""
    slot = result.get("slot") or server.slot
    launch = server.launch(result["generation"]) if result["generation"] else {}
    ports = state.ports_of(launch, slot)
    return {
        "slot": slot, "url": state.url_of(launch, slot), "http_port": ports.get("http"),
        "metrics_port": ports.get("metrics"),
    }  # fmt: skip
