# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long 1, 2, 4 and 8 hosts take to fetch one engine from a registry, over links that tc limits.

Needs root, docker-registry and iproute2. Each host is a network namespace with a link of its own; the registry has one
too, which all of them share. So the least possible time is what the slower of both needs: the host's own link while
the registry's is wide enough, and the registry's divided among all afterwards. A mirror adds another such link.

    sudo .work/dev/bin/python benchmarks/distribution.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAME = "tsdb"
NET = "10.231.77"
RELEASE = "1.1.0"
INPUTS = {"checkpoint": "0" * 64, "tensorrt_llm": RELEASE, "gpu": {"name": "none", "compute_capability": "0.0"}}
COUNTS = (1, 2, 4, 8)


def sh(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")


@contextlib.contextmanager
def network(links: dict[str, tuple[str, int]]) -> Iterator[None]:
    """A namespace for each name, joined by a bridge, each link limited both ways to so many Mbit/s."""
    # In a namespace of its own too: a firewall of this machine must not see it.
    middle, made = f"{NAME}-net", []
    bridged = ("ip", "netns", "exec", middle)
    try:
        sh("ip", "netns", "add", middle)
        made.append(middle)
        sh(*bridged, "ip", "link", "add", "br0", "type", "bridge")
        sh(*bridged, "ip", "link", "set", "br0", "up")
        for number, (name, (address, rate)) in enumerate(links.items()):
            space, near, far = f"{NAME}-{name}", f"{NAME}{number}a", f"{NAME}{number}b"
            inside = ("ip", "netns", "exec", space)
            sh("ip", "netns", "add", space)
            made.append(space)
            sh("ip", "link", "add", near, "type", "veth", "peer", "name", far)
            sh("ip", "link", "set", near, "netns", middle)
            sh("ip", "link", "set", far, "netns", space)
            sh(*bridged, "ip", "link", "set", near, "master", "br0", "up")
            sh(*inside, "ip", "link", "set", "lo", "up")
            sh(*inside, "ip", "addr", "add", f"{address}/24", "dev", far)
            sh(*inside, "ip", "link", "set", far, "up")
            limit = ("tbf", "rate", f"{rate}mbit", "burst", "256kb", "latency", "100ms")
            sh(*bridged, "tc", "qdisc", "add", "dev", near, "root", *limit)
            sh(*inside, "tc", "qdisc", "add", "dev", far, "root", *limit)
        yield
    finally:
        for space in made:
            for pid in subprocess.run(
                ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
            ).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], check=False)


