# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts with real servers on this machine, and runs of ansible-playbook that are cut off where it is wanted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.trtllm.serving.tests.demo._site import environment, wait_until

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / ".work" / "test" / "resume"
TIMEOUT = 300


def descendants(pid: int) -> list[int]:
    """Every process below one, the nearest first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def command(pid: int) -> str:
    try:
        return Path("/proc/%d/cmdline" % pid).read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


class Play:
    """A run of ansible-playbook under way."""

    def __init__(self, argv: list[str], env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, cwd=BASE, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self.orphans: list[int] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def reaches(self, text: str) -> Play:
        wait_until(lambda: text in self.output or self.process.poll() is not None, text, TIMEOUT)
        assert text in self.output, self.output
        return self

    def kill(self, everything: bool = False) -> None:
        """SIGKILL to the controller; with everything also to its tasks on the hosts, as if the power failed."""
        # Stopped first, so that it starts nothing more meanwhile.
        self.process.send_signal(signal.SIGSTOP)
        below = descendants(self.process.pid)
        self.orphans = [] if everything else below
        for pid in [self.process.pid, *(below if everything else [])]:
            end(pid)
        self.process.wait(30)

    def end(self, code: int | None = 0) -> Play:
        self.process.wait(TIMEOUT)
        self._reader.join(30)
        assert code is None or self.process.returncode == code, self.output
        return self


@dataclass
class Hosts:
    """Hosts of one pool, each with a home, ports and a server of its own."""

    ports: dict[str, tuple[int, int, int]]
    variables: dict[str, Any] = field(default_factory=dict)
    plays: list[Play] = field(default_factory=list)

    def home(self, host: str) -> Path:
        return BASE / host

    def prepare(self) -> None:
        """Makes the homes. The environment of Triton, which takes a minute, is linked from one that is there."""
        made = [ROOT / ".work" / "host", *(self.home(host) for host in self.ports)]
        for host in self.ports:
            home = self.home(host)
            home.mkdir(parents=True, exist_ok=True)
            (home / "run" / "lease.json").unlink(missing_ok=True)
            for other in made:
                if other != home and (other / "venvs").is_dir() and not (home / "venvs").exists():
                    shutil.copytree(other / "venvs", home / "venvs", symlinks=True, copy_function=os.link)
                    (home / "venv").symlink_to(os.readlink(other / "venv"))

    def inventory(self) -> Path:
        hosts = {
            host: {
                "trtllm_home": str(self.home(host)), "triton_serve_http_port": http, "triton_serve_grpc_port": grpc,
                "triton_serve_metrics_port": metrics,
            }
            for host, (http, grpc, metrics) in self.ports.items()
        }  # fmt: skip
        common = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
            "tensorrtllm_backend_build_method": "reference", "mixtral_engine_weights_source": "tiny",
            "triton_pool_report_dir": str(BASE / "runs"), "triton_pool_max_unavailable": 1, **self.variables,
        }  # fmt: skip
        path = BASE / "hosts.yml"
        path.write_text(yaml.safe_dump({"trtllm": {"hosts": hosts, "vars": common}}), "utf-8")
        return path

    def start(self, playbook: str, *arguments: str, **variables: Any) -> Play:
        env = environment(
            ANSIBLE_COLLECTIONS_PATH=os.environ.get("TRTLLM_TEST_COLLECTIONS") or str(ROOT / ".collections"),
            ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_LOCALHOST_WARNING="false",
        )  # fmt: skip
        argv = [
            sys.executable, "-m", "ansible", "playbook", "-i", str(self.inventory()), "-e", json.dumps(variables),
            "trtllm.serving." + playbook, *arguments,
        ]  # fmt: skip
        self.plays.append(Play(argv, env))
        return self.plays[-1]

    def sweep(self) -> None:
        """Ends what killed controllers have left: their workers wait for an answer that never comes."""
        for pid in (pid for play in self.plays for pid in play.orphans):
            if str(BASE / "hosts.yml") in command(pid):
                end(pid)

    def play(self, playbook: str, *arguments: str, code: int | None = 0, **variables: Any) -> Play:
        return self.start(playbook, *arguments, **variables).end(code)

    # --- what is on a host ---

    def link(self, host: str, name: str = "current") -> str:
        return Path(os.readlink(self.home(host) / name)).name

    def pid(self, host: str) -> int:
        return int((self.home(host) / "run" / "triton.pid").read_text("ascii"))

    def record(self, host: str, name: str) -> dict[str, Any]:
        path = self.home(host) / "run" / (name + ".json")
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return found

    def ledger(self, host: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home(host) / "ledger.jsonl").read_text("utf-8").splitlines()]
