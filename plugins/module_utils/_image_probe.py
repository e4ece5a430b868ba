# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks an image what it holds: TensorRT-LLM's version, its tools, Triton, the models' files, and whether it sees GPUs.

Private to the collection.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import describe_os_error, hand_over
from ansible_collections.trtllm.serving.plugins.module_utils._containers import (
    ContainerError,
    device_requests,
    explain,
    failures,
    labels,
    ours,
    parse_gpus,
    sdk,
)
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import ImageError
from ansible_collections.trtllm.serving.plugins.module_utils._releases import Release, UnknownRelease, get

FORMAT = 1
MARK = "TRTLLM-IMAGE "
PROBE_TIMEOUT_S = 300
DRIVER = Path("/proc/driver/nvidia/version")
# Where the package's own metadata is missing, the tree says the version.
VERSION_FILES = (
    "/app/tensorrt_llm/tensorrt_llm/version.py",
    "/app/tensorrt_llm/version.txt",
    "/tensorrtllm_backend/tensorrt_llm/tensorrt_llm/version.py",
)

PROBE = r"""
import json, os, re, shutil, sys
ask = json.loads(sys.argv[1])
version, source = "", ""
try:
    from importlib import metadata
    version, source = metadata.version("tensorrt_llm"), "package"
except Exception:
    for path in ask["version_files"]:
        try:
            with open(path) as stream:
                found = re.search(r"\d+\.\d+\.\d+[0-9A-Za-z.+-]*", stream.read())
        except OSError:
            continue
        if found:
            version, source = found.group(0), path
            break
found = {name: next((path for path in paths if os.path.exists(path)), "") for name, paths in ask["places"].items()}
for name, paths in ask["programs"].items():
    there = [path for path in paths if os.access(path, os.X_OK)]
    found[name] = there[0] if there else shutil.which(os.path.basename(paths[0])) or ""
found["python"] = shutil.which("python3") or sys.executable
print(ask["mark"] + json.dumps({"version": version, "version_source": source, "found": found}))
"""

PLACES = ("converter", "templates", "llmapi", "launcher")
PROGRAMS = {
    "tritonserver": ("/opt/tritonserver/bin/tritonserver",),
    "trtllm_build": ("/usr/local/bin/trtllm-build",),
    "mpirun": ("/usr/local/mpi/bin/mpirun", "/opt/hpcx/ompi/bin/mpirun", "/usr/bin/mpirun"),
}


@dataclass(frozen=True)
class Answer:
    """What an image said. Paths are empty for what it does not have."""

    version: str
    version_source: str
    found: dict[str, str]

    def path(self, name: str) -> str:
        return self.found.get(name, "")


def likely(release: Release) -> Answer:
    """What an image of the release most likely has, before there is one to ask."""
    found = {name: next(iter(release.in_image(name)), "") for name in PLACES}
    found.update({name: os.path.basename(paths[0]) for name, paths in PROGRAMS.items()}, python="python3")
    found["tritonserver"] = PROGRAMS["tritonserver"][0]
    return Answer("", "", found)


# --- kept answers -----------------------------------------------------------------------------------------------


def answer_file(home: Path, image_id: str) -> Path:
    return home / "images" / f"{image_id.rpartition(':')[2]}.json"


