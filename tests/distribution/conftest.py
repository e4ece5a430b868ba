# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real registry on loopback, hosts that are directories of this machine, and tools that count their runs."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = shutil.which("docker-registry") or ""

# Stands for convert_checkpoint.py and trtllm-build: same interface as far as the role uses it, and each run noted.
TOOL = r"""
import json, os, struct, sys, time

def value(flag, default=None):
    words = sys.argv
    return words[words.index(flag) + 1] if flag in words else default

kind, host = sys.argv[1], sys.argv[2]
with open(os.environ["TOOL_RUNS"], "a") as stream:
    stream.write(kind + " " + host + "\n")
ill = os.environ.get("TOOL_ILL", "")
if kind == "build" and host in ill.split(","):
    sys.stderr.write("RuntimeError: CUDA out of memory. Tried to allocate 112.00 MiB\n")
    sys.exit(1)
output = value("--output_dir")
os.makedirs(output, exist_ok=True)
if kind == "tiny":
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    with open(os.path.join(output, "model.safetensors"), "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header + bytes(16))
    config = {"architectures": ["MixtralForCausalLM"], "num_attention_heads": 8, "num_key_value_heads": 8,
              "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 100,
              "num_local_experts": 4, "num_experts_per_tok": 2, "torch_dtype": "float16"}
    json.dump({"version": "1.0"}, open(os.path.join(output, "tokenizer.json"), "w"))
    json.dump({}, open(os.path.join(output, "tokenizer_config.json"), "w"))
elif kind == "convert":
    tp = int(value("--tp_size", "1"))
    config = {"architecture": "MixtralForCausalLM", "dtype": "float16",
              "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1, "moe_tp_size": tp, "moe_ep_size": 1}}
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    for rank in range(tp):
        with open(os.path.join(output, "rank%d.safetensors" % rank), "wb") as stream:
            stream.write(struct.pack("<Q", len(header)) + header + bytes(16))
else:
    pretrained = json.load(open(os.path.join(value("--checkpoint_dir"), "config.json")))
    config = {"version": "1.1.0", "pretrained_config": pretrained,
              "build_config": {"max_batch_size": int(value("--max_batch_size", 8)), "max_input_len": 1024,
                               "max_seq_len": 2048, "max_num_tokens": 8192, "max_beam_width": 1,
                               "plugin_config": {"gemm_plugin": "auto"}}}
    size = int(os.environ.get("TOOL_BYTES", "3000000"))
    for rank in range(pretrained["mapping"]["world_size"]):
        with open(os.path.join(output, "rank%d.engine" % rank), "wb") as stream:
            stream.write(os.urandom(size))
json.dump(config, open(os.path.join(output, "config.json"), "w"))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Registry:
    """docker-registry as a process, with its storage in a directory."""

    def __init__(
        self, folder: Path, *, user: str = "", password: str = "", tls: bool = False, mirror_of: str = ""
    ) -> None:
        self.folder, self.port, self.tls = folder, free_port(), tls
        self.host = f"127.0.0.1:{self.port}"
        self.ca = folder / "ca.pem" if tls else None
        folder.mkdir(parents=True)
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": "s"},
        }
        if user:
            lines = subprocess.run(["htpasswd", "-Bbn", user, password], check=True, capture_output=True, text=True)
            (folder / "htpasswd").write_text(lines.stdout.strip() + "\n")
            config["auth"] = {"htpasswd": {"realm": "engines", "path": str(folder / "htpasswd")}}
        if tls:
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry",
                 "-addext", "subjectAltName=IP:127.0.0.1",
                 "-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem")],
                check=True, capture_output=True,
            )  # fmt: skip
            config["http"]["tls"] = {"certificate": str(folder / "ca.pem"), "key": str(folder / "key.pem")}
        if mirror_of:
            config["proxy"] = {"remoteurl": mirror_of}
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [REGISTRY, "serve", str(self.folder / "config.yml")], stdout=log, stderr=log, cwd=self.folder
            )
        ends = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                context = ssl._create_unverified_context() if self.tls else None
                kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
                options: dict[str, Any] = {"context": context} if self.tls else {}
                connection = kind("127.0.0.1", self.port, timeout=2, **options)
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                return
            except OSError:
                assert time.monotonic() < ends, self.log.read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def requests(self, method: str = "", what: str = "") -> list[str]:
        """Lines of the access log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if '"http' not in line and "HTTP/1" in line and f'"{method}' in line and what in line:
                found.append(line)
        return found


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    if not REGISTRY:
        pytest.fail("docker-registry is not on this machine: apt-get install docker-registry")
    made: list[Registry] = []

    def make(name: str = "registry", **options: Any) -> Registry:
        made.append(Registry(tmp_path / name, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop()


class Fleet:
    """Hosts of a play, each a home of its own on this machine."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.touch()
        (folder / "tool.py").write_text(TOOL)
        (folder / "root" / "tools").mkdir(parents=True)
        (folder / "root" / "tools" / "generate_tiny.py").write_text(
            TOOL.replace("kind, host = sys.argv[1], sys.argv[2]", 'kind, host = "tiny", "all"')
        )
        self.hosts = [f"h{number}" for number in range(1, count + 1)]
        self.variables: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "trtllm_release": "1.1.0",
            "mixtral_engine_weights_source": "tiny",
            "mixtral_engine_tp_size": 2,
            "mixtral_engine_hub_python": sys.executable,
            "mixtral_engine_registry_retries": 1,
        }
        self.of_host: dict[str, dict[str, Any]] = {host: {} for host in self.hosts}

    def home(self, host: str) -> Path:
        return self.folder / "homes" / host

    def write(self, tasks: list[dict[str, Any]] | None = None) -> Path:
        hosts = {}
        for host in self.hosts:
            self.home(host).mkdir(parents=True, exist_ok=True)
            tool = [sys.executable, str(self.folder / "tool.py")]
            hosts[host] = {
                "trtllm_home": str(self.home(host)),
                "tensorrtllm_backend_build_backend": {
                    "root": str(self.folder / "root"), "python": sys.executable, "python_ready": True,
                    "digest": "sha256:backend", "convert_checkpoint": [*tool, "convert", host],
                    "trtllm_build": [*tool, "build", host], "changed": False,
                },
                **self.of_host[host],
            }  # fmt: skip
        inventory = self.folder / "inventory.yml"
        inventory.write_text(json.dumps({"all": {"vars": self.variables, "hosts": hosts}}))
        show = {
            "path": "{{ mixtral_engine_engine.path }}", "key": "{{ mixtral_engine_engine.key }}",
            "tokenizer": "{{ (mixtral_engine_engine.tokenizer | default({})).path }}",
            "changed": "{{ mixtral_engine_engine is changed }}",
            "origin": "{{ mixtral_engine_engine.origin | default('') }}",
        }  # fmt: skip
        play = {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                *(tasks or []),
                {"name": "Engine", "import_role": {"name": "trtllm.serving.mixtral_engine"}},
                {"name": "Shown", "copy": {"dest": f"{self.folder}/shown-{{{{ inventory_hostname }}}}",
                                           "content": "{{ shown | to_json }}"},
                 "vars": {"shown": show}, "check_mode": False, "changed_when": False},
            ],
        }  # fmt: skip
        playbook = self.folder / "play.yml"
        playbook.write_text(json.dumps([play]))
        return playbook

    def play(
        self, *arguments: str, tasks: list[dict[str, Any]] | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        playbook = self.write(tasks)
        for path in self.folder.glob("shown-*"):
            path.unlink()
        program = os.environ.get("ANSIBLE_PLAYBOOK") or str(Path(sys.executable).parent / "ansible-playbook")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "TRTLLM_"))}
        return subprocess.run(
            [program, "-i", str(self.folder / "inventory.yml"), str(playbook), *arguments],
            cwd=ROOT,
            env={**kept, "TOOL_RUNS": str(self.runs), "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_HOME": str(self.folder / "ansible"), "ANSIBLE_FORKS": "4", **environment},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def shown(self) -> dict[str, dict[str, Any]]:
        return {
            path.name.partition("-")[2]: json.loads(path.read_text()) for path in sorted(self.folder.glob("shown-*"))
        }

    def ran(self, kind: str) -> list[str]:
        return [line.split()[1] for line in self.runs.read_text().splitlines() if line.split()[0] == kind]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)
