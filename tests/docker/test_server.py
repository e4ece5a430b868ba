# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role triton_serve with a container: the real Triton under mpirun, two ranks, and what befalls them."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import making
from ansible_collections.trtllm.serving.plugins.module_utils._docker_server import DockerServer
from ansible_collections.trtllm.serving.tests.demo._site import free_ports

NAME = "trtllm-test-server-%d" % os.getpid()
OWNER = 4321
# How far above its ports those of a second server are.
OFFSET = 100
PLAY = """
- hosts: trtllm
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: trtllm.serving.triton_serve, tasks_from: %s}
"""


def tool(*argv: object) -> None:
    env = {**os.environ, "TRTLLM_REFERENCE_RELEASE": "1.1.0"}
    subprocess.run([sys.executable, *map(str, argv)], check=True, capture_output=True, env=env, timeout=120)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral, and its engine for two ranks."""
    path = tmp_path_factory.mktemp("artefacts")
    weights, checkpoint, engine = path / "weights", path / "checkpoint", path / "engine"
    tool(REFERENCE / "tools" / "generate_tiny.py", "--output_dir", weights)
    tool(REFERENCE / "examples/llama/convert_checkpoint.py", "--model_dir", weights, "--output_dir", checkpoint,
         "--tp_size", 2, "--dtype", "float32")  # fmt: skip
    tool(REFERENCE / "bin/trtllm-build", "--checkpoint_dir", checkpoint, "--output_dir", engine, "--max_batch_size", 8,
         "--max_seq_len", 512, "--gemm_plugin", "auto")  # fmt: skip
    return path


@dataclass
class Outcome:
    rc: int
    text: str

    @property
    def changed(self) -> int:
        found = re.search(r"changed=(\d+)", self.text)
        assert found is not None, self.text
        return int(found[1])


@dataclass
class Host:
    """This machine as the one host of an inventory."""

    client: Any
    home: Path
    folder: Path
    http_port: int
    variables: dict[str, Any] = field(default_factory=dict)

    def play(self, entry: str = "main", *options: str, **variables: Any) -> Outcome:
        playbook = self.folder / (entry + ".yml")
        playbook.write_text(PLAY % entry)
        (self.folder / "vars.json").write_text(json.dumps({**self.variables, **variables}))
        inventory = self.folder / "hosts.yml"
        inventory.write_text(json.dumps({"trtllm": {"hosts": {"h1": {"ansible_connection": "local"}}}}))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory)]
        command += ["-e", "@%s" % (self.folder / "vars.json"), str(playbook), *options]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout + done.stderr)

    def serve(self, *options: str, **variables: Any) -> Outcome:
        done = self.play("main", *options, **variables)
        assert done.rc == 0, done.text
        return done

    def ask(self, model: str = "ensemble", tokens: int = 4, port: int = 0) -> str:
        body = {"text_input": "x", "max_tokens": tokens, "bad_words": "", "stop_words": ""}
        address = "http://127.0.0.1:%d/v2/models/%s/generate" % (port or self.http_port, model)
        with urllib.request.urlopen(address, data=json.dumps(body).encode(), timeout=60) as answer:
            return str(json.loads(answer.read())["text_output"])

    def stream(self, tokens: int) -> Iterator[bytes]:
        """Events with tokens, as they come; an error when the stream is cut."""
        body = {"text_input": "x", "max_tokens": tokens, "bad_words": "", "stop_words": "", "stream": True}
        address = "http://127.0.0.1:%d/v2/models/ensemble/generate_stream" % self.http_port
        with urllib.request.urlopen(address, data=json.dumps(body).encode(), timeout=60) as answer:
            yield from (line for line in answer if line.startswith(b"data:"))

    def answers(self, port: int = 0) -> bool:
        try:
            self.ask("tensorrt_llm_bls", port=port)
        except (OSError, ValueError, KeyError):
            return False
        return True

    def inspect(self, name: str = NAME) -> dict[str, Any]:
        found: dict[str, Any] = self.client.api.inspect_container(name)
        return found

    def processes(self, pattern: str) -> list[int]:
        """Process ids on this machine of the container's processes with such a command line."""
        rows = self.client.api.top(NAME, ps_args="-eo pid,args")["Processes"]
        return [int(pid) for pid, line in rows if re.search(pattern, line)]

    def generation(self) -> str:
        return os.readlink(self.home / "current").rpartition("/")[2]


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def host(
    docker_client: Any, backend_image: str, artefacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    home = tmp_path_factory.mktemp("home") / "trtllm"
    home.mkdir()
    os.chown(home, OWNER, OWNER)
    (home / "venv").symlink_to(sys.prefix)
    for kind, key in (("engine", "engines/0123456789abcdef"), ("weights", "weights/tiny@1")):
        with making(home / key, kind, {"tensorrt_llm": "1.1.0"}, home=home) as made:
            for each in (artefacts / kind).iterdir():
                shutil.copy(each, made.path / each.name)
    ports = free_ports(3)
    image = docker_client.images.get(backend_image).id
    variables = {
        "ansible_python_interpreter": sys.executable, "trtllm_home": str(home), "triton_serve_runtime": "docker",
        "triton_serve_container_name": NAME, "triton_serve_user": "%d:%d" % (OWNER, OWNER),
        "triton_serve_http_port": ports[0], "triton_serve_grpc_port": ports[1], "triton_serve_metrics_port": ports[2],
        "triton_serve_gpus": "none", "triton_serve_shm_size": "512m",
        # A sandbox may not grant memlock.
        "triton_serve_ulimits": {"stack": 67108864}, "triton_serve_mpirun_arguments": ["--oversubscribe"],
        "triton_serve_startup_timeout": 120, "triton_serve_probe_interval": 2, "triton_serve_probe_timeout": 20,
        "mixtral_engine_engine": {
            "path": str(home / "engines/0123456789abcdef"), "world_size": 2, "max_batch_size": 8, "changed": False,
        },
        "mixtral_engine_weights": {"path": str(home / "weights/tiny@1")},
        "tensorrtllm_backend_build_backend": {
            "image_id": image, "digest": image, "release": "1.1.0",
            "tritonserver": "/opt/tritonserver/bin/tritonserver",
            "models_dir": "/app/all_models/inflight_batcher_llm", "backends_dir": "", "mpirun": "mpirun",
            "python_ready": True, "root": "", "library_path": "",
        },
    }  # fmt: skip
    found = Host(docker_client, home, tmp_path_factory.mktemp("play"), ports[0], variables)
    yield found
    for container in docker_client.containers.list(all=True, filters={"name": NAME}):
        container.remove(force=True, v=True)


def test_first_deployment(host: Host) -> None:
    predicted = host.serve("--check", "--diff")
    assert predicted.changed == 2 and not (host.home / "current").exists()
    assert host.serve().changed == 2
    assert host.ask()
    again = host.serve()
    assert again.changed == 0 and host.serve("--check", "--diff").changed == 0, again.text
    launch = (host.home / "current" / "launch.json").read_text()
    assert str(host.home) not in launch and socket.gethostname() not in launch
    assert (host.home / "generations" / host.generation()).stat().st_uid == OWNER


def test_the_container_is_confined(host: Host) -> None:
    found = host.inspect()
    settings = found["HostConfig"]
    assert settings["CapDrop"] == ["ALL"] and settings["ReadonlyRootfs"] and settings["Init"]
    assert not settings["Privileged"] and settings["NetworkMode"] in ("default", "bridge")
    assert settings["RestartPolicy"]["Name"] == "unless-stopped" and found["Config"]["StopTimeout"] == 60
    container = host.client.containers.get(NAME)
    status = container.exec_run(["cat", "/proc/1/status"]).output.decode()
    assert re.search(r"CapBnd:\s+0+\n", status) and re.search(r"NoNewPrivs:\s+1\n", status)
    assert re.search(r"Uid:\s+%d\s" % OWNER, status)
    for folder in ("/", "/trtllm", "/trtllm/current", "/trtllm/engines/0123456789abcdef", "/trtllm/weights/tiny@1"):
        assert container.exec_run(["touch", folder + "/x"]).exit_code != 0, folder
    bound = {entry["HostIp"] for entries in settings["PortBindings"].values() for entry in entries}
    assert bound == {"127.0.0.1"}
    assert len(host.processes("^[^ ]*tritonserver .*--load-model=tensorrt_llm")) == 1, "one worker rank"


def test_docker_reports_it_healthy(host: Host) -> None:
    wait_for(lambda: host.inspect()["State"]["Health"]["Status"] == "healthy", "never healthy")


def test_a_dead_rank_takes_the_server_down_and_docker_brings_it_back(host: Host) -> None:
    count = host.inspect()["RestartCount"]
    (worker,) = host.processes("^[^ ]*tritonserver .*--load-model=tensorrt_llm")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: host.inspect()["RestartCount"] > count, "not started again")
    wait_for(host.answers, "no token after the restart")
    assert host.serve().changed == 0, "it serves, as it was made"


