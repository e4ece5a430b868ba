# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing dockerd's configuration file, and having the engine follow it without stopping a container unasked.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _docker_engine_api as api
from ansible_collections.trtllm.serving.plugins.module_utils._daemon_config import (
    NONE,
    RELOAD,
    RELOADABLE,
    RESTART,
    ConfigError,
    Style,
    action_of,
    changed_keys,
    conflicts,
    hide_secrets,
    merge,
    needs,
    not_in_effect,
    parse,
    render,
    style_of,
)
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import (
    Engine,
    EngineError,
    Pending,
    Process,
    Unit,
)

RELOAD_TIMEOUT_S = 15.0
# Where the engine's own word is beyond doubt; others are only asked for right after they were changed.
_WATCHED = ("data-root", "default-runtime", "live-restore", "runtimes")


@dataclass
class Settings:
    """Where things are, and what may be done."""

    path: str = "/etc/docker/daemon.json"
    socket: str = api.SOCKET
    pid_file: str = api.PID_FILE
    marker: str = api.MARKER
    dockerd: str = ""
    restart: str = "never"
    start: bool = False
    backup: bool = True
    timeout: float = 60.0
    secret: bool = False


@dataclass
class Result:
    changed: bool = False
    action: str = NONE
    keys: dict[str, list[str]] = field(default_factory=lambda: {RELOAD: [], RESTART: []})
    reasons: list[str] = field(default_factory=list)
    reloaded: bool = False
    restarted: bool = False
    backup: str = ""
    warnings: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""


