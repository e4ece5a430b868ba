# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""backend_image builds: a real git with submodule and LFS, the real docker client, the real engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MODULE = "ansible_collections.trtllm.serving.plugins.modules.backend_image"

Run = Callable[..., dict[str, Any]]


def start(home: Path, **args: Any) -> subprocess.Popen[str]:
    """The module as Ansible runs it."""
    given = {"ANSIBLE_MODULE_ARGS": {"home": str(home), "_ansible_remote_tmp": "/tmp", **args}}
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(given))
    process.stdin.close()
    process.stdin = None
    return process


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert out, err
    found: dict[str, Any] = json.loads(out)
    return found


def failure(found: dict[str, Any]) -> str:
    assert found.get("failed") is True, found
    message = str(found["msg"])
    assert "\n" not in message and "Traceback" not in message
    return message


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(name="image")
def _image(docker_client: Any) -> Iterator[str]:
    """A name that only this test uses; the image goes with the test."""
    name = "trtllm-image-%s:test" % uuid.uuid4().hex[:8]
    yield name
    for found in docker_client.images.list(name.partition(":")[0]):
        for tag in found.tags:
            # A test may have given its name to an image of the test bed.
            if tag.startswith(name.partition(":")[0] + ":"):
                docker_client.images.remove(tag)


