# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Docker host's preflight as a whole, and the two modules as Ansible runs them."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.trtllm.serving.plugins.module_utils import _host_docker, _host_system
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import making
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_findings import Wants
from ansible_collections.trtllm.serving.plugins.module_utils._gpu_memory import MIXTRAL_8X7B
from ansible_collections.trtllm.serving.plugins.module_utils._host import check_home
from ansible_collections.trtllm.serving.plugins.module_utils._host_docker import Plan, examine, plan_of, shape
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import Finding
from ansible_collections.trtllm.serving.plugins.module_utils._lock import machine_id, pid_starttime
from ansible_collections.trtllm.serving.plugins.module_utils._releases import get
from ansible_collections.trtllm.serving.plugins.modules import host_preflight

from .conftest import Docker, Install, Run

MIXTRAL = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests is none of what is judged here."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(_host_system, "os_release", lambda root="/": {"ID": "ol", "VERSION_ID": "9.4"})
    monkeypatch.setattr(_host_system, "clock_synchronized", lambda: True)
    monkeypatch.setattr(_host_system, "newest_file", lambda: 0.0)
    monkeypatch.setattr(_host_system, "_capability", lambda number: True)
    monkeypatch.setattr(_host_system, "memory", lambda: {"MemTotal": 2000000, "MemAvailable": 1900000})
    monkeypatch.setattr(_host_system, "free_bytes", lambda path: 10**13)


def plan(home: Path, **more: Any) -> Plan:
    row = get("0.12.0")
    wants = Wants("0.12.0", row.driver, row.cuda, tp_size=8, model=MIXTRAL_8X7B)
    return replace(
        Plan(str(home), "127.0.0.1", {}, wants, image="r:t", engine_managed=True, toolkit_managed=True), **more
    )


def ids(findings: list[Finding]) -> list[str]:
    return ["%s %s" % (finding.severity, finding.id) for finding in findings]


def test_a_good_host(tmp_path: Path, smi: Install, docker: Docker) -> None:
    smi("a100x8.xml")
    record, findings = examine(plan(tmp_path / "home"))
    assert findings == []
    assert record["gpu"] == {
        "name": "NVIDIA A100-SXM4-40GB", "compute_capability": "8.0", "memory_mib": 40960, "count": 8,
    }  # fmt: skip
    assert len(record["gpus"]) == 8 and record["driver"] == "535.183.01" and record["docker"] == "28.5.1"
    assert record["current"] is None and record["running"] is None and len(record["notes"]) == 1
    assert not (tmp_path / "home").exists()
    json.dumps(record)


