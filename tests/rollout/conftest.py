# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet of directories, rolled out by the real playbooks and roles in real runs of ansible-playbook.

The collection of these tests is the checkout, with other modules in place of those that look at a host or touch its
server: double.py says what they do. The connection is that of ssh, so a lost host is as lost as a real one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOUBLES = (
    "host_preflight", "run_lease", "triton_server", "triton_gate", "triton_ready", "triton_generate", "haproxy_server",
)  # fmt: skip
MODULE = """\
#!/usr/bin/python
from ansible_collections.trtllm.serving.plugins.module_utils._double import main

OPTIONS = r'''%s'''

if __name__ == "__main__":
    main(%r, OPTIONS)
"""
PORT = 20000


def options_of(name: str) -> dict[str, Any]:
    """The argument_spec that a module documents; tests elsewhere make sure that it is the one it has."""
    path = ROOT / "plugins" / "modules" / (name + ".py")
    spec = importlib.util.spec_from_file_location("documented_" + name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def part(options: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for option, said in options.items():
            kept = ("type", "elements", "choices", "default", "required", "aliases")
            found[option] = {key: said[key] for key in kept if key in said}
            if "suboptions" in said:
                found[option]["options"] = part(said["suboptions"])
        return found

    return part(yaml.safe_load(module.DOCUMENTATION).get("options") or {})


def overlay(base: Path) -> Path:
    """The checkout as it is now as a collection, but for the doubles."""
    collection = base / "ansible_collections" / "trtllm" / "serving"
    for name in ("plugins", "roles", "playbooks", "meta"):
        shutil.copytree(ROOT / name, collection / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "galaxy.yml", collection)
    shutil.copy(HERE / "double.py", collection / "plugins" / "module_utils" / "_double.py")
    for name in DOUBLES:
        text = MODULE % (json.dumps(options_of(name)), name)
        (collection / "plugins" / "modules" / (name + ".py")).write_text(text, "utf-8")
    plays = [{"ansible.builtin.import_playbook": name + ".yml"} for name in ("preflight", "rollout", "report")]
    (collection / "playbooks" / "roll.yml").write_text(yaml.safe_dump(plays), "utf-8")
    return base


@dataclass
class Result:
    code: int
    output: str
    recap: dict[str, dict[str, int]]
    outcomes: dict[str, dict[str, Any]]

    def outcome(self, *hosts: str) -> str:
        return " ".join(str(self.outcomes.get(host, {}).get("outcome")) for host in hosts)


@dataclass
class Fleet:
    """Hosts in pools, all at the first of them, with a new generation staged."""

    base: Path
    collections: Path
    pools: dict[str, list[str]]
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.base / "root"
        (self.root / "down").mkdir(parents=True)
        for name in self.hosts:
            python = self.root / "hosts" / name / "venv" / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
            self.state(name, current="a" * 16, previous="9" * 16, running="a" * 16, staged="b" * 16)
        self._write("balancer.json", dict.fromkeys(self.hosts, "ready"))
        self._write("ports.json", {str(PORT + 10 * number): name for number, name in enumerate(self.hosts)})

    @property
    def hosts(self) -> list[str]:
        return [host for hosts in self.pools.values() for host in hosts]

    def _write(self, name: str, value: Any) -> None:
        (self.root / name).write_text(json.dumps(value), "utf-8")

    def read(self, name: str) -> Any:
        return json.loads((self.root / name).read_text("utf-8"))

    def state(self, host: str, **changes: Any) -> dict[str, Any]:
        path = self.root / "hosts" / host / "state.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if changes:
            found.update(changes)
            path.write_text(json.dumps(found), "utf-8")
        return found

    def behave(self, host: str, **wishes: str) -> None:
        """What a host shall do when it is asked something: a text is how it fails, lose cuts its connection."""
        text = json.dumps({name.replace("__", "."): wish for name, wish in wishes.items()})
        (self.root / "hosts" / host / "behave.json").write_text(text, "utf-8")

    def cut(self, *hosts: str) -> None:
        for host in hosts:
            (self.root / "down" / host).touch()

    def mend(self, *hosts: str) -> None:
        for host in hosts:
            (self.root / "down" / host).unlink(missing_ok=True)
            (self.root / "hosts" / host / "behave.json").unlink(missing_ok=True)

    def inventory(self) -> Path:
        hosts: dict[str, Any] = {}
        for number, name in enumerate(self.hosts):
            port = PORT + 10 * number
            hosts[name] = {
                "trtllm_home": str(self.root / "hosts" / name), "triton_serve_http_port": port,
                "triton_serve_grpc_port": port + 1, "triton_serve_metrics_port": port + 2,
                "triton_pool": next(pool for pool, each in self.pools.items() if name in each),
            }  # fmt: skip
        for pool, values in self.variables.items():
            for name in self.pools.get(pool, [pool]):
                hosts[name].update(values)
        common = {
            "ansible_connection": "ssh", "ansible_ssh_executable": str(HERE / "ssh"), "ansible_user": "nobody",
            "ansible_python_interpreter": sys.executable, "triton_serve_load_balancer": "haproxy",
            "triton_serve_haproxy": [{"host": "lb", "socket": str(self.root / "lb.sock")}],
            "triton_pool_report_dir": str(self.base / "runs"), **self.common,
        }  # fmt: skip
        path = self.base / "hosts.yml"
        groups = {"trtllm": {"hosts": hosts}, "balancers": {"hosts": {"lb": {}}}}
        path.write_text(yaml.safe_dump({"all": {"vars": common, "children": groups}}), "utf-8")
        return path

    def roll(self, *arguments: str) -> Result:
        """redeploy.yml without the play that only judges variables."""
        return self.play("roll", *arguments)

    def play(self, playbook: str, *arguments: str, python: str = sys.executable) -> Result:
        (self.root / "asked.jsonl").write_text("", "utf-8")
        out = self.base / "outcomes.json"
        out.unlink(missing_ok=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        env.update(
            ANSIBLE_COLLECTIONS_PATH=str(self.collections), ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
            ANSIBLE_HOME=str(self.base / "ansible"), ANSIBLE_FORKS="4", ANSIBLE_PIPELINING="true",
            ANSIBLE_CALLBACK_PLUGINS=str(HERE / "callback"), ANSIBLE_CALLBACKS_ENABLED="outcomes",
            ANSIBLE_NOCOLOR="1", ANSIBLE_SSH_RETRIES="0", ANSIBLE_LOCALHOST_WARNING="false",
            TRTLLM_TEST_DOWN=str(self.root / "down"), TRTLLM_TEST_ROOT=str(self.root), TRTLLM_TEST_OUTCOMES=str(out),
        )  # fmt: skip
        book = self.collections / "ansible_collections" / "trtllm" / "serving" / "playbooks" / (playbook + ".yml")
        done = subprocess.run(
            [python, "-m", "ansible", "playbook", "-i", str(self.inventory()), str(book), *arguments],
            cwd=self.base, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        said = json.loads(out.read_text("utf-8")) if out.is_file() else {"recap": {}, "outcomes": {}}
        return Result(done.returncode, done.stdout, said["recap"], said["outcomes"])

    # --- what is asserted ---

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "asked.jsonl").read_text("utf-8").splitlines()]

    def asked_of(self, host: str, prefix: str = "") -> list[str]:
        return [each["what"] for each in self.asked() if each["host"] == host and each["what"].startswith(prefix)]

    def touched(self) -> list[str]:
        """Hosts whose server was touched, or which were taken out, in the order of the first such question."""
        harmless = {"host_preflight", "run_lease", "haproxy_server.query", "triton_generate", "triton_ready"}
        return list(dict.fromkeys(each["host"] for each in self.asked() if each["what"] not in harmless))

    def most_out(self, pool: str) -> int:
        """The most hosts of a pool that the balancer led no requests to at a time."""
        return max(
            (sum(each["balancer"].get(host) != "ready" for host in self.pools[pool]) for each in self.asked()),
            default=0,
        )

    def current(self, *hosts: str) -> str:
        return " ".join(str(self.state(host)["running"] or "-")[0] for host in hosts)

    def service(self, *hosts: str) -> str:
        balancer = self.read("balancer.json")
        return " ".join(balancer[host] for host in hosts)


@pytest.fixture(name="collections", scope="session")
def _collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return overlay(tmp_path_factory.mktemp("collections"))


@pytest.fixture(name="make_fleet")
def _make_fleet(tmp_path: Path, collections: Path) -> Any:
    def make(hosts: int = 4, pools: dict[str, list[str]] | None = None, **common: Any) -> Fleet:
        named = pools or {"chat": ["h%d" % number for number in range(1, hosts + 1)]}
        values = {"triton_pool_" + name: value for name, value in common.items()}
        return Fleet(tmp_path, collections, named, common=values)

    return make
