# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules of a host do in these tests: a host is a directory, a server a word in its state.json.

They write down what they were asked, refuse what would cost a request on a real host (a stop of a server that a
balancer still leads requests to, a host given back to it without a server), and fail or cut the connection where a test
wants it.
The options are those of the real modules; another one is refused as there.

Files: ROOT/hosts/NAME/{state.json,behave.json}, ROOT/balancer.json, ROOT/asked.jsonl, ROOT/down/NAME.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

STATE = {"current": None, "previous": None, "running": None, "staged": None, "unfinished": None, "lease": None}


class Refused(Exception):
    pass


@contextlib.contextmanager
def exclusive(root: Path) -> Any:
    with open(root / "lock", "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else default


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True), "utf-8")


class Host:
    def __init__(self, root: Path, name: str, params: dict[str, Any], check: bool) -> None:
        self.root, self.name, self.params, self.check = root, name, params, check
        self.path = root / "hosts" / name
        self.state = {**STATE, **read(self.path / "state.json", {})}

    def out(self) -> bool:
        """Whether no balancer leads requests here."""
        found = read(self.root / "balancer.json", {}).get(self.name)
        return found is None or found != "ready"

    def save(self) -> None:
        if not self.check:
            write(self.path / "state.json", self.state)

    def wanted(self) -> str:
        name = self.params["generation"]
        return str(self.state.get(name) if name in ("current", "previous") else name)

    # --- the modules ---

    def host_preflight(self) -> dict[str, Any]:
        state = self.state
        return {
            "changed": False,
            "host": {
                "current": state["current"], "previous": state["previous"], "running": state["running"], "slot": "a",
                "ready": state["running"] is not None and state["running"] == state["current"], "gpu": None,
                "unfinished": state["unfinished"], "staged": state["staged"] and {"id": state["staged"]},
                "lease": state["lease"] or {"run_id": "this", "held": True}, "python": "auto_silent", "problems": [],
                "generations": state.get("generations"),
            },
        }  # fmt: skip

    def run_lease(self) -> dict[str, Any]:
        return {"changed": False, "released": True}

    def triton_generate(self) -> dict[str, Any]:
        if self.state["running"] is None:
            raise Refused("nothing listens")
        return {"changed": False, "text": "yes"}

    def triton_ready(self) -> dict[str, Any]:
        self.triton_generate()
        return {"changed": False, "ready_s": 0.1, "timeline": []}

    def triton_gate(self) -> dict[str, Any]:
        self.triton_generate()
        return {"changed": False, "ready_s": 0.1, "timeline": [], "answers": [], "gpu": {}, "bake": {}, "stages": []}

    def triton_server(self) -> dict[str, Any]:
        state, before = self.state, {name: self.state[name] for name in ("current", "previous", "running")}
        result = getattr(self, self.params["state"])(state)
        self.save()
        return {"changed": True, "before": before, "slot": "a", "stages": [], "duration_s": 0.1, **result}

    def intended(self, state: dict[str, Any]) -> dict[str, Any]:
        state["unfinished"] = {"run": self.params.get("run"), "target": self.wanted()}
        return {"generation": state["running"]}

    def started(self, state: dict[str, Any]) -> dict[str, Any]:
        wanted = self.wanted()
        if wanted == state["running"] == state["current"] and not self.params["restart"]:
            return {"changed": False, "generation": wanted}
        if not self.check and state["running"] and not self.out():
            raise Refused("a server was stopped that gets requests")
        if wanted != state["current"]:
            state.update(current=wanted, previous=wanted if self.params.get("rollback") else state["current"])
        state["running"] = wanted
        return {"generation": wanted}

    def restored(self, state: dict[str, Any]) -> dict[str, Any]:
        before = self.params["before"] or {}
        if not before:
            return {"changed": False, "generation": state["running"]}
        state.update(current=before["current"], previous=before["previous"], running=before["current"])
        return {"generation": before["current"]}

    def settled(self, state: dict[str, Any]) -> dict[str, Any]:
        state["unfinished"] = None
        return {"generation": state["running"], "pruned": []}

    def stopped(self, state: dict[str, Any]) -> dict[str, Any]:
        state["running"] = None
        return {"generation": None}

    def haproxy_server(self) -> dict[str, Any]:
        known = read(self.root / "balancer.json", {})
        if self.name not in known:
            raise Refused("no server %s" % self.name)
        before, wanted = known[self.name], self.params["state"]
        after = {"query": before, "drained": "drain"}.get(wanted, wanted)
        if wanted == "ready" and self.state["running"] is None:
            raise Refused("%s has no server and would get requests" % self.name)
        if not self.check:
            write(self.root / "balancer.json", {**known, self.name: after})
        return {"changed": before != after, "server": self.name, "before_state": before, "state": after, "sessions": 0}


def main(name: str, options: str) -> None:
    module = AnsibleModule(argument_spec=json.loads(options), supports_check_mode=True)
    params = module.params
    if name == "haproxy_server":
        root, host = Path(params["socket"]).parent, str(params["server"])
    elif params.get("home"):
        root, host = Path(params["home"]).parents[1], Path(params["home"]).name
    else:
        # The gate and its parts know an address alone: the host's port is its number.
        found = str(params.get("url") or params.get("metrics_url"))
        root = Path(os.environ["TRTLLM_TEST_ROOT"])
        host = read(root / "ports.json", {})[found.rpartition(":")[2].strip("/")]
    what = name + ("." + params["state"] if params.get("state") and name != "run_lease" else "")
    with exclusive(root):
        double = Host(root, host, params, module.check_mode)
        with open(root / "asked.jsonl", "a") as stream:
            asked = {"host": host, "what": what, "generation": params.get("generation"), "check": module.check_mode}
            stream.write(json.dumps({**asked, "balancer": read(root / "balancer.json", {})}) + "\n")
        behaviour = read(double.path / "behave.json", {})
        wish = behaviour.pop(what + "!", None) or behaviour.get(what)
        write(double.path / "behave.json", behaviour)
        if wish == "lose":
            (root / "down" / host).touch()
        try:
            if wish and wish != "lose":
                raise Refused(wish)
            result = getattr(double, name)()
        except Refused as error:
            module.fail_json(msg=str(error))
    module.exit_json(**result)
