# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server in a container: how the engine is asked for it, how it is ended, and when it does not serve."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _docker_spec, _server_actions
from ansible_collections.trtllm.serving.plugins.module_utils._docker_server import DockerServer
from ansible_collections.trtllm.serving.plugins.module_utils._generation import make, plan
from ansible_collections.trtllm.serving.plugins.module_utils._launch import server_command
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import ServerError

docker = pytest.importorskip("docker")

NAME = "triton"
IMAGE = "sha256:" + "1" * 64
PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
LISTED = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-2)\n"


def launch(**changes: Any) -> dict[str, Any]:
    return {
        "runtime": "docker", "image": IMAGE, "user": "1000:1000", "world_size": 2,
        "argv": server_command(2, PORTS, 30), "env": {"HOME": "/tmp"}, "address": "127.0.0.1",
        "ports": {"http": 8000, "grpc": 8001, "metrics": 8002},
        "mounts": [{"source": "engines/e", "target": "/trtllm/engines/e"},
                   {"source": "/data/w", "target": "/trtllm/weights/w"}],
        "gpus": "none", "device_policy": "runtime", "shm_size": "2g", "ulimits": {"memlock": -1, "stack": 67108864},
        "memory": "", "cap_drop": ["ALL"], "cap_add": [], "security_opt": ["no-new-privileges:true"],
        "read_only": True, "tmpfs": {"/tmp": "rw"}, "restart_policy": "unless-stopped", "stop_timeout": 60,
        "log": {"max-size": "50m", "max-file": "5"},
        "probe": {"url": "http://127.0.0.1:8000", "model": "bls", "prompt": "?", "interval": 30, "timeout": 60,
                  "failures": 2, "startup_timeout": 600},
        **changes,
    }  # fmt: skip


class Engine:
    """An engine that remembers what it was asked for. Its inspect shows what a real one adds."""

    def __init__(self) -> None:
        real = docker.APIClient(base_url="http://127.0.0.1:1", version="1.41")
        self.create_host_config, self.create_container_config = real.create_host_config, real.create_container_config
        self.api, self.containers, self.timeout = self, self, 60.0
        self.made: dict[str, dict[str, Any]] = {}
        self.images = {IMAGE}
        self.calls: list[Any] = []
        self.smi = (0, LISTED)
        self.refuses = ""

    def error(self, code: int, text: str) -> Exception:
        class Response:
            status_code = code
            reason = text

        kind = docker.errors.NotFound if code == 404 else docker.errors.APIError
        found: Exception = kind(text, response=Response(), explanation=text)
        return found

    def info(self) -> dict[str, Any]:
        return {}

    def list(self, **kwargs: Any) -> list[Any]:
        class Found:
            def __init__(self, id: str) -> None:
                self.id = id

        wanted = [label.split("=", 1) for label in kwargs["filters"]["label"]]
        return [
            Found(name) for name, each in self.made.items()
            if all(each["Config"]["Labels"].get(key) == value for key, value in wanted)
        ]  # fmt: skip

    def inspect_image(self, image: str) -> dict[str, Any]:
        if image not in self.images:
            raise self.error(404, "No such image: " + image)
        return {"Id": image}

    def remove_image(self, image: str, force: bool = False) -> None:
        self.images.remove(image)

    def create_container_from_config(self, config: dict[str, Any], name: str) -> dict[str, str]:
        config = json.loads(json.dumps(config))
        host = config.pop("HostConfig")
        # As an engine answers: zeros and nulls for what was not given, variables of the image, lists in another order.
        host = {"Memory": 0, "CapAdd": None, "DeviceRequests": None, "PidsLimit": None, **host}
        host["RestartPolicy"].setdefault("MaximumRetryCount", 0)
        host["Ulimits"] = list(reversed(host["Ulimits"] or []))
        config["Env"] = [*config["Env"], "PATH=/usr/bin"]
        self.made[name] = {
            "Id": name, "Image": config["Image"], "Config": config, "HostConfig": host, "RestartCount": 0,
            "State": {"Status": "created", "ExitCode": 0},
        }  # fmt: skip
        return {"Id": name}

    def start(self, container: str) -> None:
        if self.refuses:
            raise self.error(500, self.refuses)
        self.made[container]["State"]["Status"] = "running"

    def inspect_container(self, container: str) -> dict[str, Any]:
        if container not in self.made:
            raise self.error(404, "No such container: " + container)
        return copy.deepcopy(self.made[container])

    def update_container(self, container: str, **changes: Any) -> None:
        self.calls.append(("update", changes["restart_policy"]["Name"]))
        self.made[container]["HostConfig"]["RestartPolicy"] = changes["restart_policy"]

    def unpause(self, container: str) -> None:
        self.made[container]["State"]["Status"] = "running"

    def stop(self, container: str, timeout: int) -> None:
        assert self.made[container]["State"]["Status"] != "paused", "an engine stops no paused container"
        self.calls.append(("stop", timeout))
        self.made[container]["State"] = {"Status": "exited", "ExitCode": 0}

    def logs(self, container: str, **kwargs: Any) -> bytes:
        return b"its last words\n"

    def remove_container(self, container: str, **kwargs: Any) -> None:
        self.calls.append(("remove", container))
        del self.made[container]

    def exec_create(self, container: str, command: list[str]) -> dict[str, str]:
        self.calls.append(("exec", command[-1] if command[0] == "python3" else command[0]))
        return {"Id": command[0]}

    def exec_start(self, run: str, detach: bool = False) -> bytes:
        return b"" if detach else self.smi[1].encode()

    def exec_inspect(self, run: str) -> dict[str, Any]:
        return {"Running": False, "ExitCode": self.smi[0] if run == "nvidia-smi" else 0}


