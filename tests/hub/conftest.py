# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small Mixtral, a hub that has it, and the module that fetches it with the real client."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.tests.hub.server import Hub, Repository

MODULE = "ansible_collections.trtllm.serving.plugins.modules.mixtral_weights"
NAME = "mistralai/Mixtral-8x7B-Instruct-v0.1"
TOKEN = "hf_" + "LoopbackTokenNobodyMayEverSee"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARD = 3_000_000
# Another release of the client, on another Python, can be named.
PYTHON = os.environ.get("TRTLLM_TEST_HUB_PYTHON") or sys.executable
WANTED = ["config.json", FIRST, SECOND, "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


def write_shard(path: Path, tensor: str, size: int = SHARD) -> None:
    header = json.dumps({tensor: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + random.Random(tensor).randbytes(size))


def make_model(path: Path, **config: Any) -> Path:
    """As mistralai's repositories are: with the same weights in Mistral's own format beside."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    write_shard(path / FIRST, "a")
    write_shard(path / SECOND, "b")
    index = {"metadata": {"total_size": 2 * SHARD}, "weight_map": {"a": FIRST, "b": SECOND}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {str(number): number for number in range(256)}}})
    )
    (path / "tokenizer_config.json").write_text("{}")
    (path / "consolidated.00.pt").write_bytes(b"\x80" * 1000)
    (path / "README.md").write_text("# Mixtral\n")
    (path / "onnx").mkdir()
    write_shard(path / "onnx" / "model.safetensors", "c", 100)
    return path


def tree(path: Path) -> dict[str, Any]:
    found = {}
    for entry in sorted(path.rglob("*")):
        info = entry.lstat()
        found[str(entry.relative_to(path))] = (info.st_mode, info.st_size, info.st_mtime_ns)
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "not within %d s" % seconds
        time.sleep(0.01)


class Task:
    """The module as Ansible runs it: a process, parameters on stdin, the result as JSON on stdout."""

    def __init__(self, args: dict[str, Any], *, check: bool = False, environment: dict[str, str] | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**kept, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part), **(environment or {})},
        )  # fmt: skip
        payload = {"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check, "_ansible_diff": True}}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(payload).encode())
        self.process.stdin.close()
        self.process.stdin = None
        self.raw = ""

    def result(self, seconds: float = 60.0) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=seconds)
        assert out.strip(), err.decode()
        self.raw = out.decode()
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)


class Site:
    """A host with a home, and a hub that has one repository."""

    def __init__(self, tmp_path: Path, hub: Hub) -> None:
        self.tmp, self.hub = tmp_path, hub
        self.home = tmp_path / "home"
        self.home.mkdir()
        self.model = make_model(tmp_path / "models" / NAME)
        self.repository: Repository = hub.add(NAME, self.model)
        self.started: list[Task] = []

    @property
    def commit(self) -> str:
        return self.repository.commit

    @property
    def final(self) -> Path:
        return self.home / "weights" / f"{NAME.replace('/', '--')}@{self.commit}"

    @property
    def download(self) -> Path:
        return self.final.with_name(self.final.name + ".download")

    def args(self, revision: str | None = None, **hub: Any) -> dict[str, Any]:
        more = {name: hub.pop(name) for name in ("space", "environment", "verify") if name in hub}
        return {
            "home": str(self.home),
            "revision": revision or self.commit,
            "hub": {
                "repository": NAME, "endpoint": self.hub.url, "python": PYTHON, "retries": 2, "timeout": 5,
                "workers": 2, **hub,
            },
            "space": {"reserve_gib": 0},
            **more,
        }  # fmt: skip

    def start(self, *, check: bool = False, process: dict[str, str] | None = None, **hub: Any) -> Task:
        self.started.append(Task(self.args(**hub), check=check, environment=process))
        return self.started[-1]

    def run(self, **how: Any) -> dict[str, Any]:
        return self.start(**how).result()

    def whole(self, found: dict[str, Any]) -> dict[str, Any]:
        """The result of a run that brought everything, and nothing else."""
        assert not found.get("failed"), found
        assert found["path"] == str(self.final)
        assert sorted(path.name for path in self.final.iterdir()) == sorted([*WANTED, "manifest.json"])
        for name in WANTED:
            assert (self.final / name).read_bytes() == (self.model / name).read_bytes()
        assert not self.download.exists()
        assert self.hub.unexpected == []
        # An address of the storage is as good as a token while it is valid.
        assert "5ecret5ignature" not in self.log()
        return found

    def gets(self, server: str = "storage") -> list[tuple[str, str]]:
        """(file, range) of what was fetched from a server."""
        names = {"/lfs/" + file.sha256: path for path, file in self.repository.files.items()}
        found = []
        for request in self.hub.requests:
            if request.server == server and request.method == "GET":
                path = request.path.partition("?")[0]
                found.append((names.get(path, path), request.headers.get("range", "")))
        return found

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.home / "logs").glob("hub-*.log")))


@pytest.fixture(name="hub")
def _hub() -> Iterator[Hub]:
    with Hub(token=TOKEN) as hub:
        yield hub


@pytest.fixture
def site(tmp_path: Path, hub: Hub) -> Iterator[Site]:
    site = Site(tmp_path, hub)
    yield site
    for task in site.started:
        if task.process.poll() is None:
            task.process.kill()
        task.process.wait()
        for stream in (task.process.stdout, task.process.stderr):
            if stream is not None:
                stream.close()
