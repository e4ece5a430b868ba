# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded server: tritonserver under supervisord, started from home/current.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import read_manifest, remove_tree
from ansible_collections.trtllm.serving.plugins.module_utils._generation import UNPROVEN, link_target, unproven
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LOCK_NAME, pid_starttime, utc_now

POLL_S = 0.05
SHM = Path("/dev/shm")
# What this collection makes below trtllm_home; nothing else there is ever removed.
OWN = (
    "current", "previous", "generations", "engines", "checkpoints", "weights", "src", "venv", "venvs", "run", "logs",
    "ledger.jsonl",
)  # fmt: skip


class ServerError(Exception):
    """One line that says what is wrong and what to do."""


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


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


def no_token(url: str, model: str, prompt: str, timeout: float) -> str:
    """Why a model gave no token just now; empty when it did. Standard library only: it is asked on every run."""
    body = json.dumps({"text_input": prompt, "max_tokens": 1, "bad_words": "", "stop_words": ""}).encode("utf-8")
    # No proxy of the environment: the server is asked directly.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open("%s/v2/models/%s/generate" % (url, model), data=body, timeout=timeout) as answer:
            reply = json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        return "%s answers HTTP %d: %s" % (url, exc.code, exc.read(500).decode("utf-8", "replace").strip())
    except (OSError, ValueError) as exc:
        return "%s gives no answer: %s" % (url, exc)
    return "" if isinstance(reply, dict) and "text_output" in reply else "%s answers %s" % (url, str(reply)[:500])


def switch_link(home: Path, name: str, generation: Optional[str]) -> None:
    """Points home/name at a generation in one step; removes the link for None."""
    link = home / name
    if generation is None:
        if link.is_symlink():
            link.unlink()
        return
    partial = home / (".%s.partial" % name)
    if partial.is_symlink() or partial.exists():
        partial.unlink()
    partial.symlink_to(os.path.join("generations", generation))
    os.rename(str(partial), str(link))
    fd = os.open(str(home), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Server:
    """Start, stop and switch. The caller holds the host's lock."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run = home / "run"
        self.started_file = self.run / "server.json"

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

    def started(self) -> Dict[str, Any]:
        try:
            value = json.loads(self.started_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def running(self) -> Optional[str]:
        """The generation that the living server was started from."""
        if self.supervisor_pid() is None or self.server_pid() is None:
            return None
        generation = self.started().get("generation")
        return generation if isinstance(generation, str) else None

    def links(self) -> Dict[str, Optional[str]]:
        return {name: link_target(self.home, name) for name in ("current", "previous")}

    def before(self) -> Dict[str, Optional[str]]:
        """What current and previous named when a generation last passed its gate."""
        found: Dict[str, Optional[str]] = unproven(self.home).get("before") or self.links()
        return found

    def switching(self) -> bool:
        """Whether a switch was begun, and neither settled nor taken back."""
        return (self.home / UNPROVEN).exists()

    def known(self, generation: str) -> bool:
        """Whether a generation's name can be resolved; previous always must be."""
        if generation == "previous":
            return True
        name = "current" if generation == "current" else os.path.join("generations", generation)
        return read_manifest(self.home / name) is not None

    def resolve(self, generation: str) -> str:
        """The id meant by a generation's name; it must be a finished one."""
        wanted = generation
        if generation in ("current", "previous"):
            found = link_target(self.home, generation)
            if found is None:
                raise ServerError("%s has no %s generation: deploy first (site.yml)" % (self.home, generation))
            wanted = found
        if read_manifest(self.home / "generations" / wanted) is None:
            raise ServerError(
                "generation %s is not complete below %s/generations: deploy again (site.yml)" % (wanted, self.home)
            )
        return wanted

    # --- what is done ---

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
        for name in ("run", "logs"):
            (self.home / name).mkdir(mode=0o750, exist_ok=True)
        python = self.home / "venv" / "bin" / "python"
        argv = [str(python), "-I", "-m", "supervisor.supervisord", "-c", "current/supervisord.conf"]
        partial = self.run / ".server.json.partial"
        partial.write_text(json.dumps({"generation": generation, "started": utc_now()}) + "\n", encoding="utf-8")
        os.rename(str(partial), str(self.started_file))
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

    def ledger(self, stage: str, generation: Optional[str], outcome: str, seconds: float, **more: Any) -> None:
        """One line for each thing that happened to what this host serves."""
        entry = {
            "time": utc_now(), "host": socket.gethostname(), "stage": stage, "generation": generation,
            "outcome": outcome, "seconds": round(seconds, 3),
        }  # fmt: skip
        entry.update({name: value for name, value in more.items() if value})
        fd = os.open(str(self.home / "ledger.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n")

    def switch(self, generation: str, before: Mapping[str, Optional[str]], timeout: float) -> None:
        """Stop, point current and previous, start. The generation has its gate before it."""
        self._mark_unproven(
            {"generation": generation, "before": {name: before[name] for name in ("current", "previous")}}
        )
        self.stop(timeout)
        switch_link(self.home, "previous", previous_after(before, generation))
        switch_link(self.home, "current", generation)
        self.start(generation)

    def restore(self, before: Mapping[str, Optional[str]], timeout: float) -> Optional[str]:
        """Back to what passed its gate last; what runs then."""
        target = before["current"]
        if target is None:
            self.stop(timeout)
        elif self.running() != target or self.links()["current"] != target:
            self.resolve(target)
            self.stop(timeout)
        switch_link(self.home, "previous", before["previous"])
        switch_link(self.home, "current", target)
        if target is not None and self.running() != target:
            self.start(target)
        self.settle()
        return target

    def settle(self) -> None:
        """The current generation has passed its gate, or had done so before."""
        try:
            (self.home / UNPROVEN).unlink()
        except FileNotFoundError:
            pass

    def _mark_unproven(self, record: Mapping[str, Any]) -> None:
        path = self.home / UNPROVEN
        path.parent.mkdir(mode=0o750, exist_ok=True)
        partial = path.with_name("." + path.name + ".partial")
        with open(str(partial), "w", encoding="utf-8") as stream:
            json.dump(record, stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(str(partial), str(path))

    def own(self) -> List[str]:
        """What the collection made below home; nothing in a directory that it never deployed to."""
        if not (self.home / LOCK_NAME).is_file():
            return []
        return [name for name in OWN if os.path.lexists(str(self.home / name))]

    def remove(self) -> List[str]:
        """Removes all that the collection made below home."""
        removed = self.own()
        for name in removed:
            remove_tree(self.home / name)
        return removed


def previous_after(before: Mapping[str, Optional[str]], generation: str) -> Optional[str]:
    """What previous names once this generation is current: what served before it, or what it was already."""
    return before["current"] if before["current"] not in (None, generation) else before["previous"]