def test_a_model_that_crashed_is_seen_by_the_health_check(host: Host) -> None:
    count = host.inspect()["RestartCount"]
    wait_for(lambda: host.inspect()["State"]["Health"]["Status"] == "healthy", "never healthy")
    os.kill(host.processes("triton_python_backend_stub .*/tensorrt_llm_bls/")[0], signal.SIGKILL)
    wait_for(lambda: host.inspect()["RestartCount"] > count, "not started again")
    log = host.client.api.logs(NAME).decode()
    assert re.search(r"health check: HTTP 400 .*is not healthy", log) and "health check: ending the main process" in log
    wait_for(host.answers, "no token after the restart")


def test_a_killed_container_is_repaired_by_the_next_run(host: Host) -> None:
    host.client.containers.get(NAME).kill()
    done = host.serve()
    assert done.changed == 1 and "it was ended by signal 9" in " ".join(done.text.split())
    assert host.answers()
    last = json.loads((host.home / "ledger.jsonl").read_text().splitlines()[-2])
    assert last["stage"] == "switch" and "signal 9" in last["reason"]


def test_a_removed_or_edited_container_is_repaired(host: Host) -> None:
    host.client.api.update_container(NAME, restart_policy={"Name": "no"})
    assert "has another restart policy" in " ".join(host.serve().text.split())
    host.client.containers.get(NAME).remove(force=True)
    assert "is not there" in " ".join(host.serve().text.split()) and host.answers()


