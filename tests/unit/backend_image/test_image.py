# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The image is pulled, built or loaded once, asked once, and refused when it is another one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _image, _image_probe
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._image_build import (
    base_images,
    build_failure,
    failing_step,
)
from ansible_collections.trtllm.serving.plugins.module_utils._image_get import choose
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import ImageError
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, Locked
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Cancelled
from ansible_collections.trtllm.serving.plugins.module_utils._source import SourceError
from ansible_collections.trtllm.serving.tests.unit.backend_image.conftest import (
    HOLDS,
    Engine,
    Provide,
    Repositories,
    Tools,
    digest,
)

NGC = "nvcr.io/nvidia/tritonserver:26.02-trtllm-python-py3"
REPOSITORY = NGC.partition(":")[0]


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def stock(engine: Engine, name: str, **values: Any) -> str:
    """Puts an image into the registry; its id."""
    image = engine.add(name, **values)
    engine.all.remove(image)
    engine.registry[name] = image
    return image.id


# --- pull -------------------------------------------------------------------------------------------------------


def test_the_releases_image_is_pulled_once(engine: Engine, provide: Provide, home: Path) -> None:
    image_id = stock(engine, NGC)
    predicted = provide(check=True)
    assert predicted["changed"] and predicted["image_id"] == "" == predicted["digest"] and not list(home.iterdir())
    assert predicted["convert_checkpoint"][1].startswith("/app/") and predicted["trtllm_build"] == ["trtllm-build"]
    made = provide()
    assert made["changed"] and made["image"] == NGC and made["image_id"] == made["digest"] == image_id
    assert made["convert_checkpoint"] == ["/usr/bin/python3", HOLDS["converter"]]
    assert made["trtllm_build"] == [HOLDS["trtllm_build"]] and made["models_dir"] == HOLDS["templates"]
    assert made["python"] == str(home / "venv/bin/python") and made["python_ready"] is False
    assert engine.pulls == [(REPOSITORY, NGC.partition(":")[2], None)]
    assert engine.started == engine.removed == 1
    for check in (False, True):
        again = provide(check=check)
        assert not again["changed"] and again["log_files"] == [] and again["actions"] == []
        assert {**again, "changed": 1, "actions": 1, "diff": 1, "log_files": 1} == {
            **made, "changed": 1, "actions": 1, "diff": 1, "log_files": 1
        }  # fmt: skip
    assert len(engine.pulls) == 1 and engine.started == 1, "neither registry nor image is asked again"


def test_the_short_container_has_nothing(engine: Engine, provide: Provide, home: Path) -> None:
    stock(engine, NGC)
    provide()
    asked = engine.asked[0]
    assert asked["network_mode"] == "none" and asked["cap_drop"] == ["ALL"]
    assert asked["security_opt"] == ["no-new-privileges"] and "device_requests" not in asked
    assert asked["labels"] == {"trtllm.serving.home": str(home), "trtllm.serving.role": "probe"}


def test_digest_is_what_is_pulled_and_is_named(engine: Engine, provide: Provide) -> None:
    wanted = digest("x")
    stock(engine, f"{REPOSITORY}@{wanted}")
    made = provide(digest=wanted)
    assert engine.pulls == [(REPOSITORY, wanted, None)]
    assert made["changed"] and engine.get(made["image_id"]).tags == [NGC]
    assert not provide(digest=wanted)["changed"]
    # Somebody took the name: the image would go with the next prune.
    engine.get(made["image_id"]).tags.clear()
    assert provide(check=True, digest=wanted)["changed"] and engine.get(made["image_id"]).tags == []
    assert provide(digest=wanted)["actions"] == ["name " + NGC] and len(engine.pulls) == 1


def test_an_image_with_another_digest_is_refused(engine: Engine, provide: Provide) -> None:
    wanted = digest("x")
    image = engine.add(f"{REPOSITORY}@{wanted}", tags=[NGC])
    image.digests = [f"{REPOSITORY}@{digest('y')}"]
    image.tags.append(f"{REPOSITORY}@{wanted}")
    with pytest.raises(ImageError, match="not %s: remove it" % wanted):
        provide(digest=wanted)


