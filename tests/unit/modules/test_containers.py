# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import pwd
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError

docker = pytest.importorskip("docker")


class Engine:
    """The part of a client that tells what the engine can do."""

    def __init__(self, **info: Any) -> None:
        self._info = info

    def info(self) -> dict[str, Any]:
        return self._info


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [("2g", 2 << 30), ("512m", 512 << 20), (1024, 1024), ("1024", 1024), ("1.5k", 1536), ("2GiB", 2 << 30)],
)
def test_size(given: Any, bytes_: int) -> None:
    assert _containers.size_bytes(given) == bytes_


@pytest.mark.parametrize("given", ["", "2x", "-1", -1, "two", None])
def test_no_size(given: Any) -> None:
    with pytest.raises(ContainerError, match="is no size: give"):
        _containers.size_bytes(given)


def test_ulimits() -> None:
    found = _containers.ulimits({"memlock": -1, "nofile": {"soft": 10, "hard": "20"}, "core": {"hard": 0}})
    assert [(limit.name, limit.soft, limit.hard) for limit in found] == [
        ("memlock", -1, -1),
        ("nofile", 10, 20),
        ("core", 0, 0),
    ]
    assert _containers.ulimits(None) == []
    with pytest.raises(ContainerError, match="ulimit stack 'big' is no number"):
        _containers.ulimits({"stack": "big"})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("all", "all"),
        (["all"], "all"),
        (-1, "all"),
        (None, 0),
        ("none", 0),
        ([], 0),
        ("", 0),
        (2, 2),
        ("2", 2),
        ("device=0,1", ["0", "1"]),
        ([0, "GPU-8f2c"], ["0", "GPU-8f2c"]),
    ],
)
def test_gpus(given: Any, wanted: Any) -> None:
    assert _containers.parse_gpus(given) == wanted


def test_gpus_that_are_none() -> None:
    with pytest.raises(ContainerError, match="gpus 'first' names no GPU"):
        _containers.parse_gpus("first")
    with pytest.raises(ContainerError, match="device policy 'podman' is unknown"):
        _containers.device_requests(Engine(), "all", "podman")


def spec(folder: Path, name: str, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    text = json.dumps({"kind": kind}) if name.endswith("json") else f"---\ncdiVersion: 0.5.0\nkind: {kind}\n"
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", ["nvidia.yaml", "nvidia.json"])
def test_policy_auto_takes_cdi_where_it_works(tmp_path: Path, name: str) -> None:
    engine = Engine(CDISpecDirs=[str(tmp_path / "none"), str(spec(tmp_path / "cdi", name, "nvidia.com/gpu"))])
    (request,) = _containers.device_requests(engine, "all")
    assert (request["Driver"], request["DeviceIDs"]) == ("cdi", ["nvidia.com/gpu=all"])
    (request,) = _containers.device_requests(engine, 2, "cdi")
    assert request["DeviceIDs"] == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    (request,) = _containers.device_requests(engine, ["GPU-1"], "cdi")
    assert request["DeviceIDs"] == ["nvidia.com/gpu=GPU-1"]
    (request,) = _containers.device_requests(engine, "all", "runtime")
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", -1, [["gpu"]])


def test_policy_auto_takes_the_runtime_elsewhere(tmp_path: Path) -> None:
    folder = spec(tmp_path / "cdi", "other.yaml", "example.com/gpu")
    (folder / "broken.json").write_text("{")
    (folder / "notes.txt").write_text("kind: nvidia.com/gpu")
    for engine in (Engine(), Engine(CDISpecDirs=[]), Engine(CDISpecDirs=[str(folder)])):
        (request,) = _containers.device_requests(engine, 3)
        assert (request["Driver"], request["Count"]) == ("nvidia", 3)
        (request,) = _containers.device_requests(engine, ["0", "1"])
        assert (request["Count"], request["DeviceIDs"]) == (0, ["0", "1"])
        with pytest.raises(ContainerError, match="offers no CDI device"):
            _containers.device_requests(engine, "all", "cdi")
        assert _containers.device_requests(engine, "none", "cdi") == []


def test_devices_that_the_engine_has_discovered() -> None:
    engine = Engine(DiscoveredDevices=[{"Source": "cdi", "ID": "nvidia.com/gpu=0"}])
    assert _containers.cdi_ready(engine)


def test_mounts() -> None:
    found = _containers.mount("/data")
    assert (found["Source"], found["Target"], found["Type"], found["ReadOnly"]) == ("/data", "/data", "bind", True)
    found = _containers.parse_volume("/a:/b:rw")
    assert (found["Source"], found["Target"], found["ReadOnly"]) == ("/a", "/b", False)
    found = _containers.parse_volume("/a")
    assert (found["Target"], found["ReadOnly"]) == ("/a", True)
    for bad in ("name:/b", "/a:b", "/a:/b:/c", ""):
        with pytest.raises(ContainerError, match="is not source:target"):
            _containers.parse_volume(bad)


def test_users() -> None:
    me = pwd.getpwuid(0)
    assert _containers.user_ids("1000:1001") == "1000:1001"
    assert _containers.user_ids(me.pw_name) == _containers.user_ids("0") == f"0:{me.pw_gid}"
    with pytest.raises(ContainerError, match="user 'nobody-of-that-name' does not exist"):
        _containers.user_ids("nobody-of-that-name")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', "NVIDIA Container Toolkit"),
        ("error setting rlimit type 8: operation not permitted", "lower memlock"),
        ("Error while fetching server API version: PermissionError(13, 'Permission denied')", "Docker socket"),
        ("('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))", "systemctl status docker"),
        ("Get https://registry.example: no such image: x", "not on this host"),
    ],
)
def test_failures_have_a_remedy(said: str, remedy: str) -> None:
    told = _containers.explain(RuntimeError(f"{said}\n"), "the container cannot be started")
    assert told.startswith(f"the container cannot be started: {said}; ") and remedy in told and "\n" not in told


def test_sdk_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, package: Any = None) -> Any:
        raise ImportError("No module named 'docker'")

    monkeypatch.setattr(_containers.importlib, "import_module", nothing)
    with pytest.raises(ContainerError, match="package docker cannot be imported .*ansible_python_interpreter"):
        _containers.connect()


def test_daemon_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(ContainerError, match="Docker daemon cannot be used: .*systemctl status docker"):
        _containers.connect()