def test_a_gate_that_fails_goes_back(host: Host) -> None:
    before = host.generation()
    done = host.play(triton_serve_max_batch_size=4, triton_serve_smoke_expect="^NEVER$")
    assert done.rc != 0 and "generation %s serves again" % before in " ".join(done.text.split())
    assert host.generation() == before and host.answers()
    assert host.serve().changed == 0


def test_a_server_that_cannot_start_is_not_waited_for(host: Host) -> None:
    begun = time.monotonic()
    done = host.play(triton_serve_arguments=["--no-such-option"])
    text = " ".join(done.text.split())
    assert done.rc != 0 and "unrecognized option '--no-such-option'" in text.replace("''", "'")
    assert re.search(r"ended with exit code \d+|was started again", text) and time.monotonic() - begun < 60
    assert host.answers()


def test_what_cannot_be_started_stops_nothing(host: Host) -> None:
    started = host.inspect()["State"]["StartedAt"]
    done = host.play(triton_serve_user="no-such-user")
    assert done.rc != 0 and "user 'no-such-user' does not exist" in " ".join(done.text.split()).replace("''", "'")
    engine = {"name": "NVIDIA A100-SXM4-40GB", "compute_capability": "8.0"}
    with making(host.home / "engines/ffff", "engine", {"tensorrt_llm": "1.1.0", "gpu": engine}, home=host.home) as made:
        for each in (host.home / "engines/0123456789abcdef").iterdir():
            if each.name != "manifest.json":
                shutil.copy(each, made.path / each.name)
    here = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}
    done = host.play(triton_serve_engine_dir=str(host.home / "engines/ffff"), triton_serve_gpu=here)
    text = " ".join(done.text.split())
    assert done.rc != 0 and engine["name"] in text and here["name"] in text
    assert host.inspect()["State"]["StartedAt"] == started


