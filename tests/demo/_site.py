# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks as a user runs them, and the host that they leave, as the operating system shows it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHM = Path("/dev/shm")
TIMEOUT = 300
FIRST_PORT = 10000
BODY = {"text_input": "What is machine learning?", "max_tokens": 16, "bad_words": "", "stop_words": ""}
# Settings of the caller's shell must not decide what is tested.
FOREIGN = re.compile(r"ANSIBLE_|TRTLLM_|MAKE|MFLAGS|PYTHONPATH$|MOLECULE_|(HTTP|GRPC|METRICS)_PORT$|ARGS$|QUESTION$")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    if os.environ.get("ANSIBLE_HOME"):
        kept["ANSIBLE_HOME"] = os.environ["ANSIBLE_HOME"]
    return {**kept, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1", **more}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different, below those that the kernel gives to outgoing connections."""
    last = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    span = last - FIRST_PORT
    found: list[int] = []
    # Two runs at once begin at different places, each with room for what it asks.
    for step in range(span):
        port = FIRST_PORT + (os.getpid() * 97 + step) % span
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no %d free ports between %d and %d" % (count, FIRST_PORT, last))


def tree(folder: Path) -> dict[str, Any]:
    """Everything below a folder: kind, mode, size, time and target; empty when it is not there."""
    found: dict[str, Any] = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            info = path.lstat()
            target = os.readlink(path) if path.is_symlink() else ""
            found[str(path.relative_to(folder))] = (info.st_mode, info.st_size, info.st_mtime_ns, target)
    return found


@dataclass
class Recap:
    """What one run of a playbook did on its one host."""

    returncode: int
    output: str
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, done: subprocess.CompletedProcess[str]) -> Recap:
        counts = {}
        for line in re.findall(r"(?m)^localhost +: (.*)$", done.stdout):
            counts = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line)}
        return cls(done.returncode, done.stdout + done.stderr, counts)

    def succeeded(self) -> Recap:
        assert self.returncode == 0, self.output
        assert self.counts.get("failed") == 0 and self.counts.get("unreachable") == 0, self.output
        return self


@dataclass
class Site:
    """One trtllm_home with its ports."""

    home: Path
    http: int
    grpc: int
    metrics: int
    arguments: str = "-e mixtral_engine_weights_source=tiny"

    def make(self, target: str, **variables: str) -> Recap:
        settings = {
            "HTTP_PORT": str(self.http), "GRPC_PORT": str(self.grpc), "METRICS_PORT": str(self.metrics),
            "ARGS": self.arguments, **variables,
        }  # fmt: skip
        done = subprocess.run(
            ["make", "--no-print-directory", target, *("%s=%s" % item for item in settings.items())],
            cwd=ROOT, env=environment(TRTLLM_HOME=str(self.home)), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False,
        )  # fmt: skip
        return Recap.of(done)

    # --- the host ---

    def pid(self, name: str = "triton") -> int:
        return int((self.home / "run" / (name + ".pid")).read_text("ascii"))

    def shared_memory(self) -> list[str]:
        """The server's shared memory; its names begin with a hash of the home."""
        prefix = "trtllm_%s_" % hashlib.sha256(os.fsencode(self.home.resolve())).hexdigest()[:8]
        return sorted(path.name for path in SHM.glob(prefix + "*"))

    def processes(self) -> dict[int, str]:
        """Every process that works below the home."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    folder = os.readlink(entry / "cwd")
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                except OSError:
                    continue
                if folder == str(self.home) or folder.startswith(str(self.home) + "/"):
                    found[int(entry.name)] = command
        return found

    def open_ports(self) -> list[int]:
        found = []
        for port in (self.http, self.grpc, self.metrics):
            with socket.socket() as probe:
                probe.settimeout(5)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    found.append(port)
        return found

    def config(self, model: str) -> Path:
        return self.home / "current" / "model_repo" / model / "config.pbtxt"

    # --- the server ---

    def request(self, path: str, body: Mapping[str, Any]) -> HTTPResponse:
        connection = HTTPConnection("localhost", self.http, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse()

    def generate(self, model: str = "ensemble", **fields: Any) -> str:
        answer = self.request("/v2/models/%s/generate" % model, {**BODY, **fields})
        text = answer.read().decode("utf-8")
        assert answer.status == 200, text
        return str(json.loads(text)["text_output"])

    def events(self, model: str = "ensemble", **fields: Any) -> Iterator[str]:
        answer = self.request("/v2/models/%s/generate_stream" % model, {**BODY, "stream": True, **fields})
        assert answer.status == 200, answer.read()
        for line in answer:
            if line.startswith(b"data:"):
                yield str(json.loads(line[5:])["text_output"])


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    """The condition's value as soon as it is true; an error of the network or the file system is not yet."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            value = condition()
        except (OSError, ValueError, HTTPException, AssertionError) as error:
            value, what_now = None, "%s (%s)" % (what, error)
        else:
            what_now = what
        if value:
            return value
        assert time.monotonic() < deadline, "not within %d s: %s" % (timeout, what_now)
        time.sleep(0.05)
