# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small models, fake tools and module processes for the module tests."""

from __future__ import annotations

import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation

MODULES = "ansible_collections.trtllm.serving.plugins.modules"

# Does what its --mode says, and writes what convert_checkpoint.py or trtllm-build would.
FAKE_TOOL = r"""
import json, os, signal, struct, sys, time

def value(flag, default=None):
    for index, word in enumerate(sys.argv):
        if word == flag:
            return sys.argv[index + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return default

def safetensors(path, count=4):
    header = json.dumps({"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header + bytes(4 * count))

mode = os.environ.get("FAKE_MODE", "ok")
with open(os.environ["FAKE_RUNS"], "a") as stream:
    stream.write(" ".join(sys.argv[1:]) + "\n")
output = value("--output_dir")
checkpoint = value("--checkpoint_dir")
os.makedirs(output, exist_ok=True)
open("model.cache", "w").close()
print("converting", flush=True)
print("in", os.getcwd(), flush=True)
if mode == "argparse":
    sys.stderr.write("usage: tool [-h]\ntool: error: unrecognized arguments: --nonsense\n")
    sys.exit(2)
if mode == "traceback":
    raise RuntimeError("CUDA out of memory. Tried to allocate 112.00 MiB")
if mode == "secret":
    print("token is " + os.environ["HF_TOKEN"], flush=True)
    sys.exit(3)
if mode in ("hang", "stubborn"):
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
    safetensors(os.path.join(output, "rank0.safetensors"))
    with open(os.environ["FAKE_PIDS"], "a") as stream:
        stream.write("%d\n" % os.getpid())
    time.sleep(120)
if mode == "full":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    safetensors(os.path.join(output, "rank0.safetensors"), 4096)
if checkpoint:
    pretrained = json.load(open(os.path.join(checkpoint, "config.json")))
    world = pretrained["mapping"]["world_size"]
    config = {
        "version": os.environ.get("FAKE_VERSION", "1.1.0"),
        "pretrained_config": pretrained,
        "build_config": {
            "max_batch_size": int(value("--max_batch_size", 2048)),
            "max_input_len": int(value("--max_input_len", 1024)),
            "max_seq_len": 2048, "max_num_tokens": 8192, "max_beam_width": 1,
            "plugin_config": {"gemm_plugin": value("--gemm_plugin")},
        },
    }
    for rank in range(world):
        with open(os.path.join(output, "rank%d.engine" % rank), "wb") as stream:
            stream.write(b"engine" * 10)
else:
    tp, pp = int(value("--tp_size", 1)), int(value("--pp_size", 1))
    moe_tp, moe_ep = int(value("--moe_tp_size", tp)), int(value("--moe_ep_size", 1))
    config = {
        "architecture": "MixtralForCausalLM", "dtype": value("--dtype", "float16"),
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp,
                    "moe_tp_size": moe_tp, "moe_ep_size": moe_ep},
    }
    for rank in range(tp * pp - (1 if mode == "missing_rank" else 0)):
        safetensors(os.path.join(output, "rank%d.safetensors" % rank))
with open(os.path.join(output, "config.json"), "w") as stream:
    json.dump(config, stream)
print("done", flush=True)
"""


def write_safetensors(path: Path, tensors: dict[str, int]) -> None:
    """name -> number of float32 zeros."""
    header: dict[str, Any] = {}
    offset = 0
    for name, count in tensors.items():
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [offset, offset + 4 * count]}
        offset += 4 * count
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))


def make_model(path: Path, shards: int = 2, **config: Any) -> Path:
    path.mkdir(parents=True)
    values = {
        "architectures": ["MixtralForCausalLM"],
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 256,
        "max_position_embeddings": 512,
        "torch_dtype": "float32",
        **config,
    }
    (path / "config.json").write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    weight_map = {}
    for number, name in enumerate(names):
        write_safetensors(path / name, {f"layer.{number}": 16})
        weight_map[f"layer.{number}"] = name
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text("{}")
    (path / "README.md").write_text("not part of the identity")
    return path


def tree(path: Path) -> dict[str, Any]:
    """Everything below a directory, with content and time: to show that nothing was written."""
    return {
        str(entry.relative_to(path)): (entry.stat().st_mtime_ns, entry.read_bytes() if entry.is_file() else None)
        for entry in sorted(path.rglob("*"))
    }


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("the condition did not come true")


