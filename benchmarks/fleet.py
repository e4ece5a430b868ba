# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fleets of light hosts, of the test bed: what one more of them costs, and how long a host of a rollout takes.

The hosts are those of molecule's scenario fleet, under another name: sshd, the embedded runtime, tiny weights, and
HAProxy before them. bench.py runs this where the machine's Docker can be used.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

from ansible_collections.trtllm.serving.tests.fleet.bed import Bed
from docker_host import unavailable

NAME = "trtllm-bench-fleet"
SIZES = (1, 2, 4, 8)
# Hosts of the rollout under load, and requests a second meanwhile.
ROLLOUT = 4
RATE = 10
PORT = 8080
VARIABLES = ROOT / "molecule" / "fleet" / "inventory" / "group_vars"
# The work that a redeploy cannot do without; stop, start and the loading of the models are in the second and third.
NEEDED = ("drain", "switch", "gate")

# Playbook, options of ansible-playbook, environment: what bench.Run takes, and what it gives.
Play = Callable[[str, "list[str]", "dict[str, str]"], Any]


class Fleet:
    def __init__(self, work: Path, play: Play) -> None:
        self.folder = work / "fleet"
        self.play = play
        self.hosts = ["host%d" % number for number in range(1, max(SIZES) + 1)]
        self.bed = Bed(NAME, self.folder, self.hosts, ["lb"])

    def run(self, playbook: str, hosts: Iterable[str], **variables: object) -> Any:
        """On a fleet that has only these hosts."""
        whole = json.loads(self.bed.inventory.read_text("utf-8"))
        chosen = {host: whole["trtllm"]["hosts"][host] for host in hosts}
        inventory = self.folder / "inventory"
        inventory.mkdir(exist_ok=True)
        links = inventory / "group_vars"
        links.mkdir(exist_ok=True)
        for name in ("trtllm", "trtllm_lb"):
            link = links / (name + ".yml")
            if not link.is_symlink():
                link.symlink_to(VARIABLES / link.name)
        told = {"trtllm": {"hosts": chosen}, "trtllm_lb": whole["trtllm_lb"]}
        (inventory / "hosts.yml").write_text(json.dumps(told) + "\n", "utf-8")
        extra = {"triton_pool_report_dir": str(self.folder / "runs"), **variables}
        options = ["-i", str(inventory / "hosts.yml"), "-e", json.dumps(extra)]
        return self.play(playbook, options, {"ANSIBLE_HOME": str(self.folder / "ansible")})

    def report(self) -> list[dict[str, Any]]:
        """The lines of the last run's report, one a host."""
        newest = max((self.folder / "runs").iterdir(), key=lambda path: path.name)
        return [json.loads(line) for line in (newest / "report.jsonl").read_text("utf-8").splitlines()]


def noop(fleet: Fleet, repeats: int) -> list[str]:
    took: dict[int, list[float]] = {size: [] for size in SIZES}
    # The sizes alternate, so that all meet the same neighbours on the machine.
    for _repeat in range(repeats):
        for size in SIZES:
            run = fleet.run("site.yml", fleet.hosts[:size])
            if run.changed:
                sys.exit("site.yml changed something on a fleet that was deployed")
            took[size].append(run.seconds)
    medians = {size: statistics.median(seconds) for size, seconds in took.items()}
    rows = ["| fleet: no-op site.yml, %d host%s (median of %d) | %.2f s |"
            % (size, "" if size == 1 else "s", repeats, medians[size]) for size in SIZES]  # fmt: skip
    further = (medians[SIZES[-1]] - medians[1]) / (SIZES[-1] - 1) / medians[1]
    return [*rows, "| fleet: each further host / the first (goal: at most 0.30) | %.3f |" % further]


def redeploy(fleet: Fleet, address: str) -> list[str]:
    """One setting changed under load, and what of each host's time was drain, stop, load and gate."""
    out = fleet.folder / "load.json"
    token = fleet.folder / "token"
    token.write_text("fleet-secret", "ascii")
    argv = [sys.executable, str(ROOT / "tests" / "fleet" / "load.py"), "--out", str(out), "--rate", str(RATE),
            "--token-file", str(token), "--target", "default=http://%s:%d" % (address, PORT)]  # fmt: skip
    load = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        while not out.is_file() or json.loads(out.read_text("utf-8"))["answered"] < 20:
            if load.poll() is not None:
                sys.exit("the load ended by itself with code %d" % load.returncode)
            time.sleep(0.1)
        run = fleet.run("site.yml", fleet.hosts[:ROLLOUT], triton_serve_max_queue_size=99)
    finally:
        load.terminate()
        load.wait(120)
    sent = json.loads(out.read_text("utf-8"))
    ratios, whole, steps = [], [], []
    for line in fleet.report():
        spans = {span["stage"]: span for span in line["spans"] if not span["within"]}
        whole.append(spans["undrain"]["end"] - spans["drain"]["start"])
        needed = sum(spans[name]["end"] - spans[name]["start"] for name in NEEDED)
        ratios.append(whole[-1] / needed)
        steps.append((spans["settle"]["end"] - spans["begin"]["start"]) / needed)
    return [
        "| fleet: one setting changed on %d hosts, one at a time, under load | %.1f s |" % (ROLLOUT, run.seconds),
        "| fleet: requests meanwhile, and failed ones (goal: 0) | %d, %d |" % (sent["answered"], sent["failed"]),
        "| fleet: a host of it, drained to undrained (median) | %.2f s |" % statistics.median(whole),
        "| fleet: that / drain + stop + load + gate, median (goal: at most 1.15) | %.3f |" % statistics.median(ratios),
        "| fleet: its first step to its last / the same, median | %.3f |" % statistics.median(steps),
    ]


def rows(work: Path, repeats: int, play: Play) -> list[str]:
    problem = unavailable()
    if problem:
        return ["| fleets | skipped: %s |" % problem]
    fleet = Fleet(work, play)
    try:
        fleet.bed.create()
        # One playbook a line: the balancer first, as in molecule's scenario.
        fleet.run("molecule/fleet/converge.yml", fleet.hosts)
        found = noop(fleet, repeats)
        return found + redeploy(fleet, fleet.bed.address("lb"))
    finally:
        fleet.bed.destroy()
