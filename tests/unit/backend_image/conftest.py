# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An engine in memory, and a docker client and git that are run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _containers, _image, _image_get
from ansible_collections.trtllm.serving.plugins.module_utils._image_probe import MARK
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, RunResult

HOLDS = {
    "converter": "/app/examples/llama/convert_checkpoint.py",
    "templates": "/app/all_models/inflight_batcher_llm",
    "llmapi": "",
    "launcher": "/app/scripts/launch_triton_server.py",
    "tritonserver": "/opt/tritonserver/bin/tritonserver",
    "trtllm_build": "/usr/local/bin/trtllm-build",
    "mpirun": "/usr/bin/mpirun",
    "python": "/usr/bin/python3",
}


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Image:
    engine: Engine
    id: str
    labels: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    version: str = "1.1.0"
    holds: dict[str, str] = field(default_factory=lambda: dict(HOLDS))

    @property
    def attrs(self) -> dict[str, Any]:
        return {"RepoTags": list(self.tags), "RepoDigests": list(self.digests)}

    def tag(self, repository: str, tag: str) -> bool:
        for other in self.engine.all:
            if f"{repository}:{tag}" in other.tags:
                other.tags.remove(f"{repository}:{tag}")
        self.tags.append(f"{repository}:{tag}")
        return True


@dataclass
class Container:
    engine: Engine
    output: bytes
    code: int = 0
    errors: bytes = b""

    def start(self) -> None:
        self.engine.started += 1

    def wait(self, timeout: float) -> dict[str, int]:
        return {"StatusCode": self.code}

    def logs(self, stdout: bool, stderr: bool) -> bytes:
        return self.output if stdout else self.errors

    def remove(self, force: bool, v: bool) -> None:
        self.engine.removed += 1


class Engine:
    """What the code under test uses of docker.DockerClient."""

    def __init__(self) -> None:
        self.all: list[Image] = []
        self.images = self.containers = self.api = self
        self.pulls: list[tuple[str, str, Any]] = []
        # What each pull answers: events, or an exception.
        self.answers: list[Any] = []
        self.registry: dict[str, Image] = {}
        self.loads: list[bytes] = []
        self.in_archive: list[Image] = []
        self.asked: list[dict[str, Any]] = []
        self.started = self.removed = 0
        self.gpus = b"GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0)\n"
        self.device_requests: list[Any] = []

    def add(self, name: str, **values: Any) -> Image:
        image = Image(self, digest(name + str(sorted(values.items()))), **values)
        if "@" in name:
            image.digests.append(name)
        else:
            image.tags.append(name)
        self.all.append(image)
        return image

    def get(self, name: str) -> Image:
        for image in self.all:
            if name in (image.id, *image.tags, *image.digests):
                return image
        raise docker.errors.ImageNotFound("No such image: " + name)

    def remove(self, name: str) -> None:
        image = self.get(name)
        image.tags.remove(name)
        if not image.tags:
            self.all.remove(image)

    def pull(self, name: str, tag: str, stream: bool, decode: bool, auth_config: Any) -> Iterable[Any]:
        self.pulls.append((name, tag, auth_config))
        answer: Any = self.answers.pop(0) if self.answers else [{"status": "Pulling", "id": "layer"}]
        if isinstance(answer, BaseException):
            raise answer  # pylint: disable=raising-bad-type
        full = f"{name}@{tag}" if tag.startswith("sha256:") else f"{name}:{tag}"
        if not any("error" in event for event in answer):
            found = self.registry.get(full)
            if found is None:
                return [{"error": f"manifest for {full} not found: manifest unknown"}]
            self.all = [image for image in self.all if image is not found]
            for image in self.all:
                image.tags = [each for each in image.tags if each != full]
            self.all.append(found)
        return list(answer)

    def load_image(self, data: Iterable[bytes], quiet: bool) -> Iterable[Any]:
        self.loads.append(b"".join(data))
        self.all += self.in_archive
        return [{"stream": f"Loaded image: {(image.tags or [image.id])[0]}\n"} for image in self.in_archive]

    def list(self, **unused: Any) -> list[Any]:
        return []

    def info(self) -> dict[str, Any]:
        return {}

    def create(self, image_id: str, **options: Any) -> Container:
        self.asked.append(options)
        image = self.get(image_id)
        if options["entrypoint"] == ["nvidia-smi"]:
            self.device_requests = options["device_requests"]
            return Container(self, self.gpus, 0 if self.gpus else 6, b"No devices were found\n")
        said = {"version": image.version, "version_source": "package", "found": image.holds}
        return Container(self, b"banner\n" + MARK.encode() + json.dumps(said).encode() + b"\n")


