# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Docker Engine, disk, memory, limits and clock of a host: findings with what was seen and the remedy."""

from __future__ import annotations

import json
import resource
import time
import urllib.parse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _host_engine, _host_system
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import making
from ansible_collections.trtllm.serving.plugins.module_utils._host_engine import Engine, judge, look
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import (
    Finding,
    conclude,
    error,
    from_lines,
    warning,
)
from ansible_collections.trtllm.serving.plugins.module_utils._host_system import (
    clock_findings,
    clock_synchronized,
    limit_findings,
    memory,
    memory_findings,
    newest_file,
    os_release,
    partial_mib,
    present,
    space_findings,
    system_findings,
)

from .conftest import Docker

CONTAINER = "0123456789abcdef" * 4
MIB = 1024 * 1024


def ids(findings: Iterable[Finding]) -> list[str]:
    found = list(findings)
    for finding in found:
        assert finding.what and finding.remedy and "\n" not in finding.text
    return ["%s %s" % (finding.severity, finding.id) for finding in found]


# --- findings ---


def test_a_finding_is_one_line_and_a_record() -> None:
    finding = error("id", "what is wrong", "seen", "do this")
    assert finding.text == "what is wrong (seen): do this"
    assert replace(finding, seen="").text == "what is wrong: do this"
    assert finding.as_dict() == {
        "id": "id",
        "severity": "error",
        "what": "what is wrong",
        "seen": "seen",
        "remedy": "do this",
    }


def test_lines_stay_as_they_are() -> None:
    lines = ["port 1 (x) is in use by pid 1 (y): stop it, or set z", "a: b: c"]
    assert [finding.text for finding in from_lines("ports", lines)] == lines
    assert from_lines("x", ["a: b: c"])[0].remedy == "c"


def test_what_is_ignored_is_a_warning() -> None:
    record: dict[str, Any] = {}
    findings = [error("a", "A", "", "r"), error("b", "B", "", "r"), warning("c", "C", "", "r")]
    assert conclude(record, findings, ["a", "unknown"]) == (["B: r"], ["A: r", "C: r"])
    assert record["problems"] == ["B: r"]
    assert [finding["severity"] for finding in record["findings"]] == ["warning", "error", "warning"]
    json.dumps(record)


# --- engine ---

GOOD = Engine(True, "", "Docker", "28.5.1", "cgroupfs", ["nvidia", "runc"], True, False, "/var/lib/docker")


def test_an_engine_is_asked(docker: Docker) -> None:
    docker.answers["/images/json"] = [{"Id": "sha256:1", "RepoTags": None}]
    docker.hold("registry.example.com:5000/repo/name:tag")
    docker.answers["/containers/json"] = [
        {"Id": CONTAINER, "State": "running",
         "Labels": {"trtllm.serving.role": "server", "trtllm.serving.generation": "g1"},
         "Ports": [{"PrivatePort": 8000, "PublicPort": 8000, "Type": "tcp"}, {"PrivatePort": 8001}]},
        {"Id": "f" * 64, "State": "exited", "Labels": {"trtllm.serving.role": "tool"}, "Ports": []},
    ]  # fmt: skip
    engine = look("/opt/trtllm", "repo/name:tag")
    assert (engine.reachable, engine.version, engine.name) == (True, "28.5.1", "Docker")
    assert engine.containers == [CONTAINER, "f" * 64] and engine.ports == [8000] and engine.generation == "g1"
    assert engine.image_present and engine.data_root == str(docker.path.parent)
    asked = urllib.parse.unquote(next(path for path in docker.asked if path.startswith("/containers")))
    assert '"trtllm.serving.home=/opt/trtllm"' in asked
    assert look("/opt/trtllm", "registry.example.com:5000/repo/name:tag").image_present
    assert not look("/opt/trtllm", "repo/other:tag").image_present and not look("/opt/trtllm").image_present


def test_of_two_servers_the_one_in_the_active_slot_is_the_hosts(docker: Docker, tmp_path: Path) -> None:
    docker.answers["/images/json"] = []
    docker.answers["/containers/json"] = [
        {"Id": generation, "State": "running", "Ports": [{"PublicPort": port}],
         "Labels": {"trtllm.serving.role": "server", "trtllm.serving.generation": generation, **slot}}
        for generation, port, slot in (("g2", 8100, {"trtllm.serving.slot": "b"}), ("g1", 8000, {}))
    ]  # fmt: skip
    engine = look(str(tmp_path))
    assert engine.generation == "g1" and engine.ports == [8000, 8100]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slot.json").write_text('{"slot": "b"}')
    assert look(str(tmp_path)).generation == "g2"


def test_no_engine_and_one_that_does_not_answer(tmp_path: Path, docker: Docker) -> None:
    assert not look("/x", socket_file=str(tmp_path / "none")).reachable
    (tmp_path / "file").write_text("")
    broken = look("/x", socket_file=str(tmp_path / "file"))
    assert not broken.reachable and broken.problem
    docker.answers["/info"] = []
    assert look("/x").problem


