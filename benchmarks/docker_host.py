# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with systemd and Docker, of the test bed: site.yml against the tutorial's own docker commands.

The host is that of molecule's scenario debian, under another name: Docker Engine within it, a backend image that the
role builds, two ranks, tiny weights. bench.py runs this where the machine's Docker can be used.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT / "molecule" / "docker_host"
REFERENCE = ROOT / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
NAME = "trtllm-bench"
# Keys of a host that lives for minutes are nobody's business; one connection serves a whole run, as for other hosts.
SSH = (
    "-o ControlMaster=auto -o ControlPersist=300s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    " -o LogLevel=ERROR"
)
# The tutorial's own lines, on a host of the Debian family. On the second run each of them has nothing to do, but Docker
# is restarted all the same.
INSTALL = [
    ["apt-get", "install", "-y", "docker-ce", "nvidia-container-toolkit", "git", "git-lfs"],
    ["systemctl", "enable", "docker.service"],
    ["systemctl", "start", "docker.service"],
    ["nvidia-ctk", "runtime", "configure", "--runtime=docker"],
    ["systemctl", "restart", "docker"],
]

# Playbook, options of ansible-playbook, environment: what bench.Run takes, and what it gives.
Play = Callable[[str, "list[str]", "dict[str, str]"], Any]