@pytest.fixture(name="engine")
def _engine() -> Engine:
    return Engine()


@pytest.fixture(name="server")
def _server(tmp_path: Path, engine: Engine) -> DockerServer:
    home = tmp_path / "home"
    home.mkdir()
    return DockerServer(home, NAME, lambda: engine)


def generation(server: DockerServer, **changes: Any) -> str:
    wanted = plan(server.home, {"launch.json": json.dumps(launch(**changes))}, {"engine": "e"})
    make(wanted)
    return wanted.id


def serve(server: DockerServer, **changes: Any) -> str:
    wanted = generation(server, **changes)
    server.switch(wanted, server.before(), 60)
    server.settle()
    return wanted


def test_the_container_is_confined(server: DockerServer, engine: Engine) -> None:
    one = serve(server)
    made = engine.made[NAME]
    config, host = made["Config"], made["HostConfig"]
    assert config["User"] == "1000:1000" and config["WorkingDir"] == "/trtllm" and config["StopTimeout"] == 60
    assert host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges:true"] and host["ReadonlyRootfs"]
    assert host["Init"] is True and host["ShmSize"] == 2 << 30 and host["Tmpfs"] == {"/tmp": "rw"}
    assert host["RestartPolicy"]["Name"] == "unless-stopped" and host["LogConfig"]["Type"] == "json-file"
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {"memlock": -1, "stack": 67108864}
    assert all(mount["ReadOnly"] for mount in host["Mounts"])
    assert {mount["Target"]: mount["Source"] for mount in host["Mounts"]} == {
        "/trtllm/current": str(server.home / "generations" / one),
        "/trtllm/engines/e": str(server.home / "engines/e"),
        "/trtllm/weights/w": "/data/w",
    }
    assert host["PortBindings"]["8000/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "8000"}]
    health = config["Healthcheck"]
    assert health["Test"][-1] == "/trtllm/current/launch.json" and health["Interval"] == 30 * 10**9
    assert health["Timeout"] > 60 * 10**9 and health["StartPeriod"] == 600 * 10**9 and health["Retries"] == 2
    assert not host.get("Privileged") and host.get("NetworkMode") in (None, "default")


def test_it_runs_and_is_as_it_would_be_made(server: DockerServer) -> None:
    one = serve(server)
    assert server.running() == one and server.alive() and server.trouble(one) == ""


@pytest.mark.parametrize(
    ("place", "key", "value", "word"),
    [
        ("HostConfig", "RestartPolicy", {"Name": "no"}, "restart policy"),
        ("HostConfig", "ReadonlyRootfs", False, "read-only root"),
        ("HostConfig", "CapDrop", [], "dropped capabilities"),
        ("HostConfig", "SecurityOpt", None, "security options"),
        ("HostConfig", "PortBindings", {"8000/tcp": [{"HostIp": "", "HostPort": "8000"}]}, "published ports"),
        ("HostConfig", "Memory", 1 << 30, "memory"),
        ("Config", "User", "", "user"),
        ("Config", "Cmd", ["bash"], "command"),
        ("Config", "Env", [], "environment"),
    ],
)
def test_a_container_that_was_changed(
    server: DockerServer, engine: Engine, place: str, key: str, value: Any, word: str
) -> None:
    one = serve(server)
    engine.made[NAME][place][key] = value
    assert server.trouble(one) == "container triton has another " + word


def test_capabilities_count_under_either_name(server: DockerServer, engine: Engine) -> None:
    one = serve(server, cap_add=["SYS_NICE"])
    engine.made[NAME]["HostConfig"]["CapAdd"] = ["CAP_SYS_NICE"]
    assert server.trouble(one) == ""


def test_an_image_by_another_id(server: DockerServer, engine: Engine) -> None:
    one = serve(server)
    engine.made[NAME]["Image"] = "sha256:" + "2" * 64
    assert server.trouble(one) == "container triton has another image"


def test_why_it_does_not_serve(server: DockerServer, engine: Engine) -> None:
    one, two = serve(server), generation(server, stop_timeout=70)
    assert server.trouble(two) == "container triton runs another generation"
    engine.made[NAME]["State"] = {"Status": "exited", "ExitCode": 137}
    assert server.trouble(one) == "container triton does not run (exited): it was ended by signal 9 (exit code 137)"
    engine.made[NAME]["State"] = {"Status": "restarting", "ExitCode": 137, "OOMKilled": True}
    assert "its memory ran out" in server.trouble(one) and server.running() is None and server.alive()
    engine.made[NAME]["Config"]["Labels"]["trtllm.serving.home"] = "/elsewhere"
    assert "was not made for" in server.trouble(one)
    del engine.made[NAME]
    assert server.trouble(one) == "container triton is not there"


@pytest.mark.parametrize(
    ("smi", "word"),
    [
        ((0, LISTED), ""),
        ((0, LISTED.splitlines()[0] + "\n"), "the container sees 1 of 2 GPUs"),
        ((255, "Failed to initialize NVML: Unknown Error\n"), "Failed to initialize NVML"),
        ((6, "No devices were found\n"), "No devices were found"),
        ((127, "executable file not found"), "executable file not found"),
    ],
)
def test_a_lost_gpu_is_seen(server: DockerServer, engine: Engine, smi: tuple[int, str], word: str) -> None:
    one = serve(server, gpus="all")
    engine.smi = smi
    trouble = server.trouble(one)
    assert trouble.startswith("GPU lost in container triton: ") and word in trouble if word else trouble == ""
    assert engine.timeout == 60


def test_gpus_are_asked_for_and_counted(server: DockerServer, engine: Engine) -> None:
    serve(server, gpus=["0", "1"])
    request = engine.made[NAME]["HostConfig"]["DeviceRequests"][0]
    assert request["Driver"] == "nvidia" and request["DeviceIDs"] == ["0", "1"]
    counts = {"none": 0, "all": 2, "4": 4}
    assert {gpus: _docker_spec.wanted_gpus(launch(gpus=gpus)) for gpus in counts} == counts
    assert _docker_spec.wanted_gpus(launch(gpus=["0", "1"])) == 2


def test_a_second_container_beside_the_first(server: DockerServer, engine: Engine) -> None:
    one, two = serve(server, gpus="all"), generation(server, gpus="all", stop_timeout=70, surge_port_offset="10")
    first = copy.deepcopy(engine.made[NAME])
    assert server.surge(two, 60) is True and engine.made[NAME] == first
    second = engine.made[NAME + "-b"]
    # The same inside, other ports and other GPUs outside.
    assert second["Config"]["Cmd"] == first["Config"]["Cmd"]
    assert second["Config"]["ExposedPorts"] == first["Config"]["ExposedPorts"]
    published = second["HostConfig"]["PortBindings"]
    assert published["8000/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "8010"}]
    assert [each["HostPort"] for entry in published.values() for each in entry] == ["8010", "8011", "8012"]
    assert first["HostConfig"]["DeviceRequests"][0]["Count"] == -1
    assert second["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["2", "3"]
    assert "TRTLLM_SLOT=-b" in second["Config"]["Env"] and "TRTLLM_SLOT=-b" not in first["Config"]["Env"]
    assert second["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped", "it comes back with the host"
    assert server.running() == one and server.surged() == two and server.trouble(one) == ""
    assert server.surge(two, 60) is False
    engine.calls.clear()
    server.promote(two, server.before(), 60)
    assert list(engine.made) == [NAME + "-b"] and ("remove", NAME) in engine.calls
    assert server.running() == two and server.trouble(two) == "" and server.slot == "b"
    assert (server.home / "logs" / "triton-before.log").exists()
    engine.made[NAME + "-b"]["HostConfig"]["PortBindings"]["8000/tcp"][0]["HostPort"] = "8000"
    assert server.trouble(two) == "container %s-b has another published ports" % NAME
    # In place there, and gone from there.
    serve(server, gpus="all")
    assert list(engine.made) == [NAME + "-b"] and server.running() == one
    assert server.stop(60) is True and not engine.made
    assert (server.home / "logs" / "triton-b-before.log").exists()
    assert server.trouble(one) == "container %s-b is not there" % NAME


def test_a_second_container_is_dropped_alone(server: DockerServer, engine: Engine) -> None:
    one, two = serve(server), generation(server, stop_timeout=70)
    server.surge(two, 60)
    assert server.drop(60) is True and list(engine.made) == [NAME] and server.running() == one
    assert server.drop(60) is False
    engine.refuses = "no such device"
    with pytest.raises(ServerError, match="container %s-b cannot be started" % NAME):
        server.surge(two, 60)
    assert list(engine.made) == [NAME] and server.running() == one


def test_a_foreign_container_by_the_second_name_is_left_alone(server: DockerServer, engine: Engine) -> None:
    one = serve(server)
    engine.made[NAME + "-b"] = {"Id": NAME + "-b", "Config": {"Labels": {}}, "State": {"Status": "running"}}
    with pytest.raises(ServerError, match="container %s-b exists and was not made for" % NAME):
        server.prepare(one, "b")
    server.prepare(one)


@pytest.mark.parametrize(
    ("gpus", "second", "count"),
    [
        ("none", "none", 0),
        ("all", ["2", "3"], 2),
        ("4", ["2", "3"], 2),
        (["0", "1", "4", "GPU-5", "6"], ["4", "GPU-5"], 2),
        ("0,1,2,3", ["2", "3"], 2),
    ],
)
def test_gpus_of_the_second_slot(gpus: Any, second: Any, count: int) -> None:
    given = launch(gpus=gpus)
    assert _docker_spec.slot_gpus(given, "a") == gpus
    assert _docker_spec.slot_gpus(given, "b") == second and _docker_spec.wanted_gpus(given, "b") == count


def test_too_few_gpus_for_a_second_server(server: DockerServer, engine: Engine) -> None:
    one = serve(server, gpus=["0", "1", "2"])
    with pytest.raises(ServerError, match=r"needs 4 GPUs \(twice 2 ranks\), and triton_serve_gpus has 3"):
        server.prepare(one, "b")
    assert list(engine.made) == [NAME]


def test_without_gpus_none_is_looked_for(server: DockerServer, engine: Engine) -> None:
    server.trouble(serve(server))
    assert ("exec", "nvidia-smi") not in engine.calls


def test_rank_0_ends_first_and_nothing_starts_it_again(server: DockerServer, engine: Engine) -> None:
    serve(server)
    engine.calls.clear()
    assert server.stop(60) is True
    assert engine.calls == [("update", "no"), ("exec", "--stop"), ("stop", 1), ("remove", NAME)]
    assert not engine.made and server.stop(60) is False and not server.started_file.exists()
    assert (server.home / "logs" / "triton-before.log").read_text() == "its last words\n"


def test_one_rank_is_stopped_by_the_engine(server: DockerServer, engine: Engine) -> None:
    serve(server, argv=server_command(1, PORTS, 30), world_size=1)
    engine.calls.clear()
    server.stop(60)
    assert engine.calls == [("update", "no"), ("stop", 60), ("remove", NAME)]


def test_a_dead_container_is_only_removed(server: DockerServer, engine: Engine) -> None:
    serve(server)
    engine.made[NAME]["State"]["Status"] = "exited"
    engine.calls.clear()
    assert server.stop(60) and engine.calls == [("remove", NAME)]


def test_a_paused_container_is_stopped_too(server: DockerServer, engine: Engine) -> None:
    one = serve(server)
    engine.made[NAME]["State"]["Status"] = "paused"
    assert server.running() is None and "does not run (paused)" in server.trouble(one)
    assert server.stop(60) and not engine.made


def test_a_container_under_an_earlier_name_is_replaced(server: DockerServer, engine: Engine) -> None:
    one = serve(server)
    renamed = DockerServer(server.home, "other", lambda: engine)
    assert renamed.alive() and renamed.running() is None
    renamed.switch(one, renamed.before(), 60)
    assert list(engine.made) == ["other"] and renamed.running() == one


def test_a_foreign_container_is_left_alone(server: DockerServer, engine: Engine) -> None:
    serve(server)
    engine.made[NAME]["Config"]["Labels"] = {}
    with pytest.raises(ServerError, match="triton exists and was not made for .* triton_serve_container_name"):
        server.prepare(generation(server))
    assert not server.alive() and server.stop(60) is False and NAME in engine.made


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "sha256:" + "9" * 64}, "No such image: sha256:9+; the image is not on this host"),
        ({"user": "nobody-of-this-name"}, "user 'nobody-of-this-name' does not exist"),
        ({"runtime": "embedded"}, "was made for a server without a container: tear it down"),
        ({"device_policy": "cdi", "gpus": "all"}, "the engine offers no CDI device"),
    ],
)
def test_what_cannot_be_started_is_seen_before_anything_is_stopped(
    server: DockerServer, engine: Engine, changes: dict[str, Any], said: str
) -> None:
    one = serve(server)
    with pytest.raises(ServerError, match=said):
        server.prepare(generation(server, **changes))
    assert server.running() == one


