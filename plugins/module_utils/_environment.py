# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual environments of the collection on a host: made whole or not at all, known by what they were made from.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import key_of, remove_tree, short_key
from ansible_collections.trtllm.serving.plugins.module_utils._host import ask_python
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Runner

STAMP = "COMPLETE.json"
# What the collection's modules run on, and the pinned packages have wheels for.
PYTHONS = ("3.13", "3.12", "3.11", "3.10", "3.9")
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")


class InstallError(Exception):
    """One line that says what is wrong and what to do."""


# --- requirements -----------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: str) -> dict[str, str]:
    """Pinned versions by normalised package name; every requirement must be pinned and have a hash."""
    found: dict[str, str] = {}
    for line in requirements.replace("\\\n", " ").splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _PIN.match(text)
        if match is None or "--hash=sha256:" not in text:
            raise InstallError(
                "requirement '%s' is not pinned with a hash: write NAME==VERSION --hash=sha256:..." % text[:80]
            )
        found[normal(match.group(1))] = match.group(2)
    return found


def installed(site: Path) -> dict[str, str]:
    """Versions of the packages in a site-packages directory, by normalised name."""
    found: dict[str, str] = {}
    try:
        names = os.listdir(str(site))
    except OSError:
        return found
    for name in names:
        if name.endswith(".dist-info"):
            package, _dash, version = name[: -len(".dist-info")].rpartition("-")
            found[normal(package)] = version
    return found


# --- stamps and the link ----------------------------------------------------------------------------------------


def venv_of(home: Path, inputs: Mapping[str, Any]) -> Path:
    return home / "venvs" / short_key(key_of(inputs))


def read_stamp(venv: Path) -> dict[str, Any]:
    """What a finished environment was made from; empty for anything else."""
    try:
        value = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("inputs"), dict) else {}


def same_stamp(path: Path, inputs: Mapping[str, Any]) -> bool:
    return bool(read_stamp(path).get("inputs") == inputs)