class Tools:
    """A runner for the docker client: answers its questions, and notes what it was asked to build."""

    def __init__(self, engine: Engine, version: str = "20.10.24", buildx: bool = False) -> None:
        self.engine, self.version, self.buildx = engine, version, buildx
        self.builds: list[tuple[list[str], dict[str, str]]] = []
        self.config: dict[str, Any] = {}
        self.fail: tuple[str, ...] = ()
        self.holds: dict[str, str] = dict(HOLDS)

    def run(self, argv: Any, **options: Any) -> RunResult:
        words = [str(word) for word in argv]
        env = dict(options.get("env") or {})
        if words[0] == "git":
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, env={**os.environ, **env}, timeout=60
            )
            return RunResult((), done.returncode, 0.0, "log", tuple((done.stdout + done.stderr).splitlines()))
        if words[1] == "version":
            return RunResult((), 0, 0.0, "log", (self.version,))
        if words[1] == "buildx":
            return RunResult((), 0 if self.buildx else 1, 0.0, "log", ("docker: 'buildx' is not a docker command.",))
        self.builds.append((words, env))
        folder = Path(env["DOCKER_CONFIG"])
        assert folder.stat().st_mode & 0o077 == 0
        self.config = json.loads((folder / "config.json").read_text())
        if self.fail:
            return RunResult((), 1, 0.0, "log", self.fail)
        labels = dict(words[index + 1].split("=", 1) for index, word in enumerate(words) if word == "--label")
        tag = words[words.index("--tag") + 1]
        self.engine.add(tag, labels=labels, version=labels["org.opencontainers.image.version"], holds=self.holds)
        return RunResult((), 0, 0.0, "log", ())


@pytest.fixture(name="engine")
def _engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(_image_get, "PAUSE_S", 0.0)
    monkeypatch.setattr(_containers, "cdi_ready", lambda client: False)
    return Engine()


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


DEFAULTS: dict[str, Any] = {
    "release": "1.1.0", "flavour": "engine", "method": "pull", "image": "", "digest": "", "pull": "missing",
    "retries": 2, "registry_mirror": "", "timeout": 60, "docker": "docker", "buildkit": "auto", "gpus": "none",
    "device_policy": "auto", "build_args": {}, "proxies": {}, "repository_mirrors": {},
}  # fmt: skip

Provide = Callable[..., dict[str, Any]]


@pytest.fixture(name="tools")
def _tools(engine: Engine) -> Tools:
    return Tools(engine)


@pytest.fixture(name="provide")
def _provide(home: Path, engine: Engine, tools: Tools) -> Provide:
    def provide(check: bool = False, **params: Any) -> dict[str, Any]:
        given = {**DEFAULTS, "home": str(home), **params}
        return _image.provide(given, check, Cancellation(watch_parent=False), lambda timeout: engine, tools)

    return provide


# --- repositories -----------------------------------------------------------------------------------------------

LARGE = b"a large file\n"
QUIET = {
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c",
}  # fmt: skip


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *words],
        capture_output=True, text=True, check=True, env={**os.environ, **QUIET},
    )  # fmt: skip
    return done.stdout.strip()


@dataclass
class Repositories:
    """A backend repository with tag v0.12.0 and branch side, its submodule with a large file, both by file://."""

    backend: Path
    submodule: Path
    commit: str
    inner: str

    @property
    def url(self) -> str:
        return f"file://{self.backend}"

    def commit_again(self, name: str) -> str:
        (self.backend / name).write_text(name)
        git(self.backend, "add", "--all")
        git(self.backend, "commit", "--quiet", "--message", name)
        return git(self.backend, "rev-parse", "HEAD")

    def lose_large_files(self) -> None:
        for path in (self.submodule / ".git" / "lfs").rglob("*"):
            if path.is_file():
                path.unlink()


@pytest.fixture(name="repositories")
def _repositories(tmp_path: Path) -> Repositories:
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs is not installed, and a checkout is made by the real one: apt-get install git-lfs")
    inner, outer = tmp_path / "git" / "tensorrt_llm", tmp_path / "git" / "tensorrtllm_backend"
    for folder in (inner, outer):
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet")
    oid = hashlib.sha256(LARGE).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(LARGE)}\n"
    (inner / "lib.a").write_text(pointer)
    converter = inner / "examples" / "llama" / "convert_checkpoint.py"
    converter.parent.mkdir(parents=True)
    converter.write_text("#\n")
    git(inner, "add", "--all")
    # Only now, so that no filter is asked about the pointer.
    (inner / ".gitattributes").write_text("*.a filter=lfs diff=lfs merge=lfs -text\n")
    git(inner, "add", ".gitattributes")
    git(inner, "commit", "--quiet", "--message", "first")
    kept = inner / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    kept.parent.mkdir(parents=True)
    kept.write_bytes(LARGE)
    for name in ("dockerfile/Dockerfile.trt_llm_backend", "all_models/inflight_batcher_llm/ensemble/config.pbtxt"):
        (outer / name).parent.mkdir(parents=True)
        (outer / name).write_text("ARG BASE=nvcr.io/base\nFROM ${BASE}:1 AS base\nFROM base\n")
    git(outer, "submodule", "--quiet", "add", f"file://{inner}", "tensorrt_llm")
    git(outer, "add", "--all")
    git(outer, "commit", "--quiet", "--message", "first")
    git(outer, "tag", "-a", "-m", "tag", "v0.12.0")
    git(outer, "branch", "side")
    return Repositories(outer, inner, git(outer, "rev-parse", "HEAD"), git(inner, "rev-parse", "HEAD"))