def read_record(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_record(path: Path, value: Mapping[str, Any], home: Path) -> None:
    """Written beside and renamed, so that it is there whole or not at all."""
    partial = path.parent / f".{path.name}.partial"
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.chmod(str(partial), 0o640)
        os.rename(str(partial), str(path))
    except OSError as exc:
        raise describe_os_error(exc, path.parent) from exc
    hand_over(path.parent, home)


def known_answer(home: Path, image_id: str, release: Release) -> Answer | None:
    value = read_record(answer_file(home, image_id))
    if value.get("format") != FORMAT or value.get("release") != release.version or value.get("image_id") != image_id:
        return None
    try:
        return Answer(str(value["version"]), str(value["version_source"]), dict(value["found"]))
    except (KeyError, TypeError, ValueError):
        return None


def keep_answer(home: Path, image_id: str, release: Release, answer: Answer) -> None:
    value = {
        "format": FORMAT, "release": release.version, "image_id": image_id, "version": answer.version,
        "version_source": answer.version_source, "found": answer.found,
    }  # fmt: skip
    write_record(answer_file(home, image_id), value, home)


# --- asking -----------------------------------------------------------------------------------------------------


def run_once(client: Any, image_id: str, home: Path, what: str, **options: Any) -> tuple[int, str, str]:
    """A short container without network or capabilities, gone afterwards; its exit code, output and errors."""
    # What a run left behind that lost its power.
    container = None
    try:
        for left in ours(client, home, "probe"):
            left.remove(force=True, v=True)
        container = client.containers.create(
            image_id,
            labels=labels(home, "probe"),
            network_mode="none",
            working_dir="/",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            # Its output is read from the engine, whatever the engine's own log driver is.
            log_config=sdk("docker.types").LogConfig(type="json-file"),
            **options,
        )
        container.start()
        code = int(container.wait(timeout=PROBE_TIMEOUT_S)["StatusCode"])
        said = [
            bytes(container.logs(stdout=each, stderr=not each)).decode("utf-8", "replace") for each in (True, False)
        ]
        return code, said[0], said[1]
    except failures() as exc:
        raise ContainerError(explain(exc, what)) from exc
    finally:
        if container is not None:
            try:
                container.remove(force=True, v=True)
            except failures():
                pass


def ask(client: Any, image_id: str, name: str, release: Release, home: Path) -> Answer:
    question = {
        "mark": MARK,
        "version_files": list(VERSION_FILES),
        "places": {each: list(release.in_image(each)) for each in PLACES},
        "programs": PROGRAMS,
    }
    code, said, errors = run_once(
        client, image_id, home, f"image {name} cannot be asked what it holds",
        entrypoint=["python3"], command=["-c", PROBE, json.dumps(question)],
    )  # fmt: skip
    lines = [line[len(MARK) :] for line in said.splitlines() if line.startswith(MARK)]
    if code != 0 or not lines:
        last = ([line.strip() for line in errors.splitlines() if line.strip()] or [f"exit code {code}"])[-1]
        raise ImageError(
            f"image {name} cannot be asked what it holds: {last}; use an image of Triton with TensorRT-LLM"
        )
    value = json.loads(lines[-1])
    return Answer(str(value["version"]), str(value["version_source"]), dict(value["found"]))


def judge(answer: Answer, name: str, release: Release, expected: str = "") -> None:
    """ImageError when the image is not of the release, or cannot serve."""
    wanted = expected or release.version
    said = answer.version.partition("+")[0]
    if not said:
        raise ImageError(
            f"image {name} has no TensorRT-LLM, wanted is {wanted}: use one such as {_example(release)}"
        )  # fmt: skip
    try:
        known = get(said).version
    except UnknownRelease:
        known = ""
    if said != wanted and (expected or known != release.version):
        remedy = (
            f"set trtllm_release to {known}, or use an image of {wanted} such as {_example(release)}"
            if known and not expected
            else f"use an image of {wanted}, or set tensorrtllm_backend_build_image_version to {said} if that is meant"
        )
        raise ImageError(
            f"image {name} holds TensorRT-LLM {answer.version}, and the release is {release.version}: {remedy}"
        )
    if not answer.path("tritonserver"):
        raise ImageError(f"image {name} has no tritonserver: use one such as {_example(release)}")


def _example(release: Release) -> str:
    return release.images[0] if release.images else f"one built from tensorrtllm_backend {release.backend_tag}"


# --- GPUs -------------------------------------------------------------------------------------------------------


def driver() -> str:
    """What changes when the host gets another driver; empty where none is loaded."""
    try:
        return DRIVER.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return ""


def gpu_file(home: Path) -> Path:
    return home / "images" / "gpu.json"


def gpu_inputs(image_id: str, gpus: Any, policy: str) -> dict[str, Any]:
    return {"image_id": image_id, "gpus": parse_gpus(gpus), "policy": policy, "driver": driver()}


def known_gpus(home: Path, image_id: str, gpus: Any, policy: str) -> list[str] | None:
    value = read_record(gpu_file(home))
    if value.get("inputs") != gpu_inputs(image_id, gpus, policy) or not isinstance(value.get("seen"), list):
        return None
    return [str(line) for line in value["seen"]]


def prove_gpus(client: Any, image_id: str, name: str, home: Path, gpus: Any, policy: str) -> list[str]:
    """The GPUs that nvidia-smi lists inside a container of the image."""
    wanted = parse_gpus(gpus)
    code, said, errors = run_once(
        client, image_id, home, f"no container of image {name} can have the GPUs",
        entrypoint=["nvidia-smi"], command=["-L"], device_requests=device_requests(client, gpus, policy),
    )  # fmt: skip
    seen = [line.strip() for line in said.splitlines() if re.match(r"^GPU \d+:", line)]
    least = wanted if isinstance(wanted, int) else len(wanted) if isinstance(wanted, list) else 1
    if code != 0 or len(seen) < least:
        lines = [line.strip() for line in (said + "\n" + errors).splitlines() if line.strip()]
        last = lines[-1] if lines and not seen else f"{len(seen)} GPU(s) instead of {least}"
        raise ImageError(
            f"inside a container of image {name}, nvidia-smi -L said '{last}': see that nvidia-smi works on the host"
            " and that docker_nvidia has configured the engine, or set tensorrtllm_backend_build_gpus to none"
        )
    value = {"inputs": gpu_inputs(image_id, gpus, policy), "seen": seen}
    write_record(gpu_file(home), value, home)
    return seen
