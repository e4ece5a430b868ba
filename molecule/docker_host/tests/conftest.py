# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The scenario's host, over SSH as an administrator reaches it, and playbooks run against it as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml

ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
SCENARIO = os.environ["MOLECULE_SCENARIO_NAME"]
NAME = "trtllm-test-" + SCENARIO
HOME = "/opt/trtllm"
CONTAINER = "trtllm-triton"
INVENTORIES = (ROOT / "molecule" / "docker_host" / "inventory" / (SCENARIO + ".yml"), EPHEMERAL / "testbed")
FOREIGN = re.compile(r"ANSIBLE_|TRTLLM_|MOLECULE_|PYTEST_")


def until(what: str, condition: Callable[[], Any], timeout: float = 120) -> Any:
    """The condition's value as soon as it is true; an error, as of a host that is not there, is not yet."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            value, why = condition(), ""
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            value, why = None, " (%s)" % error
        if value:
            return value
        assert time.monotonic() < deadline, "not within %d s: %s%s" % (timeout, what, why)
        time.sleep(0.2)


@dataclass
class Recap:
    """What a run of a playbook did on the host."""

    returncode: int
    output: str

    @property
    def counts(self) -> dict[str, int]:
        lines = re.findall(r"(?m)^host +: (.*)$", self.output)
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", lines[-1])} if lines else {}

    @property
    def messages(self) -> list[str]:
        """The one line of each task that failed."""
        return re.findall(r"(?m)^ +msg: (.*)$", self.output) + re.findall(r"(?m)^\[ERROR\]: (.*)$", self.output)

    def succeeded(self) -> Recap:
        assert self.returncode == 0, self.output
        return self

    def unchanged(self) -> Recap:
        assert self.succeeded().counts.get("changed") == 0, self.output
        return self

    def failed(self, *said: str) -> Recap:
        """Failed, and each text is in what it says."""
        assert self.returncode not in (0, 4), self.output
        told = " ".join(self.output.split())
        for text in said:
            assert text in told, "%r is not in:\n%s" % (text, self.output)
        return self


@dataclass
class Playbooks:
    """Runs playbooks with the scenario's inventory."""

    ephemeral = EPHEMERAL

    def argv(self, name: str, *arguments: str, **variables: Any) -> list[str]:
        extra = ["--extra-vars", json.dumps(variables)] if variables else []
        inventories = ["--inventory=%s" % path for path in INVENTORIES]
        return ["ansible-playbook", *inventories, *extra, *arguments, str(ROOT / "playbooks" / (name + ".yml"))]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
        return {
            **kept, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(EPHEMERAL / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1",
        }  # fmt: skip

    def run(self, name: str, *arguments: str, **variables: Any) -> Recap:
        done = subprocess.run(
            self.argv(name, *arguments, **variables), cwd=ROOT, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, timeout=600,
        )  # fmt: skip
        return Recap(done.returncode, done.stdout)

    @contextmanager
    def running(self, name: str, **variables: Any) -> Iterator[subprocess.Popen[str]]:
        """A run that goes on meanwhile; ended by force if the test fails."""
        process = subprocess.Popen(
            self.argv(name, **variables), cwd=ROOT, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def playbooks() -> Playbooks:
    return Playbooks()


@pytest.fixture(scope="session")
def address() -> str:
    data = yaml.safe_load((EPHEMERAL / "testbed" / "hosts.yml").read_text("utf-8"))
    return str(data["trtllm"]["hosts"]["host"]["ansible_host"])


@pytest.fixture(scope="session")
def host(address: str) -> Any:
    config = EPHEMERAL / "ssh_config"
    config.write_text(
        "Host *\n  User root\n  IdentityFile %s\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        "  LogLevel ERROR\n  ConnectTimeout 10\n" % (EPHEMERAL / "id_ed25519"),
        "utf-8",
    )
    return testinfra.get_host("ssh://root@%s" % address, ssh_config=str(config))


class Outside:
    """This machine, on which the host, its repositories and its registry are containers."""

    scenario = SCENARIO
    host = NAME + "-host"
    repo = NAME + "-repo"
    until = staticmethod(until)

    @staticmethod
    def docker(*arguments: str) -> str:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def outside() -> Outside:
    return Outside()


@dataclass
class Server:
    """What serves on the host."""

    host: Any
    name = CONTAINER

    def inspect(self) -> dict[str, Any]:
        done = self.host.run("docker inspect %s", CONTAINER)
        assert done.rc == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def log(self) -> str:
        return str(self.host.run("docker logs --tail 60 %s 2>&1", CONTAINER).stdout)

    def ask(self, model: str = "ensemble", port: int = 8000) -> str:
        """An answer of the model, asked on the host: the server listens on loopback."""
        body = {"text_input": "What is machine learning?", "max_tokens": 8, "bad_words": "", "stop_words": ""}
        done = self.host.run(
            "curl --silent --show-error --fail --max-time 30 -X POST http://127.0.0.1:%d/v2/models/%s/generate -d '%s'"
            % (port, model, json.dumps(body))
        )
        assert done.rc == 0, done.stderr
        text = str(json.loads(done.stdout)["text_output"])
        assert text, done.stdout
        return text


@pytest.fixture(scope="session")
def server(host: Any) -> Server:
    return Server(host)
