# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs the reference backend: its tree, a virtual environment, and Triton's backend directory out of both.

Private to the collection.
"""

from __future__ import annotations

import platform
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.trtllm.serving.plugins.module_utils import _environment
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    key_of,
    making,
    read_manifest,
    short_key,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._environment import (
    STAMP,
    InstallError,
    create,
    installed,
    linked,
    read_stamp,
    same_stamp,
    switch,
    venv_of,
    write_stamp,
)
from ansible_collections.trtllm.serving.plugins.module_utils._host import Python, find_python
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Runner

KIND = "backend"


def pins(requirements: str) -> Dict[str, str]:
    """Pinned versions by normalised package name; numpy must be one that Triton can use."""
    found = _environment.pins(requirements)
    numpy = found.get("numpy", "")
    if not numpy or int(numpy.split(".")[0]) >= 2:
        raise InstallError(
            "numpy %s cannot be used: Triton's Python backend misreads numpy 2 and crashes; require numpy==1.26.4"
            % (numpy or "(none)")
        )
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


def survey(home: Path, release: str, tree_digest: str, requirements: str, tables: str, python: Python) -> Backend:
    """What is installed already, and what is not as it should be."""
    inputs = venv_inputs(requirements, python)
    venv = venv_of(home, inputs)
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
    if not linked(home, venv):
        backend.needs_venv = True
    if read_manifest(root) is None:
        backend.needs_tree = True
    else:
        checked = verify(root, kind=KIND)
        if checked.problems:
            backend.needs_tree = True
            backend.problems += checked.problems
    return backend


def make_venv(
    backend: Backend, python: Python, requirements: str, wheelhouse: str, runner: Runner, log: Path, timeout: float
) -> None:
    """Makes the virtual environment; it counts as there only with its stamp, which is written last."""
    inputs = venv_inputs(requirements, python)

    def finish() -> None:
        _link_parts(backend, python)
        write_stamp(backend.venv, inputs)

    if not same_stamp(backend.venv, inputs) or backend.problems:
        create(backend.venv, python.executable, requirements, wheelhouse, runner, log, timeout, finish)
    switch(backend.home, backend.venv)


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
    version = read_stamp(home / "venv").get("inputs", {}).get("python")
    return Python(str(python), str(version), "") if version else None


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
