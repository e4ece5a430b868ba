# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules that run a tool in a container: they behave as on the host, and stand a full disk or a reboot."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._checkpoint import convert
from ansible_collections.trtllm.serving.plugins.module_utils._engine import build
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import ToolError

UNIT = Path(__file__).resolve().parents[1] / "unit" / "modules"
sys.path.insert(0, str(UNIT))
pytest.register_assert_rewrite("tool_behaviour")

# The tests themselves, which are the same for both runners.
from tool_behaviour import *  # noqa: F403 # pylint: disable=wildcard-import,unused-wildcard-import

_spec = importlib.util.spec_from_file_location("trtllm_unit_modules_conftest", UNIT / "conftest.py")
assert _spec is not None and _spec.loader is not None
unit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(unit)
cancellation, start_module, helpers = unit.cancellation, unit.start_module, unit.helpers

SERVICE = 1234


class ContainerSite(unit.Site):  # type: ignore[misc]
    """A home of the service user, and the fake tool mounted where the container finds it."""

    timeout = 5.0

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, image: str, client: Any) -> None:
        super().__init__(root, monkeypatch)
        self.client = client
        self.environment = {"FAKE_RUNS": str(self.runs_file), "FAKE_PIDS": str(self.pids_file)}
        self.container: dict[str, Any] = {
            "image": image,
            "gpus": "none",
            "shm_size": "16m",
            "environment": self.environment,
            "volumes": [str(self.tool), f"{self.marks}:{self.marks}:rw"],
        }
        for path in (self.home, self.marks):
            os.chown(path, SERVICE, SERVICE)

    def mode(self, mode: str) -> None:
        self.environment["FAKE_MODE"] = mode

    def containers(self) -> list[Any]:
        return _containers.ours(self.client, self.home, "tool")

    def running(self) -> bool:
        return bool(self.containers())

    def convert_args(self, **more: Any) -> dict[str, Any]:
        own = {"executable": ["python3", str(self.tool)], "container": self.container}
        return dict(super().convert_args(**{**own, **more}))

    def build_args(self, checkpoint: str, **more: Any) -> dict[str, Any]:
        own = {"executable": ["python3", str(self.tool)], "container": self.container}
        return dict(super().build_args(checkpoint, **{**own, **more}))


@pytest.fixture
def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_image: str, docker_client: Any
) -> Iterator[ContainerSite]:
    found = ContainerSite(tmp_path, monkeypatch, python_image, docker_client)
    yield found
    left = found.containers()
    for container in left:
        container.remove(force=True, v=True)
    assert not left


def owners(path: Path) -> set[tuple[int, int]]:
    return {(entry.lstat().st_uid, entry.lstat().st_gid) for entry in [path, *path.rglob("*")]}


def test_everything_below_the_home_is_the_service_users(site: ContainerSite, start_module: Any) -> None:
    made = start_module("convert_checkpoint", site.convert_args(tp_size=2)).result()
    assert made["changed"] and made["command"][:2] == ["python3", str(site.tool)]
    engine = start_module("trtllm_build", site.build_args(made["path"])).result()
    assert engine["changed"]
    below = [site.home / name for name in ("checkpoints", "engines", "logs")]
    assert set.union(*map(owners, below)) == {(SERVICE, SERVICE)}
    assert Path(made["log_file"]).stat().st_mode & 0o777 == 0o640
    assert not any(site.container["image"] in word for word in made["command"])


def test_the_container_is_not_part_of_the_key(site: ContainerSite, cancellation: Any) -> None:
    found = [
        convert(site.convert_args(container=how), True, cancellation)["key"]
        for how in (None, site.container, {**site.container, "memory": "1g", "ulimits": {"stack": 1}, "gpus": "all"})
    ]
    assert len(set(found)) == 1 and found[0]