def test_always_asks_and_changes_only_for_another(engine: Engine, provide: Provide) -> None:
    first = stock(engine, NGC)
    provide()
    assert not provide(pull="always")["changed"] and len(engine.pulls) == 2
    second = stock(engine, NGC, labels={"new": "1"})
    assert provide()["image_id"] == first
    moved = provide(pull="always")
    assert moved["changed"] and moved["image_id"] == second and first in moved["actions"][0]
    assert engine.get(first).tags == [f"{REPOSITORY}:id-{first[7:19]}"], "a rollback may want it"
    assert not provide(pull="always", check=True)["changed"] and len(engine.pulls) == 3


def test_mirror(engine: Engine, provide: Provide) -> None:
    stock(engine, "mirror:5000/ngc/nvidia/tritonserver:" + NGC.partition(":")[2])
    made = provide(registry_mirror="mirror:5000/ngc")
    assert made["image"] == NGC and engine.pulls[0][0] == "mirror:5000/ngc/nvidia/tritonserver"


def test_login_is_handed_to_the_engine_alone(engine: Engine, provide: Provide, tmp_path: Path, home: Path) -> None:
    stock(engine, NGC)
    auth = tmp_path / "auth"
    auth.write_text(json.dumps({"auths": {"nvcr.io": {"username": "u", "password": "hidden-word"}}}))
    auth.chmod(0o600)
    made = provide(registry_auth_file=str(auth))
    assert engine.pulls[0][2] == {"username": "u", "password": "hidden-word"}
    kept = "".join(path.read_text() for path in home.rglob("*") if path.is_file())
    assert "hidden-word" not in kept + json.dumps(made)


def test_a_cut_is_tried_again(engine: Engine, provide: Provide) -> None:
    stock(engine, NGC)
    engine.answers = [
        [{"status": "Downloading", "id": "a"}, {"error": "unexpected EOF"}],
        docker.errors.APIError("connection reset by peer"),
    ]
    made = provide()
    assert made["changed"] and len(engine.pulls) == 3
    log = Path(made["log_files"][0]).read_text()
    assert "failed: unexpected EOF" in log and "try 3 of 3" in log


@pytest.mark.parametrize(
    ("said", "tries", "remedy"),
    [
        ("unexpected EOF", 3, "run again: what was received is kept"),
        ("received unexpected HTTP status: 503 Service Unavailable", 3, "run again"),
        ("unauthorized: authentication required", 1, "registry_auth_file"),
        ("manifest for x not found: manifest unknown", 1, "correct the image's name or tag"),
        ("write /var/lib/docker: no space left on device", 1, "free some space"),
        ("dial tcp: lookup nvcr.io: no such host", 1, "registry_mirror"),
        ("http: server gave HTTP response to HTTPS client", 1, "insecure-registries"),
        ("x509: certificate signed by unknown authority", 1, "certs.d"),
        ("no matching manifest for linux/arm64", 1, "machine type"),
    ],
)
def test_failures_of_a_pull(engine: Engine, provide: Provide, said: str, tries: int, remedy: str) -> None:
    engine.answers = [[{"error": said}]] * 5
    with pytest.raises(ImageError, match="pulling image") as caught:
        provide()
    text = one_line(caught)
    assert said in text and remedy in text and NGC in text
    assert len(engine.pulls) == tries