def test_a_start_that_the_engine_refuses(server: DockerServer, engine: Engine) -> None:
    one, two = serve(server), generation(server, stop_timeout=70)
    before = server.before()
    engine.refuses = "OCI runtime create failed: error setting rlimit type 8: operation not permitted"
    with pytest.raises(ServerError, match="cannot be started: .*rlimit.*; this host may not grant such a limit"):
        server.switch(two, before, 60)
    assert not engine.made and server.switching(), "what never ran is not left behind"
    engine.refuses = ""
    assert server.restore(before, 60) == one and server.running() == one and not server.switching()


def test_the_way_back_restores_the_whole_container(server: DockerServer, engine: Engine) -> None:
    one = serve(server)
    first = copy.deepcopy(engine.made[NAME]["HostConfig"])
    before = server.before()
    serve(server, memory="1g", address="0.0.0.0", argv=server_command(1, PORTS, 10))
    assert engine.made[NAME]["HostConfig"]["Memory"] == 1 << 30
    server.restore(before, 60)
    assert engine.made[NAME]["HostConfig"] == first and server.running() == one


def test_images_of_the_generations_are_removed_on_demand(server: DockerServer, engine: Engine) -> None:
    serve(server)
    serve(server, image=IMAGE, stop_timeout=70)
    assert server.leftovers() == [IMAGE] and server.clear() == [] and engine.images
    assert server.clear(images=True) == [IMAGE] and not engine.images and server.leftovers() == []


