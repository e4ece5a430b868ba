# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded server: tritonserver under supervisord, one pair of them in a slot.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Callable, List, Optional, Tuple

from ansible_collections.trtllm.serving.plugins.module_utils import _server_state as state
from ansible_collections.trtllm.serving.plugins.module_utils._lock import pid_starttime
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import BaseServer, ServerError, wait_until

SHM = Path("/dev/shm")
# What a supervisor of slot b is told to call itself, so that it can be told from that of slot a.
IDENTIFIER = "trtllm-b"
# Without it a generation's files know only one slot.
_SLOT_VARIABLE = "TRTLLM_SLOT"


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

    def supervisor_pid(self, slot: Optional[str] = None) -> Optional[int]:
        def matches(words: List[str], wanted: str) -> bool:
            return "supervisor.supervisord" in words and (IDENTIFIER in words) == (wanted == "b")

        return self._pid("supervisord", slot or self.slot, matches)

    def server_pid(self, slot: Optional[str] = None) -> Optional[int]:
        def matches(words: List[str], wanted: str) -> bool:
            return os.path.basename(words[0]) == "tritonserver" and self._slot_of(words) == wanted

        return self._pid("triton", slot or self.slot, matches)

    def shm_prefix(self, slot: str) -> str:
        """Names the shared memory of a slot of this home; launch.py has the same."""
        digest = hashlib.sha256(os.fsencode(str(self.home.resolve()))).hexdigest()[:8]
        return "trtllm_%s%s_" % (digest, "b" if slot == "b" else "")

    def _slot_of(self, words: List[str]) -> str:
        """The slot that a server, or one of its Python processes, is of: its shared memory tells."""
        prefix = self.shm_prefix("b")
        return "b" if any(prefix in word for word in words) else "a"

    def _pid(self, name: str, slot: str, matches: Callable[[List[str], str], bool]) -> Optional[int]:
        """The process that a pid file names; without the file, the one of this home with such a command line."""
        path = self.run / ("%s%s.pid" % (name, state.suffix(slot)))
        pid = read_pid(path)
        if pid is not None and in_home(pid, self.home):
            return pid
        if os.path.exists(str(path)) or not os.path.isdir(str(self.home)):
            return None
        for entry in os.listdir("/proc"):
            if entry.isdigit() and in_home(int(entry), self.home):
                words = command_line(int(entry))
                if words and matches(words, slot):
                    return int(entry)
        return None

    def alive(self, slot: Optional[str] = None) -> bool:
        slots = (slot,) if slot else state.SLOTS
        return any(self.supervisor_pid(each) is not None or self.server_pid(each) is not None for each in slots)

    def running(self, slot: Optional[str] = None) -> Optional[str]:
        """The generation that the living server was started from."""
        slot = slot or self.slot
        if self.supervisor_pid(slot) is None or self.server_pid(slot) is None:
            return None
        generation = self.started(slot).get("generation")
        return generation if isinstance(generation, str) else None

    # --- what is done ---

    def stop(self, timeout: float, slot: Optional[str] = None) -> bool:
        """Ends supervisor and server; whether there was anything to end."""
        slots: Tuple[str, ...] = (slot,) if slot else state.SLOTS
        # The active one last: until then the host has a server.
        ended = [self._stop(each, timeout) for each in sorted(slots, key=lambda each: each == self.slot)]
        return any(ended)

    def _stop(self, slot: str, timeout: float) -> bool:
        supervisor = self.supervisor_pid(slot)
        pids = [pid for pid in (supervisor, self.server_pid(slot)) if pid is not None]
        if pids:
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
                raise ServerError(
                    "pid %s does not end: see %s/logs/supervisord%s.log" % (pids, self.home, state.suffix(slot))
                )
        self._end_leftovers(slot)
        for name in ("supervisord%s.pid", "triton%s.pid", "server%s.json"):
            try:
                (self.run / (name % state.suffix(slot))).unlink()
            except FileNotFoundError:
                pass
        for path in SHM.glob(self.shm_prefix(slot) + "*"):
            path.unlink()
        return bool(pids)

    def _end_leftovers(self, slot: str) -> None:
        """Ends Python processes of a server that was killed: they work in this home and bear Triton's name."""
        for entry in os.listdir("/proc"):
            if entry.isdigit() and in_home(int(entry), self.home):
                line = command_line(int(entry))
                named = line and os.path.basename(line[0]) in ("triton_python_backend_stub", "tritonserver")
                if named and self._slot_of(line) == slot:
                    try:
                        os.kill(int(entry), signal.SIGKILL)
                    except (ProcessLookupError, PermissionError):
                        pass

    def prepare(self, generation: str, slot: Optional[str] = None) -> None:
        if (slot or self.slot) == "b" and not self._knows_slots(generation):
            raise ServerError(
                "generation %s is of an earlier version of the collection and can serve only in the first slot:"
                " deploy it without a surge (triton_pool_strategy: in_place)" % generation
            )

    def _knows_slots(self, generation: str) -> bool:
        path = self.home / "generations" / generation / "supervisord.conf"
        try:
            return _SLOT_VARIABLE in path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            # What is not there is told by the supervisor itself.
            return True

    def start(self, generation: str, slot: Optional[str] = None) -> None:
        """Starts the supervisor of a generation, and returns once the server's process exists."""
        slot = slot or self.slot
        self.prepare(generation, slot)
        self.record_start(generation, slot)
        python = self.home / "venv" / "bin" / "python"
        place = os.path.join("generations", generation)
        argv = [str(python), "-I", "-m", "supervisor.supervisord", "-c", os.path.join(place, "supervisord.conf")]
        if slot == "b":
            argv += ["-i", IDENTIFIER]
        # Read by the supervisor's file, launch.py and probe.py, also when the supervisor starts them again.
        env = {**os.environ, _SLOT_VARIABLE: state.suffix(slot), "TRTLLM_GENERATION": place}
        try:
            done = subprocess.run(
                argv, cwd=str(self.home), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=60, check=False, env=env,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ServerError("the supervisor %s did not start: %s" % (python, exc)) from exc
        if done.returncode != 0:
            text = " ".join(done.stdout.decode("utf-8", "replace").split())
            raise ServerError("the supervisor refused to start: %s" % (text[-500:] or "rc %d" % done.returncode))
        if not wait_until(lambda: self.server_pid(slot) is not None, 30.0):
            end = state.suffix(slot)
            raise ServerError(
                "the server's process did not appear within 30 s: see logs/supervisord%s.log and logs/triton%s.log"
                " below %s" % (end, end, self.home)
            )
