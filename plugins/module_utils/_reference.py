# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs the reference backend: its tree, a virtual environment, and Triton's backend directory out of both.

Private to the collection.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    key_of,
    making,
    read_manifest,
    remove_tree,
    short_key,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._host import Python, find_python
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Runner

KIND = "backend"
STAMP = "COMPLETE.json"
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")


class InstallError(Exception):
    """One line that says what is wrong and what to do."""


def pins(requirements: str) -> Dict[str, str]:
    """Pinned versions by normalised package name; every requirement must be pinned and have a hash."""
    found: Dict[str, str] = {}
    for line in requirements.replace("\\\n", " ").splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _PIN.match(text)
        if match is None or "--hash=sha256:" not in text:
            raise InstallError(
                "requirement '%s' is not pinned with a hash: write NAME==VERSION --hash=sha256:..." % text[:80]
            )
        found[re.sub(r"[-_.]+", "-", match.group(1)).lower()] = match.group(2)
    numpy = found.get("numpy", "")
    if not numpy or int(numpy.split(".")[0]) >= 2:
        raise InstallError(
            "numpy %s cannot be used: Triton's Python backend misreads numpy 2 and crashes; require numpy==1.26.4"
            % (numpy or "(none)")
        )
    return found


def installed(site: Path) -> Dict[str, str]:
    """Versions of the packages in a site-packages directory, by normalised name."""
    found: Dict[str, str] = {}
    try:
        names = os.listdir(str(site))
    except OSError:
        return found
    for name in names:
        if name.endswith(".dist-info"):
            package, _dash, version = name[: -len(".dist-info")].rpartition("-")
            found[re.sub(r"[-_.]+", "-", package).lower()] = version
    return found


@dataclass
class Backend:
    """Where the parts are, or will be."""

    home: Path
    release: str
    python_version: str
    root: Path
    venv: Path
    digest: str
    problems: List[str] = field(default_factory=list)
    needs_venv: bool = False
    needs_tree: bool = False

    @property
    def python(self) -> Path:
        return self.home / "venv" / "bin" / "python"

    @property
    def site(self) -> Path:
        return self.venv / "lib" / ("python" + self.python_version) / "site-packages"

    @property
    def changed(self) -> bool:
        return self.needs_venv or self.needs_tree or bool(self.problems)


def venv_inputs(requirements: str, python: Python) -> Dict[str, Any]:
    return {"requirements": pins(requirements), "python": python.version, "machine": platform.machine()}