class DaemonFile:
    """The file as it is found."""

    def __init__(self, path: str) -> None:
        # A link is kept, and what it points to is written.
        self.path = os.path.realpath(path)
        self.text: str | None = None
        self.mode = 0o644
        self.owner: tuple[int, int] | None = None
        try:
            with open(self.path, "rb") as stream:
                found = os.fstat(stream.fileno())
                data = stream.read()
        except FileNotFoundError:
            data = None
        except OSError as exc:
            raise ConfigError("%s cannot be read: %s" % (self.path, exc.strerror or exc)) from exc
        if data is not None:
            self.mode, self.owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)
            try:
                self.text = data.decode("utf-8")
            except UnicodeDecodeError as exc:
                raise ConfigError(
                    "%s is not UTF-8 at byte %d; correct it, or move it away, and run again; it was left as it is"
                    % (self.path, exc.start)
                ) from exc
        self.config = parse(self.text or "", self.path)
        self.style = style_of(self.text or "")

    def write(self, text: str, secret: bool) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        api.write_file(self.path, text, 0o600 if secret else self.mode, self.owner)

    def save_copy(self) -> str:
        """A copy beside it, with the time in its name."""
        if self.text is None:
            return ""
        stamp = "%s.%s" % (self.path, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        name, number = stamp + ".bak", 1
        while os.path.lexists(name):
            name, number = "%s-%d.bak" % (stamp, number), number + 1
        api.write_file(name, self.text, self.mode, self.owner)
        return name

    def put_back(self, text: str | None) -> None:
        """The file with this text again; none at all when there was none."""
        if text is not None:
            api.write_file(self.path, text, self.mode, self.owner)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def validate(text: str, path: str, dockerd: str) -> None:
    """Has dockerd itself judge the file, where it can: --validate came with 23.0."""
    executable = dockerd or shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if not executable:
        return
    folder = os.path.dirname(path)
    candidate = os.path.join(folder, ".%s.candidate" % os.path.basename(path))
    made = not os.path.isdir(folder)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    try:
        api.write_file(candidate, text, 0o600)
        done = api.run([executable, "--validate", "--config-file", candidate])
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(candidate)
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    if done.rc == 0 or re.search(r"unknown flag: --validate|not found", done.said):
        return
    said = hide_secrets(done.said.replace(candidate, path))
    raise ConfigError("dockerd refuses the new %s: %s; it was left as it is" % (path, said))


def idle(info: Mapping[str, Any]) -> bool:
    return not int(info.get("ContainersRunning") or 0) + int(info.get("ContainersPaused") or 0)


class Daemon:
    """The engine that reads the file."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = Engine(settings.socket)
        self.process: Process | None = api.process(settings.pid_file)
        self.unit: Unit = api.unit()
        self.info: dict[str, Any] | None = None
        # A dockerd that does not run is not asked: systemd would start it for the question.
        if self.process is not None:
            self.info = self.engine.info()
        elif self.unit.active or (not api.systemd() and self.engine.answers()):
            raise EngineError(
                "Docker Engine runs, and %s does not name its process: set docker_nvidia_pid_file" % settings.pid_file
            )
        self.pending = api.read_pending(settings.marker, self.process)

    def refuse_conflicts(self, config: Mapping[str, Any]) -> None:
        found = conflicts(config, api.command_line(self.process, self.unit))
        if found:
            raise ConfigError(
                "dockerd's command line sets what %s sets too, and dockerd does not start with both: %s; take the"
                " options out of the unit (systemctl edit %s), or the keys out of the file"
                % (self.settings.path, ", ".join("%s (%s)" % pair for pair in found.items()), api.UNIT)
            )  # fmt: skip

    def mark(self, reasons: Sequence[str], reload: Sequence[str], before: str, forget: Sequence[str] = ()) -> None:
        """Remembers, for this very dockerd, what it does not follow yet."""
        if self.process is None:
            return
        pending = self.pending or Pending(self.process.pid, self.process.starttime, before=before)
        pending.reasons += [reason for reason in reasons if reason not in pending.reasons]
        pending.reasons = [reason for reason in pending.reasons if reason not in forget]
        pending.reload = list(reload)
        api.write_pending(self.settings.marker, pending)
        self.pending = pending if pending.reasons or pending.reload else None

    def reload(self) -> bool:
        """Has dockerd read the file again; containers are not touched by that. Whether it said that it did."""
        if self.process is None:
            return False
        since = time.time() - 0.001
        os.kill(self.process.pid, signal.SIGHUP)
        return self.engine.reloaded_since(since, RELOAD_TIMEOUT_S) is not None

    def restart(self, file: DaemonFile) -> None:
        """Stops and starts dockerd; puts the file back that it ran with when it does not come up."""
        if not api.systemd() or not self.unit.exists:
            raise EngineError(
                "Docker Engine must be restarted (%s), and systemd does not run it here: restart it by hand, run again"
                % "; ".join(api.reasons_of(self.pending) or ["asked for"])
            )  # fmt: skip
        # systemd does not notice the first addition to a unit by itself. It would cost running containers their GPUs,
        # which is why nothing but a restart comes with it.
        api.run(["systemctl", "daemon-reload"])
        begun = time.time()
        done = api.run(["systemctl", "restart", api.UNIT], self.settings.timeout + 120)
        why = "" if done.rc == 0 else done.said
        if not why:
            try:
                self.engine.wait(self.settings.timeout)
            except EngineError as exc:
                why = str(exc)
        if why:
            why = hide_secrets(api.journal_error(begun) or why)
            raise EngineError("Docker Engine did not start again: %s; %s" % (why, self._rescue(file)))
        api.write_pending(self.settings.marker, None)
        self.pending, self.process = None, api.process(self.settings.pid_file)
        self.info = self.engine.info()

    def start(self, file: DaemonFile, changed: bool) -> None:
        """Starts a dockerd that does not run, with the file that was just written."""
        begun = time.time()
        # Additions to its unit may be new.
        api.run(["systemctl", "daemon-reload"])
        api.run(["systemctl", "reset-failed", api.UNIT])
        done = api.run(["systemctl", "start", api.UNIT], self.settings.timeout + 120)
        if done.rc != 0:
            why = hide_secrets(api.journal_error(begun) or done.said)
            kept = "%s was left as it is" % file.path
            if changed:
                kept = "%s is as it was before, the refused one is %s" % (file.path, self._refuse(file, file.text))
            raise EngineError("Docker Engine does not start: %s; %s: see 'journalctl -u docker'" % (why, kept))
        self.engine.wait(self.settings.timeout)
        self.process, self.info = api.process(self.settings.pid_file), self.engine.info()

    def _refuse(self, file: DaemonFile, text: str | None) -> str:
        """Puts the text of before back; where the refused one is kept."""
        refused = "%s.refused" % file.path
        with contextlib.suppress(OSError):
            shutil.copy2(file.path, refused)
        file.put_back(text)
        return refused

    def _rescue(self, file: DaemonFile) -> str:
        copy = self.pending.before if self.pending is not None else api.UNKNOWN
        text: str | None = None
        try:
            if copy != api.NO_FILE:
                with open(copy, encoding="utf-8") as stream:
                    text = stream.read()
        except OSError:
            return "%s was left as it is: see 'journalctl -u docker'" % file.path
        refused = self._refuse(file, text)
        api.run(["systemctl", "reset-failed", api.UNIT])
        done = api.run(["systemctl", "start", api.UNIT], self.settings.timeout + 120)
        state = "runs again" if done.rc == 0 else "does not start with that either: see 'journalctl -u docker'"
        return "%s is as it was before, the refused one is %s, and Docker Engine %s" % (file.path, refused, state)


def apply(settings: Settings, wanted: Mapping[str, Any], reasons: Sequence[str], check_mode: bool) -> Result:
    """Merges what is wanted into the file and has the engine follow. Raises ConfigError or EngineError."""
    file = DaemonFile(settings.path)
    daemon = Daemon(settings)
    new = merge(file.config, wanted)
    result = Result(before=file.text or "", after=file.text or "")
    if changed_keys(file.config, new) and not (file.text is None and not new):
        result.changed = True
        # A file that is made now is written as most people write theirs.
        result.after = render(new, file.style if file.text else Style())
    result.keys = needs(file.config, new)
    # Nothing follows from keys that the engine cannot have read yet.
    if daemon.process is None:
        result.keys = {RELOAD: [], RESTART: []}
    pending = daemon.pending
    if pending is not None:
        result.keys[RELOAD] += [key for key in pending.reload if key not in result.keys[RELOAD]]
    if daemon.info is not None:
        _drift(result, wanted, new, daemon.info)
    result.reasons = api.reasons_of(pending)
    if daemon.process is not None:
        further = [*reasons, *_reasons(result, settings)]
        result.reasons += [reason for reason in further if reason not in result.reasons]
    if result.changed:
        daemon.refuse_conflicts(new)
        validate(result.after, file.path, settings.dockerd)
    else:
        found = conflicts(new, api.command_line(daemon.process, daemon.unit))
        if found:
            result.warnings.append("dockerd will not start again: %s and its command line both set %s" % (
                settings.path, ", ".join(found)))  # fmt: skip
    result.action = RESTART if result.reasons else action_of(result.keys)
    if check_mode:
        _predict(result, daemon, settings)
        return result
    _write(result, file, daemon, settings)
    _follow(result, file, daemon, wanted, settings)
    return result


def _drift(result: Result, wanted: Mapping[str, Any], new: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Keys of ours that the file has, and the engine never took over."""
    ours = {key: new[key] for key in _WATCHED if key in new and wanted.get(key) is not None}
    for key in not_in_effect(ours, info):
        if key not in result.keys[RELOAD] + result.keys[RESTART]:
            result.keys[RELOAD if key in RELOADABLE else RESTART].append(key)


def _predict(result: Result, daemon: Daemon, settings: Settings) -> None:
    result.reloaded = result.action == RELOAD
    allowed = settings.restart == "now" or (settings.restart == "if_idle" and idle(daemon.info or {}))
    result.restarted = bool(result.reasons) and allowed and api.systemd()
    result.changed = result.changed or result.reloaded or result.restarted or _starts(daemon, settings)
    if result.restarted:
        result.reasons = []


def _starts(daemon: Daemon, settings: Settings) -> bool:
    return settings.start and daemon.process is None and api.systemd() and daemon.unit.exists


def _write(result: Result, file: DaemonFile, daemon: Daemon, settings: Settings) -> None:
    """The marker first: a run that breaks off after the file was written must not forget what it needs."""
    if result.changed and settings.backup:
        result.backup = file.save_copy()
    if result.changed or result.reasons or result.keys[RELOAD]:
        before = result.backup or (api.NO_FILE if file.text is None else api.UNKNOWN)
        daemon.mark(result.reasons, result.keys[RELOAD] or ([settings.path] if result.changed else []), before)
    if result.changed:
        file.write(result.after, settings.secret)


def _follow(result: Result, file: DaemonFile, daemon: Daemon, wanted: Mapping[str, Any], settings: Settings) -> None:
    if _starts(daemon, settings):
        daemon.start(file, result.changed)
        result.changed = True
        return
    if daemon.process is None or daemon.info is None:
        return
    if result.changed or result.keys[RELOAD]:
        _reload(result, file, daemon, wanted, settings)
    allowed = settings.restart == "now" or (settings.restart == "if_idle" and idle(daemon.info) and api.systemd())
    if result.reasons and allowed:
        daemon.restart(file)
        result.changed = result.restarted = True
        result.reasons = []
        late = not_in_effect(wanted, daemon.info)
        if late:
            result.warnings.append("Docker Engine was restarted, and says otherwise of: %s" % ", ".join(late))


def _reload(result: Result, file: DaemonFile, daemon: Daemon, wanted: Mapping[str, Any], settings: Settings) -> None:
    """Also a change that needs a restart is reloaded: so the running dockerd judges the whole file, older ones too."""
    begun = time.time()
    if not daemon.reload():
        said = hide_secrets(api.journal_error(begun)) or "see 'journalctl -u docker'"
        kept = "it was left as it is"
        if result.changed:
            # It must not be what the next start of dockerd, or of the host, fails on.
            file.put_back(file.text)
            mine = _reasons(result, settings)
            daemon.mark([], [], "", forget=mine)
            kept = "the file is as it was before"
        raise EngineError(
            "Docker Engine did not take over %s within %d s; %s: %s" % (settings.path, RELOAD_TIMEOUT_S, kept, said)
        )
    result.reloaded, result.changed = bool(result.keys[RELOAD]), True
    daemon.info = daemon.engine.info()
    late = [key for key in not_in_effect(wanted, daemon.info) if key in result.keys[RELOAD]]
    if late:
        result.reasons += ["%s in %s" % (key, settings.path) for key in late]
        result.action = RESTART
    daemon.mark(result.reasons, [], result.backup or api.UNKNOWN)


def _reasons(result: Result, settings: Settings) -> list[str]:
    return ["%s in %s" % (key, settings.path) for key in result.keys[RESTART]]
