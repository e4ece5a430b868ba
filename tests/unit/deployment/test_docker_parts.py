# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container that dies while it is waited for, the models of an image, and engines of another GPU or runtime."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _generation_checks, _model_sources
from ansible_collections.trtllm.serving.plugins.module_utils._container_watch import ContainerWatch
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._generation import GenerationError
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import Follower, NotReady
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import Unreachable
from ansible_collections.trtllm.serving.tests.unit.deployment.conftest import Run

docker = pytest.importorskip("docker")


class Api:
    """A container whose state each look takes from a list, the last one for ever."""

    def __init__(self, *states: dict[str, Any], log: str = "") -> None:
        self.api = self
        self.states = list(states)
        self.log = log

    def inspect_container(self, name: str) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if not state:
            raise docker.errors.NotFound("No such container: " + name)
        return {
            "Id": state.get("id", "1"), "RestartCount": state.get("count", 0),
            "State": {"StartedAt": "t%d" % state.get("count", 0), **state},
        }  # fmt: skip

    def logs(self, name: str, **kwargs: Any) -> bytes:
        return self.log.encode()


RUNNING = {"Status": "running", "ExitCode": 0}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([RUNNING, RUNNING], ""),
        ([RUNNING, {"Status": "exited", "ExitCode": 1}], "container c ended with exit code 1"),
        ([{"Status": "exited", "ExitCode": 137}], "container c was ended by signal 9 (exit code 137)"),
        ([{"Status": "exited", "ExitCode": 137, "OOMKilled": True}], "its memory ran out"),
        ([{"Status": "restarting", "ExitCode": 1, "count": 2}], "being started again for the second time"),
        ([RUNNING, {**RUNNING, "count": 1}], "container c has ended, and was started again 1 times"),
        ([RUNNING, {**RUNNING, "id": "2"}], "container c was replaced"),
        ([RUNNING, {}], "container c does not exist"),
        ([{"Status": "created", "ExitCode": 1, "Error": "no such\ndevice"}], "ended with exit code 1: no such device"),
    ],
)
def test_death_of_a_container(states: list[dict[str, Any]], said: str) -> None:
    watch = ContainerWatch(Api(*states), "c", Clock())
    found = next(filter(None, (watch.death() for _look in range(4))), "")
    assert said in found if said else found == ""


class Dead:
    """A server that nothing listens for."""

    url = "http://127.0.0.1:8000"

    def live(self, timeout: float = 0) -> int:
        raise Unreachable("refused", "refused")