def write_stamp(venv: Path, inputs: Mapping[str, Any], **more: Any) -> None:
    partial = venv / ("." + STAMP)
    with open(str(partial), "w", encoding="utf-8") as stream:
        json.dump({"inputs": inputs, **more}, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(str(partial), str(venv / STAMP))


def linked(home: Path, venv: Path) -> bool:
    return os.path.realpath(str(home / "venv")) == os.path.realpath(str(venv))


def switch(home: Path, venv: Path) -> None:
    """Points HOME/venv to an environment, in one step."""
    link = home / "venv"
    partial = home / ".venv.partial"
    if partial.is_symlink():
        partial.unlink()
    partial.symlink_to(os.path.join("venvs", venv.name))
    if link.is_dir() and not link.is_symlink():
        raise InstallError("%s is a directory, not the collection's link: move it away" % link)
    os.rename(str(partial), str(link))


# --- making -----------------------------------------------------------------------------------------------------


def pip_failure(tail: Sequence[str], rc: int, log: Path) -> str:
    """pip's own error and what to do about it."""
    said = [line.strip() for line in tail if "ERROR" in line] or [line.strip() for line in tail] or ["rc %d" % rc]
    text = said[-1]
    remedy = "without a package index, set tensorrtllm_backend_build_wheelhouse"
    if "No space left" in text or "Disk quota" in text:
        remedy = "free some space, or choose another trtllm_home"
    elif "do not match the hashes" in text.lower() or "hashes" in text.lower():
        remedy = "the package index holds other files than were tested: use another one"
    return "installing the backend's Python packages failed: %s; %s (log %s)" % (text, remedy, log)


def create(
    venv: Path,
    python: str,
    requirements: str,
    wheelhouse: str,
    runner: Runner,
    log: Path,
    timeout: float,
    finish: Callable[[], None],
    pip_options: Sequence[str] = (),
) -> None:
    """Makes a virtual environment; ``finish`` does the rest and writes the stamp, last. On failure nothing is left."""
    if venv.exists():
        remove_tree(venv)
    venv.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    listed = venv.parent / ("." + venv.name + ".requirements.txt")
    listed.write_text(requirements, encoding="utf-8")
    where = ["--no-index", "--find-links", wheelhouse] if wheelhouse else []
    steps = [
        [python, "-I", "-m", "venv", str(venv)],
        [
            str(venv / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input", "--no-deps",
            "--require-hashes", "--disable-pip-version-check", "--no-compile", "--progress-bar", "off", *where,
            *pip_options, "--requirement", str(listed),
        ],
    ]  # fmt: skip
    try:
        for argv in steps:
            done = runner.run(argv, log_file=log, timeout=timeout)
            if done.rc != 0:
                raise InstallError(pip_failure(done.tail, done.rc, log))
        finish()
    except BaseException:
        remove_tree(venv)
        raise
    finally:
        listed.unlink()


# --- the environment of the collection's own modules -------------------------------------------------------------


@dataclass
class HostEnvironment:
    """The environment that docker, requests and huggingface_hub are in, as it is or as it will be."""

    home: Path
    inputs: dict[str, Any]
    # The interpreter to make it with; empty when it need not be made.
    executable: str = ""
    needed: bool = False
    # Packages of the distribution that must be installed first.
    packages: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def venv(self) -> Path:
        return venv_of(self.home, self.inputs)


def distribution(release: Path = Path("/etc/os-release")) -> str:
    """debian, redhat or nothing, by what the distribution says it is like."""
    try:
        text = release.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    words = set(" ".join(re.findall(r'(?m)^ID(?:_LIKE)?="?([^"\n]*)', text)).split())
    if words & {"debian", "ubuntu"}:
        return "debian"
    return "redhat" if words & {"rhel", "fedora", "centos", "ol", "almalinux", "rocky"} else ""


def venv_package(executable: str, version: str, family: str) -> str:
    """The distribution's package that gives an interpreter its venv; empty where none is known."""
    versioned = os.path.basename(executable) == "python" + version
    if family == "debian":
        return "python%s-venv" % (version if versioned else "3")
    if family == "redhat":
        return "python%s-pip" % (version if versioned else "3")
    return ""


def host_inputs(requirements: str, version: str) -> dict[str, Any]:
    pins(requirements)
    digest = hashlib.sha256(requirements.encode("utf-8")).hexdigest()
    return {"requirements": digest, "python": version, "machine": platform.machine()}


def survey_host(home: Path, requirements: str, named: str, family: str = "") -> HostEnvironment:
    """What is there already. When all is, no program is started and one stamp is read."""
    stamp = read_stamp(home / "venv")
    if stamp and stamp.get("named", "") == named:
        inputs = host_inputs(requirements, str(stamp["inputs"].get("python")))
        current = HostEnvironment(home, inputs)
        python = current.venv / "bin" / "python"
        alive = python.exists() and os.path.realpath(str(python)) == stamp.get("real")
        if stamp["inputs"] == inputs and alive and linked(home, current.venv):
            return current
    executable, version, packages, problem = choose_python(named, family or distribution())
    inputs = host_inputs(requirements, version)
    return HostEnvironment(home, inputs, executable, True, packages, problem)


def choose_python(named: str, family: str) -> tuple[str, str, list[str], str]:
    """The interpreter to make an environment with, its version, the packages that it lacks, or why there is none."""
    candidates = [named] if named else [sys.executable, *("python" + version for version in PYTHONS), "python3"]
    lacking: tuple[str, str, list[str], str] | None = None
    seen: list[str] = []
    for candidate in candidates:
        path = shutil.which(candidate)
        facts = ask_python(path) if path else None
        if path is None or facts is None:
            continue
        version = str(facts["version"])
        if version not in PYTHONS:
            seen.append("%s is Python %s" % (path, version))
            continue
        # An environment is made from the interpreter behind another one, which outlives it.
        executable = str(facts["executable"])
        if facts["venv"]:
            return executable, version, [], ""
        if lacking is None:
            package = venv_package(executable, version, family)
            problem = "%s (Python %s) has no venv with ensurepip: install %s" % (
                executable, version, package or "its venv and pip",
            )  # fmt: skip
            lacking = (executable, version, [package] if package else [], problem)
    if lacking is not None:
        return lacking
    return (
        "",
        "",
        [],
        "no Python 3.9 to 3.13 for the collection's modules%s: install python3.11, or name one"
        % (" (%s)" % ("; ".join(seen) if seen else "%s is not there" % named) if seen or named else ""),
    )


def make_host(
    found: HostEnvironment, requirements: str, named: str, wheelhouse: str, runner: Runner, log: Path, timeout: float
) -> None:
    """Makes the surveyed environment and switches to it. The caller holds the host's lock."""
    python = found.venv / "bin" / "python"

    def finish() -> None:
        write_stamp(found.venv, found.inputs, named=named, real=os.path.realpath(str(python)))

    if not (same_stamp(found.venv, found.inputs) and python.exists()):
        # Only wheels: what a source distribution needs for its build is neither pinned nor hashed.
        create(
            found.venv, found.executable, requirements, wheelhouse, runner, log, timeout, finish,
            ["--only-binary", ":all:"],
        )  # fmt: skip
    else:
        finish()
    switch(found.home, found.venv)
