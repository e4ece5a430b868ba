# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""backend_image pulls from a real registry and loads archives through the real engine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest

MODULE = "ansible_collections.trtllm.serving.plugins.modules.backend_image"

Run = Callable[..., dict[str, Any]]


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
def _image(home: Path) -> Run:
    def run(**args: Any) -> dict[str, Any]:
        check = args.pop("check", False)
        given = {"home": str(home), "release": "1.1.0", "_ansible_remote_tmp": "/tmp", "_ansible_check_mode": check}
        done = subprocess.run(
            [sys.executable, "-m", MODULE], input=json.dumps({"ANSIBLE_MODULE_ARGS": {**given, **args}}),
            capture_output=True, text=True, check=False, timeout=300,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home)},
        )  # fmt: skip
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def forget(client: Any, address: str) -> None:
    """Removes every name below a registry, and keeps the layers, which other names have."""
    for image in client.images.list():
        for name in [*(image.attrs.get("RepoTags") or []), *(image.attrs.get("RepoDigests") or [])]:
            if name.startswith(address + "/"):
                # The last tag takes the digest with it.
                with contextlib.suppress(docker.errors.ImageNotFound):
                    client.api.remove_image(name, force=True, noprune=True)


PARTS = {
    "usr/lib/python3/dist-packages/tensorrt_llm-1.1.0.dist-info/METADATA": "Name: tensorrt_llm\nVersion: 1.1.0\n",
    "opt/tritonserver/bin/tritonserver": "#!/bin/sh\n",
    "usr/local/bin/trtllm-build": "#!/bin/sh\n",
    "app/all_models/inflight_batcher_llm/ensemble/config.pbtxt": "",
    "app/examples/models/core/llama/convert_checkpoint.py": "",
    "app/scripts/launch_triton_server.py": "",
}


@pytest.fixture(name="local")
def _local(docker_client: Any, python_image: str, tmp_path: Path) -> Iterator[str]:
    """An image laid out as NGC's, with nothing inside that runs and one layer that is this test's alone."""
    for path, text in {**PARTS, "blob": ""}.items():
        (tmp_path / "context" / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "context" / "root" / path).write_text(text)
        (tmp_path / "context" / "root" / path).chmod(0o755)
    (tmp_path / "context" / "root" / "blob").write_bytes(os.urandom(3_000_000))
    (tmp_path / "context" / "Dockerfile").write_text("FROM %s\nCOPY root /\n" % python_image)
    name = "trtllm-image-small:" + os.urandom(4).hex()
    docker_client.images.build(path=str(tmp_path / "context"), tag=name, rm=True, forcerm=True)
    yield name
    with contextlib.suppress(docker.errors.ImageNotFound):
        docker_client.images.remove(name, force=True)


@pytest.fixture(name="small")
def _small(docker_client: Any, local: str, registry: Any) -> Iterator[str]:
    """NAME@DIGEST in the registry of an image that the engine does not have."""
    name = "ngc/small-" + local.rpartition(":")[2]
    digest = registry.push(local, name + ":1")
    docker_client.images.remove(local, force=True)
    yield "%s@%s" % (name, digest)
    forget(docker_client, registry.address)


def test_by_tag_and_by_digest(image: Run, docker_client: Any, registry: Any, small: str, home: Path) -> None:
    name, _at, digest = small.partition("@")
    tagged = "%s/%s:1" % (registry.address, name)
    predicted = image(image=tagged, check=True)
    assert predicted["changed"] and predicted["image_id"] == "" and list(home.iterdir()) == []
    made = image(image=tagged)
    assert made["changed"] and made["image"] == tagged and made["image_id"] == docker_client.images.get(tagged).id
    assert made["models_dir"] == "/app/all_models/inflight_batcher_llm" and made["volumes"] == []
    log = Path(made["log_files"][0]).read_text()
    assert "Pull complete" in log or "Already exists" in log
    assert not image(image=tagged)["changed"]
    assert not image(image=tagged, pull="always")["changed"], "the registry has the same image"

    docker_client.images.remove(tagged, force=True)
    by_digest = image(image=tagged, digest=digest)
    assert by_digest["changed"] and by_digest["image_id"] == made["image_id"]
    assert tagged in docker_client.images.get(made["image_id"]).tags, "a tag keeps it from being pruned"
    assert not image(image=tagged, digest=digest)["changed"]
    message = failure(image(image=tagged, digest="sha256:" + "0" * 64, retries=0))
    assert "correct the image's name or tag" in message


def test_a_tag_that_moved(image: Run, docker_client: Any, registry: Any, small: str, tmp_path: Path) -> None:
    name = small.partition("@")[0]
    tagged = "%s/%s:1" % (registry.address, name)
    first = image(image=tagged)
    (tmp_path / "context" / "Dockerfile").write_text("FROM %s\nLABEL newer=1\n" % tagged)
    newer, _log = docker_client.images.build(path=str(tmp_path / "context"), rm=True, forcerm=True)
    registry.push(newer.id, name + ":1")
    docker_client.images.get(first["image_id"]).tag(tagged)
    assert image(image=tagged)["image_id"] == first["image_id"], "the tag is trusted while the image is there"
    second = image(image=tagged, pull="always")
    assert second["changed"] and second["image_id"] == newer.id


def test_mirror_takes_the_place_of_the_registry(image: Run, registry: Any, small: str) -> None:
    name = small.partition("@")[0]
    asked = "nvcr.example.com/%s:1" % name
    assert image(image=asked, registry_mirror=registry.address)["image"] == asked
    below = "nvcr.example.com/%s:1" % name.partition("/")[2]
    assert image(image=below, registry_mirror=registry.address + "/ngc")["image_id"]