def same_stamp(path: Path, inputs: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads((path / STAMP).read_text(encoding="utf-8"))["inputs"] == inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def survey(home: Path, release: str, tree_digest: str, requirements: str, tables: str, python: Python) -> Backend:
    """What is installed already, and what is not as it should be."""
    inputs = venv_inputs(requirements, python)
    venv = home / "venvs" / short_key(key_of(inputs))
    # Neither the interpreter's version nor the machine type changes what is computed: they are no part of this.
    key = key_of({"tree": tree_digest, "tables": tables, "requirements": inputs["requirements"]})
    root = home / "src" / ("reference-%s-%s" % (release, short_key(key)))
    digest = "reference@sha256:" + key
    backend = Backend(home, release, python.version, root, venv, digest)
    if not same_stamp(venv, inputs):
        backend.needs_venv = True
    else:
        there = installed(backend.site)
        for name, version in inputs["requirements"].items():
            if there.get(name) != version:
                backend.needs_venv = True
                backend.problems.append("%s: %s %s instead of %s" % (venv, name, there.get(name, "missing"), version))
    if os.path.realpath(str(home / "venv")) != os.path.realpath(str(venv)):
        backend.needs_venv = True
    if read_manifest(root) is None:
        backend.needs_tree = True
    else:
        checked = verify(root, kind=KIND)
        if checked.problems:
            backend.needs_tree = True
            backend.problems += checked.problems
    return backend


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


def make_venv(
    backend: Backend, python: Python, requirements: str, wheelhouse: str, runner: Runner, log: Path, timeout: float
) -> None:
    """Makes the virtual environment; it counts as there only with its stamp, which is written last."""
    inputs = venv_inputs(requirements, python)
    if not same_stamp(backend.venv, inputs) or backend.problems:
        if backend.venv.exists():
            remove_tree(backend.venv)
        backend.venv.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        listed = backend.venv.parent / ("." + backend.venv.name + ".requirements.txt")
        listed.write_text(requirements, encoding="utf-8")
        where = ["--no-index", "--find-links", wheelhouse] if wheelhouse else []
        steps = [
            [python.executable, "-I", "-m", "venv", str(backend.venv)],
            [
                str(backend.venv / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input", "--no-deps",
                "--require-hashes", "--disable-pip-version-check", "--no-compile", "--progress-bar", "off", *where,
                "--requirement", str(listed),
            ],
        ]  # fmt: skip
        try:
            for argv in steps:
                done = runner.run(argv, log_file=log, timeout=timeout)
                if done.rc != 0:
                    raise InstallError(pip_failure(done.tail, done.rc, log))
            _link_parts(backend, python)
            _write_stamp(backend.venv, inputs)
        except BaseException:
            remove_tree(backend.venv)
            raise
        finally:
            listed.unlink()
    link = backend.home / "venv"
    partial = backend.home / ".venv.partial"
    if partial.is_symlink():
        partial.unlink()
    partial.symlink_to(os.path.join("venvs", backend.venv.name))
    if link.is_dir() and not link.is_symlink():
        raise InstallError("%s is a directory, not the collection's link: move it away" % link)
    os.rename(str(partial), str(link))


def _write_stamp(venv: Path, inputs: Mapping[str, Any]) -> None:
    partial = venv / ("." + STAMP)
    with open(str(partial), "w", encoding="utf-8") as stream:
        json.dump({"inputs": inputs}, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(str(partial), str(venv / STAMP))


def _link_parts(backend: Backend, python: Python) -> None:
    """Names in the environment that are the same for every Python, for all that starts the server."""
    triton = Path("lib", "python" + backend.python_version, "site-packages", "pytriton", "tritonserver")
    libraries = triton.parent.parent / "nvidia_pytriton.libs"
    stub = triton / "python_backend_stubs" / backend.python_version / "triton_python_backend_stub"
    if not (backend.venv / stub).is_file():
        raise InstallError("nvidia-pytriton has no stub for Python %s: use 3.10, 3.11 or 3.12" % backend.python_version)
    (backend.venv / "triton").symlink_to(triton)
    (backend.venv / "triton_libs").symlink_to(libraries)
    (backend.venv / "triton_stub").symlink_to(stub)
    (backend.venv / "libpython").symlink_to(python.library_dir or libraries)


def make_tree(backend: Backend, archive: Path, identity: Mapping[str, Any]) -> None:
    """Unpacks the tree whole or not at all."""
    with making(backend.root, KIND, dict(identity)) as made:
        with tarfile.open(str(archive)) as tar:
            for member in tar.getmembers():
                # The archive is the collection's own; anything but plain files and folders is a mistake.
                if not (member.isfile() or member.isdir()) or member.name.startswith(("/", "..")):
                    raise InstallError("archive member %s is not a plain file" % member.name)
                target = made.path / member.name
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                if source is None:
                    raise AssertionError("%s is a file of the archive" % member.name)
                with source, open(str(target), "wb") as stream:
                    shutil.copyfileobj(source, stream)
                target.chmod(0o750 if member.mode & 0o100 else 0o640)
        # Triton refuses a backend library outside its backend directory. The stub finds its own libraries through
        # the link's target.
        python = made.path / "backends" / "python"
        shutil.copytree(str(backend.home / "venv" / "triton" / "backends" / "python"), str(python))
        (python / "triton_python_backend_stub").symlink_to(Path("..", "..", "..", "..", "venv", "triton_stub"))


def library_path(home: Path) -> str:
    return "%s:%s" % (home / "venv" / "triton_libs", home / "venv" / "libpython")


def stamped_python(home: Path, named: str) -> Optional[Python]:
    """The interpreter that the finished environment was made with, without starting it; enough for a survey."""
    python = home / "venv" / "bin" / "python"
    if named or not python.exists():
        return None
    try:
        version = json.loads((home / "venv" / STAMP).read_text(encoding="utf-8"))["inputs"]["python"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Python(str(python), str(version), "")


def python_of(home: Path, named: str) -> Python:
    """The interpreter of the present environment, so that a new Python on the host changes nothing; else a new one."""
    stamped = home / "venv" / STAMP
    candidates = [str(home / "venv" / "bin" / "python")] if stamped.is_file() and not named else []
    problems: List[str] = []
    for candidate in [*candidates, named]:
        found, why = find_python(candidate)
        if found is not None:
            return found
        problems = why
    raise InstallError("; ".join(problems))
