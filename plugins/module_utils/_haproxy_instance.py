# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An HAProxy that runs with its configuration, and is reloaded, never restarted, for another one.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.trtllm.serving.plugins.module_utils import _haproxy_config as config_of
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import HaproxyError, Runtime, Silent
from ansible_collections.trtllm.serving.plugins.module_utils._haproxy_config import Program, run

SYSTEMD = "/run/systemd/system"
# In the environment of a master process that only watches over its workers; not while it reads a configuration.
WATCHING = b"HAPROXY_MWORKER_WAIT_ONLY="
BIND = re.compile(r"(?m)^\s+bind\s+(?:(ipv4|ipv6)@)?(\S*):(\d+)(?=\s|$)")


@dataclass(frozen=True)
class File:
    path: str
    text: str
    mode: int
    secret: bool = False


@dataclass
class Settings:
    config_path: str
    socket: str
    state_file: str
    manager: str
    service: str
    pid_file: str
    state_script: str
    timeout: float
    check: Callable[[], None] = lambda: None


@dataclass
class Outcome:
    changed: bool = False
    action: str = "none"
    written: list[str] = field(default_factory=list)
    backup: str = ""
    pid: int = 0


def _digest(paths: list[str]) -> str:
    found = hashlib.sha256()
    for path in paths:
        try:
            data = Path(path).read_bytes()
        except OSError:
            data = b"-"
        found.update(b"%d %s\n" % (len(data), path.encode("utf-8")) + data)
    return found.hexdigest()


def write(file: File) -> None:
    """Beside, then renamed; a directory that is missing is made."""
    folder = os.path.dirname(file.path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix="." + os.path.basename(file.path), dir=folder)
    try:
        os.fchmod(handle, file.mode)
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(file.text)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, file.path)
    except BaseException:
        os.unlink(temporary)
        raise


def binds(config: str) -> set[tuple[str, int]]:
    return {(address.strip("[]"), int(port)) for _family, address, port in BIND.findall(config)}


def taken(config: str, held: str) -> str:
    """Why a listener that is new in the configuration cannot be: HAProxy itself would find it too late.

    It stops accepting requests for seconds while it tries to get a port that somebody else has.
    """
    known = {port for _address, port in binds(held)}
    for address, port in sorted(binds(config)):
        if port in known:
            continue
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("" if address == "*" else address, port))
            except PermissionError:
                continue
            except OSError as exc:
                return f"{address or '*'}:{port} is not to be had ({exc.strerror or exc}): name another address or port"
    return ""