def test_ranks_are_started_as_upstreams_launcher_does() -> None:
    words = server_command(3, PORTS, 30, arguments=["--log-verbose=1"], mpirun_arguments=["--oversubscribe"])
    assert words[:3] == ["mpirun", "--allow-run-as-root", "--oversubscribe"]
    ranks: list[list[str]] = [[]]
    for word in words[3:]:
        if word == ":":
            ranks.append([])
        else:
            ranks[-1].append(word)
    assert len(ranks) == 3 and words[-1] != ":"
    for number, rank in enumerate(ranks):
        assert rank[:3] == ["-n", "1", "tritonserver"]
        assert "--backend-config=python,shm-region-prefix-name=prefix%d_" % number in rank
        assert ("--model-control-mode=explicit" in rank) == (number > 0) == ("--load-model=tensorrt_llm" in rank)
        assert {"--http-port=8000", "--grpc-port=8001", "--metrics-port=8002", "--log-verbose=1"} <= set(rank)
        assert "--disable-auto-complete-config" in rank and "--exit-timeout-secs=30" in rank
    with pytest.raises(ValueError, match="world_size 0 is not possible"):
        server_command(0, PORTS, 30)


def test_one_rank_needs_no_mpirun() -> None:
    words = server_command(1, PORTS, 30, tritonserver="/opt/tritonserver/bin/tritonserver", backends_dir="/b")
    assert words[0] == "/opt/tritonserver/bin/tritonserver" and ":" not in words and "--backend-directory=/b" in words