def test_cdi_needs_the_feature_and_a_specification(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_host_engine, "CDI_SPECS", (str(tmp_path / "cdi"),))
    docker.answers["/info"]["CDISpecDirs"] = ["/etc/cdi"]
    assert not look("/x").cdi
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "nvidia.yaml").write_text("cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n")
    assert look("/x").cdi
    docker.answers["/info"]["CDISpecDirs"] = []
    assert not look("/x").cdi


@pytest.mark.parametrize(
    ("engine", "source", "wanted"),
    [
        (GOOD, "none", []),
        (GOOD, "docker-ce", []),
        (Engine(), "none", ["error docker"]),
        (Engine(), "docker-ce", []),
        (Engine(installed=True), "none", ["error docker"]),
        (Engine(installed=True), "docker-ce", ["warning docker"]),
        (Engine(problem="refused"), "none", ["error docker"]),
        (replace(GOOD, version="18.09.9"), "none", ["error docker_version"]),
        (replace(GOOD, version="18.09.9"), "docker-ce", ["warning docker_version"]),
        (replace(GOOD, version="19.03.15"), "none", []),
        (replace(GOOD, version="20.10.24+dfsg1"), "none", []),
        (replace(GOOD, name="Podman", version="4.9.4"), "none", ["error docker"]),
        (replace(GOOD, runtimes=["runc"], cdi=False), "none", ["error docker_gpu"]),
        (replace(GOOD, runtimes=["runc"], cdi=False), "docker-ce", []),
        (replace(GOOD, runtimes=["runc"]), "none", []),
        (replace(GOOD, selinux=True), "none", ["warning selinux"]),
    ],
)
def test_the_engine_is_judged(engine: Engine, source: str, wanted: list[str]) -> None:
    managed = source == "docker-ce"
    assert ids(judge(engine, "/opt/trtllm", managed, managed, "auto", True)) == wanted


def test_an_existing_engine_may_get_the_toolkit() -> None:
    engine = replace(GOOD, runtimes=["runc"], cdi=False)
    assert ids(judge(engine, "/opt/trtllm", False, True, "auto", True)) == []
    assert ids(judge(engine, "/opt/trtllm", False, False, "auto", False)) == []


@pytest.mark.parametrize(
    ("version", "cdi", "driver", "policy", "risky"),
    [
        ("28.5.1", True, "systemd", "auto", False),
        ("28.5.1", False, "systemd", "auto", False),
        ("27.5.1", False, "systemd", "auto", True),
        ("27.5.1", False, "cgroupfs", "auto", False),
        ("27.5.1", False, "systemd", "cdi", False),
        ("28.5.1", True, "systemd", "runtime", True),
    ],
)
def test_the_hook_loses_gpus_where_systemd_manages_cgroups(
    version: str, cdi: bool, driver: str, policy: str, risky: bool
) -> None:
    engine = replace(GOOD, version=version, cdi=cdi, cgroup_driver=driver)
    findings = judge(engine, "/opt/trtllm", True, True, policy, True)
    assert ids(findings) == (["warning docker_cgroups"] if risky else [])
    assert judge(engine, "/opt/trtllm", True, True, policy, False) == []


# --- system ---


@pytest.mark.parametrize(
    ("name", "version", "good"),
    [
        ("ol", "8.10", True), ("ol", "9.4", True), ("rhel", "9.2", True), ("rocky", "9.5", True),
        ("ubuntu", "22.04", True),
        ("ubuntu", "24.04", True), ("debian", "12", True), ("centos", "9", True),
        ("ubuntu", "20.04", False), ("ubuntu", "22.10", False), ("debian", "11", False), ("ol", "7.9", False),
        ("fedora", "41", False), ("", "", False),
    ],
)  # fmt: skip
def test_operating_systems(name: str, version: str, good: bool) -> None:
    release = {"ID": name, "VERSION_ID": version, "PRETTY_NAME": "The System"}
    assert ids(system_findings(release, "x86_64", True)) == ([] if good else ["error os"])
    assert ids(system_findings(release, "x86_64", False)) == ([] if good else ["warning os"])