def test_requests_are_finished_before_a_switch_and_rollback_restores(host: Host) -> None:
    first = host.generation()
    spec = host.inspect()["HostConfig"]
    failed: list[str] = []
    finished: list[tuple[float, float]] = []
    play = threading.Thread(target=lambda: host.serve(triton_serve_max_batch_size=4, triton_serve_memory="4g"))

    def ask() -> None:
        while play.is_alive():
            begun = 0.0
            try:
                for line in host.stream(tokens=200):
                    begun = begun or time.monotonic()
                    if b'"error"' in line:
                        raise ValueError(line)
            except (OSError, ValueError, http.client.HTTPException) as exc:
                # Without a token it had not begun: between two servers nobody answers.
                if begun:
                    failed.append(repr(exc))
                play.join(0.05)
            else:
                finished.append((begun, time.monotonic()))

    threads = [threading.Thread(target=ask) for _each in range(6)]
    play.start()
    for each in threads:
        each.start()
    wait_for(lambda: (host.home / "run" / "unproven.json").exists() or not play.is_alive(), "no switch")
    switched = time.monotonic()
    for each in [play, *threads]:
        each.join()
    assert failed == []
    assert any(begun < switched < ended for begun, ended in finished), (switched, finished)
    assert host.generation() != first and host.inspect()["HostConfig"]["Memory"] == 4 << 30
    done = host.play("rollback")
    assert done.rc == 0, done.text
    assert host.generation() == first and host.answers()
    now = host.inspect()["HostConfig"]
    assert {key: now[key] for key in ("Memory", "Mounts", "PortBindings")} == {
        key: spec[key] for key in ("Memory", "Mounts", "PortBindings")
    }


def test_a_surge_serves_from_a_second_container(host: Host) -> None:
    first, port = host.generation(), host.http_port + OFFSET
    assert host.play("configure", triton_serve_max_batch_size=2).rc == 0
    configs = (host.home / "generations").glob("*/model_repo/tensorrt_llm/config.pbtxt")
    (new,) = (path.relative_to(host.home).parts[1] for path in configs if "max_batch_size: 2\n" in path.read_text())
    server = DockerServer(host.home, NAME)
    server.surge(new, 60)
    wait_for(lambda: host.answers(port), "no token from the second one", 120)
    assert host.answers() and server.running() == first and server.surged() == new
    # Killed, it comes back by itself where it was.
    count = host.inspect(NAME + "-b")["RestartCount"]
    os.kill(host.inspect(NAME + "-b")["State"]["Pid"], signal.SIGKILL)
    wait_for(lambda: host.inspect(NAME + "-b")["RestartCount"] > count, "not started again")
    wait_for(lambda: host.answers(port), "no token after the restart", 120)
    events: list[bytes] = []
    begun = threading.Event()

    def follow() -> None:
        for line in host.stream(tokens=200):
            begun.set()
            events.append(line)

    reader = threading.Thread(target=follow)
    reader.start()
    assert begun.wait(60)
    server.promote(new, server.before(), 60)
    reader.join()
    assert len(events) > 1 and not any(b'"error"' in line for line in events), "the old one finished what it had begun"
    assert not host.client.containers.list(all=True, filters={"name": "^/%s$" % NAME})
    assert host.answers(port) and not host.answers() and server.running() == new
    wait_for(lambda: host.inspect(NAME + "-b")["State"]["Health"]["Status"] == "healthy", "never healthy")
    # It serves, as it was made; and in place it goes on there.
    again = host.serve(triton_serve_max_batch_size=2)
    assert again.changed == 0, again.text
    host.serve()
    assert host.generation() == first and host.answers(port) and not host.answers()
    server.stop(60)
    (host.home / "run" / "slot.json").unlink()
    host.serve()
    assert host.answers()


def test_teardown_removes_the_container_and_on_demand_all(host: Host) -> None:
    assert host.play("teardown", "--check").changed == 1 and host.answers()
    assert host.play("teardown").changed == 1
    assert not host.client.containers.list(all=True, filters={"name": NAME})
    assert host.play("teardown").changed == 0 and (host.home / "current").exists()
    assert host.serve().changed == 1 and host.answers()
    assert host.play("teardown", triton_serve_purge=True).changed == 1
    assert sorted(os.listdir(host.home)) == [".lock"]
    assert host.play("teardown", triton_serve_purge=True).changed == 0
    assert host.client.images.get(host.variables["tensorrtllm_backend_build_backend"]["image_id"])
