# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The reference backend's parts: what is missing or changed is named, and made whole or not at all."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _reference
from ansible_collections.trtllm.serving.plugins.module_utils._environment import (
    STAMP,
    InstallError,
    installed,
    pip_failure,
)
from ansible_collections.trtllm.serving.plugins.module_utils._host import Python
from ansible_collections.trtllm.serving.plugins.module_utils._reference import (
    Backend,
    library_path,
    make_tree,
    make_venv,
    pins,
    survey,
    venv_inputs,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner import RunResult

REQUIREMENTS = "numpy==1.26.4 \\\n    --hash=sha256:00\n# why\nPy_Triton.x==0.7.0 --hash=sha256:01\n"
PYTHON = Python("/usr/bin/python3.11", "3.11", "/usr/lib")


def test_pins_are_read_by_normalised_name() -> None:
    assert pins(REQUIREMENTS) == {"numpy": "1.26.4", "py-triton-x": "0.7.0"}


@pytest.mark.parametrize("line", ["requests", "requests>=2 --hash=sha256:00", "requests==2.0", "-r other.txt"])
def test_what_is_not_pinned_is_refused(line: str) -> None:
    with pytest.raises(InstallError, match="is not pinned with a hash"):
        pins(REQUIREMENTS + line + "\n")


@pytest.mark.parametrize("text", ["", "numpy==2.1.0 --hash=sha256:00\n"])
def test_numpy_2_is_refused(text: str) -> None:
    with pytest.raises(InstallError, match=r"numpy .* cannot be used.*numpy==1\.26\.4"):
        pins(text)


class FakeRunner:
    """Makes what venv and pip would; ``fail`` is what pip says when it fails."""

    def __init__(self, backend: Backend, fail: str = "") -> None:
        self.backend, self.fail = backend, fail
        self.commands: list[list[str]] = []

    def run(self, argv: Any, **unused: Any) -> RunResult:
        self.commands.append([str(word) for word in argv])
        venv = self.backend.venv
        if "venv" in argv:
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").write_text("")
        elif self.fail:
            return RunResult((), 1, 0.0, "log", ("Collecting numpy", self.fail, "note: see above"))
        else:
            stubs = self.backend.site / "pytriton/tritonserver/python_backend_stubs/3.11"
            stubs.mkdir(parents=True)
            (stubs / "triton_python_backend_stub").write_text("")
            python = self.backend.site / "pytriton/tritonserver/backends/python"
            python.mkdir(parents=True)
            (python / "libtriton_python.so").write_text("")
            for name, version in pins(REQUIREMENTS).items():
                (self.backend.site / ("%s-%s.dist-info" % (name.replace("-", "_"), version))).mkdir()
        return RunResult((), 0, 0.0, "log", ())


Look = Callable[..., Backend]


@pytest.fixture(name="look")
def _look(tmp_path: Path) -> Look:
    def look(
        tree: str = "tree", release: str = "1.1.0", tables: str = "{}", requirements: str = REQUIREMENTS
    ) -> Backend:
        return survey(tmp_path, release, tree, requirements, tables, PYTHON)

    return look


def install(backend: Backend, tmp_path: Path, fail: str = "") -> FakeRunner:
    runner = FakeRunner(backend, fail)
    make_venv(backend, PYTHON, REQUIREMENTS, "", runner, tmp_path / "log", 10)
    return runner


def archive(path: Path, **files: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(text)
            member.mode = 0o755 if text.startswith("#!") else 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_a_new_host_needs_all(look: Look, tmp_path: Path) -> None:
    backend = look()
    assert backend.changed and backend.needs_venv and backend.needs_tree and backend.problems == []
    assert list(tmp_path.iterdir()) == []


def test_identity(look: Look) -> None:
    first = look()
    assert look(tree="other").digest != first.digest and look(tables="[]").digest != first.digest
    assert look(release="0.12.0").digest == first.digest, "the tables tell the releases apart"
    assert first.digest.startswith("reference@sha256:")
    more = look(requirements=REQUIREMENTS + "x==1 --hash=sha256:02\n")
    assert more.venv != first.venv and more.digest != first.digest


def test_installed_once(look: Look, tmp_path: Path) -> None:
    runner = install(look(), tmp_path)
    assert len(runner.commands) == 2
    pip = runner.commands[1]
    assert "--require-hashes" in pip and "--no-deps" in pip and "--no-index" not in pip
    backend = look()
    assert not backend.needs_venv and os.readlink(tmp_path / "venv") == "venvs/" + backend.venv.name
    for name in ("triton", "triton_libs", "triton_stub", "libpython"):
        assert (backend.venv / name).is_symlink(), name
    assert library_path(tmp_path) == "%s/venv/triton_libs:%s/venv/libpython" % (tmp_path, tmp_path)
    assert sorted(os.listdir(backend.venv.parent)) == [backend.venv.name], "the requirements file is gone"
    make_tree(backend, archive(tmp_path / "tar", a="x", bin__tool="#!/bin/sh\n"), {"digest": backend.digest})
    assert not look().changed
    assert (backend.root / "bin" / "tool").stat().st_mode & 0o777 == 0o750
    assert (backend.root / "a").stat().st_mode & 0o777 == 0o640
    assert (backend.root / "backends" / "python" / "libtriton_python.so").is_file()
    # Another run of a host that has it calls no tool.
    assert install(look(), tmp_path).commands == []


def test_an_edited_file_of_the_tree_is_named(look: Look, tmp_path: Path) -> None:
    install(look(), tmp_path)
    backend = look()
    make_tree(backend, archive(tmp_path / "tar", a="x"), {})
    (backend.root / "a").write_text("edited")
    seen = look()
    assert seen.needs_tree and not seen.needs_venv
    assert any(str(backend.root / "a") in problem for problem in seen.problems)
    make_tree(seen, tmp_path / "tar", {})
    assert not look().changed


def test_a_package_of_another_version_is_named_and_replaced(look: Look, tmp_path: Path) -> None:
    install(look(), tmp_path)
    site = look().site
    (site / "numpy-1.26.4.dist-info").rename(site / "numpy-1.26.3.dist-info")
    seen = look()
    assert seen.needs_venv and "numpy 1.26.3 instead of 1.26.4" in seen.problems[0]
    assert len(install(seen, tmp_path).commands) == 2
    assert not look().needs_venv


def test_pips_own_error_is_shown_and_nothing_is_left(look: Look, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"failed: ERROR: No matching .*tensorrtllm_backend_build_wheelhouse"):
        install(look(), tmp_path, fail="ERROR: No matching distribution found for numpy==1.26.4")
    assert list((tmp_path / "venvs").iterdir()) == []
    assert not (tmp_path / "venv").is_symlink()
    assert look().needs_venv


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "free some space"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "other files than were tested"),
        ("ERROR: No matching distribution found for numpy==1.26.4", "tensorrtllm_backend_build_wheelhouse"),
        ("Killed", "tensorrtllm_backend_build_wheelhouse"),
    ],
)
def test_remedy_suits_pips_error(line: str, remedy: str) -> None:
    text = pip_failure(["Collecting x", line], 1, Path("/log"))
    assert line in text and remedy in text and "/log" in text and "\n" not in text
    assert "rc 9" in pip_failure([], 9, Path("/log"))