def test_machines_and_os_release(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME="Oracle Linux Server"\nID="ol"\nVERSION_ID="9.4"\n# comment\nX=\n')
    release = os_release(str(tmp_path))
    assert (release["ID"], release["VERSION_ID"], release["NAME"]) == ("ol", "9.4", "Oracle Linux Server")
    assert ids(system_findings(release, "ppc64le", True)) == ["error machine"]
    assert os_release(str(tmp_path / "none")) == {}


# --- disk ---


def test_what_is_there_already(tmp_path: Path) -> None:
    assert not present(str(tmp_path), "weights")
    with making(tmp_path / "weights" / "model@1", "weights", {"a": "b"}) as made:
        (made.path / "file").write_bytes(b"x")
    (tmp_path / "engines" / ".key.partial").mkdir(parents=True)
    (tmp_path / "engines" / ".key.partial" / "file").write_bytes(b"x" * (3 * MIB))
    (tmp_path / "engines" / "unfinished").mkdir()
    assert present(str(tmp_path), "weights") and not present(str(tmp_path), "engines")
    assert partial_mib(str(tmp_path), "engines") == 3 and partial_mib(str(tmp_path), "weights") == 0


def test_needs_of_one_file_system_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host_system, "free_bytes", lambda path: 100 * MIB)
    home, root = str(tmp_path / "home"), str(tmp_path / "docker")
    assert space_findings([("weights", home, 60), ("image", root, 40)]) == []
    (finding,) = space_findings([("weights", home, 60), ("image", root, 41), ("nothing", root, 0)])
    assert ids([finding]) == ["error space"]
    assert "100 MiB are free" in finding.text and "101 MiB are needed" in finding.text
    assert "weights 60, image 41" in finding.text and home in finding.text and root in finding.text
    assert len(space_findings([("weights", home, 200), ("image", "/proc", 200)])) == 2, "two file systems, two findings"


# --- memory ---

HAVE = {"MemTotal": 100000, "MemAvailable": 95000, "SwapTotal": 0}


@pytest.mark.parametrize(
    ("have", "checkpoint", "world", "workers", "wanted"),
    [
        (HAVE, 89078, 8, 1, []),
        (HAVE, 0, 8, 8, []),
        ({}, 89078, 1, 1, []),
        ({**HAVE, "MemAvailable": 20000}, 89078, 8, 1, ["warning memory"]),
        ({**HAVE, "MemAvailable": 20000, "SwapTotal": 90000}, 89078, 8, 1, []),
        ({"MemTotal": 24000, "MemAvailable": 23000}, 89078, 2, 1, ["error memory"]),
        ({"MemTotal": 24000, "MemAvailable": 23000}, 89078, 8, 1, ["warning memory"]),
        ({"MemTotal": 24000, "MemAvailable": 23000}, 89078, 8, 8, ["error memory"]),
    ],
)
def test_memory_to_convert(have: dict[str, int], checkpoint: int, world: int, workers: int, wanted: list[str]) -> None:
    assert ids(memory_findings(have, checkpoint, world, workers)) == wanted


def test_memory_is_read() -> None:
    assert memory()["MemTotal"] > 0 and memory("/none") == {}


# --- limits ---


@pytest.mark.parametrize(
    ("ulimits", "wanted"),
    [
        ({"memlock": -1}, 1), ({"memlock": 1000}, 0), ({"memlock": 10000}, 1),
        ({"memlock": {"soft": 1, "hard": -1}}, 1),
        ({"stack": 67108864}, 0), ({}, 0), ({"core": -1}, 0),
    ],
)  # fmt: skip
def test_limits_that_may_not_be_granted(ulimits: dict[str, Any], wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = {resource.RLIMIT_MEMLOCK: 8192, resource.RLIMIT_STACK: resource.RLIM_INFINITY, resource.RLIMIT_NOFILE: 9}
    monkeypatch.setattr(_host_system.resource, "getrlimit", lambda number: (0, hard[number]))
    monkeypatch.setattr(_host_system, "_capability", lambda number: False)
    assert ids(limit_findings(ulimits, 0, HAVE)) == ["warning limits"] * wanted
    monkeypatch.setattr(_host_system, "_capability", lambda number: True)
    assert limit_findings(ulimits, 0, HAVE) == []


def test_shared_memory_larger_than_the_host() -> None:
    assert limit_findings({}, 50000, HAVE) == []
    assert ids(limit_findings({}, 50001, HAVE)) == ["warning shm"]


def test_shared_memory_too_small_for_nccl() -> None:
    assert limit_findings({}, 64, HAVE, 1) == limit_findings({}, 1024, HAVE, 8) == limit_findings({}, 0, HAVE, 8) == []
    assert ids(limit_findings({}, 64, HAVE, 8)) == ["warning shm"]


# --- clock ---

NOW = 1790000000.0


@pytest.mark.parametrize(
    ("controller", "synchronized", "written", "wanted"),
    [
        (NOW, True, NOW - 5, []),
        (NOW + 100, True, NOW, []),
        (NOW + 200, True, NOW, ["warning clock"]),
        (NOW - 200, True, NOW, ["warning clock"]),
        (NOW + 100000, True, NOW, ["error clock"]),
        (None, True, NOW + 600, ["warning clock"]),
        (None, True, NOW + 100000, ["error clock"]),
        (None, False, NOW, ["warning clock"]),
        (NOW, None, NOW, []),
    ],
)
def test_the_clock(controller: float | None, synchronized: bool | None, written: float, wanted: list[str]) -> None:
    findings = clock_findings(NOW, controller, synchronized, written)
    assert ids(findings) == wanted
    for finding in findings:
        assert "2026-09-21T" in finding.seen


def test_the_kernel_is_asked_and_nothing_is_changed() -> None:
    before = time.time()
    assert clock_synchronized() in (True, False, None)
    assert abs(time.time() - before) < 5
    assert 0 < newest_file() and newest_file(["/none"]) == 0
