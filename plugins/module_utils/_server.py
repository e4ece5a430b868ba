# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded server: tritonserver under supervisord, started from home/current.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Callable, List, Optional

from ansible_collections.trtllm.serving.plugins.module_utils._lock import pid_starttime
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import BaseServer, ServerError, wait_until

SHM = Path("/dev/shm")


def read_pid(path: Path) -> Optional[int]:
    """The process id in a pid file, when that process is alive."""
    try:
        pid = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if pid_starttime(pid) is not None else None


def command_line(pid: int) -> List[str]:
    try:
        return Path("/proc/%d/cmdline" % pid).read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def in_home(pid: int, home: Path) -> bool:
    """Whether a process works in this home: pids are used again, working directories tell them apart."""
    try:
        return os.path.realpath("/proc/%d/cwd" % pid) == os.path.realpath(str(home))
    except OSError:
        return False


class Server(BaseServer):
    """The server under supervisord."""

    # --- what is ---

    def supervisor_pid(self) -> Optional[int]:
        return self._pid("supervisord.pid", lambda words: "supervisor.supervisord" in words)

    def server_pid(self) -> Optional[int]:
        return self._pid("triton.pid", lambda words: os.path.basename(words[0]) == "tritonserver")

    def _pid(self, name: str, matches: Callable[[List[str]], bool]) -> Optional[int]:
        """The process that a pid file names; without the file, the one of this home with such a command line."""
        path = self.run / name
        pid = read_pid(path)
        if pid is not None and in_home(pid, self.home):
            return pid
        if os.path.exists(str(path)) or not os.path.isdir(str(self.home)):
            return None
        for entry in os.listdir("/proc"):
            if entry.isdigit() and in_home(int(entry), self.home):
                words = command_line(int(entry))
                if words and matches(words):
                    return int(entry)
        return None

    def alive(self) -> bool:
        return self.supervisor_pid() is not None or self.server_pid() is not None

    def running(self) -> Optional[str]:
        """The generation that the living server was started from."""
        if self.supervisor_pid() is None or self.server_pid() is None:
            return None
        generation = self.started().get("generation")
        return generation if isinstance(generation, str) else None

    def stop(self, timeout: float) -> bool:
        """Ends supervisor and server; whether there was anything to end."""
        pids = [pid for pid in (self.supervisor_pid(), self.server_pid()) if pid is not None]
        if pids:
            supervisor = self.supervisor_pid()
            # supervisord passes SIGTERM on and waits for the server; without it the server is told directly.
            first = [supervisor] if supervisor is not None else pids
            for number, targets, patience in (
                (signal.SIGTERM, first, timeout + 10.0),
                (signal.SIGTERM, pids, 5.0),
                (signal.SIGKILL, pids, 10.0),
            ):
                for pid in targets:
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        pass
                if wait_until(lambda: all(pid_starttime(pid) is None for pid in pids), patience):
                    break
            else:
                raise ServerError("pid %s does not end: see %s/logs/supervisord.log" % (pids, self.home))
        self._end_leftovers()
        for name in ("supervisord.pid", "triton.pid", "server.json"):
            try:
                (self.run / name).unlink()
            except FileNotFoundError:
                pass
        prefix = "trtllm_%s_" % hashlib.sha256(os.fsencode(str(self.home.resolve()))).hexdigest()[:8]
        for path in SHM.glob(prefix + "*"):
            path.unlink()
        return bool(pids)

    def _end_leftovers(self) -> None:
        """Ends Python processes of a server that was killed: they work in this home and bear Triton's name."""
        for entry in os.listdir("/proc"):
            if entry.isdigit() and in_home(int(entry), self.home):
                line = command_line(int(entry))
                if line and os.path.basename(line[0]) in ("triton_python_backend_stub", "tritonserver"):
                    try:
                        os.kill(int(entry), signal.SIGKILL)
                    except (ProcessLookupError, PermissionError):
                        pass

    def start(self, generation: str) -> None:
        """Starts the supervisor on home/current, and returns once the server's process exists."""
        self.record_start(generation)
        python = self.home / "venv" / "bin" / "python"
        argv = [str(python), "-I", "-m", "supervisor.supervisord", "-c", "current/supervisord.conf"]
        try:
            done = subprocess.run(
                argv, cwd=str(self.home), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=60, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ServerError("the supervisor %s did not start: %s" % (python, exc)) from exc
        if done.returncode != 0:
            text = " ".join(done.stdout.decode("utf-8", "replace").split())
            raise ServerError("the supervisor refused to start: %s" % (text[-500:] or "rc %d" % done.returncode))
        if not wait_until(lambda: self.server_pid() is not None, 30.0):
            raise ServerError(
                "the server's process did not appear within 30 s: see logs/supervisord.log and logs/triton.log below %s"
                % self.home
            )