def test_a_half_made_environment_is_made_again(look: Look, tmp_path: Path) -> None:
    install(look(), tmp_path)
    (look().venv / STAMP).unlink()
    assert look().needs_venv
    install(look(), tmp_path)
    assert json.loads((look().venv / STAMP).read_text())["inputs"] == venv_inputs(REQUIREMENTS, PYTHON)


def test_wheelhouse_keeps_pip_off_the_index(look: Look, tmp_path: Path) -> None:
    backend = look()
    runner = FakeRunner(backend)
    make_venv(backend, PYTHON, REQUIREMENTS, "/wheels", runner, tmp_path / "log", 10)
    pip = runner.commands[1]
    assert pip[pip.index("--no-index") + 1 :][:2] == ["--find-links", "/wheels"]


def test_somebody_elses_directory_is_left_alone(look: Look, tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "mine").write_text("")
    with pytest.raises(InstallError, match="is a directory, not the collection's link"):
        install(look(), tmp_path)
    assert (tmp_path / "venv" / "mine").exists()


@pytest.mark.parametrize("name", ["/etc/x", "../x"])
def test_an_archive_that_leaves_its_directory_is_refused(look: Look, tmp_path: Path, name: str) -> None:
    install(look(), tmp_path)
    with tarfile.open(tmp_path / "tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    with pytest.raises(InstallError, match="is not a plain file"):
        make_tree(look(), tmp_path / "tar", {})
    assert list((tmp_path / "src").iterdir()) == []


def test_versions_come_from_the_directory_names(tmp_path: Path) -> None:
    (tmp_path / "Some_Package-1.0.dist-info").mkdir()
    (tmp_path / "other.py").write_text("")
    assert installed(tmp_path) == {"some-package": "1.0"}
    assert installed(tmp_path / "none") == {}


def test_the_present_environments_python_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(named: str = "") -> tuple[Python | None, list[str]]:
        asked.append(named)
        return (PYTHON, []) if named != "bad" else (None, ["bad is bad"])

    monkeypatch.setattr(_reference, "find_python", find)
    (tmp_path / "venv").mkdir()
    _reference.python_of(tmp_path, "")
    (tmp_path / "venv" / STAMP).write_text("{}")
    _reference.python_of(tmp_path, "")
    _reference.python_of(tmp_path, "named")
    assert asked == ["", str(tmp_path / "venv/bin/python"), "named"]
    with pytest.raises(InstallError, match="bad is bad"):
        _reference.python_of(tmp_path, "bad")


def test_a_finished_environment_tells_its_python_without_being_started(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    assert _reference.stamped_python(tmp_path, "") is None
    python.parent.mkdir(parents=True)
    python.write_text("not a program", encoding="utf-8")
    assert _reference.stamped_python(tmp_path, "") is None
    (tmp_path / "venv" / STAMP).write_text('{"inputs": {"python": "3.12"}}', encoding="utf-8")
    found = _reference.stamped_python(tmp_path, "")
    assert found is not None and found.version == "3.12" and found.executable == str(python)
    assert _reference.stamped_python(tmp_path, "/usr/bin/python3.11") is None
