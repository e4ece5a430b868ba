# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small trtllm_home with finished artefacts, and modules run as Ansible runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _server
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import making
from ansible_collections.trtllm.serving.plugins.module_utils._generation import Plan, make, plan

MODULES = "ansible_collections.trtllm.serving.plugins.modules."

# Stands for supervisord: leaves a supervisor that works in the home and ends its server when it is told to.
FAKE_PYTHON = (
    """#!%s -IS
import os, signal, sys, time
if os.path.exists("refuse"):
    sys.exit("Error: Cannot open an HTTP server")
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
server = os.fork()
if not server:
    time.sleep(60)
    os._exit(0)
def end(number, frame):
    os.kill(server, signal.SIGTERM)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
with open("started", "a") as stream:
    stream.write("%%d %%d " %% (os.getpid(), server))
for name, pid in (("supervisord", os.getpid()), ("triton", server)):
    with open("run/%%s%%s.pid" %% (name, os.environ["TRTLLM_SLOT"]), "w") as stream:
        stream.write(str(pid))
time.sleep(60)
"""
    % sys.executable
)


@dataclass
class Home:
    """A trtllm_home whose server is a pair of sleeping processes."""

    path: Path
    plans: dict[str, Plan] = field(default_factory=dict)

    def generation(self, text: str) -> str:
        """A finished generation with one file of this text; its id."""
        wanted = plan(self.path, {"model_repo/m/config.pbtxt": text}, {"engine": "e"})
        make(wanted)
        self.plans[wanted.id] = wanted
        return wanted.id

    def link(self, **names: str) -> None:
        for name, generation in names.items():
            (self.path / name).symlink_to(os.path.join("generations", generation))

    def links(self) -> dict[str, str | None]:
        return _server.Server(self.path).links()

    def started(self) -> list[int]:
        """Every process that stood for a server, living or not."""
        try:
            return [int(word) for word in (self.path / "started").read_text().split()]
        except FileNotFoundError:
            return []

    def ledger(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.path / "ledger.jsonl").read_text().splitlines()]
        except FileNotFoundError:
            return []


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    path = tmp_path / "home"
    (path / "venv" / "bin").mkdir(parents=True)
    python = path / "venv" / "bin" / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    monkeypatch.setattr(_server, "SHM", tmp_path)
    home = Home(path)
    yield home
    for pid in home.started():
        subprocess.run(["kill", "-9", str(pid)], capture_output=True, check=False)


@pytest.fixture(name="engine")
def _engine(tmp_path: Path) -> Path:
    """An engine directory as trtllm_build leaves it."""
    path = tmp_path / "engines" / "engine"
    with making(path, "engine", {"tensorrt_llm": "1.1.0"}) as made:
        config = {
            "version": "1.1.0",
            "pretrained_config": {"mapping": {"world_size": 2}},
            "build_config": {"max_batch_size": 4},
        }
        (made.path / "config.json").write_text(json.dumps(config))
        for rank in range(2):
            (made.path / ("rank%d.engine" % rank)).write_bytes(b"x" * 10)
    return path


Run = Callable[..., dict[str, Any]]


@pytest.fixture(name="module")
def _module() -> Run:
    def run(name: str, *, check: bool = False, **args: Any) -> dict[str, Any]:
        given = {"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check, "_ansible_remote_tmp": "/tmp"}}
        done = subprocess.run(
            [sys.executable, "-m", MODULES + name], input=json.dumps(given), capture_output=True, text=True,
            check=False, timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run