class Instance:
    def __init__(self, program: Program, settings: Settings) -> None:
        self.program = program
        self.settings = settings
        self.systemd = settings.manager == "systemd" or (settings.manager == "auto" and os.path.isdir(SYSTEMD))
        # What the process that runs was started or reloaded with last.
        self.marker = settings.state_file + ".activated"

    # --- the process ---

    def master(self) -> int:
        """Process id of what is told to reload; 0 when nothing runs."""
        if self.systemd:
            code, said = run(["systemctl", "show", "--property=MainPID", "--value", self.settings.service])
            return int(said) if code == 0 and said.strip().isdecimal() else 0
        try:
            pid = int(Path(self.settings.pid_file).read_text("ascii").split()[0])
            name = Path(f"/proc/{pid}/comm").read_text("ascii").strip()
        except (OSError, ValueError, IndexError):
            return 0
        return pid if name == "haproxy" else 0

    def worker(self, patience: float = 0.0) -> int:
        """Process id of the worker that answers; 0 when none does."""
        try:
            runtime = Runtime(self.settings.socket, self.settings.check)
            runtime.ask("show info", patience)
            return int(runtime.info().get("Pid") or 0)
        except Silent:
            return 0

    def keep_states(self) -> None:
        code, said = run([sys.executable, self.settings.state_script, self.settings.socket,
                          self.settings.config_path, self.settings.state_file])  # fmt: skip
        if code:
            last = (said.strip().splitlines() or ["no reason was given"])[-1]
            raise HaproxyError(f"servers' states cannot be kept in {self.settings.state_file}: {last}")

    def _start(self) -> None:
        if self.systemd:
            self._systemctl("enable", "--now", self.settings.service)
            return
        argv = [self.program.path, "-W", "-D", "-f", self.settings.config_path, "-p", self.settings.pid_file]
        code, said = run(argv)
        if code:
            raise HaproxyError(f"{' '.join(argv)} failed: {(said.strip().splitlines() or ['no reason'])[-1]}")

    def _systemctl(self, *words: str) -> None:
        code, said = run(["systemctl", *words], self.settings.timeout + 60)
        if code:
            unit = f"--unit={self.settings.service}"
            _code, journal = run(["journalctl", unit, "--lines=20", "--output=cat", "--no-pager"])
            alerts = [line.strip() for line in journal.splitlines() if "ALERT" in line]
            last = (alerts or said.strip().splitlines() or ["no reason was given"])[-1]
            raise HaproxyError(f"systemctl {' '.join(words)} failed: {last}")

    def _reload(self, master: int) -> None:
        """The old worker ends its requests; the new one has the listeners from the first moment."""
        before = self.worker()
        if self.systemd:
            self._systemctl("reload", self.settings.service)
        else:
            os.kill(master, signal.SIGUSR2)
        self._await_worker(before)

    def _watching(self) -> bool:
        """Whether the master has done what it was told to."""
        try:
            return WATCHING in Path(f"/proc/{self.master()}/environ").read_bytes()
        except OSError:
            return False

    def _await_worker(self, before: int) -> int:
        deadline = time.monotonic() + self.settings.timeout
        read = False
        while True:
            watching = self._watching()
            now = self.worker()
            if now and now != before:
                return now
            if time.monotonic() > deadline or (before and read and watching):
                # A reload hands the socket itself over, and does not make it anew.
                if not os.path.exists(self.settings.socket):
                    raise HaproxyError(
                        f"HAProxy has no {self.settings.socket} after its reload: if somebody has removed it, only a "
                        "restart of HAProxy brings it back"
                    )
                raise HaproxyError(
                    f"HAProxy did not come up with {self.settings.config_path}: see its log for what it could not "
                    "have, such as a port or a socket"
                )
            if not before and not self.master():
                raise HaproxyError(
                    f"HAProxy ended as soon as it had begun with {self.settings.config_path}: see its log for what it "
                    "could not have, such as a port or a socket"
                )
            read = read or not watching
            self.settings.check()
            time.sleep(0.02)

    # --- its files ---

    def taken(self, config: str, old: str) -> str:
        """Why HAProxy would not get what the configuration has it listen on; what it has already, it keeps."""
        return taken(config, old if self.master() else "")

    def behind(self, watched: list[str]) -> str:
        """What must happen for the running process to have these files: none, start or reload."""
        if not self.master():
            return "start"
        try:
            known = Path(self.marker).read_text("ascii")
        except OSError:
            known = ""
        return "none" if known == _digest(watched) else "reload"

    def changed_files(self, files: list[File]) -> list[File]:
        def differs(file: File) -> bool:
            try:
                return config_of.read(file.path) != file.text or os.stat(file.path).st_mode & 0o777 != file.mode
            except FileNotFoundError:
                return True

        return [file for file in files if differs(file)]

    def judge_beside(self, config: File, tokens: File | None, wanted: Mapping[str, str]) -> str:
        """HAProxy's word on the configuration before anything of it is in place."""
        with tempfile.TemporaryDirectory(prefix="trtllm-lb-") as folder:
            os.chmod(folder, 0o700)
            text = config.text
            if tokens is not None:
                beside = os.path.join(folder, "tokens")
                Path(beside).write_text(tokens.text, "ascii")
                text = text.replace(tokens.path, beside)
            for path, instead in wanted.items():
                text = text.replace(path, instead)
            path = os.path.join(folder, os.path.basename(config.path))
            Path(path).write_text(text, "utf-8", errors="surrogateescape")
            return config_of.judge(self.program, path).replace(path, config.path)

    def bring(self, config: File, helpers: list[File], watched: list[str], todo: str) -> Outcome:
        """Writes what differs, then has HAProxy follow. A configuration that it does not come up with is taken back."""
        done = Outcome()
        os.makedirs(os.path.dirname(self.settings.socket), exist_ok=True)
        old = config_of.read(config.path)
        for file in self.changed_files([*helpers, config]):
            # Of one's own there is no end of copies.
            if file is config and old is not None and not old.startswith(config.text.partition("\n")[0]):
                done.backup = f"{config.path}.{time.strftime('%Y%m%d-%H%M%S')}"
                shutil.copy2(config.path, done.backup)
            write(file)
            done.written.append(file.path)
            done.changed = True
        if self.systemd and any(path.endswith(".conf") for path in done.written):
            self._systemctl("daemon-reload")
        if not os.path.exists(self.settings.state_file) or todo != "none":
            os.makedirs(os.path.dirname(self.settings.state_file), exist_ok=True)
            self.keep_states()
        if todo == "none":
            return done
        done.action, done.changed = todo, True
        master = self.master()
        try:
            if master:
                self._reload(master)
            else:
                self._start()
                self._await_worker(0)
        except HaproxyError as exc:
            self._take_back(config, old, bool(master), exc)
        write(File(self.marker, _digest(watched), 0o600))
        return done

    def _take_back(self, config: File, old: str | None, ran: bool, why: HaproxyError) -> None:
        if old is None or old == config.text:
            raise why
        refused = config.path + ".refused"
        write(File(refused, config.text, config.mode))
        write(File(config.path, old, config.mode))
        master = self.master()
        if ran and master:
            self.keep_states()
            os.kill(master, signal.SIGUSR2)
        raise HaproxyError(f"{why}; the configuration of before is back, this one is {refused}") from why
