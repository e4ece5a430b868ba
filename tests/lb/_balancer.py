# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real HAProxies on loopback, configured by the role, before servers that speak as much of Triton as a balancer sees.

The servers record what they were asked. They never make a request succeed that a Triton would refuse.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import Runtime

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
PATIENCE = 20.0


def _site() -> Any:
    spec = importlib.util.spec_from_file_location("_site", ROOT / "tests" / "demo" / "_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("_site", module)
    spec.loader.exec_module(module)
    return module


SITE = _site()
free_ports: Callable[[int], list[int]] = SITE.free_ports


def wait_for(what: Callable[[], Any], why: str, patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


class Server:
    """A Triton's health, readiness and generate endpoints on one port; what it holds back is the test's word."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.ready = dict.fromkeys(MODELS, True)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.checks: list[str] = []
        self.go = threading.Event()
        self.running = 0
        self.lock = threading.Lock()
        self.httpd: ThreadingHTTPServer | None = None

    def start(self) -> Server:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: object) -> None:
                pass

            def answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                owner.checks.append(self.path)
                parts = self.path.strip("/").split("/")
                if self.path == "/v2/health/ready":
                    self.answer(200, {})
                elif parts[:2] == ["v2", "models"] and parts[-1] == "ready":
                    self.answer(200 if owner.ready.get(parts[2]) else 400, {})
                else:
                    self.answer(404, {"error": "no such path"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                with owner.lock:
                    owner.asked.append((self.path, dict(self.headers)))
                    owner.running += 1
                try:
                    if body.get("hold"):
                        owner.go.wait(60)
                    if self.path.endswith("/generate_stream"):
                        self.send_response(200)
                        self.send_header("Content-Type", "text/event-stream")
                        self.send_header("Connection", "close")
                        self.end_headers()
                        for number in range(int(body.get("tokens", 3))):
                            self.wfile.write(b'data: {"text_output": "%d"}\n\n' % number)
                            self.wfile.flush()
                            if body.get("gap"):
                                owner.go.wait(float(body["gap"]))
                        self.close_connection = True
                    elif self.path.endswith("/generate"):
                        self.answer(200, {"text_output": owner.name})
                    else:
                        self.answer(404, {"error": "no such path"})
                finally:
                    with owner.lock:
                        owner.running -= 1

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A connection that the balancer has closed is none of the test's business."""

        self.httpd = Quiet(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self.httpd is not None:
            self.httpd.shutdown()
            self.httpd.server_close()
            self.httpd = None


GENERATE = "/v2/models/ensemble/generate"


def ask(port: int, path: str = GENERATE, body: Any = None, host: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    """Status and body of one POST; OSError or HTTPException when there was no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body or {}), {"Content-Type": "application/json", **headers})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


class Request(threading.Thread):
    """One request in the background."""

    def __init__(self, port: int, path: str = GENERATE, host: str = "127.0.0.1", **body: Any) -> None:
        super().__init__(daemon=True)
        self.port, self.path, self.host, self.body = port, path, host, body
        self.status, self.text, self.problem = 0, "", ""
        self.start()

    def run(self) -> None:
        try:
            self.status, self.text = ask(self.port, self.path, self.body, self.host)
        except (OSError, http.client.HTTPException) as error:
            self.problem = repr(error)


class Load:
    """Requests without pause until it is stopped; each that is not answered as it should be is kept."""

    def __init__(self, port: int, workers: int = 4) -> None:
        self.port = port
        self.answered = 0
        self.failures: list[str] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _each in range(workers)]
        for thread in self.threads:
            thread.start()

    def _work(self) -> None:
        stream = False
        while not self.stopped.is_set():
            stream = not stream
            path = GENERATE + ("_stream" if stream else "")
            try:
                status, text = ask(self.port, path, {"tokens": 3, "gap": 0.01 if stream else 0})
                good = status == 200 and ("text_output" in text) and (not stream or text.count("data:") == 3)
                problem = "" if good else "%d %r" % (status, text[:200])
            except (OSError, http.client.HTTPException) as error:
                problem = repr(error)
            with self.lock:
                self.answered += not problem
                self.failures += [problem] if problem else []

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(30)


def module(name: str, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """What the module says, run as Ansible runs it on a balancer."""
    given = {"ANSIBLE_MODULE_ARGS": {**options, "_ansible_check_mode": check_mode}}
    done = subprocess.run(
        [sys.executable, "-B", str(ROOT / "plugins" / "modules" / (name + ".py"))],
        input=json.dumps(given), capture_output=True, text=True, check=False, timeout=90,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    assert done.stdout.strip(), done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@dataclass
class Balancer:
    """One HAProxy in a folder of its own."""

    name: str
    folder: Path
    address: str = "127.0.0.1"
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "admin.sock"

    @property
    def config(self) -> Path:
        return self.folder / "etc" / "haproxy.cfg"

    @property
    def state_file(self) -> Path:
        return self.folder / "lib" / "servers"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "triton_lb_manager": "direct", "triton_lb_package": "", "triton_lb_user": "", "triton_lb_group": "",
            "triton_lb_address": self.address, "triton_lb_config_path": str(self.config), "triton_lb_metrics_port": 0,
            "triton_lb_socket": str(self.socket), "triton_lb_state_file": str(self.state_file),
            "triton_lb_pid_file": str(self.folder / "haproxy.pid"), "triton_lb_log": "127.0.0.1:9 local0",
            "triton_lb_check_interval": 200, "triton_lb_check_fast_interval": 100, "triton_lb_activation_timeout": 10,
            **self.variables,
        }  # fmt: skip

    def server(self, name: str, state: str, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        given = {"backend": "chat", "socket": str(self.socket), "state_file": str(self.state_file), **options}
        return module("haproxy_server", check_mode, server=name, state=state, **given)

    def say(self, command: str) -> str:
        return Runtime(str(self.socket)).ask(command)

    def states(self, backend: str = "chat") -> dict[str, str]:
        return {each.name: each.state for each in Runtime(str(self.socket)).backend(backend)}

    def up(self, name: str, backend: str = "chat") -> bool:
        return any(each.op == 2 for each in Runtime(str(self.socket)).backend(backend) if each.name == name)

    @property
    def master(self) -> int:
        return int((self.folder / "haproxy.pid").read_text("ascii").split()[0])

    @property
    def worker(self) -> int:
        return int(next(line for line in self.say("show info").splitlines() if line.startswith("Pid:")).split()[1])

    def reload(self) -> None:
        """As somebody does who knows nothing of the collection."""
        before = self.worker
        os.kill(self.master, signal.SIGUSR2)
        wait_for(lambda: self.worker != before, "no new worker")

    def stop(self) -> None:
        try:
            master = self.master
            os.kill(master, signal.SIGTERM)
        except (OSError, ValueError, IndexError):
            return
        wait_for(lambda: not Path("/proc/%d" % master).exists(), "HAProxy does not end")


class Fleet:
    """Serving hosts and balancers as an inventory, and the servers behind it."""

    def __init__(self, folder: Path, pools: dict[str, list[str]], balancers: list[str]) -> None:
        self.folder = folder
        ports = free_ports(len(pools) + sum(map(len, pools.values())) + 2)
        self.spare_ports = [ports.pop(), ports.pop()]
        self.front = {pool: ports.pop() for pool in pools}
        self.servers: dict[str, Server] = {}
        self.hosts: dict[str, dict[str, Any]] = {}
        for pool, names in pools.items():
            for name in names:
                port = ports.pop()
                self.servers[name] = Server(name, port).start()
                self.hosts[name] = {
                    "triton_pool": pool, "triton_serve_http_port": port, "triton_lb_port": self.front[pool],
                }  # fmt: skip
        # All on this machine, so each balancer has an address of its own.
        self.balancers = {
            name: Balancer(name, folder / name, "127.0.0.%d" % number) for number, name in enumerate(balancers, 1)
        }
        for balancer in self.balancers.values():
            (balancer.folder / "etc").mkdir(parents=True)

    def inventory(self) -> Path:
        everything = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        children = {
            "trtllm": {"hosts": self.hosts},
            "trtllm_lb": {"hosts": {name: each.settings for name, each in self.balancers.items()}},
        }
        path = self.folder / "hosts.json"
        path.write_text(json.dumps({"all": {"vars": everything, "children": children}}, indent=1), "utf-8")
        return path

    def play(self, playbook: str | Path, *arguments: str, rc: int | None = 0) -> str:
        """What ansible-playbook says."""
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", str(self.inventory()), *arguments, str(playbook)],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=180, stdin=subprocess.DEVNULL,
            env=SITE.environment(
                ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_COLLECTIONS_PATH=str(ROOT / ".collections"),
                ANSIBLE_HOME=str(self.folder / "ansible"),
            ),
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert rc is None or done.returncode == rc, said
        return said

    def deploy(self, *arguments: str, rc: int | None = 0) -> str:
        return self.play(Path(__file__).parent / "balancer.yml", *arguments, rc=rc)

    def close(self) -> None:
        for balancer in self.balancers.values():
            balancer.stop()
        for server in self.servers.values():
            server.go.set()
            server.stop()