def has_buildkit(client: str) -> bool:
    done = subprocess.run(
        [client, "version", "--format", "{{.Client.Version}}"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and done.stdout.split(".")[0].isdigit() and int(done.stdout.split(".")[0]) < 23:
        return True
    return subprocess.run([client, "buildx", "version"], capture_output=True, check=False).returncode == 0


@pytest.fixture(name="buildkit", scope="session")
def _buildkit() -> str:
    """A docker client with BuildKit; the first on the PATH need not be one."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        client = os.path.join(folder, "docker")
        if os.access(client, os.X_OK) and has_buildkit(client):
            return client
    pytest.fail("no docker client on the PATH has BuildKit: install docker.io, or docker-buildx-plugin")


@pytest.fixture(name="build")
def _build(home: Path, image: str, backend_git_repo: Any, tritonserver_image: str, buildkit: str) -> Run:
    base, _colon, tag = tritonserver_image.rpartition(":")

    def run(**args: Any) -> dict[str, Any]:
        check = args.pop("check", False)
        given = {
            "method": "build", "release": "0.12.0", "image": image, "repository": backend_git_repo.url,
            "build_args": {"BASE_IMAGE": base, "BASE_TAG": tag}, "timeout": 240, "docker": buildkit,
            "_ansible_check_mode": check, **args,
        }  # fmt: skip
        return answer(start(home, **given))

    return run


def files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "src").iterdir()) if (home / "src").is_dir() else []


def test_built_once_and_again_only_for_other_inputs(
    build: Run, home: Path, image: str, docker_client: Any, backend_git_repo: Any
) -> None:
    predicted = build(check=True)
    assert predicted["changed"] and predicted["image_id"] == "" and list(home.iterdir()) == []

    made = build()
    commit = backend_git_repo.commits["0.12.0"]
    assert made["changed"] and made["version"] == "0.12.0"
    assert files(home) == ["v0.12.0-" + commit[:12]]
    found = docker_client.images.get(image)
    assert made["image_id"] == made["digest"] == found.id
    assert found.labels["org.opencontainers.image.revision"] == commit
    assert json.loads(found.labels["trtllm.serving.inputs"])["submodules"] == {
        "tensorrt_llm": backend_git_repo.repositories.submodules["0.12.0"]
    }
    assert not docker_client.images.list(image + ".partial")
    # The tutorial's image has the converter, and not the models: those are in the checkout.
    source = home / "src" / ("v0.12.0-" + commit[:12])
    assert made["convert_checkpoint"][1] == "/app/tensorrt_llm/examples/llama/convert_checkpoint.py"
    assert made["models_dir"] == str(source / "all_models/inflight_batcher_llm") and made["models_on_host"]
    assert made["volumes"] == ["%s:%s:ro" % (source, source)]
    pointers = [path for path in source.rglob("*.a") if path.read_bytes().startswith(b"version https://git-lfs")]
    assert pointers == [] and list(source.rglob("*.a"))
    assert not (home / ".docker").exists()

    # Now nothing is asked of any network, in check mode or not.
    backend_git_repo.server.requests.clear()
    for check in (False, True):
        again = build(check=check)
        assert not again["changed"] and again["image_id"] == made["image_id"] and again["log_files"] == []
    assert backend_git_repo.server.requests == []

    other = build(build_args={**again["invocation"]["module_args"]["build_args"], "TORCH_INSTALL_TYPE": "skip"})
    assert other["changed"] and 'args.TORCH_INSTALL_TYPE: none -> "skip"' in other["actions"][0]
    assert other["image_id"] != made["image_id"]
    kept = "%s:id-%s" % (image.partition(":")[0], made["image_id"].partition(":")[2][:12])
    assert docker_client.images.get(made["image_id"]).tags == [kept], "a rollback may want it"
    # Somebody's own image under the name is no build of ours.
    docker_client.images.remove(image)
    docker_client.images.get(again["invocation"]["module_args"]["build_args"]["BASE_IMAGE"] + ":" + tag_of(again)).tag(
        image
    )
    assert "was not built by this collection" in build(check=True)["actions"][0]


def tag_of(result: dict[str, Any]) -> str:
    return str(result["invocation"]["module_args"]["build_args"]["BASE_TAG"])


@pytest.mark.parametrize("builder", ["always", "never"])
def test_a_failing_step_is_named_and_nothing_is_left(
    build: Run, home: Path, image: str, docker_client: Any, tmp_path: Path, tritonserver_image: str, builder: str
) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        "FROM %s\nRUN true\nRUN echo compiling; echo 'nvcc fatal: no such architecture' >&2; exit 3\nRUN true\n"
        % tritonserver_image
    )
    message = failure(build(dockerfile=str(dockerfile), buildkit=builder))
    for part in ("RUN echo compiling", "nvcc fatal: no such architecture", "code: 3", "see the log"):
        assert part in message, message
    assert str(home / "logs") in message
    assert [each for each in docker_client.containers.list(all=True) if "nvcc fatal" in str(each.attrs["Args"])] == []
    assert not docker_client.images.list(image) and not docker_client.images.list(image + ".partial")
    assert [name for name in files(home) if "partial" in name] == []
    # The checkout stays, and the next build needs no network.
    dockerfile.write_text("FROM %s\nRUN true\n" % tritonserver_image)
    message = failure(build(dockerfile=str(dockerfile)))
    assert "has no TensorRT-LLM, wanted is 0.12.0" in message, "and an image without it does not get the name"
    assert not docker_client.images.list(image) and not docker_client.images.list(image + ".partial")


def test_an_image_of_another_version_does_not_get_the_name(
    build: Run, image: str, docker_client: Any, tmp_path: Path, backend_image: str
) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM %s\nRUN true\n" % backend_image)
    message = failure(build(dockerfile=str(dockerfile)))
    assert "holds TensorRT-LLM 1.1.0, and the release is 0.12.0" in message
    assert not docker_client.images.list(image)


def test_a_client_without_buildkit(build: Run, tmp_path: Path, backend_image_0_12_0: str, buildkit: str) -> None:
    """docker-ce's client without its plugin: the legacy builder does it, and the result says so."""
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM %s\nLABEL legacy=1\n" % backend_image_0_12_0)
    client = tmp_path / "docker"
    client.write_text(
        "#!/bin/sh\ncase $1 in version) echo 28.2.2; exit;; buildx) echo \"docker: 'buildx' is not a docker command.\""
        ' >&2; exit 1;; esac\nexec %s "$@"\n' % buildkit
    )
    client.chmod(0o755)
    assert "docker-buildx-plugin" in failure(build(dockerfile=str(dockerfile), buildkit="always", docker=str(client)))
    made = build(dockerfile=str(dockerfile), docker=str(client))
    assert made["changed"] and "built without BuildKit" in str(made["warnings"])


def test_large_files_that_are_missing_are_named(build: Run, home: Path, backend_git_repo: Any) -> None:
    for path in (backend_git_repo.folder / "tensorrt_llm.git" / "lfs" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    message = failure(build())
    assert "large files (git-lfs)" in message and "see that the repository's large file storage has them" in message
    assert "exist" in message, "the server's own word"
    assert files(home) == []


def test_pointers_in_a_checkout_stop_the_build(build: Run, home: Path, image: str, docker_client: Any) -> None:
    build(check=False)
    docker_client.images.remove(image)
    source = home / "src" / files(home)[0]
    archive = sorted(source.rglob("*.a"))[0]
    archive.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 3\n" % ("0" * 64))
    message = failure(build())
    assert "1 file(s)" in message and archive.name in message and "git-lfs pointers" in message


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("main", "is no fixed version, it moves"),
        ("r25.12", "is a branch of"),
        ("v9.9.9", "has no tag 'v9.9.9'"),
        ("0" * 40, "correct the URL|name a tag or commit that the repository has|see the log"),
    ],
)
def test_versions_that_cannot_be_built(build: Run, home: Path, version: str, said: str) -> None:
    assert re.search(said, failure(build(version=version)))
    assert files(home) == []


def test_a_moved_tag_is_refused(build: Run, home: Path) -> None:
    message = failure(build(version="v0.12.0", commit="1" * 40))
    assert "not %s as pinned" % ("1" * 40) in message and files(home) == []


def test_a_stopped_build_leaves_nothing(
    home: Path, image: str, backend_git_repo: Any, tritonserver_image: str, tmp_path: Path, docker_client: Any,
    buildkit: str,
) -> None:  # fmt: skip
    dockerfile = tmp_path / "Dockerfile"
    mark = "sleep 3%06d" % (uuid.uuid4().int % 10**6)
    dockerfile.write_text("FROM %s\nRUN echo started && %s\n" % (tritonserver_image, mark))
    process = start(
        home, method="build", release="0.12.0", image=image, repository=backend_git_repo.url,
        dockerfile=str(dockerfile), timeout=240, docker=buildkit,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not running(mark):
        assert process.poll() is None and time.monotonic() < deadline, "the step never ran"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    message = failure(answer(process))
    assert "building image %s: stopped: received SIGTERM" % image in message
    deadline = time.monotonic() + 30
    while running(mark):
        assert time.monotonic() < deadline, "the step still runs"
        time.sleep(0.1)
    assert not docker_client.images.list(image) and not docker_client.images.list(image + ".partial")


def running(mark: str) -> bool:
    """Whether a process of a build step runs."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if words.strip() == mark:
                return True
    return False