def test_a_stop_ends_a_pull_that_says_nothing(engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation = Cancellation(watch_parent=False)

    def silent(*unused: Any, **named: Any) -> Any:
        import threading

        cancellation._lost = "the test is over"
        yield {"status": "Pulling"}
        threading.Event().wait(60)

    monkeypatch.setattr(engine, "pull", silent)
    params = {"home": str(home), "release": "1.1.0", "method": "pull", "timeout": 60, "retries": 3, "gpus": "none"}
    with pytest.raises(Cancelled, match="pulling image .* the test is over"):
        _image.provide(params, False, cancellation, lambda timeout: engine)
    with HostLock(home, "next"):
        pass


def test_two_runs_do_not_meet(engine: Engine, provide: Provide, home: Path) -> None:
    stock(engine, NGC)
    with HostLock(home, "somebody"):
        with pytest.raises(Locked):
            provide()
        assert provide(check=True)["changed"], "check mode takes no lock"
    assert engine.pulls == []


# --- what it holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "release", "ok"),
    [
        ("1.1.0", "1.1.0", True),
        ("1.1.0+cu130", "1.1.0", True),
        ("1.0.3.2510", "1.0.3", True),
        ("0.12.0", "1.1.0", False),
        ("1.1.0rc2", "1.1.0", False),
        ("", "1.1.0", False),
    ],
)
def test_version(engine: Engine, provide: Provide, version: str, release: str, ok: bool) -> None:
    engine.add("x:1", version=version)
    if ok:
        assert provide(image="x:1", release=release)["version"] == version
        return
    with pytest.raises(ImageError) as caught:
        provide(image="x:1", release=release)
    assert (version or "no TensorRT-LLM") in one_line(caught) and release in one_line(caught)
    if version:
        remedy = "set trtllm_release to 0.12.0" if version == "0.12.0" else "image_version to 1.1.0rc2"
        assert remedy in one_line(caught)
        assert provide(image="x:1", release=release, image_version=version)["version"] == version
        with pytest.raises(ImageError, match="use an image of 9"):
            provide(image="x:1", release=release, image_version="9")


def test_parts_that_are_missing(engine: Engine, provide: Provide) -> None:
    engine.add("x:1", holds={**HOLDS, "tritonserver": ""})
    with pytest.raises(ImageError, match="has no tritonserver"):
        provide(image="x:1")
    engine.add("y:1", holds={**HOLDS, "trtllm_build": ""})
    with pytest.raises(ImageError, match="has no trtllm-build"):
        provide(image="y:1")
    engine.add("z:1", holds={**HOLDS, "trtllm_build": "", "llmapi": "/app/all_models/llmapi"})
    made = provide(image="z:1", flavour="llmapi")
    assert made["models_dir"] == "/app/all_models/llmapi" and made["convert_checkpoint"] == []


def test_a_kept_answer_is_that_of_this_image_and_release(engine: Engine, provide: Provide, home: Path) -> None:
    image = engine.add("x:1")
    provide(image="x:1")
    record = _image_probe.answer_file(home, image.id)
    assert record.name == image.id[7:] + ".json" and engine.started == 1
    for text in ("not json", "[]", json.dumps({**json.loads(record.read_text()), "release": "1.2.0"})):
        record.write_text(text)
        before = engine.started
        assert provide(image="x:1")["version"] == "1.1.0" and engine.started == before + 1


def test_check_mode_keeps_no_answer(engine: Engine, provide: Provide, home: Path) -> None:
    engine.add("x:1")
    assert provide(image="x:1", check=True)["version"] == "1.1.0" and list(home.iterdir()) == []


def test_the_probe_finds_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    (tmp_path / "models").mkdir()
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    (tmp_path / "version.py").write_text('__version__ = "0.12.0"\n')
    question = {
        "mark": _image_probe.MARK, "version_files": ["/none", str(tmp_path / "version.py")],
        "places": {"templates": ["/none", str(tmp_path / "models")], "converter": ["/none"]},
        "programs": {"tritonserver": ["/none/x", str(tool)], "mpirun": ["/none/sh"]},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _image_probe.PROBE, json.dumps(question)], capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout[len(_image_probe.MARK) :])
    assert said["version"] == "0.12.0" and said["version_source"].endswith("version.py")
    found = said["found"]
    assert found["templates"] == str(tmp_path / "models") and found["converter"] == ""
    assert found["tritonserver"] == str(tool) and found["mpirun"].endswith("/sh"), "the PATH is looked at last"


