# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests with Docker need of this machine: installed and started where that is allowed.

A Docker Engine that is started here, because nothing else manages it, is stopped again at the end. Packages stay.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

# program: Debian package
PROGRAMS = {
    "docker": "docker.io", "dockerd": "docker.io", "mmdebstrap": "mmdebstrap", "git": "git", "git-lfs": "git-lfs",
    "ssh": "openssh-client", "iptables": "iptables", "ip": "iproute2",
}  # fmt: skip
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
                self.problem = self.install(say) or self.start(say)
                self.asked = True
            return self.problem

    def install(self, say: Callable[[str], None]) -> str:
        if os.geteuid() != 0:
            return "the test bed's images are made by root, and this is uid %d" % os.geteuid()
        missing = [name for name in PROGRAMS if not shutil.which(name, path=SEARCHED)]
        if not missing:
            return ""
        if not shutil.which("apt-get") or not Path("/etc/debian_version").is_file():
            return "%s missing, and this machine is not of the Debian family" % ", ".join(missing)
        packages = sorted({PROGRAMS[name] for name in missing})
        say("installing %s" % " ".join(packages))
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for argv in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-qq", "-y", *packages],
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
            with self.log.open("ab") as stream:
                self.engine = subprocess.Popen(
                    ["dockerd"], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
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
