# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The environment of the collection's modules on a host: made once, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _environment
from ansible_collections.trtllm.serving.plugins.module_utils._environment import (
    STAMP,
    HostEnvironment,
    InstallError,
    choose_python,
    distribution,
    make_host,
    survey_host,
    venv_package,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner import RunResult

ROOT = Path(__file__).resolve().parents[3]
PINNED = ROOT / "roles" / "tensorrtllm_backend_build" / "files" / "host" / "requirements.txt"
REQUIREMENTS = "docker==7.2.0 --hash=sha256:00\n"
MODULE = "ansible_collections.trtllm.serving.plugins.modules.host_environment"

Facts = dict[str, dict[str, Any]]


@pytest.fixture(name="pythons")
def _pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Facts:
    """Interpreters by path, and what each says of itself; the module's own is the first."""
    found: Facts = {}
    for name, version, venv in (("python3.6", "3.6", True), ("python3.11", "3.11", True), ("python3.9", "3.9", False)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        found[str(path)] = {"version": version, "venv": venv, "executable": str(path)}
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(_environment.sys, "executable", str(tmp_path / "bin" / "python3.6"))
    monkeypatch.setattr(_environment, "ask_python", found.get)
    return found


class Runner:
    """Makes what venv would; ``fail`` is pip's last word."""

    def __init__(self, fail: str = "") -> None:
        self.fail = fail
        self.commands: list[list[str]] = []

    def run(self, argv: Any, **unused: Any) -> RunResult:
        words = [str(word) for word in argv]
        self.commands.append(words)
        if "venv" in words:
            (Path(words[-1]) / "bin").mkdir(parents=True)
            (Path(words[-1]) / "bin" / "python").symlink_to(words[0])
        elif self.fail:
            return RunResult((), 1, 0.0, "log", (self.fail,))
        return RunResult((), 0, 0.0, "log", ())


def install(
    home: Path, runner: Runner, named: str = "", wheelhouse: str = "", text: str = REQUIREMENTS
) -> HostEnvironment:
    found = survey_host(home, text, named)
    assert found.needed and not found.problem
    make_host(found, text, named, wheelhouse, runner, home / "log", 10)
    return found


def test_made_once(home: Path, pythons: Facts) -> None:
    runner = Runner()
    found = install(home, runner)
    venv, pip = runner.commands
    assert venv[0].endswith("/python3.11") and os.readlink(home / "venv") == "venvs/" + found.venv.name
    assert "--require-hashes" in pip and "--no-deps" in pip and pip[pip.index("--only-binary") + 1] == ":all:"
    assert "--no-index" not in pip
    pythons.clear()  # nothing is started any more
    assert not survey_host(home, REQUIREMENTS, "").needed
    assert sorted(os.listdir(home / "venvs")) == [found.venv.name]


def test_wheelhouse(home: Path, pythons: Facts) -> None:
    runner = Runner()
    install(home, runner, wheelhouse="/srv/wheels")
    pip = runner.commands[1]
    assert pip[pip.index("--no-index") + 1 :][:2] == ["--find-links", "/srv/wheels"]


def test_made_again_for_other_requirements_and_the_old_one_stays(home: Path, pythons: Facts) -> None:
    first = install(home, Runner())
    second = install(home, Runner(), text="docker==7.1.0 --hash=sha256:01\n")
    assert second.venv != first.venv and os.path.realpath(home / "venv") == str(second.venv)
    runner = Runner()
    install(home, runner)
    assert runner.commands == [] and os.path.realpath(home / "venv") == str(first.venv), "only the link is switched"


@pytest.mark.parametrize("damage", ["stamp", "interpreter", "link", "elsewhere", "upgrade", "named"])
def test_seen_to_be_gone(home: Path, pythons: Facts, damage: str, tmp_path: Path) -> None:
    found = install(home, Runner())
    python = found.venv / "bin" / "python"
    if damage == "stamp":
        (found.venv / STAMP).unlink()
    elif damage == "interpreter":
        os.rename(tmp_path / "bin/python3.11", tmp_path / "gone")
        pythons[str(tmp_path / "bin/python3.9")]["venv"] = True
    elif damage == "link":
        (home / "venv").unlink()
    elif damage == "elsewhere":
        (home / "venv").unlink()
        shutil.copytree(found.venv, tmp_path / "copy", symlinks=True)
        (home / "venv").symlink_to(tmp_path / "copy")
    elif damage == "upgrade":
        python.unlink()
        python.symlink_to(tmp_path / "bin/python3.9")
    named = str(tmp_path / "bin/python3.11") if damage == "named" else ""
    assert survey_host(home, REQUIREMENTS, named).needed
    install(home, Runner(), named)
    assert not survey_host(home, REQUIREMENTS, named).needed


def test_pips_failure_leaves_nothing(home: Path, pythons: Facts) -> None:
    with pytest.raises(InstallError, match="No matching distribution.*tensorrtllm_backend_build_wheelhouse"):
        install(home, Runner("ERROR: No matching distribution found for docker==7.2.0"))
    assert list((home / "venvs").iterdir()) == [] and not (home / "venv").is_symlink()


def test_what_is_not_pinned_is_refused(home: Path, pythons: Facts) -> None:
    with pytest.raises(InstallError, match="is not pinned with a hash"):
        survey_host(home, "docker>=7\n", "")


def test_an_interpreter_without_venv_names_its_package(pythons: Facts, tmp_path: Path) -> None:
    pythons[str(tmp_path / "bin/python3.11")]["venv"] = False
    _executable, version, packages, problem = choose_python("", "debian")
    assert (version, packages) == ("3.11", ["python3.11-venv"]) and "install python3.11-venv" in problem
    assert choose_python("", "redhat")[2] == ["python3.11-pip"]
    assert choose_python("", "")[2] == [] and "its venv and pip" in choose_python("", "")[3]
    assert venv_package("/usr/bin/python3", "3.12", "debian") == "python3-venv"
    assert venv_package("/usr/bin/python3", "3.9", "redhat") == "python3-pip"


def test_no_python_at_all(pythons: Facts, tmp_path: Path) -> None:
    for name in ("python3.11", "python3.9"):
        del pythons[str(tmp_path / "bin" / name)]
    problem = choose_python("", "redhat")[3]
    assert "python3.6 is Python 3.6" in problem and "install python3.11" in problem and "\n" not in problem
    assert "/none is not there" in choose_python("/none", "redhat")[3]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ('ID="ol"\nID_LIKE="fedora"\n', "redhat"),
        ('ID=ubuntu\nID_LIKE=debian\n', "debian"),
        ("ID=debian\n", "debian"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "redhat"),
        ("ID=arch\n", ""),
    ],
)  # fmt: skip
def test_distribution(tmp_path: Path, text: str, family: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert distribution(tmp_path / "os-release") == family
    assert distribution(tmp_path / "none") == ""


def test_the_pins_are_for_every_python_and_machine() -> None:
    """Whatever is made of C has a wheel's hash for each Python; what differs by Python is written as such."""
    text = PINNED.read_text("utf-8")
    found = _environment.pins(text)
    assert {"docker", "requests", "huggingface-hub", "urllib3", "pyyaml", "hf-xet"} <= set(found)
    for line in text.replace("\\\n", " ").splitlines():
        if "==" in line:
            assert "--hash=sha256:" in line, line[:60]
    for name in ("docker", "pyyaml", "charset-normalizer"):
        assert re.search(r"(?m)^%s==[^;\s]+ \\$" % name, text), "%s for some machines only" % name


# --- the module -------------------------------------------------------------------------------------------------

Run = Callable[..., dict[str, Any]]


@pytest.fixture(name="module")
def _module(tmp_path: Path) -> Run:
    def run(check: bool = False, **args: Any) -> dict[str, Any]:
        given = {"home": str(tmp_path / "new"), "requirements": REQUIREMENTS, "_ansible_check_mode": check, **args}
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {**given, "_ansible_remote_tmp": "/tmp"}}),
            capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PIP_CONFIG_FILE": os.devnull},
        )  # fmt: skip
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def test_check_mode_makes_nothing(module: Run, tmp_path: Path) -> None:
    found = module(check=True)
    assert found["changed"] and found["missing"] == [] and not found["python_ready"]
    assert str(tmp_path / "new") in found["diff"]["after"] and not (tmp_path / "new").exists()