# --- a server that was stopped for Docker's own restart ---


def restored(server: DockerServer, **params: Any) -> dict[str, Any]:
    given = {"before": None, "restart": True, "reason": "Docker did not come back", "stop_timeout": 60, **params}
    return _server_actions.restored(server, given, False)


def test_what_was_stopped_before_any_switch_is_started_again(server: DockerServer, engine: Engine) -> None:
    one = serve(server)
    server.stop(60)
    assert restored(server, restart=False) == {"changed": False, "generation": None} and not engine.made
    assert restored(server) == {"changed": True, "generation": one} and server.running() == one
    assert restored(server) == {"changed": False, "generation": one}
    last = json.loads((server.home / "ledger.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "restore" and last["reason"] == "Docker did not come back"


def test_nothing_is_started_where_nothing_served(server: DockerServer, engine: Engine) -> None:
    assert restored(server) == {"changed": False, "generation": None} and not engine.made


def test_the_reason_of_a_switch_is_kept(server: DockerServer, engine: Engine) -> None:
    params = {
        "generation": generation(server), "restart": True, "stop_timeout": 60, "reason": "GPU lost in container",
        "slot": "auto", "rollback": False, "run": "",
    }  # fmt: skip
    assert _server_actions.started(server, params, False)["changed"]
    last = json.loads((server.home / "ledger.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "switch" and last["reason"] == "GPU lost in container"
    engine.images.clear()
    with pytest.raises(ServerError, match="the image is not on this host"):
        _server_actions.started(server, params, False)
    assert server.running() == params["generation"], "seen before anything was stopped"