def unavailable() -> str:
    """Why there can be no host here; empty when there can."""
    if os.geteuid() != 0:
        return "the test bed's images are made by root, and this is uid %d" % os.geteuid()
    missing = [name for name in ("docker", "mmdebstrap", "git", "git-lfs", "ssh") if not shutil.which(name)]
    if missing:
        return "%s missing: make test installs what the test bed needs" % ", ".join(missing)
    asked = ["docker", "info", "--format", "{{.ServerVersion}}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0 or not done.stdout.strip():
        said = (done.stderr.strip() or "no answer").splitlines()[-1]
        return "Docker Engine does not answer (%s): start it" % said
    return ""


def with_numpy(work: Path) -> str:
    """A Python that can generate weights: this one, or that of an environment which was made before; empty if none."""
    found = [sys.executable, *(str(work / name / "venv/bin/python") for name in ("tiny", "demo"))]
    for python in [*found, str(ROOT / ".work/dev/bin/python")]:
        asked = [python, "-c", "import numpy"]
        if os.access(python, os.X_OK) and subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return python
    return ""


class Host:
    """One host, its package repository and its registry, as containers of this machine."""

    def __init__(self, work: Path, play: Play) -> None:
        self.folder = work / "docker_host"
        self.play = play

    def environment(self) -> dict[str, str]:
        return {
            "MOLECULE_PROJECT_DIRECTORY": str(ROOT),
            "MOLECULE_EPHEMERAL_DIRECTORY": str(self.folder),
            "MOLECULE_SCENARIO_NAME": "debian",
            "ANSIBLE_SSH_ARGS": SSH,
        }

    def shared(self, name: str) -> Any:
        """One of molecule's playbooks, with names of our own."""
        told = {"testbed_name": NAME, "testbed_scenario": "debian"}
        options = ["-i", str(SHARED / "inventory" / "debian.yml"), "-e", json.dumps(told)]
        return self.play(str(SHARED / (name + ".yml")), options, self.environment())

    def run(self, playbook: str, variables: dict[str, object]) -> Any:
        """A playbook on the host."""
        options = ["-i", str(SHARED / "inventory" / "debian.yml"), "-i", str(self.folder / "testbed")]
        return self.play(playbook, [*options, "-e", json.dumps(variables)], self.environment())

    def tutorial(self) -> Any:
        """The tutorial's commands; its server is stopped afterwards."""
        done = self.run("benchmarks/tutorial-docker.yml", TUTORIAL)
        subprocess.run(
            ["docker", "exec", NAME + "-host", "docker", "rm", "-f", "tutorial"], capture_output=True, check=True
        )
        return done


@contextmanager
def made(work: Path, play: Play) -> Iterator[Host]:
    host = Host(work, play)
    host.folder.mkdir(parents=True, exist_ok=True)
    host.shared("destroy")
    try:
        host.shared("create")
        # What prepare finds there it does not make itself, with a Python that may not be able to.
        generator = REFERENCE / "tools" / "generate_tiny.py"
        argv = [with_numpy(work), str(generator), "--output_dir=%s" % (host.folder / "weights")]
        if not (host.folder / "weights" / "config.json").is_file():
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        host.shared("prepare")
        yield host
    finally:
        host.shared("destroy")


# What upstream's launcher starts; the test bed's checkout has another one in its place.
RANK = (
    "-n 1 tritonserver --model-repository=/tensorrtllm_backend/triton_model_repo"
    "{{ ' --model-control-mode=explicit --load-model=tensorrt_llm' if rank else '' }}"
    " --grpc-port={{ tutorial_ports.grpc }} --http-port={{ tutorial_ports.http }}"
    " --metrics-port={{ tutorial_ports.metrics }} --disable-auto-complete-config"
    " --backend-config=python,shm-region-prefix-name=prefix{{ rank }}_"
)
LAUNCH = (
    "mpirun --allow-run-as-root {% for rank in range(mixtral_engine_tp_size) %}{{ '' if loop.first else ' : ' }}"
    + RANK
    + "{% endfor %}"
)
# What the tutorial's reader would have: the same sources, weights and sizes as the host's own variables say. Limits are
# those that a sandbox can give.
TUTORIAL: dict[str, object] = {
    "tutorial_home": "/root",
    "tutorial_repository": "{{ tensorrtllm_backend_build_repository }}",
    "tutorial_weights": "{{ mixtral_engine_weights_path }}",
    "tutorial_configs": "{{ trtllm_home }}/current/model_repo",
    "tutorial_install": INSTALL,
    "tutorial_build_arguments": ["--build-arg", "BASE_IMAGE={{ tensorrtllm_backend_build_build_args.BASE_IMAGE }}"],
    "tutorial_limits": ["--shm-size={{ mixtral_engine_container_shm_size }}", "--ulimit", "stack=67108864"],
    "tutorial_world_size": "{{ mixtral_engine_tp_size }}",
    "tutorial_launch": LAUNCH,
    "tutorial_max_tokens": 16,
}


def against_tutorial(work: Path, repeats: int, play: Play) -> list[str]:
    """Rows: the first deployment, a run with nothing to do, one that changes a setting, and the tutorial each time."""
    noop, changed, commands = [], [], []
    with made(work, play) as host:
        first = host.run("site.yml", {})
        # One server at a time: two would slow each other down on a small machine.
        host.run("playbooks/teardown.yml", {})
        host.tutorial()
        # In turns, so that all meet the same neighbours on the machine.
        for number in range(repeats):
            host.run("site.yml", {})
            noop.append(host.run("site.yml", {}))
            changed.append(host.run("site.yml", {"triton_serve_max_queue_delay_microseconds": 100 + number}))
            host.run("playbooks/teardown.yml", {})
            commands.append(host.tutorial())
    if any(run.changed for run in noop):
        sys.exit("site.yml changed something on its second run on the Docker host")
    if not all(run.changed for run in changed):
        sys.exit("a changed setting did not change the Docker host")
    ours, redeploy, theirs = ([run.seconds for run in runs] for runs in (noop, changed, commands))
    median = statistics.median

    def ratio(seconds: list[float]) -> float:
        """Of each turn: what was measured minutes apart met another load."""
        return float(median(mine / tutorial for mine, tutorial in zip(seconds, theirs)))

    return [
        "| Docker host: first deployment, packages to answer | %.1f s, %d tasks |" % (first.seconds, first.tasks),
        "| Docker host: no-op site.yml (median of %d) | %.2f s, %d tasks |" % (repeats, median(ours), noop[0].tasks),
        "| Docker host: one setting changed, to its answer (median of %d) | %.2f s, %d tasks |"
        % (repeats, median(redeploy), changed[0].tasks),
        "| Docker host: tutorial as command tasks, second run (median of %d) | %.2f s, %d tasks |"
        % (repeats, median(theirs), commands[0].tasks),
        "| Docker host: no-op / tutorial (goal: at most 0.20) | %.3f |" % ratio(ours),
        "| Docker host: one setting changed / tutorial | %.3f |" % ratio(redeploy),
    ]


def rows(work: Path, repeats: int, play: Play) -> list[str]:
    why = unavailable()
    if not why and not with_numpy(work):
        why = "no Python with numpy for its weights: run it without --only-docker"
    return ["| Docker host | skipped: %s |" % why] if why else against_tutorial(work, repeats, play)
