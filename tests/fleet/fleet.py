# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the scenario's tests use: the fleet as its containers show it from outside, playbooks, and the load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
FULL = os.environ.get("TRTLLM_TEST_FLEET", "full") == "full"
NAME = os.environ.get("TRTLLM_TEST_BED", "trtllm-test-fleet")
HOME = "/opt/trtllm"
INVENTORY = ROOT / "molecule" / "fleet" / "inventory" / ("full.yml" if FULL else "short.yml")
SETTINGS = EPHEMERAL / "settings"
RUNS = EPHEMERAL / "runs"
FOREIGN = re.compile(r"ANSIBLE_|TRTLLM_|MOLECULE_|PYTEST_")
# All that is sent in the phases in which no request may fail.
WANTED = 10_000 if FULL else 1_000

# Seconds that a run may take until it is where it is wanted.
PATIENCE = 400


def until(what: str, condition: Callable[[], Any], timeout: float = 120) -> Any:
    """The condition's value as soon as it is true; an error, as of a host that is not there, is not yet."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            value, why = condition(), ""
        except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            value, why = None, " (%s)" % error
        if value:
            return value
        assert time.monotonic() < deadline, "not within %d s: %s%s" % (timeout, what, why)
        time.sleep(0.1)


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text("ascii", "replace").rpartition(")")[2].split()[1])
    found, left = [], [pid]
    while left:
        mine = [child for child, parent in parents.items() if parent == left[0]]
        found += mine
        left = left[1:] + mine
    return found


@dataclass
class Recap:
    """What a run of a playbook did."""

    returncode: int
    output: str

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        found = {}
        for host, text in re.findall(r"(?m)^(\w+) +: (ok=.*)$", self.output):
            found[host] = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}
        return found

    @property
    def changed(self) -> set[str]:
        return {host for host, counts in self.counts.items() if counts["changed"]}

    def succeeded(self) -> Recap:
        assert self.returncode == 0, self.output
        return self

    def failed(self, *said: str) -> Recap:
        """Failed in an orderly way, and each text is in what it says."""
        assert self.returncode not in (0, -signal.SIGKILL), self.output
        told = " ".join(self.output.split())
        for text in said:
            assert text in told, "%r is not in:\n%s" % (text, self.output)
        return self


class Run:
    """One ansible-playbook, which may go on meanwhile; it leads a process group of its own."""

    def __init__(self, name: str, *arguments: str, **variables: Any) -> None:
        kept = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
        environment = {
            **kept, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(EPHEMERAL / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        SETTINGS.mkdir(exist_ok=True)
        (SETTINGS / "hosts.yml").touch()
        inventories = (INVENTORY, EPHEMERAL / "testbed" / "hosts.yml", SETTINGS / "hosts.yml")
        extra = {"triton_pool_report_dir": str(RUNS), **variables}
        argv = [
            "ansible-playbook", *("--inventory=%s" % path for path in inventories), "--extra-vars", json.dumps(extra),
            *arguments, str(ROOT / "playbooks" / (name + ".yml")),
        ]  # fmt: skip
        self.before = runs()
        self.log = EPHEMERAL / "playbook.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip

    @property
    def folder(self) -> Path | None:
        """Where this run keeps its journal, once it does."""
        new = sorted(set(runs()) - set(self.before))
        return RUNS / new[-1] if new else None

    def events(self) -> list[dict[str, Any]]:
        """What its journal says so far; a line that is being written is not there yet."""
        path = self.folder / "events.jsonl" if self.folder else None
        if path is None or not path.is_file():
            return []
        lines = path.read_text("utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def saw(self, stage: str, event: str = "start", host: str = "") -> bool:
        return any(
            found["stage"] == stage and found["event"] == event and host in ("", found.get("host"))
            for found in self.events()
        )

    def kill(self) -> None:
        """As the power of the controller would fail: no process of it is left, nothing is cleaned up."""
        if self.process.poll() is not None:
            return
        # Its workers have sessions of their own, and would end their tasks.
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, timeout: float = 600) -> Recap:
        try:
            code = self.process.wait(timeout)
        finally:
            self.kill()
        return Recap(code, self.log.read_text("utf-8", "replace"))


def runs() -> list[str]:
    return sorted(path.name for path in RUNS.iterdir() if path.is_dir()) if RUNS.is_dir() else []


def play(name: str, *arguments: str, **variables: Any) -> Recap:
    return Run(name, *arguments, **variables).wait()


def killed(stage: str, host: str) -> None:
    """A run of which nothing is left as soon as this stage of this host has begun."""
    run = Run("site")
    try:
        until("%s of %s has begun" % (stage, host), lambda: run.saw(stage, host=host), PATIENCE)
    finally:
        run.kill()


@dataclass
class Fleet:
    pools: dict[str, list[str]]

    @property
    def hosts(self) -> list[str]:
        return [host for hosts in self.pools.values() for host in hosts]

    @staticmethod
    def container(host: str) -> str:
        return "%s-%s" % (NAME, host)

    def on(self, host: str, *argv: str, check: bool = True) -> str:
        return docker("exec", self.container(host), *argv, check=check)

    def generation(self, host: str, link: str = "current") -> str:
        return Path(self.on(host, "readlink", "%s/%s" % (HOME, link))).name

    def generations(self) -> dict[str, str]:
        return {host: self.generation(host) for host in self.hosts}

    def pids(self, pool: str = "") -> dict[str, str]:
        """Of the server's supervisor: another one where a run has stopped the server, not where it died by itself."""
        hosts = self.pools[pool] if pool else self.hosts
        return {host: self.on(host, "cat", HOME + "/run/supervisord.pid", check=False) for host in hosts}

    def configure(self, **pools: dict[str, Any]) -> None:
        """The pools' variables from now on, beside those of the scenario; nothing for none."""
        SETTINGS.mkdir(exist_ok=True)
        found = {"trtllm": {"children": {pool: {"vars": given} for pool, given in pools.items()}}}
        (SETTINGS / "hosts.yml").write_text(json.dumps(found) if pools else "", "utf-8")

    def settled(self, pool: str) -> str:
        """The one generation that all of the pool serve, with nothing unfinished on any of them."""
        found = {self.generation(host) for host in self.pools[pool]}
        assert len(found) == 1, found
        left = [host for host in self.pools[pool] if self.on(host, "ls", HOME + "/run/rollout.json", check=False)]
        assert not left, "a rollout is unfinished on %s" % left
        assert set(self.states(pool).values()) == {"UP"}, self.states(pool)
        return found.pop()

    def states(self, pool: str) -> dict[str, str]:
        """What the balancer says of each server of the pool."""
        return {server: status for server, status in balancer_states() if server in self.pools[pool]}