def test_check_mode_needs_no_engine(site: ContainerSite, start_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such.sock")
    site.container["image"] = ""
    found = start_module("convert_checkpoint", site.convert_args(), check=True).result()
    assert found["changed"] and found["key"]
    refused = start_module("convert_checkpoint", site.convert_args()).result()
    assert refused["failed"] and "the Docker daemon cannot be used" in refused["msg"] and "\n" not in refused["msg"]
    assert site.partials() == []


def test_engine_of_an_image_that_is_not_there_yet(site: ContainerSite, cancellation: Any) -> None:
    path = convert(site.convert_args(), False, cancellation)["path"]
    site.container["image"] = ""
    found = build(site.build_args(path), True, cancellation)
    assert found["changed"] and found["key"] is None and "image is not there yet" in found["msg"]


def test_docker_sdk_is_missing(site: ContainerSite, start_module: Any, tmp_path: Path) -> None:
    """As on a host whose environment is not made yet: predicted in check mode, refused otherwise."""
    (tmp_path / "blocked" / "docker").mkdir(parents=True)
    (tmp_path / "blocked" / "docker" / "__init__.py").write_text("raise ImportError('No module named docker')")
    sys.path.insert(0, str(tmp_path / "blocked"))
    try:
        assert start_module("convert_checkpoint", site.convert_args(), check=True).result()["changed"]
        found = start_module("convert_checkpoint", site.convert_args()).result()
    finally:
        sys.path.remove(str(tmp_path / "blocked"))
    assert "the Python package docker cannot be imported" in found["msg"]
    assert "ansible_python_interpreter" in found["msg"] and "\n" not in found["msg"]


def test_secret_is_refused_and_shown_nowhere(site: ContainerSite, start_module: Any) -> None:
    site.environment["HF_TOKEN"] = "hf_verysecret"
    for check in (True, False):
        found = start_module("convert_checkpoint", site.convert_args(), check=check).result()
        assert found["failed"] and "container.environment.HF_TOKEN would be shown" in found["msg"]
        assert "hf_verysecret" not in json.dumps(found)
    assert site.runs == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus": "first"}, "gpus 'first' names no GPU"),
        ({"memory": "much"}, "'much' is no size"),
        ({"volumes": ["relative"]}, "volume 'relative' is not source:target"),
        ({"user": "nobody-of-that-name"}, "user 'nobody-of-that-name' does not exist"),
        ({"ulimits": {"stack": "x"}}, "ulimit stack 'x' is no number"),
    ],
)
def test_settings_that_cannot_be_meant(
    site: ContainerSite, cancellation: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises((ToolError, _containers.ContainerError), match=message) as caught:
        convert(site.convert_args(container={**site.container, **given}), False, cancellation)
    assert "\n" not in str(caught.value) and site.runs == [] and site.partials() == []


def test_memory_limit(site: ContainerSite, cancellation: Any) -> None:
    site.tool.write_text("print('loading', flush=True)\nwhole = [bytearray(1 << 20) for _ in range(300)]")
    with pytest.raises(ToolError) as caught:
        convert(site.convert_args(container={**site.container, "memory": "64m"}), False, cancellation)
    assert "at its memory limit of 64.0 MiB (OOMKilled) (raise container.memory" in str(caught.value)
    assert caught.value.details["rc"] == 137 and "OOMKilled" in caught.value.details["error"]
    assert site.partials() == []


def test_run_after_a_power_loss(site: ContainerSite, start_module: Any, helpers: Any, cancellation: Any) -> None:
    """Then the container is there, ended, with what it was writing; the same holds while it runs still."""
    site.mode("hang")
    module = start_module("convert_checkpoint", site.convert_args())
    helpers.wait_for(lambda: site.pids)
    module.process.kill()
    module.process.wait()
    (container,) = site.containers()
    assert container.status == "running" and site.partials()
    container.kill()
    container.wait()
    site.mode("ok")
    path = convert(site.convert_args(), False, cancellation)["path"]
    assert not site.running() and site.partials() == []
    assert build(site.build_args(path), False, cancellation)["changed"]


# --- disk full --------------------------------------------------------------------------------------------------

FILLING = r"""
import sys
output = sys.argv[sys.argv.index("--output_dir") + 1]
with open(output + "/rank0.safetensors", "wb") as stream:
    for _ in range(64):
        stream.write(bytes(1 << 20))
"""


@pytest.fixture
def small(site: ContainerSite, tmp_path: Path) -> Iterator[ContainerSite]:
    """The home on a file system of its own with little room."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=8m,uid={SERVICE},gid={SERVICE},mode=755", "tmpfs", str(site.home)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        (pytest.skip if os.environ.get("ALLOW_SKIP") == "1" else pytest.fail)(
            f"no file system can be mounted here: {made.stderr.strip()} (ALLOW_SKIP=1 skips what needs it)"
        )
    yield site
    for container in site.containers():
        container.remove(force=True, v=True)
    subprocess.run(["umount", str(site.home)], check=True)


@pytest.mark.parametrize("tool", ["convert_checkpoint", "trtllm_build"])
def test_disk_full(small: ContainerSite, start_module: Any, cancellation: Any, tool: str) -> None:
    args = small.convert_args()
    if tool == "trtllm_build":
        args = small.build_args(convert(args, False, cancellation)["path"])
    good = small.tool.read_text()
    small.tool.write_text(FILLING)
    found = start_module(tool, args).result()
    assert found["failed"] and "No space left on device" in found["msg"], found
    assert "(the disk is full: free some, or choose a directory on a larger file system)" in found["msg"]
    assert "\n" not in found["msg"] and small.partials() == [] and not small.running()
    small.tool.write_text(good)
    assert start_module(tool, args).result()["changed"]


def test_disk_full_of_the_log(small: ContainerSite, start_module: Any) -> None:
    small.tool.write_text("while True: print('x' * 1000)")
    found = start_module("convert_checkpoint", small.convert_args()).result(60)
    assert found["failed"] and "convert_checkpoint: no space left" in found["msg"], found
    assert f"below {small.home / 'logs'}: free some" in found["msg"] and "\n" not in found["msg"]
    assert small.partials() == [] and not small.running()


# --- the real command lines ---------------------------------------------------------------------------------------


def test_tools_of_an_image(site: ContainerSite, backend_image: str, cancellation: Any) -> None:
    """Converts and builds a small model with the tools that the backend's image holds."""
    shutil.rmtree(site.model)
    generator = Path(__file__).resolve().parents[2] / "roles/tensorrtllm_backend_build/files/reference/tools"
    assert (generator / "generate_tiny.py").is_file()
    from ansible_collections.trtllm.serving.plugins.module_utils._runner_container import ContainerRunner
    from ansible_collections.trtllm.serving.plugins.module_utils._runner_settings import ContainerSettings

    site.model.mkdir()
    settings = ContainerSettings.of({**site.container, "image": backend_image})
    runner = ContainerRunner(settings, site.home, "generate")
    found = runner.run(
        ["python3", str(generator / "generate_tiny.py"), "--output_dir", str(site.model)],
        log_file=site.home / "logs" / "generate.log",
        reads=[generator.parent],
        writes=[site.model],
    )
    assert found.rc == 0, found.tail
    site.container["image"] = backend_image
    converter = ["python3", "/app/examples/models/core/llama/convert_checkpoint.py"]
    made = convert(site.convert_args(executable=converter, tp_size=2), False, cancellation)
    assert made["changed"] and len(made["ranks"]) == 2
    engine = build(site.build_args(made["path"], executable=["trtllm-build"], max_batch_size=4), False, cancellation)
    assert engine["changed"] and engine["engine"]["version"] == "1.1.0" and engine["engine"]["tp_size"] == 2
    assert owners(Path(engine["path"])) == {(SERVICE, SERVICE)}