# --- GPUs -------------------------------------------------------------------------------------------------------


def test_gpus_are_proven_once(
    engine: Engine, provide: Provide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_image_probe, "DRIVER", tmp_path / "driver")
    (tmp_path / "driver").write_text("NVRM version: 1\n")
    engine.add("x:1")
    assert provide(image="x:1", gpus="none")["gpus"] == [] and engine.started == 1
    assert provide(image="x:1", gpus="all", check=True)["gpus"] == [] and engine.started == 1
    assert len(provide(image="x:1", gpus="all")["gpus"]) == 1 and engine.started == 2
    assert engine.device_requests[0]["Count"] == -1
    assert not provide(image="x:1", gpus="all")["changed"] and engine.started == 2
    (tmp_path / "driver").write_text("NVRM version: 2\n")
    provide(image="x:1", gpus="all")
    assert engine.started == 3, "another driver"


@pytest.mark.parametrize(
    ("gpus", "output", "said"), [("all", b"", "No devices were found"), (2, b"GPU 0: A (UUID: x)\n", "1 GPU.* of 2")]
)
def test_gpus_that_are_not_seen(engine: Engine, provide: Provide, gpus: Any, output: bytes, said: str) -> None:
    engine.add("x:1")
    engine.gpus = output
    with pytest.raises(ImageError, match=said) as caught:
        provide(image="x:1", gpus=gpus)
    assert "docker_nvidia" in one_line(caught)


# --- load -------------------------------------------------------------------------------------------------------


@pytest.fixture(name="archive")
def _archive(tmp_path: Path, engine: Engine) -> dict[str, Any]:
    path = tmp_path / "image.tar"
    path.write_bytes(b"layers")
    image = engine.add("x:1")
    engine.all.remove(image)
    engine.in_archive = [image]
    return {"method": "load", "archive": str(path), "sha256": hashlib.sha256(b"layers").hexdigest()}


def test_loaded_once(engine: Engine, provide: Provide, archive: dict[str, Any], home: Path) -> None:
    assert provide(check=True, **archive)["changed"] and engine.loads == [] and list(home.iterdir()) == []
    made = provide(**archive)
    assert made["changed"] and made["image"] == "x:1" and engine.loads == [b"layers"]
    Path(archive["archive"]).unlink()
    for check in (False, True):
        assert not provide(check=check, **archive)["changed"]
    assert len(engine.loads) == 1
    engine.all.clear()
    with pytest.raises(ImageError, match="is not a file on the host"):
        provide(check=True, **archive)


def test_an_archive_with_another_hash_is_not_loaded(engine: Engine, provide: Provide, archive: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="has sha256 %s, not %s" % (archive["sha256"], "0" * 64)) as caught:
        provide(**{**archive, "sha256": "0" * 64})
    assert engine.loads == [] and "nothing was loaded" in one_line(caught)


def test_an_archive_of_several_needs_a_name(engine: Engine, provide: Provide, archive: dict[str, Any]) -> None:
    other = engine.add("y:2")
    engine.all.remove(other)
    engine.in_archive.append(other)
    with pytest.raises(ImageError, match="holds x:1, y:2: name one"):
        provide(**archive)
    assert provide(image="y:2", **archive)["image_id"] == other.id


