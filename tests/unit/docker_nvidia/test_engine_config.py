# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is written, reloaded, restarted and remembered; the engine is a socket and a process with dockerd's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _docker_engine_api as api
from ansible_collections.trtllm.serving.plugins.module_utils import _docker_engine_config as engine_config
from ansible_collections.trtllm.serving.plugins.module_utils._daemon_config import ConfigError
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import EngineError, Pending
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_config import Result, Settings, apply

MODULE = "ansible_collections.trtllm.serving.plugins.modules.docker_daemon_config"
KATA = {"runtimes": {"kata": {"path": "kata", "args": []}}}
LOGS = {"log-opts": {"max-size": "1m"}}


class Bench:
    """One configuration file, one engine, and the commands that were run."""

    def __init__(self, path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = path / "docker" / "daemon.json"
        self.marker = path / "marker.json"
        self.engine = engine
        self.monkeypatch = monkeypatch
        self.commands: list[list[str]] = []
        self.fails: set[str] = set()
        monkeypatch.setattr(api, "systemd", lambda: False)
        monkeypatch.setattr(api, "run", self.run)
        monkeypatch.setattr(engine_config, "RELOAD_TIMEOUT_S", 1.0)

    def run(self, argv: Sequence[str], timeout: float = 60) -> api.Done:
        words = list(argv)
        self.commands.append(words)
        if "--validate" in words:
            return api.Done(125, "", "unknown flag: --validate")
        if words[0] == "journalctl":
            return api.Done(0, "level=info\nfailed to start daemon: bad http://u:secret@p thing\n", "")
        failed = " ".join(words[:2]) in self.fails
        return api.Done(1 if failed else 0, "", "Job for docker.service failed" if failed else "")

    def systemd(self) -> None:
        self.monkeypatch.setattr(api, "systemd", lambda: True)
        self.monkeypatch.setattr(api, "unit", lambda: api.Unit(("/usr/bin/dockerd",), True, True, True))

    def write(self, config: dict[str, Any]) -> str:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(config, indent=4) + "\n")
        return self.file.read_text()

    def apply(self, wanted: dict[str, Any], *, check: bool = False, reasons: Sequence[str] = (), **more: Any) -> Result:
        settings = Settings(
            path=str(self.file), socket=self.engine.socket, pid_file=self.engine.pid_file, marker=str(self.marker),
            **{"dockerd": "/usr/sbin/dockerd", **more},
        )  # fmt: skip
        return apply(settings, wanted, reasons, check)

    def hups(self) -> int:
        """Signals that have arrived; the process notes them on its own time."""
        path = self.engine.path / "hups"
        deadline = time.monotonic() + 5
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(path.read_text()) if path.exists() else 0

    def pending(self) -> Pending | None:
        return api.read_pending(str(self.marker), api.process(self.engine.pid_file))

    def end(self) -> None:
        self.engine.process.kill()
        self.engine.process.wait()


@pytest.fixture(name="bench")
def _bench(tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, engine, monkeypatch)


def test_a_reload_is_asked_for_and_confirmed(bench: Bench) -> None:
    bench.write({"zebra": 1})
    bench.engine.info["Runtimes"]["kata"] = {}
    done = bench.apply(KATA)
    assert done.changed and done.reloaded and done.action == "reload" and bench.hups() == 1
    assert bench.pending() is None and not bench.marker.exists() and list(json.loads(bench.file.read_text())) == [
        "zebra", "runtimes",
    ]  # fmt: skip
    assert Path(done.backup).read_text() == '{\n    "zebra": 1\n}\n'
    assert not bench.apply(KATA).changed


def test_check_mode_writes_signals_and_marks_nothing(bench: Bench) -> None:
    text = bench.write({"a": 1})
    listed = sorted(bench.file.parent.iterdir())
    done = bench.apply({**KATA, **LOGS}, check=True)
    assert done.changed and done.reasons and done.after != text and done.action == "restart"
    assert bench.file.read_text() == text and sorted(bench.file.parent.iterdir()) == listed
    assert not bench.marker.exists() and not (bench.engine.path / "hups").exists()


def test_check_mode_where_nothing_is_installed(bench: Bench) -> None:
    bench.end()
    os.unlink(bench.engine.socket)
    done = bench.apply(KATA, check=True)
    assert done.changed and done.action == "none" and not bench.file.parent.exists()


def test_a_file_of_before_is_back_when_dockerd_does_not_take_the_new_one(bench: Bench) -> None:
    text = bench.write({"a": 1})
    bench.engine.reloads = False
    with pytest.raises(EngineError) as caught:
        bench.apply(LOGS)
    assert "did not take over" in str(caught.value) and "as it was before" in str(caught.value)
    assert bench.file.read_text() == text and bench.pending() is None


