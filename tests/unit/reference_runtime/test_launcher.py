# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher: upstream's options, and one server in the foreground."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = (Path(__file__).resolve().parents[3] / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
          / "scripts" / "launch_triton_server.py")


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("TRTLLM_REFERENCE_RELEASE", "1.1.0")
    spec = importlib.util.spec_from_file_location("launch_triton_server", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A stand-in that says how it was started, in the place that the wheel has."""
    path = tmp_path / "site" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\n'
                    'printf "%s\\n" "$0" "$@" "size=$OMPI_COMM_WORLD_SIZE" "path=$PATH" "lib=$LD_LIBRARY_PATH"\n')
    path.chmod(0o755)
    return path


def launch(*argv: object, release: str = "1.1.0") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, argv)], capture_output=True, text=True, timeout=60,
                          check=False, env={**os.environ, "TRTLLM_REFERENCE_RELEASE": release})


def test_replaces_itself_with_the_server(server: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    done = launch("--tritonserver", server, "--model_repo", repository, "--world_size", 4, "--http_port", 18117)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert lines[0] == str(server)
    for expected in (f"--model-repository={repository}", f"--backend-directory={SCRIPT.parents[1] / 'backends'}",
                     "--http-port=18117", "--grpc-port=8001", "--metrics-port=8002", "--http-address=127.0.0.1",
                     "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1", "--disable-auto-complete-config",
                     "--backend-config=python,shm-region-prefix-name=prefix0_", "size=4"):
        assert expected in lines
    assert next(line for line in lines if line.startswith("path=")).startswith(f"path={sys.prefix}/bin:")
    assert f"lib={tmp_path / 'site' / 'nvidia_pytriton.libs'}:" in done.stdout


def test_optional_arguments(launcher: ModuleType, server: Path, tmp_path: Path) -> None:
    values = launcher.parse(["--tritonserver", str(server), "--model_repo", str(tmp_path), "--log", "--log-file", "x",
                             "--exit_timeout", "7"])
    command = launcher.command(values)
    assert command[-3:] == ["--log-verbose=3", "--log-file=x", "--exit-timeout-secs=7"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--world_size", "0"], "ValueError: --world_size is 0; it must be at least 1"),
        (["--no-mpi", "--world_size", "2"], "AssertionError: World size must be 1 when using no-mpi"),
        (["--multi-model"], "ValueError: --multi_model is not supported by the reference backend"),
        (["--model_repo", "/nowhere"], "RuntimeError: --model_repo /nowhere is not a directory"),
        (["--tritonserver", "/nowhere", "--model_repo", "/"], "RuntimeError: no tritonserver at /nowhere"),
    ],
)
def test_refusals(argv: list[str], message: str) -> None:
    done = launch(*argv)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_options_of_the_release() -> None:
    for release, code in (("0.12.0", 2), ("1.1.0", 1)):
        done = launch("--exit_timeout", "5", "--model_repo", "/nowhere", release=release)
        assert done.returncode == code, done.stderr
    assert "unrecognized arguments" in launch("--http_address", "x").stderr