def registry(folder: Path, name: str, address: str, mirror_of: str = "") -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"{address}:5000", "secret": "s"},
    }
    if mirror_of:
        config["proxy"] = {"remoteurl": mirror_of}
    (folder / "config.yml").write_text(json.dumps(config))
    command = ["ip", "netns", "exec", f"{NAME}-{name}", "docker-registry", "serve", str(folder / "config.yml")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def worker(task: str) -> None:
    """One host's part, inside its namespace: the module's own work, timed."""
    sys.path.insert(0, str(ROOT / ".collections"))
    from ansible_collections.trtllm.serving.plugins.module_utils._distribution_work import Work
    from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation

    params = json.loads(task)
    began = time.monotonic()
    with Cancellation(watch_fd=None, watch_parent=False) as cancellation:
        result = Work(params, False, cancellation).run()
    if params["state"] == "published" and not result["published"]:
        raise SystemExit(result["publish_error"])
    result["seconds"] = time.monotonic() - began
    print(json.dumps({name: result.get(name) for name in ("key", "tokenizer", "bytes", "seconds")}))


def start(name: str, task: dict[str, Any], python: str) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", f"{NAME}-{name}", python, __file__, "--worker", json.dumps(task)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _err = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"a host failed with exit code {process.returncode}")
    return dict(json.loads(out.splitlines()[-1]))


def make_engine(home: Path, mib: int) -> tuple[Path, Path]:
    sys.path.insert(0, str(ROOT / ".collections"))
    from ansible_collections.trtllm.serving.plugins.module_utils._artifact import key_of, making, short_key

    weights = home / "weights" / "model@1"
    weights.mkdir(parents=True)
    (weights / "tokenizer.json").write_text("{}")
    engine = home / "engines" / short_key(key_of(INPUTS))
    with making(engine, "engine", INPUTS, home=home) as made:
        config = {"version": RELEASE, "pretrained_config": {"mapping": {"world_size": 2}}, "build_config": {}}
        (made.path / "config.json").write_text(json.dumps(config))
        for rank in range(2):
            (made.path / f"rank{rank}.engine").write_bytes(os.urandom(mib * 1024 * 1024 // 2))
    return engine, weights


def measure(
    folder: Path, mib: int, link: int, uplink: int, counts: tuple[int, ...], python: str
) -> list[dict[str, Any]]:
    """All of it in one run, so that only the ratios depend on nothing but the links."""
    hosts = [f"h{number}" for number in range(1, max(counts) + 1)]
    links = {"store": (f"{NET}.1", uplink), "mirror": (f"{NET}.2", uplink), "builder": (f"{NET}.3", 10000)}
    links.update({host: (f"{NET}.{10 + number}", link) for number, host in enumerate(hosts)})
    engine, weights = make_engine(folder / "builder", mib)
    settings = {"repository": f"{NET}.1:5000/trtllm/engines", "plain_http": True, "workers": 4, "chunk_mib": 8}
    common = {"release": RELEASE, "distribution": "registry", "registry": settings, "signature": ""}
    rows = []
    with network(links):
        processes = [
            registry(folder / "store", "store", f"{NET}.1"),
            registry(folder / "mirror", "mirror", f"{NET}.2", mirror_of=f"http://{NET}.1:5000"),
        ]
        try:
            given = {"state": "published", "home": str(folder / "builder"), "engine_dir": str(engine)}
            made = end(start("builder", {**common, **given, "weights_dir": str(weights)}, python))
            wanted = {"state": "present", "key": made["key"], "tokenizer": made["tokenizer"]["key"]}
            for mirrored in (False, True):
                for count in counts:
                    # Every second host asks the mirror, which has to fetch it once itself.
                    tasks = []
                    for number, host in enumerate(hosts[:count]):
                        home = folder / f"{host}-{count}-{mirrored}"
                        home.mkdir()
                        mirrors = [f"{NET}.2:5000"] if mirrored and number % 2 else []
                        own = {**common, **wanted, "home": str(home), "registry": {**settings, "mirrors": mirrors}}
                        tasks.append((host, own))
                    began = time.monotonic()
                    running = [start(host, task, python) for host, task in tasks]
                    results = [end(process) for process in running]
                    seconds = time.monotonic() - began
                    size = max(result["bytes"] for result in results)
                    stores = 2 if mirrored and count > 1 else 1
                    least = size * 8 / 1e6 * max(1 / link, count / (uplink * stores))
                    print(f"{count} hosts{' with a mirror' if mirrored else ''}: {seconds:.1f} s", file=sys.stderr)
                    rows.append({"hosts": count, "mirror": mirrored, "seconds": seconds, "least": least})
                    for _host, task in tasks:
                        shutil.rmtree(task["home"])
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    first = rows[0]["seconds"]
    print("| hosts | mirror | seconds | to one host | to what the links allow |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        shown = (row["hosts"], "yes" if row["mirror"] else "no", row["seconds"])
        print("| %d | %s | %.1f | %.2f | %.2f |" % (*shown, row["seconds"] / first, row["seconds"] / row["least"]))


def unavailable(python: str) -> str:
    """Why it cannot be measured here; empty when it can."""
    if subprocess.run([python, "-c", "import oras"], capture_output=True, check=False).returncode:
        return f"{python} has no package oras: take one with requirements/dev.txt"
    missing = [program for program in ("ip", "tc", "docker-registry") if not shutil.which(program)]
    if missing:
        return f"{', '.join(missing)} not on this machine: install iproute2 and docker-registry"
    return "network namespaces need root: run it with sudo" if os.geteuid() else ""


def run(python: str, mib: int = 96, link: int = 100, uplink: int = 400) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="trtllm-distribution-") as folder:
        return measure(Path(folder), mib, link, uplink, COUNTS, python)


def bench_rows(python: str) -> list[str]:
    """The lines of it for `make bench`; the hosts' part is done by this interpreter."""
    problem = unavailable(python)
    if problem:
        return [f"| distribution | skipped: {problem} |"]
    found = run(python)
    first = found[0]["seconds"]
    return [
        "| distribution: 96 MiB to %d host%s%s | %.1f s, %.2f of one host's, %.2f of what the links allow |"
        % (
            row["hosts"], "" if row["hosts"] == 1 else "s", ", every second by a mirror" if row["mirror"] else "",
            row["seconds"], row["seconds"] / first, row["seconds"] / row["least"],
        )
        for row in found
    ]  # fmt: skip


def stop(number: int, frame: object) -> None:
    raise SystemExit(f"stopped by {signal.Signals(number).name}")


def main() -> None:
    # So that namespaces and processes are removed.
    signal.signal(signal.SIGTERM, stop)
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--mib", type=int, default=96, help="size of the engine")
    parser.add_argument("--link", type=int, default=100, help="Mbit/s of each host")
    parser.add_argument("--uplink", type=int, default=400, help="Mbit/s of the registry, and of its mirror")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    problem = unavailable(sys.executable)
    if problem:
        raise SystemExit(problem)
    rows = run(sys.executable, given.mib, given.link, given.uplink)
    show(rows)
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
