# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collection built and installed as Galaxy would do it, far from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.tests.demo._site import ROOT, Recap, environment, free_ports, tree

# What a user of the installed collection does not need.
DEVELOPMENT = (".ci", ".collections", ".config", ".work", ".git", "tests", "molecule", "benchmarks", "Makefile")
NEEDED = (
    "site.yml",
    "playbooks/site.yml",
    "meta/runtime.yml",
    "plugins/modules/triton_ready.py",
    "roles/triton_serve/templates/1.1.0/ensemble.config.pbtxt.j2",
    "roles/tensorrtllm_backend_build/files/reference/requirements.txt",
    "roles/tensorrtllm_backend_build/files/reference/bin/trtllm-build",
    "roles/tensorrtllm_backend_build/files/reference/all_models/inflight_batcher_llm/ensemble/1/.gitkeep",
    "LICENSE",
)


def run(folder: Path, command: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ansible", command, *arguments]
    return subprocess.run(
        argv, cwd=folder, env=environment(**more), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(name="archive", scope="module")
def _archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    done = run(ROOT, "galaxy", "collection", "build", "--output-path", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = folder.glob("trtllm-serving-*.tar.gz")
    return archive


@pytest.fixture(name="installed", scope="module")
def _installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    done = run(folder, "galaxy", "collection", "install", str(archive), "-p", str(folder), "--offline")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_archive_has_what_is_needed_and_nothing_of_the_development(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        names = set(opened.getnames())
    assert [name for name in NEEDED if name not in names] == []
    assert sorted(name for name in names if name.split("/")[0] in DEVELOPMENT) == []
    assert sorted(name for name in names if name.endswith(".pyc") or "__pycache__" in name) == []


def test_site_by_its_name_in_check_mode(installed: Path, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    shutil.copytree(ROOT / "inventory" / "local", inventory)
    home = tmp_path / "home"
    before = tree(tmp_path)
    ports = zip(("http", "grpc", "metrics"), free_ports(3))
    done = run(
        tmp_path, "playbook", "trtllm.serving.site", "-i", str(inventory), "--check",
        *(argument for name, port in ports for argument in ("-e", "triton_serve_%s_port=%d" % (name, port))),
        TRTLLM_HOME=str(home), ANSIBLE_COLLECTIONS_PATH=str(installed),
    )  # fmt: skip
    recap = Recap.of(done).succeeded()
    assert recap.counts["changed"] >= 5, recap.output
    assert str(installed) in done.stdout
    assert str(ROOT / "roles") not in done.stdout
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["preflight", "smoke", "rollback", "teardown"])
def test_other_playbooks_are_found_by_their_names(installed: Path, tmp_path: Path, name: str) -> None:
    done = run(
        tmp_path, "playbook", "trtllm.serving." + name, "-i", str(ROOT / "inventory" / "local"), "--syntax-check",
        ANSIBLE_COLLECTIONS_PATH=str(installed),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_and_roles_are_documented(installed: Path, tmp_path: Path) -> None:
    for kind, wanted in (("module", "triton_ready"), ("role", "triton_serve"), ("filter", "release_problems")):
        done = run(tmp_path, "doc", "-t", kind, "trtllm.serving." + wanted, ANSIBLE_COLLECTIONS_PATH=str(installed))
        assert done.returncode == 0 and wanted in done.stdout, done.stdout + done.stderr
