# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet of light hosts and balancers as containers of this machine, reached over SSH as any other host.

    python tests/fleet/bed.py create --name NAME --folder FOLDER --hosts chat1,chat2 --balancers lb
    python tests/fleet/bed.py destroy --name NAME

create leaves FOLDER/testbed/hosts.yml, an inventory with the addresses. The environment with Triton is installed once,
on one host, by the collection itself; the others start from an image of that host and share its layers. Addresses stay
when a host is killed and started again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from testbed import build

HOME = "/opt/trtllm"
WHEELS = ROOT / ".work" / "cache" / "fleet-wheels"
LABEL = "trtllm-test=fleet"
# A master connection must notice within seconds that its host has died.
SSH = (
    "-o ControlMaster=auto -o ControlPersist=120s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    " -o LogLevel=ERROR -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
)
# No --privileged and no rlimits: a sandbox may not have CAP_SYS_RESOURCE to give.
SYSTEMD = (
    "--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined", "--security-opt=systempaths=unconfined", "--cgroupns=private",
    "--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec,mode=1777",
)  # fmt: skip


def wheels() -> Path:
    """The backend's Python packages, so that no host asks an index."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    stamp = WHEELS / ".complete"
    wanted = hashlib.sha256(build.REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text("ascii") != wanted:
        build.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes",
             "--disable-pip-version-check", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp",
             "--dest", WHEELS, "--requirement", build.REQUIREMENTS]
        )  # fmt: skip
        stamp.write_text(wanted, "ascii")
    return WHEELS


def ready_tag() -> str:
    """Of the image with the environment: another one when what is installed changes."""
    found = hashlib.sha256(build.identity("fleet").encode())
    for path in sorted(build.REFERENCE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(str(path.relative_to(build.REFERENCE)).encode() + b"\0" + path.read_bytes())
    return "%s/fleet-ready:%s" % (build.PREFIX, found.hexdigest()[:12])


def ready_image(folder: Path) -> str:
    """The image of a host on which the collection has installed its backend; made first if need be."""
    base = build.image("fleet")
    reference = ready_tag()
    with open(build.WORK / ".fleet.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if build.exists(reference):
            return reference
        begun = time.monotonic()
        seed = Bed("%s-fleet-seed-%d" % (build.PREFIX, os.getpid()), folder / "seed", ["seed"])
        try:
            seed.create(base)
            environment = {
                **os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_HOME": str(seed.folder / "ansible"),
            }  # fmt: skip
            settings = {"trtllm_home": HOME, "tensorrtllm_backend_build_wheelhouse": "/srv/wheels"}
            build.run(
                [sys.executable, "-m", "ansible", "playbook", "--inventory", seed.inventory, "--extra-vars",
                 json.dumps(settings), ROOT / "tests" / "triton" / "backend.yml"],
                cwd=ROOT, env=environment,
            )  # fmt: skip
            traces = [HOME + "/" + name for name in ("logs", ".lock", ".ansible", "run")]
            build.docker("exec", seed.container("seed"), "rm", "-rf", *traces)
            build.docker("stop", "--time=5", seed.container("seed"))
            build.docker("commit", seed.container("seed"), reference)
        finally:
            seed.destroy()
        listed = build.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", reference.partition(":")[0])
        for other in listed.split():
            if other != reference:
                subprocess.run(["docker", "image", "rm", other], capture_output=True, check=False)
        build.report("%s (%.0f s)" % (reference, time.monotonic() - begun))
    return reference


@dataclass
class Bed:
    """Containers whose names begin with the bed's, on a network of their own."""

    name: str
    folder: Path
    hosts: list[str]
    balancers: list[str] = field(default_factory=list)

    @property
    def inventory(self) -> Path:
        return self.folder / "testbed" / "hosts.yml"

    def container(self, host: str) -> str:
        return "%s-%s" % (self.name, host)

    def address(self, host: str) -> str:
        template = "{{ range .NetworkSettings.Networks }}{{ .IPAddress }}{{ end }}"
        return build.docker("inspect", "--format", template, self.container(host)).strip()

    def network(self) -> None:
        """Where Docker puts it, but made as if we had chosen: only such a network gives out fixed addresses."""
        build.docker("network", "create", "--label", LABEL, self.name)
        template = "{{ (index .IPAM.Config 0).Subnet }}"
        subnet = build.docker("network", "inspect", "--format", template, self.name).strip()
        build.docker("network", "rm", self.name)
        build.docker("network", "create", "--label", LABEL, "--subnet", subnet, self.name)
        self.prefix = subnet.partition("/")[0].rpartition(".")[0]

    def create(self, image: str = "", balancer_image: str = "") -> None:
        self.destroy()
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self.folder / "id_ed25519"
        if not key.exists():
            build.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        shared = self.folder / "shared"
        shared.mkdir(exist_ok=True)
        shared.chmod(0o777)
        image = image or ready_image(self.folder)
        balancer_image = balancer_image or (build.image("fleet-balancer") if self.balancers else "")
        self.network()
        common = ["run", "--detach", "--label", LABEL, "--network", self.name]
        for number, host in enumerate([*self.hosts, *self.balancers], 10):
            mine = ["--name", self.container(host), "--hostname", host, "--network-alias", host,
                    "--ip", "%s.%d" % (self.prefix, number)]  # fmt: skip
            if host in self.hosts:
                mine += ["--init", "--shm-size=1g", "--volume", "%s:/srv/wheels:ro" % wheels(),
                         "--volume", "%s:/srv/shared" % shared,
                         "--volume", "%s.pub:%s/.ssh/authorized_keys:ro" % (key, HOME), image]  # fmt: skip
            else:
                mine += [*SYSTEMD, "--volume", "%s.pub:/root/.ssh/authorized_keys:ro" % key, balancer_image]
            build.docker(*common, *mine)
        for host in [*self.hosts, *self.balancers]:
            wait_for(self.address(host), 22)
        self.write_inventory()

    def write_inventory(self) -> None:
        groups = {}
        for group, members, user in (("trtllm", self.hosts, "trtllm"), ("trtllm_lb", self.balancers, "root")):
            if members:
                groups[group] = {"hosts": {
                    host: {
                        "ansible_host": self.address(host), "ansible_user": user,
                        "ansible_python_interpreter": "/usr/bin/python3",
                        "ansible_ssh_private_key_file": str(self.folder / "id_ed25519"), "ansible_ssh_args": SSH,
                    }
                    for host in members
                }}  # fmt: skip
        self.inventory.parent.mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        self.inventory.write_text(json.dumps(groups, indent=1) + "\n", "utf-8")

    def destroy(self) -> None:
        """Everything of this name, whoever made it."""
        listed = build.docker("ps", "--all", "--filter", "network=" + self.name, "--format", "{{.Names}}").split()
        listed += [self.container(host) for host in [*self.hosts, *self.balancers]]
        for argv in (["rm", "--force", "--volumes", *sorted(set(listed))], ["network", "rm", self.name]):
            subprocess.run(["docker", *argv], capture_output=True, check=False)


def wait_for(address: str, port: int, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return
        if time.monotonic() > deadline:
            raise build.BuildError("%s:%d does not answer within %d s" % (address, port, timeout))
        time.sleep(0.1)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(argv: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["create", "destroy"])
    parser.add_argument("--name", required=True, help="beginning of the containers' names, and the network's")
    parser.add_argument("--folder", type=Path, help="where keys and inventory are written")
    parser.add_argument("--hosts", type=names, default=[])
    parser.add_argument("--balancers", type=names, default=[])
    options = parser.parse_args(argv)
    bed = Bed(options.name, (options.folder or Path(".")).absolute(), options.hosts, options.balancers)
    try:
        bed.create() if options.action == "create" else bed.destroy()
    except (build.BuildError, OSError) as error:
        print("ERROR: %s" % error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
