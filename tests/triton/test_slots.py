# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two servers on one host: the real Triton under the real supervisor, in the role's own files."""

from __future__ import annotations

import json
import os
import signal
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _server_state as state
from ansible_collections.trtllm.serving.plugins.module_utils._generation import make, plan
from ansible_collections.trtllm.serving.plugins.module_utils._server import SHM, Server, command_line
from ansible_collections.trtllm.serving.tests.demo._site import free_ports
from ansible_collections.trtllm.serving.tests.triton._small import venv

pytestmark = pytest.mark.triton

ROLE = Path(__file__).resolve().parents[2] / "roles" / "triton_serve"
OFFSET = 7
# Says which generation answers, after as many seconds as it is asked for; "die" ends its process.
MODEL = """
import os, time
import numpy
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0].decode()
            if text == "die":
                os._exit(1)
            if text != "0":
                open("busy", "w").close()
                time.sleep(float(text))
            output = numpy.array([b"NAME"], dtype=object)
            responses.append(pb.InferenceResponse([pb.Tensor("text_output", output)]))
        return responses
"""
CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] } ]
"""


class Host:
    """A home whose generations are one small model each."""

    def __init__(self, home: Path) -> None:
        environment = venv().resolve()
        site = next(environment.glob("lib/python3.*/site-packages"))
        self.home = home
        self.triton = site / "pytriton" / "tritonserver"
        self.libraries = [str(site / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        home.mkdir()
        (home / "venv").symlink_to(environment)
        python = home / "backends" / "python"
        python.mkdir(parents=True)
        for entry in (self.triton / "backends" / "python").iterdir():
            (python / entry.name).symlink_to(entry)
        stub = "triton_python_backend_stub"
        if not (python / stub).exists():
            minor = site.parent.name[len("python") :]
            (python / stub).symlink_to(self.triton / "python_backend_stubs" / minor / stub)
        # Both slots' are free, and stay so: no outgoing connection gets one. Six different ones.
        free = set(free_ports(8 * OFFSET))
        self.ports: list[int] = []
        while len(self.ports) < 3:
            first = min(port for port in free if port + OFFSET in free)
            self.ports.append(first)
            free -= {first, first + OFFSET}
        self.server = Server(home)

    def generation(self, name: str, **probe: int) -> str:
        http, grpc, metrics = self.ports
        url = "http://127.0.0.1:%d" % http
        launch = {
            "argv": [
                str(self.triton / "bin" / "tritonserver"), "--model-repository=current/model_repo",
                "--backend-directory=backends", "--disable-auto-complete-config", "--exit-timeout-secs=20",
                "--http-address=127.0.0.1", "--http-port=%d" % http, "--grpc-address=127.0.0.1",
                "--grpc-port=%d" % grpc, "--metrics-address=127.0.0.1", "--metrics-port=%d" % metrics,
            ],
            "env": {"LD_LIBRARY_PATH": ":".join(self.libraries), "PATH": str(self.home / "venv" / "bin")},
            "prepend": ["PATH", "LD_LIBRARY_PATH"], "surge_port_offset": str(OFFSET),
            # As patient as the role's own: a busy machine is no reason to end a server.
            "probe": {"url": url, "model": "m", "prompt": "0", "interval": 5, "timeout": 30, "failures": 3,
                      "startup_timeout": 120, **probe},
        }  # fmt: skip
        supervisor = (ROLE / "templates" / "supervisord.conf.j2").read_text("utf-8")
        wanted = plan(
            self.home,
            {
                "model_repo/m/config.pbtxt": CONFIG,
                "model_repo/m/1/model.py": MODEL.replace("NAME", name),
                "bin/launch.py": (ROLE / "files" / "launch.py").read_text("utf-8"),
                "bin/probe.py": (ROLE / "files" / "probe.py").read_text("utf-8"),
                "supervisord.conf": supervisor.replace("{{ triton_serve_stop_timeout }}", "30"),
                "launch.json": json.dumps(launch),
            },
            {"engine": "e"},
        )
        make(wanted)
        return wanted.id

    def ask(self, slot: str, text: str = "0", timeout: float = 30) -> str:
        url = state.url_of(self.server.launch(os.path.basename(os.readlink(self.home / "current"))), slot)
        body = json.dumps({"text_input": text}).encode()
        with urllib.request.urlopen(f"{url}/v2/models/m/generate", body, timeout=timeout) as answer:
            return str(json.load(answer)["text_output"])

    def says(self, slot: str) -> str:
        """Which generation answers there; nothing when nobody listens, or it cannot answer."""
        try:
            return self.ask(slot)
        except TimeoutError:
            raise
        except (OSError, ValueError, KeyError):
            return ""

    def told(self) -> str:
        """What the servers, their supervisors and probes have logged, for whom a test fails."""
        logs = sorted((self.home / "logs").iterdir())
        return "".join(f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-3000:]}\n" for path in logs)

    def serve(self, generation: str) -> None:
        self.server.switch(generation, self.server.before(), 30)
        self.server.settle()


def wait_for(condition: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "home")
    try:
        yield host
        print(host.told())  # shown by pytest if the test fails
    finally:
        host.server.stop(5)


def test_a_surge_serves_beside_the_old_server_and_then_in_its_place(host: Host) -> None:
    old, new = host.generation("old"), host.generation("new")
    host.serve(old)
    wait_for(lambda: host.says("a") == "old")
    assert host.server.surge(new, 30) is True and host.server.surge(new, 30) is False
    wait_for(lambda: host.says("b") == "new")
    assert host.says("a") == "old", "the old one goes on"
    assert host.server.running() == old and host.server.surged() == new and host.server.slot == "a"
    answers: list[str] = []
    slow = threading.Thread(target=lambda: answers.append(host.ask("a", "3")))
    slow.start()
    wait_for((host.home / "busy").exists)
    beside = host.server.server_pid("b")
    host.server.promote(new, host.server.before(), 30)
    slow.join()
    assert answers == ["old"], "its last request was answered"
    assert host.says("a") == "" and host.says("b") == "new"
    assert host.server.server_pid("b") == beside, "it is the server that was gated"
    assert host.server.slot == "b" and host.server.running() == new and host.server.links() == {
        "current": new, "previous": old,
    }  # fmt: skip
    assert [stage["name"] for stage in host.server.stages][-2:] == ["promote", "stop"]
    assert (host.home / "logs" / "triton-b.log").stat().st_size > 0
    assert not list(SHM.glob(host.server.shm_prefix("a") + "*")) and list(SHM.glob(host.server.shm_prefix("b") + "*"))
    # And back, in place there and by the next surge.
    host.serve(old)
    wait_for(lambda: host.says("b") == "old")
    assert host.server.slot == "b" and host.says("a") == ""
    host.server.surge(new, 30)
    wait_for(lambda: host.says("a") == "new")
    host.server.promote(new, host.server.before(), 30)
    assert host.server.slot == "a" and host.says("a") == "new" and host.says("b") == ""


def test_what_is_dropped_leaves_the_old_server_alone(host: Host) -> None:
    old, new = host.generation("old"), host.generation("new")
    host.serve(old)
    wait_for(lambda: host.says("a") == "old")
    host.server.surge(new, 30)
    wait_for(lambda: host.says("b") == "new")
    before = host.server.server_pid()
    assert host.server.drop(30) is True and host.server.drop(30) is False
    assert host.says("b") == "" and host.says("a") == "old", "with its Python processes"
    assert host.server.server_pid() == before and not list(SHM.glob(host.server.shm_prefix("b") + "*"))
    assert not (host.home / "run" / "surge.json").exists()


def test_the_supervisor_of_the_second_slot_starts_the_same_again(host: Host) -> None:
    old, new = host.generation("old"), host.generation("new", interval=1, failures=1)
    host.serve(old)
    host.server.surge(new, 30)
    wait_for(lambda: host.says("b") == "new")
    first = host.server.server_pid("b")
    assert first is not None
    words = command_line(first)
    assert "--model-repository=generations/%s/model_repo" % new in words
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: host.server.server_pid("b") not in (None, first))
    wait_for(lambda: host.says("b") == "new")
    assert host.says("a") == "old"
    # A model's process that has died is seen by the probe of its own slot.
    second, other = host.server.server_pid("b"), host.server.server_pid("a")
    with pytest.raises((OSError, urllib.error.HTTPError)):
        host.ask("b", "die")
    wait_for(lambda: host.server.server_pid("b") not in (None, second))
    wait_for(lambda: host.says("b") == "new")
    assert host.server.server_pid("a") == other
    assert "ending pid %d" % (second or 0) in (host.home / "logs" / "probe-b.log").read_text()
