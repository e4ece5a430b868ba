# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docker_daemon_config against a dockerd of this test's own, with a container that must outlive every reload."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MODULE = "ansible_collections.trtllm.serving.plugins.modules.docker_daemon_config"
COLLECTIONS = Path(__file__).resolve().parents[2] / ".collections"
# Another engine than the machine's own can be tried too.
DOCKERD = os.environ.get("DOCKERD") or shutil.which("dockerd", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = what()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("not within %d s" % seconds)


@dataclass
class Dockerd:
    """A second dockerd beside the machine's own, without network."""

    path: Path
    options: list[str] = field(default_factory=list)
    running: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.path / "daemon.json"

    @property
    def log(self) -> str:
        return (self.path / "log").read_text(errors="replace")

    def start(self) -> None:
        with (self.path / "log").open("ab") as log:
            self.running = subprocess.Popen(
                # In a network of its own: a second engine would take docker0 away from the machine's.
                ["unshare", "--net", "--", str(DOCKERD),
                 "--data-root", str(self.path / "data"), "--exec-root", str(self.path / "run"),
                 "--pidfile", str(self.path / "pid"), "--host", "unix://%s" % (self.path / "sock"),
                 "--config-file", str(self.config), "--bridge=none", "--iptables=false", "--ip6tables=false",
                 *self.options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(lambda: "API listen on" in self.log or (self.running and self.running.poll() is not None))
        assert self.running.poll() is None, self.log[-2000:]

    def stop(self) -> None:
        if self.running is not None:
            self.running.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.running.wait(60)
            self.running.kill()
            self.running.wait()
            self.running = None

    def docker(self, *words: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            ["docker", "-H", "unix://%s" % (self.path / "sock"), *words], input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def sleeper(self) -> str:
        """A container that sleeps, of an image that is nothing but links into the host's own /usr."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for name in ("bin", "lib", "lib64", "sbin"):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, "usr/" + name
                tar.addfile(link)
        image = self.docker("import", "-", "trtllm-docker-sleeper", stdin=content.getvalue())
        return self.docker("run", "-d", "--network=none", "-v", "/usr:/usr:ro", image, "/usr/bin/sleep", "3600")

    def started(self, container: str) -> str:
        return self.docker("inspect", "-f", "{{.State.Running}} {{.State.Pid}} {{.State.StartedAt}}", container)

    def call(self, *, check: bool = False, fails: bool = False, **args: Any) -> dict[str, Any]:
        given = {
            "path": str(self.config), "host": "unix://%s" % (self.path / "sock"), "pid_file": str(self.path / "pid"),
            "marker": str(self.path / "marker.json"), "executable": str(DOCKERD), **args,
            "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": str(self.path),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", MODULE], input=json.dumps({"ANSIBLE_MODULE_ARGS": given}), capture_output=True,
            text=True, check=False, timeout=120, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        )  # fmt: skip
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert bool(answer.get("failed")) is fails, answer
        return answer

    def backups(self) -> list[Path]:
        return sorted(self.path.glob("daemon.json.*"))


@pytest.fixture(name="dockerd", scope="module")
def _dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    if DOCKERD is None or os.geteuid() != 0:
        why = "needs dockerd and root: install Docker Engine, and run as root"
        pytest.skip(why) if os.environ.get("ALLOW_SKIP") == "1" else pytest.fail(why, pytrace=False)
    # A unix socket's path is short.
    path = tmp_path_factory.mktemp("d")
    dockerd = Dockerd(path)
    dockerd.config.write_text('{\n    "log-opts": {"max-size": "10m"},\n    "labels": ["site=one"]\n}\n')
    dockerd.config.chmod(0o640)
    dockerd.start()
    try:
        yield dockerd
    finally:
        for container in dockerd.docker("ps", "-aq").split():
            dockerd.docker("rm", "-f", container)
        dockerd.stop()
        for mount in sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())[::-1]:
            if mount.startswith(str(path)):
                subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(name="sleeper", scope="module")
def _sleeper(dockerd: Dockerd) -> str:
    return dockerd.sleeper()


def test_a_reload_takes_effect_and_no_container_notices(dockerd: Dockerd, sleeper: str) -> None:
    before, text = dockerd.started(sleeper), dockerd.config.read_text()
    wanted = {"runtimes": {"nvidia": {"args": [], "path": "runc"}}, "live-restore": True, "debug": True}
    predicted = dockerd.call(check=True, config=wanted)
    assert predicted["changed"] and predicted["action"] == "reload" and predicted["keys"]["restart"] == []
    assert dockerd.config.read_text() == text and not dockerd.backups()

    done = dockerd.call(config=wanted)
    assert done["changed"] and done["reloaded"] and not done["restart_pending"], done
    info = json.loads(dockerd.docker("info", "--format", "{{json .}}"))
    assert "nvidia" in info["Runtimes"] and info["LiveRestoreEnabled"] and info["Labels"] == ["site=one"]
    assert dockerd.started(sleeper) == before and before.startswith("true")
    assert list(json.loads(dockerd.config.read_text())) == ["log-opts", "labels", "runtimes", "live-restore", "debug"]
    assert dockerd.config.read_text().startswith('{\n    "log-opts"')
    assert dockerd.config.stat().st_mode & 0o777 == 0o640
    assert [path.read_text() for path in dockerd.backups()] == [text]
    assert done["diff"]["before"] == text and done["diff"]["after"] == dockerd.config.read_text()
    assert not (dockerd.path / "marker.json").exists()

    again = dockerd.call(config=wanted)
    assert not again["changed"] and again["action"] == "none" and len(dockerd.backups()) == 1


def test_a_runtime_that_is_registered_by_a_reload_runs_containers(dockerd: Dockerd, sleeper: str) -> None:
    dockerd.call(config={"runtimes": {"second": {"path": "runc", "args": []}}})
    words = ("run", "--rm", "--runtime", "second", "--network=none", "-v", "/usr:/usr:ro", "trtllm-docker-sleeper")
    dockerd.docker(*words, "/usr/bin/true")


def test_what_a_reload_does_not_do_is_remembered_for_this_dockerd_alone(dockerd: Dockerd, sleeper: str) -> None:
    before = dockerd.started(sleeper)
    done = dockerd.call(config={"max-concurrent-downloads": 6, "log-opts": {"max-file": "3"}})
    assert done["action"] == "restart" and done["keys"]["restart"] == ["log-opts"] and not done["restarted"]
    assert done["keys"]["reload"] == ["max-concurrent-downloads"] and done["reloaded"]
    assert done["restart_pending"] and "log-opts" in done["reasons"][0]
    marker = json.loads((dockerd.path / "marker.json").read_text())
    assert marker["pid"] == int((dockerd.path / "pid").read_text()) and marker["reload"] == []
    assert Path(marker["before"]).read_text() != dockerd.config.read_text()

    again = dockerd.call(config={"max-concurrent-downloads": 6, "log-opts": {"max-file": "3"}})
    assert not again["changed"] and again["restart_pending"] and again["action"] == "restart"
    assert dockerd.started(sleeper) == before
    marker["starttime"] += 1
    (dockerd.path / "marker.json").write_text(json.dumps(marker))
    assert not dockerd.call(config={"log-opts": {"max-file": "3"}})["restart_pending"]
    (dockerd.path / "marker.json").unlink()


def test_a_reload_that_an_earlier_run_did_not_come_to_is_done(dockerd: Dockerd, sleeper: str) -> None:
    config = json.loads(dockerd.config.read_text())
    config["runtimes"]["later"] = {"path": "runc", "args": []}
    dockerd.config.write_text(json.dumps(config, indent=4) + "\n")
    wanted = {"runtimes": {"later": {"path": "runc", "args": []}}}
    assert dockerd.call(check=True, config=wanted)["reloaded"]
    assert "later" not in json.loads(dockerd.docker("info", "--format", "{{json .Runtimes}}"))
    done = dockerd.call(config=wanted)
    assert done["changed"] and done["reloaded"] and done["keys"]["reload"] == ["runtimes"]
    assert "later" in json.loads(dockerd.docker("info", "--format", "{{json .Runtimes}}"))
    assert not dockerd.call(config=wanted)["changed"]


def test_what_dockerd_does_not_take_over_is_taken_back(dockerd: Dockerd, sleeper: str) -> None:
    before, text = dockerd.started(sleeper), dockerd.config.read_text()
    failed = dockerd.call(fails=True, config={"no-such-key": 1})
    assert "daemon.json" in failed["msg"] and "\n" not in failed["msg"]
    assert dockerd.config.read_text() == text and dockerd.started(sleeper) == before
    assert not dockerd.call(config={})["changed"] and not dockerd.call(config={})["restart_pending"]


def test_a_key_of_the_command_line_is_refused(dockerd: Dockerd, sleeper: str) -> None:
    text = dockerd.config.read_text()
    failed = dockerd.call(fails=True, config={"hosts": ["fd://"], "data-root": "/elsewhere"})
    for named in ("hosts (--host unix://", "data-root (--data-root ", "systemctl edit"):
        assert named in failed["msg"]
    assert dockerd.config.read_text() == text


def test_a_syntax_error_is_left_as_it_is(dockerd: Dockerd, sleeper: str) -> None:
    text = dockerd.config.read_text()
    broken = text.replace('"site=one"', '"site=one",,')
    dockerd.config.write_text(broken)
    stamp, listed = dockerd.config.stat(), dockerd.backups()
    failed = dockerd.call(fails=True, config={"debug": False})
    line = next(number for number, each in enumerate(broken.splitlines(), 1) if ",," in each)
    assert "daemon.json, line %d, column " % line in failed["msg"] and "left as it is" in failed["msg"]
    assert dockerd.config.read_text() == broken and dockerd.backups() == listed
    assert (dockerd.config.stat().st_ino, dockerd.config.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    dockerd.config.write_text(text)


def test_a_removed_key_that_a_reload_does_not_reset_needs_a_restart(dockerd: Dockerd, sleeper: str) -> None:
    done = dockerd.call(config={"labels": None, "debug": None})
    assert done["keys"] == {"reload": [], "restart": ["labels", "debug"]} and done["restart_pending"]
    # The running engine shows why: it was reloaded for its judgement, and kept both.
    assert json.loads(dockerd.docker("info", "--format", "{{json .Labels}}")) == ["site=one"]
    (dockerd.path / "marker.json").unlink()


def test_a_dockerd_that_was_restarted_owes_nothing(dockerd: Dockerd, sleeper: str) -> None:
    assert dockerd.call(config={"shutdown-timeout": None, "log-level": "warn"})["restart_pending"]
    before = dockerd.started(sleeper)
    assert dockerd.running is not None
    # live-restore, which the first test turned on, keeps the container while dockerd is away.
    dockerd.running.send_signal(signal.SIGTERM)
    dockerd.running.wait(60)
    stopped = dockerd.call(config={"log-level": "info"})
    assert stopped["changed"] and stopped["action"] == "none" and not stopped["restart_pending"]
    (dockerd.path / "log").write_text("")
    dockerd.start()
    assert not dockerd.call(config={"log-level": "info"})["restart_pending"]
    assert dockerd.started(sleeper) == before