def test_what_the_distribution_must_give_is_named(module: Run, tmp_path: Path) -> None:
    args = {"user": "no-such-user", "programs": ["sh", "no-such-program"]}
    failed = module(**args)
    assert failed["failed"] and "\n" not in failed["msg"]
    assert (
        "user 'no-such-user' does not exist" in failed["msg"] and "install the package no-such-program" in failed["msg"]
    )
    for check, changed in ((False, False), (True, True)):
        found = module(check=check, report_missing=True, **args)
        assert found["missing"] == ["user", "packages"] and found["packages"] == ["no-such-program"]
        assert found["changed"] is changed and not found["python_ready"]
    assert not (tmp_path / "new").exists()


def test_a_home_that_cannot_be_is_refused(module: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a directory" in module(home=str(tmp_path / "file" / "home"))["msg"]


def test_pips_failure_is_one_line(module: Run, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    failed = module(wheelhouse=str(tmp_path / "wheels"))
    assert failed["failed"] and "\n" not in failed["msg"] and "ERROR: No matching distribution" in failed["msg"]
    assert list((tmp_path / "new" / "venvs").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a home to somebody")
def test_the_home_is_the_users_and_the_environment_is_not(module: Run, tmp_path: Path) -> None:
    home = tmp_path / "new"
    for name in ("weights/a", "venvs/b"):
        (home / name).mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    assert "No matching" in module(user="nobody", wheelhouse=str(tmp_path / "wheels"))["msg"]
    owners = {name: (home / name).stat().st_uid for name in (".", "weights/a", "logs", "venvs")}
    nobody = owners["."]
    assert nobody != 0 and owners == {".": nobody, "weights/a": nobody, "logs": nobody, "venvs": 0}
