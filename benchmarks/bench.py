#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: the collection's own figures, all in one run, so that ratios can be compared on a noisy machine.

Run by the controller's Python (.work/venv). Everything is below the folder given with --work, on ports of its own.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import gc
import http.client
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / ".collections"), str(ROOT / "benchmarks")]

import distribution
import docker_host
import fleet
import requests
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import Follower, Watch
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient
from ansible_collections.trtllm.serving.tests.demo._site import free_ports

QUESTION = "What is machine learning?"


class Play:
    """One ansible-playbook: how long it took and how many tasks it executed."""

    def __init__(self, playbook: str, options: list[str], environment: dict[str, str]) -> None:
        argv = [sys.executable, "-m", "ansible", "playbook", *options, playbook]
        env = {**os.environ, **environment, "ANSIBLE_NOCOLOR": "1"}
        began = time.monotonic()
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        self.seconds = time.monotonic() - began
        if done.returncode != 0:
            sys.exit("%s failed:\n%s%s" % (playbook, done.stdout[-6000:], done.stderr[-2000:]))
        counts = dict(re.findall(r"(ok|changed|skipped|failed)=(\d+)", done.stdout))
        self.changed = int(counts["changed"])
        self.tasks = int(counts["ok"]) + int(counts["skipped"])


class Run(Play):
    """One on this machine, with its files below home."""

    def __init__(self, playbook: str, home: Path, variables: dict[str, object]) -> None:
        super().__init__(playbook, ["-i", "inventory/local", "-e", json.dumps(variables)], {"TRTLLM_HOME": str(home)})


def noop_against_tutorial(work: Path, repeats: int) -> list[str]:
    """The second run of site.yml, and every run of the tutorial's commands, on the same backend and weights."""
    home = work / "demo"
    http, grpc, metrics, tutorial = free_ports(4)
    ports = {"triton_serve_http_port": http, "triton_serve_grpc_port": grpc, "triton_serve_metrics_port": metrics}
    first = Run("site.yml", home, ports)
    server = Server(home)
    folder = work / "tutorial"
    folder.mkdir(exist_ok=True)
    launch = json.loads((home / "current" / "launch.json").read_text(encoding="utf-8"))
    backends = [arg.partition("=")[2] for arg in launch["argv"] if arg.startswith("--backend-directory=")]
    tree = (home / backends[0]).parent
    (weights,) = [path for path in (home / "weights").iterdir() if not path.name.startswith(".")]
    variables = {
        "tutorial_home": str(folder),
        "tutorial_python": os.path.realpath(home / "venv" / "bin" / "python"),
        "tutorial_weights": str(weights),
        "tutorial_tree": str(tree),
        "tutorial_configs": str(home / "current" / "model_repo"),
        "tutorial_libraries": "%s:%s" % (home / "venv" / "triton_libs", home / "venv" / "libpython"),
        "tutorial_server": str(home / "venv" / "triton" / "bin" / "tritonserver"),
        "tutorial_port": tutorial,
    }
    try:
        Run("benchmarks/tutorial.yml", home, variables)
        noop: list[Run] = []
        commands: list[Run] = []
        # Alternating, so that both meet the same neighbours on the machine.
        for _ in range(repeats):
            noop.append(Run("site.yml", home, ports))
            commands.append(Run("benchmarks/tutorial.yml", home, variables))
    finally:
        pid = folder / "server.pid"
        if pid.is_file():
            with suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), 15)
        server.stop(60)
    if any(run.changed for run in noop):
        sys.exit("site.yml changed something on its second run")
    ours = statistics.median(run.seconds for run in noop)
    theirs = statistics.median(run.seconds for run in commands)
    return [
        "| first deployment, download to answer | %.1f s, %d tasks |" % (first.seconds, first.tasks),
        "| no-op site.yml (median of %d) | %.2f s, %d tasks |" % (repeats, ours, noop[0].tasks),
        "| tutorial as command tasks, second run (median of %d) | %.2f s, %d tasks |"
        % (repeats, theirs, commands[0].tasks),
        "| no-op / tutorial (goal: at most 0.20) | %.3f |" % (ours / theirs),
    ]