def test_everything_at_once(tmp_path: Path, smi: Install, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    smi("v100x2.xml")
    docker.answers["/version"]["Version"] = "18.09.1"
    monkeypatch.setattr(_host_system, "os_release", lambda root="/": {"ID": "ol", "VERSION_ID": "7.9"})
    monkeypatch.setattr(_host_system, "free_bytes", lambda path: 10**9)
    monkeypatch.setattr(_host_system, "memory", lambda: {"MemTotal": 8000, "MemAvailable": 7000})
    monkeypatch.setattr(_host_system, "clock_synchronized", lambda: False)
    row = get("1.1.0")
    wants = Wants(
        "1.1.0", row.driver, row.cuda, tp_size=8, model=MIXTRAL_8X7B, dtype="bfloat16", options={"use_fp8": True}
    )
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        ports = {"http_port": held.getsockname()[1]}
        record, findings = examine(
            plan(Path("relative/home"), wants=wants, ports=ports, engine_managed=False, shm_mib=7000)
        )
    assert set(ids(findings)) == {
        "warning os", "error home", "error docker_version", "warning docker_cgroups", "error gpu_count",
        "error driver_version", "error compute_capability", "error gpu_fp8", "error gpu_bfloat16", "warning gpu_ecc",
        "warning gpu_retirement", "warning persistence", "error gpu_processes", "warning gpu_processes",
        "warning shm", "error ports", "warning clock",
    }  # fmt: skip
    assert all("\n" not in finding.text for finding in findings)
    assert record["gpu"]["count"] == 2


def test_a_host_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix://%s/none" % tmp_path)
    monkeypatch.setattr(_host_docker._host_engine.shutil, "which", lambda name, path=None: None)
    wanted = plan(tmp_path / "home", smi="no-such-program")
    assert ids(examine(wanted)[1]) == ["error nvidia_smi"], "the role docker_nvidia is about to install Docker"
    assert ids(examine(replace(wanted, engine_managed=False))[1]) == ["error docker", "error nvidia_smi"]
    nothing = replace(wanted, wants=replace(wanted.wants, gpus="none"))
    record, findings = examine(nothing)
    assert findings == [] and record["gpu"] is None


# --- room ---


def space_of(wanted: Plan, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    seen: dict[str, int] = {}

    def look(needs: Any) -> list[Finding]:
        seen.update({label: mib for label, _path, mib in needs})
        return []

    monkeypatch.setattr(_host_system, "space_findings", look)
    examine(wanted)
    return seen


def test_only_what_is_missing_needs_room(tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o750)
    wanted = plan(home, wants=replace(plan(home).wants, gpus="none"))
    full = {"weights": 89078, "checkpoint": 89078, "engine": 89078, "generations": 256, "image": 40000}
    assert space_of(wanted, monkeypatch) == full
    given = replace(wanted, space={"image": 1000, "weights": 5000})
    assert space_of(given, monkeypatch) == {**full, "image": 1000, "weights": 5000}
    docker.hold("r:t")
    with making(home / "weights" / "m@1", "weights", {"a": "b"}) as made:
        (made.path / "f").write_bytes(b"x")
    (home / "checkpoints" / ".k.partial").mkdir(parents=True)
    (home / "checkpoints" / ".k.partial" / "f").write_bytes(b"x" * 2**20)
    assert space_of(wanted, monkeypatch) == {"checkpoint": 89077, "engine": 89078, "generations": 256}


def test_weights_that_are_used_where_they_lie(tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "model"
    wanted = plan(tmp_path / "home", weights_path=str(given), wants=replace(plan(tmp_path).wants, gpus="none"))
    (finding,) = examine(wanted)[1]
    assert finding.severity == "error" and finding.id == "weights" and str(given) in finding.text
    given.mkdir()
    (given / "config.json").write_text("{}")
    assert examine(wanted)[1] == []
    assert "weights" not in space_of(wanted, monkeypatch)


def test_a_small_model_needs_what_is_said(tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    small = plan(tmp_path, space={"other": 4500, "image": 10}, wants=Wants("0.12.0", gpus="none"))
    assert space_of(small, monkeypatch) == {"all": 4500, "generations": 256, "image": 10}
    (tmp_path / "current").symlink_to("generations/a")
    assert space_of(small, monkeypatch) == {"generations": 256, "image": 10}
    assert examine(small)[0]["current"] == "a"
    assert space_of(replace(small, image=""), monkeypatch) == {"generations": 256}, "an archive was loaded before"


def test_memory_counts_only_while_there_is_a_checkpoint_to_make(
    tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_host_system, "memory", lambda: {"MemTotal": 8000, "MemAvailable": 7000})
    wanted = plan(tmp_path / "home", wants=replace(plan(tmp_path).wants, gpus="none"))
    assert ids(examine(wanted)[1]) == ["error memory"]
    with making(tmp_path / "home" / "checkpoints" / "k", "checkpoint", {"a": "b"}) as made:
        (made.path / "f").write_bytes(b"x")
    assert ids(examine(wanted)[1]) == []


def test_the_shape_of_the_model(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert shape(home, "", {}, "none") is None and shape(home, "", {}, "mixtral-8x7b") == MIXTRAL_8X7B
    assert shape(home, "", MIXTRAL, "none") == MIXTRAL_8X7B
    for name, hidden in (("a", 1024), ("b", 2048)):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").write_text(json.dumps({**MIXTRAL, "hidden_size": hidden}))
        found = shape(home, "", {}, "mixtral-8x7b")
        assert found is not None and found.hidden_size == (1024 if name == "a" else 4096), "of two none is meant"
    named = shape(home, str(tmp_path / "weights" / "b"), {}, "none")
    assert named is not None and named.hidden_size == 2048


# --- ports ---


def test_ports_of_our_own_server_are_free(tmp_path: Path, docker: Docker) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        port = held.getsockname()[1]
        wanted = plan(tmp_path / "home", ports={"http_port": port}, wants=Wants("0.12.0", gpus="none"))
        (finding,) = examine(wanted)[1]
        assert finding.id == "ports" and "triton_serve_http_port" in finding.text
        docker.answers["/containers/json"] = [
            {
                "Id": "a" * 64,
                "State": "running",
                "Labels": {"trtllm.serving.role": "server"},
                "Ports": [{"PublicPort": port}],
            }
        ]
        assert examine(wanted)[1] == []


class Owned:
    """A file that belongs to somebody else."""

    st_uid = 12345

    def __init__(self, real: os.stat_result) -> None:
        self.st_mode = real.st_mode


def test_somebody_who_is_not_root(tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (finding,) = examine(plan(tmp_path / "home", wants=Wants("0.12.0", gpus="none")))[1]
    assert finding.id == "become" and "12345" in finding.text and "ansible_become" in finding.text


def test_root_may_deploy_into_anybodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir(mode=0o750)
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: Owned(real(path, **more)))
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert check_home(str(tmp_path / "home")) == []


# --- parameters ---


GIVEN: dict[str, Any] = {
    "home": "/x", "address": "127.0.0.1", "release": "0.12.0", "gpus": None, "tp_size": 1, "pp_size": 1,
    "dtype": "float16", "engine_options": {}, "max_seq_len": 1, "workers": 1, "model": {}, "assumed_model": "none",
    "weights_path": "", "image": "", "space_mib": {"image": "5", "weights": None}, "docker_source": "none",
    "method": "pull", "toolkit": "", "device_policy": "auto", "data_root": "", "shm_size": "2g", "ulimits": {},
    "nvidia_smi": "x", "gpu_timeout": 1,
    "required_space_mib": 1, "run": None,
}  # fmt: skip


def test_parameters_that_cannot_be() -> None:
    made = plan_of(GIVEN, {})
    assert made.space == {"other": 1, "image": 5} and made.shm_mib == 2048 and made.wants.gpus == "none"
    assert made.wants.driver == "555.42.06"
    assert made.image == "nvcr.io/nvidia/tritonserver:24.08-trtllm-python-py3"
    assert plan_of({**GIVEN, "method": "build"}, {}).image == "triton_trt_llm:0.12.0"
    assert plan_of({**GIVEN, "method": "load"}, {}).image == "" and plan_of({**GIVEN, "image": "x"}, {}).image == "x"
    for bad in ({"release": "0.1.0"}, {"shm_size": "much"}, {"space_mib": {"image": "much"}}):
        with pytest.raises(ValueError):
            plan_of({**GIVEN, **bad}, {})


@pytest.mark.parametrize(
    ("source", "toolkit", "managed"),
    [
        ("docker-ce", "", (True, True)), ("distribution", "none", (True, False)), ("existing", "", (False, False)),
        ("existing", "stable", (False, True)), ("none", "stable", (False, False)), ("none", "", (False, False)),
    ],
)  # fmt: skip
def test_what_the_role_will_install(source: str, toolkit: str, managed: tuple[bool, bool]) -> None:
    made = plan_of({**GIVEN, "docker_source": source, "toolkit": toolkit}, {})
    assert (made.engine_managed, made.toolkit_managed) == managed


def test_every_id_is_documented() -> None:
    """What triton_serve_preflight_ignore may name."""
    here = Path(_host_docker.__file__).parent
    used = set()
    for path in [*here.glob("_host*.py"), here / "_gpu_findings.py"]:
        text = path.read_text()
        used |= set(re.findall(r'(?:error|warning|make|from_lines)\(\s*"(\w+)"', text))
        used |= set(re.findall(r'add\((?:error|warning), "(\w+)"', text))
    documentation = yaml.safe_load(host_preflight.DOCUMENTATION)
    told = set(re.findall(r"V\((\w+)\)", " ".join(documentation["options"]["ignore"]["description"])))
    assert used == told and len(used) > 30


# --- the modules ---


def preflight(module: Run, home: Path, **more: Any) -> dict[str, Any]:
    given = {"ports": {}, "runtime": "docker", "release": "0.12.0", "gpu_timeout": 20, "image": "r:t", **more}
    return module("host_preflight", home=str(home), **given)


def test_preflight_of_a_docker_host(module: Run, tmp_path: Path, smi: Install, docker: Docker) -> None:
    smi("a100x8.xml")
    docker.hold("r:t")
    home = tmp_path / "home"
    ignore = ["os", "become"]
    for check in (True, False):
        answer = preflight(module, home, check=check, tp_size=8, ignore=ignore)
        assert not answer.get("failed"), answer
        assert answer["changed"] is False and answer["host"]["gpu"]["count"] == 8
        assert answer["host"]["python"] == sys.executable and answer["host"]["problems"] == []
    assert not home.exists()
    answer = preflight(module, home, tp_size=16, ignore=ignore)
    assert answer["failed"] and "there are 8" in answer["msg"] and "\n" not in answer["msg"]
    assert [finding["id"] for finding in answer["host"]["findings"] if finding["severity"] == "error"] == ["gpu_count"]


def test_an_ignored_error_is_a_warning_that_names_the_host(
    module: Run, tmp_path: Path, smi: Install, docker: Docker
) -> None:
    smi("a100_mig.xml")
    docker.hold("r:t")
    answer = preflight(module, tmp_path / "home")
    assert answer["failed"] and "MIG mode is on" in answer["msg"]
    run = {
        "run_id": "r", "machine_id": machine_id(), "pid": os.getpid(), "starttime": pid_starttime(os.getpid()),
        "who": "tester", "host": "gpu-17",
    }  # fmt: skip
    answer = preflight(module, tmp_path / "home", check=True, ignore=["mig", "os", "become"], run=run)
    assert not answer.get("failed"), answer["msg"]
    assert "gpu-17: MIG mode is on" in json.dumps(answer["warnings"])
    assert {finding["id"]: finding["severity"] for finding in answer["host"]["findings"]}["mig"] == "warning"


def test_the_controllers_clock_counts(module: Run, tmp_path: Path, docker: Docker) -> None:
    docker.hold("r:t")
    run = {"now": 1.0, "run_id": "r", "machine_id": "m", "pid": 1, "starttime": "1", "who": "t"}
    answer = preflight(module, tmp_path / "home", gpus="none", run=run, ignore=["os"])
    assert answer["failed"] and "the host's clock is wrong" in answer["msg"]


def test_a_release_that_is_none(module: Run, tmp_path: Path) -> None:
    answer = preflight(module, tmp_path / "home", release="0.1.0")
    assert answer["failed"] and "0.1.0" in answer["msg"]


def test_an_embedded_host_is_not_asked_for_gpus(module: Run, tmp_path: Path, smi: Install) -> None:
    smi("error_mismatch.txt", rc=18)
    answer = module("host_preflight", home=str(tmp_path / "home"), ports={}, python=sys.executable, tp_size=8)
    assert not answer.get("failed"), answer
    assert answer["host"]["gpu"] is None and answer["host"]["findings"] == []


def test_gpu_info(module: Run, smi: Install) -> None:
    smi("h100x2_busy.xml")
    for check in (True, False):
        answer = module("nvidia_gpu_info", check=check)
        assert answer["changed"] is False and answer["driver"] == "580.159.04" and answer["problem"] == ""
        assert answer["signature"]["compute_capability"] == "9.0" and answer["signature"]["count"] == 2
        (process,) = answer["foreign_processes"]
        assert process == {"pid": 586, "type": "C", "name": "python3", "memory_mib": 1634, "gpus": [1]}
    chosen = module("nvidia_gpu_info", gpus=[0])
    assert chosen["signature"]["count"] == 1 and chosen["foreign_processes"] == [] and len(chosen["gpus"]) == 2


def test_gpu_info_of_a_host_without_gpus(module: Run, smi: Install) -> None:
    smi("error_not_loaded.txt", rc=9)
    answer = module("nvidia_gpu_info")
    assert not answer.get("failed") and answer["gpus"] == [] and answer["signature"] is None
    assert "couldn't communicate" in answer["problem"] and "modprobe" in answer["remedy"]
    answer = module("nvidia_gpu_info", required=True)
    assert answer["failed"] and "couldn't communicate" in answer["msg"] and "modprobe" in answer["msg"]
    answer = module("nvidia_gpu_info", nvidia_smi="no-such-program", required=True)
    assert answer["failed"] and "there is no no-such-program: install the NVIDIA driver" in answer["msg"]
