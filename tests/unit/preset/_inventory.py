# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An inventory's variables, as the roles see them, without contacting a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = ("docker_nvidia", "tensorrtllm_backend_build", "mixtral_engine", "triton_serve")
# Those that do nothing to a serving host itself.
FLEET_ROLES = ("triton_pool", "triton_lb", "triton_monitoring")

# What the roles before it would have registered, at the time when the server is configured.
MADE: dict[str, Any] = {
    "mixtral_engine_weights": {"path": "/opt/trtllm/weights/model@revision", "changed": False},
    "mixtral_engine_engine": {
        "path": "/opt/trtllm/engines/0123456789abcdef",
        "key": "0123456789abcdef",
        "world_size": 8,
        "max_batch_size": 256,
        "changed": False,
    },
    "tensorrtllm_backend_build_backend": {
        "image": "triton_trt_llm:0.12.0",
        "image_id": "sha256:" + 64 * "a",
        "digest": "sha256:" + 64 * "a",
        "release": "0.12.0",
        "convert_checkpoint": ["python3", "/app/examples/llama/convert_checkpoint.py"],
        "trtllm_build": ["trtllm-build"],
        "tritonserver": "/opt/tritonserver/bin/tritonserver",
        "models_dir": "/app/all_models/inflight_batcher_llm",
        "backends_dir": "",
        "mpirun": "mpirun",
        "python": "/opt/trtllm/venv/bin/python",
        "python_ready": True,
        "root": "",
        "library_path": "",
        "repaired": False,
        "changed": False,
    },
}


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "TRTLLM_", "HF_"))}
    told = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder), "ANSIBLE_LOCALHOST_WARNING": "false"}
    # Where the reports of runs are kept.
    return {**kept, **told, "XDG_STATE_HOME": str(folder)}


def playbook(folder: Path, inventory: str, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Any attempt to reach a host fails: there is no ssh."""
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", inventory, name, *arguments]
    argv += ["-e", "ansible_ssh_executable=/nonexistent/ssh"]
    return subprocess.run(
        argv, cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False, timeout=120
    )


@cache
def defaults(role: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text("utf-8")))


def public(role: str) -> list[str]:
    """The role's variables, but those that only have a value within the role."""
    return [name for name, value in defaults(role).items() if "role_path" not in str(value)]


def values(folder: Path, inventory: str, **given: Any) -> dict[str, dict[str, Any]]:
    """Host by host: every public variable of the roles, and the private ones that the server is made from."""
    names = [name for role in ROLES for name in public(role)] + ["__triton_serve_paths", "__triton_serve_docker_launch"]
    specs = ROOT / "roles" / "docker_nvidia" / "meta" / "argument_specs.yml"
    told = {"preset_folder": str(folder), "preset_names": names, "preset_docker_specs": str(specs), **given}
    done = playbook(folder, inventory, "tests/unit/preset/values.yml", "-e", json.dumps(told))
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
