# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host made of recorded files and answers, and an engine that is a socket."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _docker_engine_api as api
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine import Finding, Survey, Wish
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_host import Host

DATA = Path(__file__).parent / "data"
OS_RELEASE = {
    "debian": 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "ubuntu": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nPRETTY_NAME="Ubuntu 24.04"\n',
    "ol8": 'ID="ol"\nID_LIKE="fedora"\nVERSION_ID="8.10"\nPRETTY_NAME="Oracle Linux Server 8.10"\n',
    "ol9": 'ID="ol"\nID_LIKE="fedora"\nVERSION_ID="9.5"\nPRETTY_NAME="Oracle Linux Server 9.5"\n',
    "rocky": 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\nPRETTY_NAME="Rocky Linux 9.4"\n',
    "fedora": 'ID=fedora\nVERSION_ID=41\nPRETTY_NAME="Fedora Linux 41"\n',
    "suse": 'ID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.6"\nPRETTY_NAME="openSUSE Leap 15.6"\n',
}


@dataclass
class Recorded:
    """A host; what is not set is not there."""

    root: Path
    packages: dict[str, str] = field(default_factory=dict)
    # what `rpm -e --test` and `apt-get -s remove` say
    removal: str = ""
    candidates: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, api.Done] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)

    def file(self, name: str, text: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def process(self, pid: int, *argv: str) -> None:
        self.file("/proc/%d/cmdline" % pid, "\0".join(argv) + "\0")

    def system(self, name: str) -> None:
        self.file("/etc/os-release", OS_RELEASE[name])

    def gpus(self, driver: str = "570.172.08", count: int = 2) -> None:
        self.file(
            "/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  %s  May 2025\n" % driver
        )
        for number in range(count):
            self.file(
                "/proc/driver/nvidia/gpus/0000:%02x:00.0/information" % number,
                "Model: \t\t NVIDIA A100\nGPU UUID: \t GPU-%d\n" % number,
            )

    def command(self, argv: Sequence[str]) -> api.Done:
        words = list(argv)
        self.asked.append(words)
        if words[0] in self.answers:
            return self.answers[words[0]]
        if words[0] == "dpkg-query":
            rows = ["%s\t%s\tinstalled" % pair for pair in self.packages.items() if pair[0] in words]
            return api.Done(
                1, "\n".join([*rows, "gone\t1.0\tconfig-files"]), "dpkg-query: no packages found matching x"
            )
        if words[:2] == ["rpm", "-q"]:
            rows = ["%s\t%s" % (name, self.packages[name]) if name in self.packages else
                    "package %s is not installed" % name for name in words[4:]]  # fmt: skip
            return api.Done(1, "\n".join(rows), "")
        if words[:3] == ["rpm", "-e", "--test"]:
            lines = [line for line in self.removal.splitlines() if line.split("|")[0] not in words]
            return api.Done(1 if lines else 0, "", "\n".join(line.partition("|")[2] for line in lines))
        if words[0] == "apt-get":
            return api.Done(0, self.removal, "")
        if words[:2] == ["apt-cache", "madison"]:
            rows = [
                " %s | %s | http://r bookworm/stable" % (words[2], each) for each in self.candidates.get(words[2], [])
            ]
            return api.Done(0, "\n".join(rows), "")
        return api.Done(127, "", "%s: not found" % words[0])

    def survey(self, **wish: Any) -> Finding:
        return Survey(Wish(**wish), Host(str(self.root)), self.command).look()


@pytest.fixture(name="host")
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setattr(api, "systemd", lambda: True)
    monkeypatch.setattr(api, "unit", api.Unit)
    monkeypatch.setattr(api, "process", lambda path=api.PID_FILE: None)
    host = Recorded(tmp_path / "root")
    host.system("ol9")
    return host


@dataclass
class FakeEngine:
    """An engine's API, and a process with its name."""

    path: Path
    info: dict[str, Any]
    volumes: list[Any] = field(default_factory=list)
    reloads: bool = True
    hups: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return str(self.path / "s")

    @property
    def pid_file(self) -> str:
        return str(self.path / "pid")


# Has dockerd's name, and notes what it is told.
DOCKERD = """
import signal, sys
def hup(number, frame):
    with open(sys.argv[1], "a") as stream:
        stream.write("h")
signal.signal(signal.SIGHUP, hup)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture(name="engine")
def _engine() -> Iterator[FakeEngine]:
    path = Path(tempfile.mkdtemp(prefix="e"))
    engine = FakeEngine(path, json.loads((DATA / "info-20.10.json").read_text()))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body: Any = {"/info": engine.info, "/volumes": {"Volumes": engine.volumes}, "/_ping": "OK"}.get(self.path)
            if self.path.startswith("/events"):
                body = {"Actor": {"Attributes": {"debug": "true"}}} if engine.reloads else None
            text = (json.dumps(body) + "\n" if body is not None else "").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def address_string(self) -> str:
            return "test"

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = socketserver.ThreadingUnixStreamServer(engine.socket, Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    engine.process = subprocess.Popen(
        ["dockerd", "-c", DOCKERD, str(path / "hups")], executable=sys.executable, stdout=subprocess.PIPE
    )
    assert engine.process.stdout is not None and engine.process.stdout.readline()
    (path / "pid").write_text(str(engine.process.pid))
    yield engine
    engine.process.kill()
    engine.process.wait()
    engine.process.stdout.close()
    server.shutdown()
    server.server_close()
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _no_docker_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert os.environ.get("DOCKER_HOST") is None
