# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Docker Engine of this machine, images of the test bed, a registry and Git repositories on loopback.

Where they cannot be had the tests fail and say why; with ALLOW_SKIP=1 they are skipped and say why.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from testbed import build, gitserver, source

LABEL = "trtllm-test-run"
RUN = uuid.uuid4().hex[:12]


def unavailable(why: str) -> NoReturn:
    if os.environ.get("ALLOW_SKIP") == "1":
        pytest.skip(why)
    pytest.fail("%s (ALLOW_SKIP=1 skips what needs it)" % why, pytrace=False)


BRIDGE = Path("/sys/class/net/docker0")


@pytest.fixture(scope="session", autouse=True)
def bridge_was_there() -> bool:
    return BRIDGE.exists()


@pytest.fixture(autouse=True)
def bridge(bridge_was_there: bool) -> None:
    """A second dockerd takes docker0 away from the machine's own, even with --bridge=none: it is put back."""
    if bridge_was_there and not BRIDGE.exists():
        for words in ("link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0", "link set docker0 up"):
            subprocess.run(["ip", *words.split()], check=False)


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """The SDK's client. Containers with the label LABEL=RUN are removed at the end, whatever happened."""
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except docker.errors.DockerException as error:
        unavailable("Docker Engine does not answer: %s" % error)
    yield client
    for container in client.containers.list(all=True, filters={"label": "%s=%s" % (LABEL, RUN)}):
        container.remove(force=True, v=True)
    client.close()


@pytest.fixture(scope="session")
def labels() -> dict[str, str]:
    """For what a test starts itself: see docker_client."""
    return {LABEL: RUN}


@pytest.fixture(scope="session")
def testbed_image(docker_client: Any) -> Callable[[str], str]:
    """Reference of an image of the test bed by its name, made first if need be."""

    def find(name: str) -> str:
        try:
            return build.image(name)
        except (build.BuildError, OSError) as error:
            unavailable("the image %s cannot be made: %s" % (name, error))

    return find


@pytest.fixture(scope="session")
def python_image(testbed_image: Callable[[str], str]) -> str:
    """Debian with python3 (3.11) and nothing else."""
    return testbed_image("python")


@pytest.fixture(scope="session")
def tritonserver_image(testbed_image: Callable[[str], str]) -> str:
    """In place of nvcr.io/nvidia/tritonserver:YY.MM-py3."""
    return testbed_image("tritonserver")


@pytest.fixture(scope="session")
def backend_image(testbed_image: Callable[[str], str]) -> str:
    """tensorrtllm_backend of release 1.1.0, paths as in the image of NGC: /app/all_models, /app/examples."""
    return testbed_image("backend-1.1.0")


@pytest.fixture(scope="session")
def backend_image_0_12_0(testbed_image: Callable[[str], str]) -> str:
    """The tutorial's: built from Dockerfile.trt_llm_backend, tools in /app/tensorrt_llm, no models inside."""
    return testbed_image("backend-0.12.0")


@dataclass
class Registry:
    """An image registry of its own, reached without TLS, as Docker allows on loopback."""

    container: Any
    port: int
    username: str = ""
    password: str = ""

    @property
    def address(self) -> str:
        return "127.0.0.1:%d" % self.port

    def push(self, image: str, name: str) -> str:
        """Pushes an image of the engine under NAME[:TAG], forgets that tag, and returns its digest."""
        client = self.container.client
        reference = "%s/%s" % (self.address, name if ":" in name else name + ":latest")
        repository, _colon, tag = reference.rpartition(":")
        client.images.get(image).tag(repository, tag)
        try:
            login = {"username": self.username, "password": self.password} if self.username else None
            digest = ""
            for line in client.api.push(repository, tag=tag, stream=True, decode=True, auth_config=login):
                assert "error" not in line, line["error"]
                digest = line.get("aux", {}).get("Digest", digest)
        finally:
            client.api.remove_image(reference, noprune=True)
        return str(digest)


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status in (200, 401)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_registry(client: Any, image: str, **environment: str) -> Registry:
    container = client.containers.run(
        image, detach=True, labels={LABEL: RUN}, environment=environment, ports={"5000/tcp": ("127.0.0.1", None)},
        name="trtllm-test-registry-%s" % uuid.uuid4().hex[:8],
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while True:
        container.reload()
        assert container.status in ("created", "running"), container.logs().decode()
        bound = (container.ports.get("5000/tcp") or [{}])[0].get("HostPort")
        if bound and answers(int(bound)):
            return Registry(container, int(bound), *(("puller", "testbed-secret") if environment else ()))
        assert time.monotonic() < deadline, "the registry does not answer"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def registry(docker_client: Any, testbed_image: Callable[[str], str]) -> Iterator[Registry]:
    """A real registry on 127.0.0.1."""
    found = start_registry(docker_client, testbed_image("registry"))
    yield found
    found.container.remove(force=True, v=True)


@pytest.fixture(scope="session")
def registry_with_login(docker_client: Any, testbed_image: Callable[[str], str]) -> Iterator[Registry]:
    """The same, which wants a name and a password."""
    found = start_registry(docker_client, testbed_image("registry"), LOGIN="1")
    yield found
    found.container.remove(force=True, v=True)


@dataclass
class GitRepository:
    """tensorrtllm_backend over HTTP, with its submodule and its LFS objects."""

    url: str
    server: gitserver.Server
    repositories: source.Repositories

    @property
    def commits(self) -> dict[str, str]:
        """Commit of each release."""
        return self.repositories.commits

    @property
    def folder(self) -> Path:
        """Where tensorrtllm_backend.git and tensorrt_llm.git are; LFS objects in tensorrt_llm.git/lfs/objects."""
        return self.repositories.folder


@pytest.fixture
def backend_git_repo(tmp_path: Path) -> Iterator[GitRepository]:
    """A test's own: it may break it."""
    repositories = source.make_repositories(tmp_path / "git")
    with gitserver.serving(repositories.folder) as server:
        yield GitRepository("%s/tensorrtllm_backend.git" % server.url, server, repositories)
