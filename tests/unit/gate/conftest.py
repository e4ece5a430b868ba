# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server on loopback that answers as Triton does, with its counters, and module processes to ask it."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

MODULES = "ansible_collections.trtllm.serving.plugins.modules"
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
REASONS = ("BACKEND", "CANCELED", "OTHER", "REJECTED")


class Counters:
    """The counters of requests as Triton writes them: all there from the start, with zero."""

    def __init__(self) -> None:
        self.success = dict.fromkeys(MODELS, 0)
        self.failure = {(model, reason): 0 for model in MODELS for reason in REASONS}

    def page(self) -> str:
        lines = ["# HELP nv_inference_request_success Number of successful inference requests, all batch sizes"]
        lines += ["# TYPE nv_inference_request_success counter"]
        for model, count in self.success.items():
            lines.append('nv_inference_request_success{model="%s",version="1"} %s' % (model, count))
        for (model, reason), count in self.failure.items():
            lines.append('nv_inference_request_failure{model="%s",reason="%s",version="1"} %s' % (model, reason, count))
        lines += ['nv_inference_count{model="ensemble",version="1"} 7', "nv_cpu_utilization 0.25", ""]
        return "\n".join(lines)


class FakeTriton:
    def __init__(self) -> None:
        self.counters = Counters()
        self.metrics_status = 200
        # Called with itself at each look at the metrics, before they are written.
        self.at_look: Callable[[FakeTriton], None] | None = None
        self.looks = 0
        self.models = dict.fromkeys(MODELS, True)
        self.live = 200
        # What generate answers: (status, body), or for a stream a list of events.
        self.answer: Any = (200, {"text_output": " Paris", "model_version": "1"})
        self.delay_s = 0.0
        self.asked: list[tuple[str, Any]] = []
        self.connections: set[Any] = set()
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
                if self.path == "/metrics":
                    triton.looks += 1
                    if triton.at_look is not None:
                        triton.at_look(triton)
                    self.send(triton.metrics_status, triton.counters.page().encode())
                elif self.path == "/v2/health/live":
                    self.send(triton.live)
                elif self.path == "/v2/health/ready":
                    self.send(200)
                else:
                    good = triton.models.get(self.path.split("/")[3], False)
                    self.send(200 if good else 400, None if good else {"error": "Model version not ready"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v2/repository/index":
                    self.send(200, [{"name": name, "state": "READY"} for name in triton.models])
                    return
                triton.asked.append((self.path, body))
                triton.connections.add(self.client_address)
                time.sleep(triton.delay_s)
                if not isinstance(triton.answer, list):
                    self.send(*triton.answer)
                    return
                data = b"".join(
                    event if isinstance(event, bytes) else b"data: %s\n\n" % json.dumps(event).encode()
                    for event in triton.answer
                )
                self.send(200, data)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # A client that has gone away is no news.
        self.server.handle_error = lambda *unused: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.opened = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self.opened:
            self.server.shutdown()
            self.server.server_close()
        self.opened = False


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.close()


@pytest.fixture
def start_gate() -> Iterator[Callable[..., Callable[[], dict[str, Any]]]]:
    """The module as Ansible runs it: its own process, parameters on stdin, the result as JSON on stdout."""
    started: list[subprocess.Popen[str]] = []

    def start(args: dict[str, Any], check: bool = False) -> Callable[[], dict[str, Any]]:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULES + ".triton_gate"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
        )  # fmt: skip
        started.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check}}))
        process.stdin.close()
        process.stdin = None

        def result() -> dict[str, Any]:
            out, err = process.communicate(timeout=60)
            assert out.strip(), err
            found = json.loads(out)
            assert isinstance(found, dict)
            return found

        return result

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def run_gate(start_gate: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def run(args: dict[str, Any], check: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = start_gate(args, check)()
        return found

    return run