class Site:
    """A home with a model and a fake tool."""

    # Seconds in which the tool has surely started.
    timeout = 1.0

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = root / "home"
        self.home.mkdir()
        self.model = make_model(root / "model")
        self.tool = root / "tool.py"
        self.tool.write_text(FAKE_TOOL)
        # What the tool tells the test, beside its work.
        self.marks = root / "marks"
        self.marks.mkdir()
        self.runs_file = self.marks / "runs"
        self.pids_file = self.marks / "pids"
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("FAKE_RUNS", str(self.runs_file))
        monkeypatch.setenv("FAKE_PIDS", str(self.pids_file))

    def mode(self, mode: str) -> None:
        self._monkeypatch.setenv("FAKE_MODE", mode)

    @property
    def runs(self) -> list[str]:
        return self.runs_file.read_text().splitlines() if self.runs_file.exists() else []

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.pids_file.read_text().split()] if self.pids_file.exists() else []

    def running(self) -> bool:
        return any(alive(pid) for pid in self.pids)

    def partials(self) -> list[Path]:
        return sorted(self.home.rglob("*.partial"))

    def convert_args(self, **more: Any) -> dict[str, Any]:
        return {
            "release": "1.1.0",
            "executable": [sys.executable, str(self.tool)],
            "model_dir": str(self.model),
            "checkpoints_dir": str(self.home / "checkpoints"),
            "home": str(self.home),
            "log_dir": str(self.home / "logs"),
            **more,
        }

    def build_args(self, checkpoint: str, **more: Any) -> dict[str, Any]:
        return {
            "release": "1.1.0",
            "executable": [sys.executable, str(self.tool)],
            "checkpoint_dir": checkpoint,
            "engines_dir": str(self.home / "engines"),
            "home": str(self.home),
            "log_dir": str(self.home / "logs"),
            **more,
        }


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


@pytest.fixture
def cancellation() -> Iterator[Cancellation]:
    with Cancellation(watch_fd=None, watch_parent=False) as found:
        yield found


class ModuleProcess:
    """A module as Ansible runs it: its own process, parameters on stdin, the result as JSON on stdout."""

    def __init__(self, name: str, args: dict[str, Any], *, check: bool = False, isolate: bool = False) -> None:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        command = [sys.executable, "-m", f"{MODULES}.{name}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
        )
        payload = {"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check, "_ansible_diff": True}}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(payload).encode())
        self.process.stdin.close()
        self.process.stdin = None

    def result(self, seconds: float = 30.0) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=seconds)
        assert out.strip(), err.decode()
        found = json.loads(out)
        assert isinstance(found, dict)
        found["rc_of_module"] = self.process.returncode
        return found


@pytest.fixture
def start_module() -> Iterator[Callable[..., ModuleProcess]]:
    started: list[ModuleProcess] = []

    def start(name: str, args: dict[str, Any], **how: Any) -> ModuleProcess:
        started.append(ModuleProcess(name, args, **how))
        return started[-1]

    yield start
    for module in started:
        if module.process.poll() is None:
            module.process.kill()
        module.process.wait()
        for stream in (module.process.stdout, module.process.stderr):
            if stream is not None:
                stream.close()


class Helpers:
    write_safetensors = staticmethod(write_safetensors)
    make_model = staticmethod(make_model)
    tree = staticmethod(tree)
    alive = staticmethod(alive)
    wait_for = staticmethod(wait_for)


@pytest.fixture
def helpers() -> type[Helpers]:
    return Helpers


class FakeTriton:
    """An HTTP server that answers as Triton does, and refuses connections until it is opened."""

    def __init__(self) -> None:
        self.live = 200
        self.ready = 200
        self.models: dict[str, bool] = {}
        self.index: list[dict[str, Any]] | None = []
        # What generate answers: (status, body), or for a stream a list of events.
        self.answer: Any = (200, {"text_output": "Paris", "model_version": "1"})
        self.delay_s = 0.0
        self.requests: list[tuple[str, Any]] = []
        triton = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *unused: Any) -> None:
                pass

            def send(self, status: int, body: Any = None) -> None:
                data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                triton.requests.append((self.path, None))
                if self.path == "/v2/health/live":
                    self.send(triton.live)
                elif self.path == "/v2/health/ready":
                    self.send(triton.ready)
                else:
                    good = triton.models.get(self.path.split("/")[3], False)
                    self.send(200 if good else 400, None if good else {"error": "Model version not ready"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                triton.requests.append((self.path, body))
                if self.path == "/v2/repository/index":
                    if triton.index is None:
                        self.send(403)
                    else:
                        self.send(200, triton.index)
                    return
                time.sleep(triton.delay_s)
                if not isinstance(triton.answer, list):
                    self.send(*triton.answer)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in triton.answer:
                    data = event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
                    # Cut in two, as a network may.
                    for part in (data[:9], data[9:]):
                        if part:
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                            self.wfile.flush()
                    time.sleep(triton.delay_s)
                self.wfile.write(b"0\r\n\r\n")

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server.daemon_threads = True
        self.server.server_bind()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.opened = False

    def open(self) -> FakeTriton:
        self.server.server_activate()
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.opened = True
        return self

    def close(self) -> None:
        if self.opened:
            self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.close()