LOG = """I1122 pinned_memory_manager.cc:277] "Pinned memory pool is created"
E1122 model_lifecycle.cc:641] "failed to load 'tensorrt_llm' version 1: Internal: EngineError: [TensorRT-LLM][ERROR] \
IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an incompatible \
device, expecting compute 9.0 got compute 8.0, please rebuild.)"
I1122 pinned_memory_manager.cc:277] "Pinned memory pool is created"
error: creating server: Internal - failed to load all models
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (LOG, ["tensorrt_llm: Internal: EngineError", "the engine was built for another GPU: build it on this host"]),
        ("There are not enough slots available in the system", ["triton_serve_mpirun_arguments"]),
        ("[TensorRT-LLM][ERROR] MPI size (1) does not match", ["start as many as config.json of the engine says"]),
    ],
)
def test_the_cause_of_a_death_is_named(log: str, said: list[str]) -> None:
    state = {"Status": "exited", "ExitCode": 1}
    follower = Follower(Dead(), watch=ContainerWatch(Api(state, log=log), "c", Clock()))  # type: ignore[arg-type]
    with pytest.raises(NotReady) as failed:
        follower.follow()
    message = str(failed.value)
    assert message.startswith("container c ended with exit code 1") and message.endswith("log: docker logs c")
    assert all(each in message for each in said) and "\n" not in message
    assert failed.value.details["tail"] == [line for line in log.splitlines() if line][-20:]


# --- models of an image ---


class Image:
    """An image with these files below its models directory."""

    def __init__(self, files: dict[str, str], folders: tuple[str, ...] = ()) -> None:
        self.api = self
        self.made, self.removed = 0, 0
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name in folders:
                entry = tarfile.TarInfo("inflight_batcher_llm/" + name)
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            for name, text in files.items():
                entry = tarfile.TarInfo("inflight_batcher_llm/" + name)
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
        self.archive = stream.getvalue()

    def create_container(self, image: str, **kwargs: Any) -> dict[str, str]:
        self.made += 1
        return {"Id": "1"}

    def get_archive(self, container: str, path: str) -> tuple[Any, Any]:
        if path == "/missing":
            raise docker.errors.NotFound("Could not find the file /missing in container 1")
        return iter([self.archive[:100], self.archive[100:]]), {}

    def remove_container(self, container: str, **kwargs: Any) -> None:
        self.removed += 1


FILES = {
    "preprocessing/1/model.py": "# one", "preprocessing/config.pbtxt": "no", "preprocessing/1/__pycache__/x.pyc": "no",
    "preprocessing/1/sub/part.py": "# two", "../../evil/1/model.py": "no",
}  # fmt: skip
ID = "sha256:" + "1" * 64


def test_models_are_copied_out_once(tmp_path: Path) -> None:
    image = Image(FILES, ("ensemble/1", "ensemble"))
    assert _model_sources.kept(tmp_path, ID, "/m") is None
    path = _model_sources.fetch(tmp_path, ID, "/m", lambda: image)
    found = {str(each.relative_to(path)): each.read_text() for each in path.rglob("*") if each.is_file()}
    found.pop("manifest.json")
    assert found == {
        "preprocessing/1/model.py": "# one", "preprocessing/1/sub/part.py": "# two", "ensemble/1/.gitkeep": "",
    }  # fmt: skip
    assert _model_sources.fetch(tmp_path, ID, "/m", lambda: image) == path == _model_sources.kept(tmp_path, ID, "/m")
    assert (image.made, image.removed) == (1, 1)
    (path / "preprocessing/1/model.py").write_text("# by hand")
    assert _model_sources.kept(tmp_path, ID, "/m") is None
    assert (_model_sources.fetch(tmp_path, ID, "/m", lambda: image) / "preprocessing/1/model.py").read_text() == "# one"
    assert _model_sources.place(tmp_path, "sha256:2", "/m") != path


def test_an_image_without_models(tmp_path: Path) -> None:
    image = Image({})
    with pytest.raises(ContainerError, match=r"has no models at /missing \(set triton_serve_models_dir\): Could not"):
        _model_sources.fetch(tmp_path, ID, "/missing", lambda: image)
    with pytest.raises(ContainerError, match="has no models at /m: set triton_serve_models_dir"):
        _model_sources.fetch(tmp_path, ID, "/m", lambda: image)
    assert image.made == image.removed == 2 and not (tmp_path / "src").exists()


# --- triton_generation ---

A100 = {"name": "NVIDIA A100-SXM4-40GB", "compute_capability": "8.0", "memory_mib": 40960, "count": 8}


@pytest.mark.parametrize(
    ("here", "refused"),
    [
        (A100, False),
        ({**A100, "count": 4}, False),
        ({}, False),
        ({"name": None}, False),
        ({**A100, "name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}, True),
        ({**A100, "name": "NVIDIA A100-SXM4-80GB"}, True),
    ],
)
def test_engine_of_another_gpu(here: dict[str, Any], refused: bool) -> None:
    _generation_checks.check_gpu("/e", {}, here)
    if not refused:
        _generation_checks.check_gpu("/e", A100, here)
        return
    with pytest.raises(GenerationError) as failed:
        _generation_checks.check_gpu("/e", A100, here)
    assert A100["name"] in str(failed.value) and here["name"] in str(failed.value)


def test_as_many_ranks_as_the_engine_has(engine: Path) -> None:
    _generation_checks.check_world_size(str(engine), 2)
    _generation_checks.check_world_size(str(engine), None)
    with pytest.raises(GenerationError, match="is for 2 ranks, and the server would start 1: set triton_serve_world_s"):
        _generation_checks.check_world_size(str(engine), 1)


def test_a_home_keeps_its_runtime(tmp_path: Path) -> None:
    _generation_checks.check_runtime(tmp_path, "docker")
    (tmp_path / "generations" / "a").mkdir(parents=True)
    (tmp_path / "current").symlink_to("generations/a")
    for launch, runtime in (({}, "embedded"), ({"runtime": "docker"}, "docker")):
        (tmp_path / "generations" / "a" / "launch.json").write_text(json.dumps(launch))
        _generation_checks.check_runtime(tmp_path, runtime)
        with pytest.raises(GenerationError, match="generation a with runtime %s, and .* tear it down first" % runtime):
            _generation_checks.check_runtime(tmp_path, "docker" if runtime == "embedded" else "embedded")


def test_check_mode_where_no_docker_is_yet(module: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix://%s/none.sock" % tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    common = {"home": str(home), "runtime": "docker"}
    generation = module(
        "triton_generation", check=True, **common, release="1.1.0", configs={}, models="/app/all_models/x",
        models_in_image=True, engine=str(tmp_path / "none"), tokenizer="/none", launch={"runtime": "docker"},
    )  # fmt: skip
    assert generation["changed"] and generation["id"] is None and not generation["serving"]
    assert module("triton_server", check=True, **common)["changed"]
    settled = module("triton_server", check=True, **common, state="settled")
    assert not settled["changed"] and settled["generation"] is None
    assert not module("triton_server", check=True, **common, state="stopped")["changed"]
    ready = module("triton_ready", check=True, url="http://127.0.0.1:9", watch={"container": "c"})
    assert ready["ready"] is False and not ready["changed"]
    refused = module("triton_server", **common)
    assert refused["failed"] and "the Docker daemon does not answer" in refused["msg"]
    assert list(home.iterdir()) == []
