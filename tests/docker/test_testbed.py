# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The test bed itself: a stand-in that lies makes every test behind it worthless."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

NVIDIA = Path(__file__).resolve().parents[1] / "testbed" / "nvidia"


def smi(tmp_path: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    text = (NVIDIA / "nvidia-standin.conf").read_text("utf-8") + "".join("%s=%s\n" % item for item in settings.items())
    (tmp_path / "conf").write_text(text, "utf-8")
    done = subprocess.run(
        [NVIDIA / "nvidia-smi", *arguments], env={"NVIDIA_STANDIN_CONF": str(tmp_path / "conf")}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "arguments, settings, code, said",
    [
        (["--bogus"], {}, 255, "ERROR: Option --bogus is not recognized. Please run 'nvidia-smi -h'."),
        (["-L"], {"count": "0"}, 6, "No devices were found"),
        (["-q", "-x"], {"fault": "mismatch"}, 18, "Driver/library version mismatch"),
        (["-q", "-x"], {"fault": "nvml"}, 255, "Failed to initialize NVML: Unknown Error"),
        (["-q", "-x"], {"fault": "lost"}, 15, "GPU is lost"),
        (["--query-gpu=name,bogus", "--format=csv"], {}, 2, 'Field "bogus" is not a valid field to query.'),
        (["--query-gpu=index,compute_cap", "--format=csv,noheader"], {"count": "8"}, 0, "7, 8.0"),
        (["-q", "-x"], {"count": "8"}, 0, "<attached_gpus>8</attached_gpus>"),
    ],
)
def test_nvidia_smi(tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int, said: str) -> None:
    found = smi(tmp_path, *arguments, **settings)
    assert found[0] == code and said in found[1], found


def test_registry_keeps_an_image(docker_client: Any, registry: Any, python_image: str) -> None:
    digest = registry.push(python_image, "small:1")
    pulled = docker_client.images.pull("%s/small@%s" % (registry.address, digest))
    try:
        assert pulled.id == docker_client.images.get(python_image).id
    finally:
        for name in pulled.attrs["RepoDigests"]:
            if name.startswith(registry.address):
                docker_client.api.remove_image(name, noprune=True)


def test_clone_brings_submodule_and_large_files(tmp_path: Path, backend_git_repo: Any) -> None:
    target = tmp_path / "clone"
    for argv in (
        ["clone", "--quiet", "--depth", "1", "--branch", "v0.12.0", backend_git_repo.url, str(target)],
        ["-C", str(target), "submodule", "update", "--init", "--recursive", "--depth", "1"],
    ):
        done = subprocess.run(["git", *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    library = target / "tensorrt_llm/cpp/tensorrt_llm/batch_manager/x86_64-linux-gnu"
    done = subprocess.run(["git", "-C", str(target / "tensorrt_llm"), "lfs", "pull"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    content = (library / "libtensorrt_llm_batch_manager_static.a").read_bytes()
    assert content.startswith(b"!<arch>")
    head = subprocess.run(["git", "-C", str(target), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert head.stdout.strip() == backend_git_repo.commits["0.12.0"]


@pytest.mark.parametrize("release", ["0.12.0", "1.1.0"])
def test_backend_image_says_its_release(docker_client: Any, testbed_image: Any, labels: Any, release: str) -> None:
    code = "import importlib.metadata as m; print(m.version('tensorrt_llm'))"
    said = docker_client.containers.run(
        testbed_image("backend-" + release), ["python3", "-c", code],
        user="12345:12345", remove=True, labels=labels, network_mode="none",
    ).decode()  # fmt: skip
    assert said.splitlines()[-1] == release
