# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's nvidia-smi, Docker Engine, /proc and /sys, as files and small programs."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._gpu import Gpu, Log, parse_log

FIXTURES = Path(__file__).parent / "fixtures"
MODULES = "ansible_collections.trtllm.serving.plugins.modules."

# Answers the two questions that are asked, as the driver's own program does, and refuses every other.
SMI = """#!%s -IS
import sys
QUERY = ["--query-gpu=uuid,compute_cap", "--format=csv,noheader"]
if sys.argv[1:] == ["-q", "-x"]:
    sys.stdout.write(open(%r, encoding="utf-8").read())
    sys.exit(%d)
if sys.argv[1:] == QUERY:
    sys.stdout.write(%r)
    sys.exit(0 if %r else 2)
sys.exit("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.")
"""


def fixture(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


def log(name: str) -> Log:
    return parse_log(fixture(name + ".xml"))


def gpus(name: str) -> list[Gpu]:
    return log(name).gpus


Install = Callable[..., Path]


@pytest.fixture(name="smi")
def _smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts an nvidia-smi with this answer first on the PATH."""

    def install(answer: str, rc: int = 0, capabilities: str = "") -> Path:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        program = directory / "nvidia-smi"
        invalid = 'Field "compute_cap" is not a valid field to query.\n'
        program.write_text(
            SMI % (sys.executable, str(FIXTURES / answer), rc, capabilities or invalid, bool(capabilities))
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", "%s%s%s" % (directory, os.pathsep, os.environ["PATH"]))
        return program

    return install


class Docker:
    """A Docker Engine that answers from a table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Any] = {
            "/version": {"Version": "28.5.1", "Components": [{"Name": "Engine"}]},
            "/info": {
                "CgroupDriver": "systemd", "Runtimes": {"runc": {}, "nvidia": {}}, "DockerRootDir": str(path.parent),
                "SecurityOptions": ["name=seccomp,profile=builtin"],
            },
            "/containers/json": [],
            "/images/json": [],
        }  # fmt: skip
        self.asked: list[str] = []

    def hold(self, image: str) -> None:
        self.answers["/images/json"].append({"Id": "sha256:0", "RepoTags": [image]})


@pytest.fixture(name="docker")
def _docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    docker = Docker(tmp_path / "docker.sock")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            docker.asked.append(self.path)
            answer = docker.answers.get(self.path.partition("?")[0])
            body = json.dumps({"message": "no such thing"} if answer is None else answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *unused: Any) -> None:
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    monkeypatch.setenv("DOCKER_HOST", "unix://%s" % docker.path)
    server = Server(str(docker.path), Handler)
    try:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield docker
        server.shutdown()
    finally:
        server.server_close()


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