@pytest.mark.parametrize(
    ("names", "wanted", "said"),
    [([], "", "holds no image"), (["a:1"], "b:1", "holds a:1, not b:1"), (["a:1", "b:1"], "", "holds a:1, b:1")],
)
def test_choice(names: list[str], wanted: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        choose(names, wanted, "/a.tar")


# --- build ------------------------------------------------------------------------------------------------------


@pytest.fixture(name="building")
def _building(repositories: Repositories, tools: Tools) -> dict[str, Any]:
    tools.holds = {**HOLDS, "templates": "", "converter": "/app/tensorrt_llm/examples/llama/convert_checkpoint.py"}
    return {"method": "build", "release": "0.12.0", "repository": repositories.url}


def test_built_only_for_other_inputs(
    engine: Engine, provide: Provide, tools: Tools, building: dict[str, Any], repositories: Repositories, home: Path
) -> None:
    assert provide(check=True, **building)["changed"] and list(home.iterdir()) == []
    made = provide(**building)
    assert made["changed"] and made["image"] == "triton_trt_llm:0.12.0"
    image = engine.get("triton_trt_llm:0.12.0")
    assert image.labels["org.opencontainers.image.revision"] == repositories.commit and image.id == made["image_id"]
    assert image.tags == ["triton_trt_llm:0.12.0"], "its own name while it was built is gone"
    source = home / "src" / ("v0.12.0-" + repositories.commit[:12])
    assert made["models_on_host"] and made["models_dir"] == str(source / "all_models/inflight_batcher_llm")
    assert made["source_dir"] == str(source) and made["volumes"] == [f"{source}:{source}:ro"]
    for check in (False, True):
        assert not provide(check=check, **building)["changed"]
    assert len(tools.builds) == 1

    provide(**building, build_args={"JOBS": 4, "FAST": True})
    assert image.tags == ["triton_trt_llm:id-" + image.id[7:19]], "a rollback may want it"
    words, env = tools.builds[-1]
    assert env["JOBS"] == "4" and env["FAST"] == "true" and words[words.index("JOBS") - 1] == "--build-arg"
    assert provide(check=True, **building)["actions"] == [
        'image triton_trt_llm:0.12.0: args: none -> {}; args.FAST: "true" -> none; args.JOBS: "4" -> none'
    ]
    (source / "dockerfile/Dockerfile.trt_llm_backend").write_text("FROM scratch\n")
    changed = provide(check=True, **building, build_args={"JOBS": 4, "FAST": True})["actions"]
    assert "dockerfile_sha256" in changed[0]


def test_another_base_image_is_a_reason(
    engine: Engine, provide: Provide, tools: Tools, building: dict[str, Any]
) -> None:
    provide(**building)
    first = engine.add("nvcr.io/base:1")
    assert not provide(**building)["changed"], "a base that nobody knew when it was built tells nothing"
    provide(**building, build_args={"X": "1"})
    assert not provide(**building, build_args={"X": "1"})["changed"]
    engine.all.remove(first)
    engine.add("nvcr.io/base:1", labels={"newer": "1"})
    again = provide(**building, build_args={"X": "1"})
    assert again["changed"] and "base image nvcr.io/base:1: " + first.id in again["actions"][0]


def test_somebody_elses_image_is_replaced_with_a_reason(
    engine: Engine, provide: Provide, building: dict[str, Any]
) -> None:
    engine.add("triton_trt_llm:0.12.0", version="0.12.0")
    assert "was not built by this collection" in provide(**building)["actions"][-1]


def test_proxies_and_logins_stay_out_of_the_arguments(
    provide: Provide, tools: Tools, building: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    auth = tmp_path / "auth"
    auth.write_text(json.dumps({"auths": {"nvcr.io": {"username": "u", "password": "hidden-word"}}}))
    auth.chmod(0o600)
    provide(**building, proxies={"https_proxy": "http://hidden-proxy:1"}, registry_auth_file=str(auth))
    words, env = tools.builds[0]
    assert "hidden" not in " ".join(words) and env["HTTPS_PROXY"] == env["https_proxy"] == "http://hidden-proxy:1"
    assert list(tools.config["auths"]) == ["nvcr.io"] and not Path(env["DOCKER_CONFIG"]).exists()


@pytest.mark.parametrize(
    ("version", "buildx", "option", "said"),
    [
        ("20.10.24", False, "auto", "1"),
        ("28.2.2", True, "auto", "1"),
        ("28.2.2", False, "auto", "warning"),
        ("28.2.2", False, "never", "0"),
        ("28.2.2", False, "always", "docker-buildx-plugin"),
    ],
)
def test_buildkit(
    provide: Provide, tools: Tools, building: dict[str, Any], version: str, buildx: bool, option: str, said: str
) -> None:
    tools.version, tools.buildx = version, buildx
    if option == "always" and not buildx:
        with pytest.raises(ImageError, match=said):
            provide(**building, buildkit=option)
        return
    made = provide(**building, buildkit=option)
    words, env = tools.builds[0]
    assert env["DOCKER_BUILDKIT"] == ("1" if said == "1" else "0") and ("--progress" in words) == (said == "1")
    # The legacy builder would leave the container of a step that fails.
    assert ("--force-rm" in words) == (said != "1")
    assert bool(made.get("warnings")) == (said == "warning")


def test_a_failed_build_leaves_no_image(
    engine: Engine, provide: Provide, tools: Tools, building: dict[str, Any]
) -> None:
    # One that lost its power had got as far as this.
    engine.add("triton_trt_llm:0.12.0.partial")
    tools.fail = ("Step 2/5 : RUN make", "cc: fatal error", "The command 'make' returned a non-zero code: 2")
    with pytest.raises(ImageError, match="at step '2/5 : RUN make': cc: fatal error; The command"):
        provide(**building)
    assert engine.all == []


def test_an_image_of_another_version_does_not_get_the_name(
    engine: Engine, provide: Provide, tools: Tools, building: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = engine.add("triton_trt_llm:0.12.0")
    original = engine.add
    monkeypatch.setattr(engine, "add", lambda name, **values: original(name, **{**values, "version": "0.13.0"}))
    with pytest.raises(ImageError, match=r"holds TensorRT-LLM 0\.13\.0, and the release is 0\.12\.0"):
        provide(**building)
    assert engine.all == [old]


def test_a_failure_is_not_hidden_by_the_next(
    engine: Engine, provide: Provide, tools: Tools, building: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(name: str) -> None:
        raise docker.errors.APIError("conflict: image is being used")

    tools.holds = {**HOLDS, "tritonserver": ""}
    monkeypatch.setattr(engine, "remove", conflict)
    with pytest.raises(ImageError, match="has no tritonserver"):
        provide(**building)


def test_pointers_stop_the_build(provide: Provide, tools: Tools, building: dict[str, Any], engine: Engine) -> None:
    source = Path(provide(**building)["source_dir"])
    engine.all.clear()
    (source / "tensorrt_llm/lib.a").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SourceError, match=r"1 file\(s\) .*git-lfs pointers.*tensorrt_llm/lib\.a.*remove .* and run"):
        provide(**building)
    assert len(tools.builds) == 1


def test_a_build_has_no_digest_yet(provide: Provide, building: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="name it by a tag"):
        provide(**building, image="x@" + digest("x"))


def test_releases_that_cannot_be_built(provide: Provide, repositories: Repositories, tools: Tools) -> None:
    with pytest.raises(ImageError, match=r"0\.20\.0 cannot be built from its own tree"):
        provide(method="build", release="0.20.0", repository=repositories.url, version="v0.12.0")
    with pytest.raises(ImageError, match="Dockerfile .*none cannot be read"):
        provide(method="build", release="0.12.0", repository=repositories.url, dockerfile="none")


def test_an_old_image_gets_its_models_from_a_checkout(
    engine: Engine, provide: Provide, repositories: Repositories, home: Path
) -> None:
    engine.add("x:1", version="0.12.0", holds={**HOLDS, "templates": "", "converter": ""})
    args = {"image": "x:1", "release": "0.12.0", "repository": repositories.url}
    predicted = provide(check=True, **args)
    assert predicted["changed"] and predicted["models_dir"] == "" and not list(home.iterdir())
    made = provide(**args)
    source = Path(made["source_dir"])
    assert made["changed"] and made["models_on_host"] and made["volumes"]
    assert made["convert_checkpoint"] == ["/usr/bin/python3", str(source / HOLDS["converter"].replace(
        "/app/", "tensorrt_llm/"))]  # fmt: skip
    assert Path(made["convert_checkpoint"][1]).is_file()
    assert not provide(**args)["changed"]


# --- text -------------------------------------------------------------------------------------------------------


def test_base_images() -> None:
    text = (
        "ARG BASE_IMAGE=nvcr.io/nvidia/tritonserver\nARG BASE_TAG=24.07-py3\nARG PYTORCH_IMAGE\n"
        "FROM ${PYTORCH_IMAGE} as pytorch\nFROM --platform=x ${BASE_IMAGE}:${BASE_TAG} AS base\nFROM base as dev\n"
        "ARG BASE_TAG=late\nFROM scratch\nFROM dev\n"
    )
    assert base_images(text, {"PYTORCH_IMAGE": "p:1"}) == ["p:1", "nvcr.io/nvidia/tritonserver:24.07-py3"]
    assert base_images(text, {"BASE_TAG": "x"}) == ["nvcr.io/nvidia/tritonserver:x"]


BUILDKIT = """#9 [trt_llm_builder 3/3] RUN cd tensorrt_llm && python3 scripts/build_wheel.py
#9 4.220 [ 12%] Building CXX object
#9 9.100 c++: fatal error: Killed signal terminated program cc1plus
#9 ERROR: process "/bin/sh -c cd tensorrt_llm" did not complete successfully: exit code: 137
------
 > [trt_llm_builder 3/3] RUN cd tensorrt_llm && python3 scripts/build_wheel.py:
4.220 [ 12%] Building CXX object
9.100 c++: fatal error: Killed signal terminated program cc1plus
------
Dockerfile:20
--------------------
  20 | >>> RUN cd tensorrt_llm && python3 scripts/build_wheel.py
--------------------
ERROR: failed to solve: process "/bin/sh -c cd tensorrt_llm" did not complete successfully: exit code: 137
"""
LEGACY = """Step 2/4 : RUN true
 ---> Using cache
Step 3/4 : RUN pip install x
 ---> Running in 0123
ERROR: Could not find a version: No space left on device
The command '/bin/sh -c pip install x' returned a non-zero code: 1
"""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            BUILDKIT,
            ["[trt_llm_builder 3/3] RUN cd tensorrt_llm", "c++: fatal error: Killed", "137", "not enough memory"],
        ),
        (LEGACY, ["3/4 : RUN pip install x", "No space left on device", "non-zero code: 1", "free some space"]),
        ("ERROR: failed to solve: nvcr.io/x: failed to authorize\n", ["failed to authorize", "registry_auth_file"]),
        ("", ["exit code 125", "see the log"]),
    ],
)
def test_failures_of_a_build(text: str, parts: list[str]) -> None:
    said = build_failure(text.splitlines(), 125, "x:1", Path("/log"))
    assert "\n" not in said and said.startswith("building image x:1 failed") and "(log /log)" in said
    for part in parts:
        assert part in said, said
    assert bool(failing_step(text.splitlines())) == ("3/" in text)


def test_check_mode_predicts_without_an_engine(home: Path, tmp_path: Path) -> None:
    def refuse(timeout: float) -> Any:
        raise ContainerError("the Docker daemon cannot be used")

    params = {"home": str(tmp_path / "new"), "release": "1.1.0", "method": "pull", "timeout": 1, "gpus": "all"}
    cancellation = Cancellation(watch_parent=False)
    predicted = _image.provide(params, True, cancellation, refuse)
    assert predicted["changed"] and predicted["image_id"] == ""
    with pytest.raises(ContainerError, match="cannot be used"):
        _image.provide({**params, "home": str(home)}, False, cancellation, refuse)
    with pytest.raises(ImageError, match="does not exist"):
        _image.provide(params, False, cancellation, refuse)


def test_a_full_disk_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*unused: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtifactError, match="no space left"):
        _image_probe.write_record(home / "images" / "x.json", {}, home)