def balancer_states() -> list[tuple[str, str]]:
    """Name and status of every server, from the balancer's own statistics."""
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        " s.sendall(b'show stat\\n'); sys.stdout.write(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    lines = docker("exec", NAME + "-lb", "python3", "-c", script).splitlines()
    names = lines[0].lstrip("# ").split(",")
    rows = [dict(zip(names, line.split(","))) for line in lines[1:] if line]
    return [(row["svname"], row["status"]) for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")]


def deaths(hosts: list[str]) -> dict[str, list[str]]:
    """What the supervisor of each host says of servers that ended without being told to."""
    found = {}
    for host in hosts:
        log = docker("exec", "%s-%s" % (NAME, host), "cat", HOME + "/logs/supervisord.log", check=False)
        found[host] = re.findall(r"(?m)^.*exited: triton .*not expected.*$", log)
    return found


class Unanswered(Exception):
    """Ends a test at once: what follows would only take longer to say the same."""


@dataclass
class Load:
    """The client of all pools, while something is done to them."""

    out: Path
    perfect: bool
    hosts: list[str]
    # Servers that had died by themselves before, by host.
    died: dict[str, list[str]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text("utf-8"))
        if self.perfect and found["failed"]:
            # No rollout's doing, and another thing to look for.
            new = {host: lines[len(self.died[host]) :] for host, lines in deaths(self.hosts).items()}
            told = ["the server of %s died: %s" % (host, line) for host, lines in new.items() for line in lines]
            raise Unanswered("\n".join([*told, json.dumps(found, indent=1)]))
        return found

    def more(self, count: int) -> None:
        """That many further requests of each pool are answered."""
        before = {name: target["answered"] for name, target in self.summary()["targets"].items()}
        until(
            "%d more answers" % count,
            lambda: all(
                target["answered"] >= before[name] + count for name, target in self.summary()["targets"].items()
            ),
        )

    def texts(self, pool: str) -> set[str]:
        return set(self.summary()["targets"][pool]["texts"])


@dataclass
class Client:
    address: str
    ports: dict[str, int]
    hosts: list[str]
    arguments: list[str] = field(default_factory=list)
    answered: int = 0
    number: int = 0

    @contextmanager
    def load(self, perfect: bool = True, rate: float = 15) -> Iterator[Load]:
        """Requests to every pool from before until after; perfect wants an answer to each of them."""
        self.number += 1
        out = EPHEMERAL / ("load-%d.json" % self.number)
        out.unlink(missing_ok=True)
        targets = ["--target=%s=http://%s:%d" % (pool, self.address, port) for pool, port in self.ports.items()]
        argv = [sys.executable, str(ROOT / "tests" / "fleet" / "load.py"), "--out", str(out), "--rate", str(rate)]
        died = deaths(self.hosts) if perfect else {}
        process = subprocess.Popen([*argv, *self.arguments, *targets], text=True, stdin=subprocess.DEVNULL)
        load = Load(out, perfect, self.hosts, died)
        try:
            until("the load has begun", lambda: load.summary()["answered"] > 0)
            load.more(20)
            yield load
            load.more(20)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        found = load.summary()
        assert found["ended"] and found["sent"] == found["answered"] + found["failed"], found
        if perfect:
            self.answered += found["answered"]


class Watch:
    """Looks at the balancer all the while: how few servers of each pool were up at once, and which had been out."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.fewest = {pool: len(hosts) for pool, hosts in fleet.pools.items()}
        self.out: list[str] = []
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self) -> None:
        while not self.ending.wait(1):
            states = dict(balancer_states())
            for pool, hosts in self.fleet.pools.items():
                # Of a surge it is one of two servers.
                down = [host for host in hosts if "UP" not in (states[host], states.get(host + "-b"))]
                self.fewest[pool] = min(self.fewest[pool], len(hosts) - len(down))
                self.out += [host for host in down if host not in self.out]

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self.ending.set()
        self.thread.join()