def log_time(line: str) -> float:
    """Seconds since 1970 of a line of Triton's log, such as I1122 17:44:17.284791 ..."""
    month, day, rest = line[1:3], line[3:5], line.split()[1]
    year = datetime.date.today().year
    return datetime.datetime.strptime("%d-%s-%s %s" % (year, month, day, rest), "%Y-%m-%d %H:%M:%S.%f").timestamp()


@contextmanager
def tiny_server(work: Path) -> Iterator[tuple[Server, int]]:
    home = work / "tiny"
    http, grpc, metrics = free_ports(3)
    Run(
        "site.yml",
        home,
        {
            "triton_serve_http_port": http,
            "triton_serve_grpc_port": grpc,
            "triton_serve_metrics_port": metrics,
            "mixtral_engine_weights_source": "tiny",
        },
    )
    server = Server(home)
    try:
        yield server, http
    finally:
        server.stop(60)


def readiness_lag(server: Server, port: int, repeats: int) -> list[str]:
    """Between the server's own log line and the moment at which triton_ready's loop sees every model ready."""
    lags = []
    log = server.home / "logs" / "triton.log"
    generation = server.resolve("current")
    for _ in range(repeats):
        server.stop(60)
        before = log.stat().st_size
        server.start(generation)
        watch = Watch(str(server.home / "run" / "triton.pid"), str(log))
        client = TritonClient("http://127.0.0.1:%d" % port, requests)
        Follower(client, timeout=120, watch=watch).follow()
        seen = time.time()
        # A connection that stays open holds up Triton's next stop, and a finished response still holds its socket.
        client.close()
        del client
        gc.collect()
        with log.open(encoding="utf-8", errors="replace") as stream:
            stream.seek(before)
            started = [line for line in stream if "Started HTTPService" in line]
        lags.append(seen - log_time(started[-1]))
    return [
        "| readiness noticed after the server's own, median of %d (goal: at most 100 ms) | %.0f ms (worst %.0f ms) |"
        % (repeats, statistics.median(lags) * 1000, max(lags) * 1000)
    ]


def load(port: int, clients: int, requests_each: int, tokens: int) -> str:
    body = json.dumps({"text_input": QUESTION, "max_tokens": tokens, "bad_words": "", "stop_words": "", "end_id": -1})

    def client(_number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        took = []
        for _ in range(requests_each):
            began = time.monotonic()
            connection.request("POST", "/v2/models/ensemble/generate", body)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200 or b'"text_output"' not in text:
                sys.exit("request failed: %d %r" % (answer.status, text[:300]))
            took.append(time.monotonic() - began)
        connection.close()
        return took

    client(0)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        latencies = sorted(value for values in pool.map(client, range(clients)) for value in values)
    seconds = time.monotonic() - began
    return "| tiny model, %d tokens, %d client%s | %.1f requests/s, p50 %.0f ms, p99 %.0f ms |" % (
        tokens,
        clients,
        "" if clients == 1 else "s",
        len(latencies) / seconds,
        statistics.median(latencies) * 1000,
        latencies[int(len(latencies) * 0.99)] * 1000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; kept between runs")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each playbook")
    parser.add_argument("--starts", type=int, default=9, help="starts of the server for the readiness lag")
    parser.add_argument("--fresh", action="store_true", help="remove the folder first")
    parser.add_argument("--only", choices=["demo", "docker", "fleet", "distribution"], help="only one part")
    parser.add_argument("--python", default=sys.executable, help="one with the package oras, for the distribution")
    parser.add_argument("--only-docker", action="store_const", dest="only", const="docker", help="--only docker")
    options = parser.parse_args()
    if options.fresh and options.work.exists():
        shutil.rmtree(options.work)
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)

    rows: list[str] = []
    if options.only in (None, "demo"):
        with tiny_server(work) as (server, port):
            rows = readiness_lag(server, port, options.starts)
            rows += [load(port, 1, 100, 16), load(port, 8, 40, 16)]
        rows = noop_against_tutorial(work, options.repeats) + rows
    if options.only in (None, "docker"):
        rows += docker_host.rows(work, options.repeats, Play)
    if options.only in (None, "fleet"):
        rows += fleet.rows(work, options.repeats, Play)
    if options.only in (None, "fleet", "distribution"):
        rows += distribution.bench_rows(options.python)
    machine = (platform.python_version(), platform.machine(), os.cpu_count() or 0, os.getloadavg()[0])
    print("Python %s, %s, %d CPUs, load %.1f" % machine)
    print("\n| what | figure |\n| --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