def test_a_file_that_was_not_there_is_not_there_again(bench: Bench) -> None:
    bench.engine.reloads = False
    with pytest.raises(EngineError):
        bench.apply(LOGS)
    assert not bench.file.exists()


def test_the_marker_is_written_before_the_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that breaks off between the two forgets nothing."""
    bench.write({})

    def broken(self: Any, text: str, secret: bool) -> None:
        raise OSError("the power is gone")

    monkeypatch.setattr(engine_config.DaemonFile, "write", broken)
    with pytest.raises(OSError, match="power"):
        bench.apply({**LOGS, "live-restore": False})
    pending = bench.pending()
    assert pending is not None and pending.reload == ["live-restore"] and "log-opts" in pending.reasons[0]


def test_a_reload_that_was_not_reached_is_caught_up(bench: Bench) -> None:
    bench.write({"debug": False})
    process = api.process(bench.engine.pid_file)
    assert process is not None
    api.write_pending(str(bench.marker), Pending(process.pid, process.starttime, reload=["debug"]))
    assert bench.apply({"debug": False}, check=True).reloaded
    done = bench.apply({"debug": False})
    assert done.changed and done.reloaded and bench.pending() is None and bench.hups() == 1


def test_what_the_engine_denies_after_a_reload_needs_a_restart(bench: Bench) -> None:
    bench.write({})
    done = bench.apply(KATA)
    assert done.reloaded and done.action == "restart" and "runtimes" in done.reasons[0]
    pending = bench.pending()
    assert pending is not None and pending.reasons == done.reasons


def test_pending_ends_with_its_process(bench: Bench) -> None:
    bench.write({})
    assert bench.apply(LOGS).reasons
    assert bench.apply(LOGS).reasons and not bench.apply(LOGS).changed
    stored = json.loads(bench.marker.read_text())
    for change in ({"pid": stored["pid"] + 1}, {"starttime": stored["starttime"] + 1}):
        bench.marker.write_text(json.dumps({**stored, **change}))
        assert bench.pending() is None and not bench.apply(LOGS).reasons
    bench.marker.write_text("{broken")
    assert bench.pending() is None


def test_further_reasons_are_kept_without_a_change_of_the_file(bench: Bench) -> None:
    text = bench.write({})
    done = bench.apply({}, reasons=["the unit was changed"])
    assert done.reasons == ["the unit was changed"] and not done.changed and bench.file.read_text() == text
    assert bench.apply({}).reasons == ["the unit was changed"]


@pytest.mark.parametrize(("containers", "restart", "happens"), [
    (0, "never", False), (0, "if_idle", True), (1, "if_idle", False), (1, "now", True),
])  # fmt: skip
def test_a_restart_happens_only_where_it_may(bench: Bench, containers: int, restart: str, happens: bool) -> None:
    bench.systemd()
    bench.write({})
    bench.engine.info["ContainersRunning"] = containers
    predicted = bench.apply(LOGS, check=True, restart=restart)
    done = bench.apply(LOGS, restart=restart)
    assert done.restarted is predicted.restarted is happens and bool(done.reasons) is not happens
    assert (["systemctl", "restart", "docker.service"] in bench.commands) is happens
    # It costs running containers their GPUs, and so comes with a restart only.
    assert (["systemctl", "daemon-reload"] in bench.commands) is happens
    assert (bench.pending() is None) is happens


def test_nothing_is_restarted_without_a_need(bench: Bench) -> None:
    bench.systemd()
    bench.write(LOGS)
    done = bench.apply(LOGS, restart="now")
    assert not done.changed and not done.restarted and not [each for each in bench.commands if each[0] == "systemctl"]


def test_an_engine_that_does_not_come_up_gets_its_old_file_back(bench: Bench) -> None:
    bench.systemd()
    text = bench.write({"a": 1})
    bench.fails = {"systemctl restart"}
    with pytest.raises(EngineError) as caught:
        bench.apply(LOGS, restart="now")
    for named in ("did not start again: failed to start daemon: bad", "as it was before", "runs again", ".refused"):
        assert named in str(caught.value)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert bench.file.read_text() == text and "log-opts" in bench.file.with_suffix(".json.refused").read_text()
    assert ["systemctl", "start", "docker.service"] in bench.commands


def test_an_engine_that_does_not_run_is_started_where_that_is_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.systemd()
    monkeypatch.setattr(api, "unit", lambda: api.Unit(("/usr/bin/dockerd",), True, False, True))
    text = bench.write({"a": 1})
    monkeypatch.setattr(api, "process", lambda path: None)
    assert bench.apply({"a": 1}, check=True, start=True).changed and not bench.apply({"a": 1}).changed
    assert bench.apply({"a": 1}, start=True).changed
    assert ["systemctl", "start", "docker.service"] in bench.commands
    bench.fails = {"systemctl start"}
    with pytest.raises(EngineError) as caught:
        bench.apply(LOGS, start=True)
    for named in ("does not start: failed to start daemon: bad", "as it was before", ".refused"):
        assert named in str(caught.value)
    assert bench.file.read_text() == text


def test_without_systemd_a_restart_is_somebody_elses(bench: Bench) -> None:
    bench.write({})
    assert bench.apply(LOGS, restart="if_idle").reasons
    with pytest.raises(EngineError, match="restart it by hand"):
        bench.apply(LOGS, restart="now")


@pytest.mark.parametrize(
    ("done", "refused"),
    [
        (api.Done(0, "configuration OK", ""), ""),
        (api.Done(125, "", "unknown flag: --validate\nSee 'dockerd --help'."), ""),
        (api.Done(1, "", "unable to configure: http://u:secret@p is no mirror"), "is no mirror"),
    ],
)
def test_dockerd_judges_the_file_where_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, done: api.Done, refused: str
) -> None:
    text = bench.write({"a": 1})
    judged: list[str] = []

    def run(argv: Sequence[str], timeout: float = 60) -> api.Done:
        judged.append(Path(argv[-1]).read_text())
        return done

    monkeypatch.setattr(api, "run", run)
    if refused:
        with pytest.raises(ConfigError, match=refused) as caught:
            bench.apply(LOGS)
        assert "secret" not in str(caught.value) and bench.file.read_text() == text
    else:
        bench.apply(LOGS)
    assert "log-opts" in judged[0]
    assert [path.name for path in bench.file.parent.iterdir() if "candidate" in path.name] == []


def test_a_link_is_kept_and_its_target_written(bench: Bench, tmp_path: Path) -> None:
    bench.write({"a": 1})
    target = tmp_path / "real.json"
    os.rename(bench.file, target)
    target.chmod(0o600)
    bench.file.symlink_to(target)
    bench.apply(LOGS, backup=False)
    assert bench.file.is_symlink() and "log-opts" in target.read_text() and target.stat().st_mode & 0o777 == 0o600


def test_an_engine_whose_process_is_not_known(bench: Bench) -> None:
    os.unlink(bench.engine.pid_file)
    with pytest.raises(EngineError, match="docker_nvidia_pid_file"):
        bench.apply({})


def test_a_pid_of_somebody_else_is_no_dockerd(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert api.process(str(tmp_path / "pid")) is None
    (tmp_path / "pid").write_text("nonsense")
    assert api.process(str(tmp_path / "pid")) is None


def test_an_address_that_is_no_socket() -> None:
    assert api.socket_of("unix:///x", {}) == "/x"
    assert api.socket_of("", {"DOCKER_HOST": "unix:///y"}) == "/y"
    with pytest.raises(EngineError, match="tcp://h:2375"):
        api.socket_of("", {"DOCKER_HOST": "tcp://h:2375"})


# --- the module ---


def run(path: Path, check: bool = False, **args: Any) -> dict[str, Any]:
    """The module where no engine runs."""
    given = {
        "path": str(path), "host": "unix:///nowhere", "pid_file": "/nowhere", "executable": "/nowhere/dockerd",
        "marker": str(path.parent / "marker"), **args, "_ansible_check_mode": check, "_ansible_diff": True,
        "_ansible_remote_tmp": "/tmp",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", MODULE], input=json.dumps({"ANSIBLE_MODULE_ARGS": given}), capture_output=True,
        text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif(api.unit().active, reason="docker.service runs here, and the module finds it")
def test_a_proxys_password_is_nobodys_business(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    proxies = {"http_proxy": "http://user:geheim@proxy:3128", "no_proxy": "localhost"}
    done = run(path, **proxies, config={"debug": True})
    assert done["changed"] and path.stat().st_mode & 0o777 == 0o600
    written = json.loads(path.read_text())
    assert written["proxies"] == {"http-proxy": "http://user:geheim@proxy:3128", "no-proxy": "localhost"}
    assert "geheim" not in json.dumps(done) and "localhost" in done["diff"]["after"]
    assert not run(path, **proxies, config={"debug": True})["changed"]
    # Also one that an earlier run, or somebody else, had written.
    assert "geheim" not in json.dumps(run(path, config={"debug": False}))


@pytest.mark.skipif(api.unit().active, reason="docker.service runs here, and the module finds it")
def test_the_module_names_the_place_of_a_syntax_error(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{\n  "a": 1,\n}\n')
    before = path.stat()
    failed = run(path, config={"debug": True})
    assert failed["failed"] and "line 3, column 1" in failed["msg"] and str(path) in failed["msg"]
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert [each.name for each in tmp_path.iterdir()] == ["daemon.json"]