def test_login_by_file(
    image: Run, docker_client: Any, registry_with_login: Any, local: str, tmp_path: Path,
    home: Path,
) -> None:  # fmt: skip
    registry = registry_with_login
    registry.push(local, "private:1")
    name = "%s/private:1" % registry.address
    try:
        message = failure(image(image=name))
        assert "registry_auth_file" in message
        secret = base64.b64encode(b"%s:%s" % (registry.username.encode(), registry.password.encode())).decode()
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {registry.address: {"auth": secret}}}))
        auth.chmod(0o644)
        assert "chmod 600" in failure(image(image=name, registry_auth_file=str(auth)))
        auth.chmod(0o600)
        made = image(image=name, registry_auth_file=str(auth))
        assert made["changed"]
        docker_client.images.remove(name, force=True)
        for part in ("username", "password"):
            (tmp_path / part).write_text(getattr(registry, part) + "\n")
            (tmp_path / part).chmod(0o600)
        given = {"registry_%s_file" % part: str(tmp_path / part) for part in ("username", "password")}
        again = image(image=name, **given)
        assert again["changed"]
        (tmp_path / "password").write_text("wrong\n")
        docker_client.images.remove(name, force=True)
        assert "log in" in failure(image(image=name, **given))
        said = json.dumps([made, again]) + "".join(path.read_text() for path in (home / "logs").iterdir())
        assert registry.password not in said and secret not in said
        assert not (home / ".docker").exists()
    finally:
        forget(docker_client, registry.address)


class Cutting:
    """Passes connections on to a registry; the answer to a blob ends early while cuts are left."""

    def __init__(self, port: int, cuts: int) -> None:
        self.target, self.cuts = port, cuts
        self.cut = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _address = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target)) as upstream:
            blob = threading.Event()

            def forward() -> None:
                with contextlib.suppress(OSError):
                    while data := client.recv(65536):
                        if b"/blobs/" in data:
                            blob.set()
                        upstream.sendall(data)

            thread = threading.Thread(target=forward, daemon=True)
            thread.start()
            with contextlib.suppress(OSError):
                while data := upstream.recv(65536):
                    # The last part of an answer is passed on, so that small ones get through.
                    if blob.is_set() and self.cuts > 0 and len(data) > 16384:
                        client.sendall(data[:16384])
                        self.cuts -= 1
                        self.cut += 1
                        break
                    client.sendall(data)
            for each in (client, upstream):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.socket.close()


def test_a_pull_that_is_cut_off(image: Run, docker_client: Any, registry: Any, small: str) -> None:
    name = small.partition("@")[0]
    cutting = Cutting(registry.port, 10**6)
    tagged = "127.0.0.1:%d/%s:1" % (cutting.port, name)
    try:
        message = failure(image(image=tagged, retries=0))
        assert "pulling image %s failed" % tagged in message and "run again: what was received is kept" in message
        assert cutting.cut > 0 and not docker_client.images.list(tagged)
        cutting.cuts = 1
        made = image(image=tagged, retries=0)
        assert made["changed"] and cutting.cuts == 0, "the engine itself goes on after a cut"
    finally:
        cutting.close()
        forget(docker_client, "127.0.0.1:%d" % cutting.port)


def test_a_registry_that_is_not_there(image: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = failure(image(image="127.0.0.1:%d/x:1" % port, retries=0))
    assert "connection refused" in message and "run again" in message


def test_load(image: Run, docker_client: Any, local: str, tmp_path: Path) -> None:
    name, found = local, docker_client.images.get(local)
    archive = tmp_path / "image.tar"
    with archive.open("wb") as stream:
        for chunk in found.save(named=True):
            stream.write(chunk)
    docker_client.images.remove(name, force=True)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    args = {"method": "load", "archive": str(archive)}
    message = failure(image(**args, sha256="0" * 64))
    assert sha256 in message and "0" * 64 in message and "nothing was loaded" in message
    assert not docker_client.images.list(name)
    assert image(**args, sha256=sha256, check=True)["changed"] and not docker_client.images.list(name)
    made = image(**args, sha256=sha256)
    assert made["changed"] and made["image_id"] == found.id and made["image"] == name
    archive.unlink()
    assert not image(**args, sha256="sha256:" + sha256)["changed"], "the archive is not needed any more"
    docker_client.images.remove(name, force=True)
    assert "is not a file on the host" in failure(image(**args, sha256=sha256))


def test_another_release_is_refused(image: Run, backend_image_0_12_0: str) -> None:
    message = failure(image(image=backend_image_0_12_0))
    assert "holds TensorRT-LLM 0.12.0, and the release is 1.1.0" in message


def test_an_image_without_tensorrt_llm_is_refused(image: Run, python_image: str, tritonserver_image: str) -> None:
    assert "has no TensorRT-LLM" in failure(image(image=python_image))
    assert "has no TensorRT-LLM" in failure(image(image=tritonserver_image))


def test_asked_once(image: Run, backend_image: str, docker_client: Any, home: Path) -> None:
    first = image(image=backend_image)
    assert not first["changed"]
    record = home / "images" / (first["image_id"].partition(":")[2] + ".json")
    known = json.loads(record.read_text())
    known["found"]["mpirun"] = "/from/the/record"
    record.write_text(json.dumps(known))
    assert image(image=backend_image)["mpirun"] == "/from/the/record"
    assert docker_client.containers.list(all=True, filters={"label": "trtllm.serving.home=%s" % home}) == []


def test_gpus_that_are_not_there(image: Run, backend_image: str) -> None:
    """This engine has no driver for GPUs; where one has, there is nothing to show."""
    found = image(image=backend_image, gpus="all", device_policy="runtime")
    if not found.get("failed"):
        assert found["gpus"], "GPUs are seen"
        return
    assert "no container of image" in failure(found) or "nvidia-smi -L" in failure(found)
