# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's tasks that convert and build, on a Docker host: before, during and after its deployment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _containers

ROOT = Path(__file__).resolve().parents[2]
SERVICE = 1234

REGISTERED = {"checkpoint": "{{ mixtral_engine_checkpoint }}", "engine": "{{ mixtral_engine_engine }}"}
PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.include_role": {"name": "trtllm.serving.mixtral_engine", "tasks_from": "build"}},
            {
                "ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": "{{ out }}", "mode": "0600"},
                "vars": {"found": REGISTERED},
                "check_mode": False,
                "changed_when": False,
                "diff": False,
            },
        ],
    }
]
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}


class Host:
    def __init__(self, root: Path, image: str, client: Any) -> None:
        self.root, self.client = root, client
        self.home, self.model = root / "home", root / "model"
        for folder in (self.home, self.model):
            folder.mkdir()
            os.chown(folder, SERVICE, SERVICE)
        self.image = image
        self.image_id = client.images.get(image).id
        (root / "play.yml").write_text(json.dumps(PLAY))

    def facts(self, there: bool) -> dict[str, Any]:
        return {
            "tensorrtllm_backend_build_method": "build",
            "mixtral_engine_home": str(self.home),
            "mixtral_engine_tp_size": 2,
            "mixtral_engine_gpus": "none",
            "mixtral_engine_container_ulimits": {"stack": 67108864},
            "mixtral_engine_container_memory": "1g",
            "mixtral_engine_weights": {"path": str(self.model), "identity": {}, "changed": False},
            "triton_serve_preflight": {"host": {"gpu": {"name": "NVIDIA L40S", "compute_capability": "8.9",
                                                        "memory_mib": 46068, "count": 4}}},
            "tensorrtllm_backend_build_backend": {
                "image": self.image,
                "image_id": self.image_id if there else "",
                "digest": self.image_id if there else "",
                "python": sys.executable if there else str(self.home / "venv" / "bin" / "python"),
                "python_ready": there,
                "convert_checkpoint": ["python3", "/app/examples/models/core/llama/convert_checkpoint.py"],
                "trtllm_build": ["trtllm-build"],
            },
            "out": str(self.root / "out.json"),
        }  # fmt: skip

    def run(self, *options: str, there: bool = True) -> tuple[int, dict[str, Any]]:
        """How many tasks changed something, and what they registered."""
        hosts = {"all": {"hosts": {"localhost": LOCAL}}}
        (self.root / "hosts.json").write_text(json.dumps(hosts))
        (self.root / "facts.json").write_text(json.dumps(self.facts(there)))
        command = [
            *(sys.executable, "-m", "ansible", "playbook", str(self.root / "play.yml")),
            *("-i", str(self.root / "hosts.json"), "-e", f"@{self.root / 'facts.json'}", *options),
        ]
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "NO_COLOR": "1"}
        ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        recap = re.search(r"changed=(\d+)", ended.stdout)
        assert recap is not None, ended.stdout
        return int(recap.group(1)), json.loads((self.root / "out.json").read_text())


@pytest.fixture
def host(tmp_path: Path, backend_image: str, docker_client: Any) -> Host:
    found = Host(tmp_path, backend_image, docker_client)
    reference = ROOT / "roles/tensorrtllm_backend_build/files/reference"
    docker_client.containers.run(
        backend_image, ["python3", "/reference/tools/generate_tiny.py", "--output_dir", "/model"], remove=True,
        mounts=[_containers.mount(reference, "/reference"), _containers.mount(found.model, "/model", read_only=False)],
        user=f"{SERVICE}:{SERVICE}", name=f"trtllm-runner-tiny-{os.getpid()}",
    )  # fmt: skip
    return found


def test_check_deploy_and_again(host: Host) -> None:
    # New: neither image nor environment are there.
    changed, found = host.run("--check", "--diff", there=False)
    assert changed == 2 and found["checkpoint"]["changed"] and found["engine"]["key"] is None
    assert not list(host.home.iterdir())
    changed, made = host.run()
    assert changed == 2 and made["engine"]["engine"]["tp_size"] == 2
    assert made["engine"]["command"][0] == "trtllm-build" and made["checkpoint"]["command"][0] == "python3"
    manifest = json.loads((Path(made["engine"]["path"]) / "manifest.json").read_text())
    assert manifest["inputs"]["image"] == host.image_id
    assert manifest["inputs"]["gpu"]["name"] == "NVIDIA L40S"
    below = [path for name in ("checkpoints", "engines", "logs") for path in (host.home / name).rglob("*")]
    assert below and {path.stat().st_uid for path in below} == {SERVICE}
    for options in ((), ("--check", "--diff")):
        changed, again = host.run(*options)
        assert changed == 0 and again["engine"]["path"] == made["engine"]["path"]
    assert not _containers.ours(host.client, host.home, "tool")
