# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests need of this machine: installed and, Docker Engine, started where that is allowed.

A Docker Engine that is started here, because nothing else manages it, is stopped again at the end. Packages stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# program: Debian package
PROGRAMS = {
    "docker": "docker.io", "dockerd": "docker.io", "mmdebstrap": "mmdebstrap", "git": "git", "git-lfs": "git-lfs",
    "ssh": "openssh-client", "iptables": "iptables", "ip": "iproute2",
}  # fmt: skip
# What tests run as processes of their own, without what their packages recommend.
TOOLS = {
    "haproxy": "haproxy", "promtool": "prometheus", "docker-registry": "docker-registry", "htpasswd": "apache2-utils",
    "openssl": "openssl",
    "ssh-keygen": "openssh-client", "ip": "iproute2", "tc": "iproute2",
}  # fmt: skip
POLICY = Path("/usr/sbin/policy-rc.d")
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def answers() -> str:
    """Empty when Docker Engine answers, otherwise what its client says."""
    if not shutil.which("docker", path=SEARCHED):
        return "there is no docker"
    done = subprocess.run(
        ["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, check=False, timeout=60
    )
    # A client without a server exits with 0 in some versions.
    return "" if done.returncode == 0 and done.stdout.strip() else (done.stderr.strip() or "no answer").splitlines()[-1]


@contextlib.contextmanager
def no_services() -> Iterator[None]:
    """Packages that are installed meanwhile start nothing by themselves, unless the machine has its own say in that."""
    mine = not POLICY.exists()
    if mine:
        POLICY.write_text("#!/bin/sh\nexit 101\n", "ascii")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if mine:
            POLICY.unlink(missing_ok=True)


class Machine:
    """Prepared once, whoever asks first."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.lock = threading.Lock()
        self.asked = False
        self.problem = ""
        self.engine: subprocess.Popen[bytes] | None = None

    def prepare(self, say: Callable[[str], None]) -> str:
        """Empty when the tests with Docker can run here, otherwise why they cannot."""
        with self.lock:
            if not self.asked:
                self.problem = self.install_docker(say) or self.start(say)
                self.asked = True
            return self.problem

    def tools(self, say: Callable[[str], None], names: tuple[str, ...]) -> str:
        """Empty when these programs are here, otherwise why they are not."""
        with self.lock:
            return self.install(say, {name: TOOLS[name] for name in names}, "--no-install-recommends")

    def install_docker(self, say: Callable[[str], None]) -> str:
        if os.geteuid() != 0:
            return "the test bed's images are made by root, and this is uid %d" % os.geteuid()
        return self.install(say, PROGRAMS)

    def install(self, say: Callable[[str], None], programs: dict[str, str], *options: str) -> str:
        missing = [name for name in programs if not shutil.which(name, path=SEARCHED)]
        if not missing:
            return ""
        packages = sorted({programs[name] for name in missing})
        if os.geteuid() != 0:
            return "%s missing, and only root could install: apt-get install %s" % (
                ", ".join(missing), " ".join(packages)
            )  # fmt: skip
        if not shutil.which("apt-get") or not Path("/etc/debian_version").is_file():
            return "%s missing, and this machine is not of the Debian family" % ", ".join(missing)
        say("installing %s" % " ".join(packages))
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with no_services():
            for argv in (
                ["apt-get", "update", "-qq"],
                ["apt-get", "install", "-qq", "-y", *options, *packages],
            ):
                with self.log.open("ab") as stream:
                    done = subprocess.run(
                        argv, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False
                    )
                if done.returncode != 0:
                    return "%s failed, see %s" % (" ".join(argv[:2]), self.log)
        return ""

    def start(self, say: Callable[[str], None]) -> str:
        problem = answers()
        if not problem:
            return ""
        if Path("/run/systemd/system").is_dir():
            say("starting docker.service")
            subprocess.run(["systemctl", "start", "docker.service"], check=False)
        else:
            say("starting dockerd, which is stopped at the end")
            # Its pauses between the attempts at a broken pull, which are tested, grow by five seconds each.
            attempts, settings = "max-download-attempts", Path("/etc/docker/daemon.json")
            given = settings.is_file() and attempts in settings.read_text("utf-8", "replace")
            argv = ["dockerd", *([] if given else ["--%s=2" % attempts])]
            with self.log.open("ab") as stream:
                self.engine = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
                    env={**os.environ, "PATH": SEARCHED},
                )  # fmt: skip
        deadline = time.monotonic() + 60
        while problem and time.monotonic() < deadline:
            if self.engine is not None and self.engine.poll() is not None:
                return "dockerd ended with code %d, see %s" % (self.engine.returncode, self.log)
            time.sleep(0.2)
            problem = answers()
        return "Docker Engine does not answer: %s" % problem if problem else ""

    def stop(self) -> None:
        """Stops only the engine that was started here."""
        if self.engine is None or self.engine.poll() is not None:
            return
        self.engine.send_signal(signal.SIGTERM)
        try:
            self.engine.wait(60)
        except subprocess.TimeoutExpired:
            self.engine.kill()
            self.engine.wait()
