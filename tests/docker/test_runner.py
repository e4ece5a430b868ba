# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner for containers: behaves as every runner does, and shuts its tool in."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, NotStarted
from ansible_collections.trtllm.serving.plugins.module_utils._runner_container import ContainerRunner, Lost
from ansible_collections.trtllm.serving.plugins.module_utils._runner_settings import ContainerSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "modules"))
pytest.register_assert_rewrite("runner_behaviour")

# The tests themselves, which are the same for both runners.
from runner_behaviour import *  # noqa: F403 # pylint: disable=wildcard-import,unused-wildcard-import
from runner_behaviour import SLEEP, run

SERVICE = 1234


class ContainerBench:
    killed = 137
    timeout = 5.0

    def __init__(self, root: Path, image: str, client: Any) -> None:
        self.home = root / "home"
        self.cwd, self.out, self.log = self.home / "cwd", self.home / "out", root / "logs" / "a.log"
        self.cwd.mkdir(parents=True)
        self.out.mkdir()
        os.chown(self.home, SERVICE, SERVICE)
        self.client = client
        self.settings: dict[str, Any] = {"image": image, "gpus": "none", "shm_size": "16m"}

    def runner(self, cancellation: Cancellation | None = None, grace_s: float = 0.5, **more: Any) -> ContainerRunner:
        settings = ContainerSettings.of({**self.settings, **more})
        return ContainerRunner(settings, self.home, "convert_checkpoint", "0123", cancellation, grace_s=grace_s)

    def python(self, code: str) -> list[str]:
        return ["python3", "-c", code]

    def containers(self) -> list[Any]:
        return _containers.ours(self.client, self.home, "tool")

    def running(self, pids: Sequence[int]) -> bool:
        return bool(self.containers())

    def start(self, code: str, **more: Any) -> Any:
        """A container that a run which was killed outright left running."""
        runner = self.runner(**more)
        container = runner._create(self.python(code), {}, self.cwd, [], [self.out])
        container.start()
        return container


@pytest.fixture
def bench(tmp_path: Path, python_image: str, docker_client: Any) -> Iterator[ContainerBench]:
    found = ContainerBench(tmp_path, python_image, docker_client)
    yield found
    left = found.containers()
    for container in left:
        container.remove(force=True, v=True)
    assert not left


# --- what it may do ---------------------------------------------------------------------------------------------


def test_files_belong_to_the_service_user(bench: ContainerBench) -> None:
    code = f"import os\nopen('here', 'w')\nos.mkdir({str(bench.out / 'sub')!r})\nprint(os.getuid(), os.getgid())"
    assert run(bench, code).tail == (f"{SERVICE} {SERVICE}",)
    for path in (bench.cwd / "here", bench.out / "sub", bench.out):
        assert (path.stat().st_uid, path.stat().st_gid) == (SERVICE, SERVICE)


def test_user_can_be_given(bench: ContainerBench) -> None:
    found = run(bench, "import os; open('here', 'w'); print(os.getuid(), os.getgid())", bench.runner(user="4321:1"))
    assert found.tail == ("4321 1",) and (bench.cwd / "here").stat().st_uid == 4321


def test_it_sees_what_it_needs_and_no_more(bench: ContainerBench, tmp_path: Path) -> None:
    model, more = tmp_path / "model", tmp_path / "more"
    for folder in (model, more, bench.home / "other"):
        folder.mkdir()
        (folder / "file").write_text("content")
        folder.chmod(0o777)
    code = (
        "import os\n"
        f"print(open({str(model / 'file')!r}).read(), open({str(more / 'file')!r}).read())\n"
        f"print(sorted(os.listdir({str(bench.home)!r})))\n"
        f"for folder in ({str(model)!r}, {str(more)!r}, '/', '/etc', '/usr/local', {str(bench.home)!r}):\n"
        "    try:\n        open(folder + '/new', 'w')\n        print('wrote', folder)\n    except OSError: pass\n"
        "open('/tmp/new', 'w'); open('/dev/shm/new', 'w')"
    )
    found = run(bench, code, bench.runner(volumes=[str(more)]), reads=[model])
    assert found.rc == 0 and found.tail == ("content content", "['cwd', 'out']")


def test_links_of_a_hubs_cache_can_be_read(bench: ContainerBench, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_text("weights")
    (blobs / "other").write_text("of another model")
    (blobs / "4567").symlink_to("0123")
    (snapshot / "model").symlink_to("../../blobs/4567")
    (snapshot / "gone").symlink_to("../../blobs/89")
    code = f"import os; print(open({str(snapshot / 'model')!r}).read(), sorted(os.listdir({str(blobs)!r})))"
    assert run(bench, code, reads=[snapshot]).tail == ("weights ['0123', '4567']",)


def test_no_network_and_no_privileges(bench: ContainerBench) -> None:
    code = (
        "import os, socket\nprint(os.listdir('/sys/class/net'))\n"
        "try: socket.create_connection(('1.1.1.1', 53), 2)\nexcept OSError: print('no way out')\n"
        "wanted = ('CapEff', 'CapBnd', 'NoNewP')\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith(wanted)])\n"
        "print(os.environ['HOME'], os.environ['USER'], os.environ['NVIDIA_VISIBLE_DEVICES'], os.getppid())"
    )
    assert run(bench, code).tail == (
        "['lo']",
        "no way out",
        "['0000000000000000', '0000000000000000', '1']",
        "/tmp trtllm void 1",
    )


def test_how_the_container_is_made(bench: ContainerBench) -> None:
    limits = {"ulimits": {"nofile": 999}, "memory": "100m", "environment": {"NAME": "value"}}
    container = bench.start(SLEEP, **limits)
    try:
        container.reload()
        host, config = container.attrs["HostConfig"], container.attrs["Config"]
        assert host["NetworkMode"] == "none" and host["ReadonlyRootfs"] and host["Init"] and not host["Privileged"]
        assert host["CapDrop"] == ["ALL"] and "no-new-privileges:true" in host["SecurityOpt"]
        assert host["LogConfig"]["Type"] == "none" and host["RestartPolicy"]["Name"] in ("", "no")
        assert (host["Memory"], host["MemorySwap"], host["ShmSize"]) == (100 << 20, 100 << 20, 16 << 20)
        assert host["Ulimits"] == [{"Name": "nofile", "Hard": 999, "Soft": 999}]
        assert "NAME=value" in config["Env"] and config["User"] == f"{SERVICE}:{SERVICE}"
        assert config["Labels"] == {
            "trtllm.serving.home": str(bench.home),
            "trtllm.serving.role": "tool",
            "trtllm.serving.tool": "convert_checkpoint",
            "trtllm.serving.key": "0123",
        }
    finally:
        bench.runner().sweep()


@pytest.mark.parametrize("where", ["env", "container"])
def test_secret_is_refused_before_anything_is_made(bench: ContainerBench, where: str) -> None:
    with pytest.raises((ContainerError, NotStarted)) as caught:
        if where == "env":
            run(bench, "", env={"HF_TOKEN": "hf_secret"})
        else:
            bench.runner(environment={"HF_TOKEN": "hf_secret"})
    assert "HF_TOKEN would be shown by 'docker inspect'" in str(caught.value) and "HF_TOKEN_FILE" in str(caught.value)
    assert "hf_secret" not in str(caught.value)
    assert run(bench, "", env={"HF_TOKEN_PATH": "/x", "TOKENIZERS_PARALLELISM": "false"}).rc == 0


# --- how it fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("child", [False, True])
def test_memory_limit_is_named_when_it_kills(bench: ContainerBench, child: bool) -> None:
    code = "import sys\nprint('loading', flush=True)\nwhole = [bytearray(1 << 20) for _ in range(300)]"
    if child:
        code = f"import subprocess, sys\nsys.exit(subprocess.run(['python3', '-c', {code!r}]).returncode and 5)"
    found = run(bench, code, bench.runner(memory="64m"))
    assert found.rc == (5 if child else 137)
    assert found.cause == "the container was killed at its memory limit of 64.0 MiB (OOMKilled)"
    assert "raise container.memory" in found.remedy


def test_killed_from_outside(bench: ContainerBench) -> None:
    found = run(bench, f"print('up', flush=True)\n{SLEEP}", on_line=lambda line: bench.containers()[0].kill())
    assert found.rc == 137 and found.cause == "the container was killed (signal 9) by another's request"
    assert "'docker stop'" in found.remedy


def test_killed_by_nobody_that_the_engine_knows(bench: ContainerBench) -> None:
    found = run(bench, "import os; os.kill(os.getpid(), 9)", bench.runner(memory="100m"))
    assert found.rc == 137 and found.cause == "the tool was killed (signal 9), and the engine was not asked to"
    assert "want of memory: see 'dmesg'; raise container.memory" in found.remedy
    assert run(bench, "raise SystemExit(1)").cause == ""


def test_removed_while_it_runs(bench: ContainerBench) -> None:
    with pytest.raises(Lost, match="was removed while the tool ran: see who did, and run again"):
        run(
            bench,
            f"print('up', flush=True)\n{SLEEP}",
            on_line=lambda line: bench.containers()[0].remove(force=True),
        )


def test_image_is_missing(bench: ContainerBench) -> None:
    for image in ("trtllm-runner/no-such-image:1", "sha256:" + "0" * 64):
        with pytest.raises(NotStarted, match=f"image {image}: .*; the image is not on this host: run") as caught:
            run(bench, "", bench.runner(image=image))
        assert "\n" not in str(caught.value)
    with pytest.raises(NotStarted, match="container.image is empty: give"):
        run(bench, "", bench.runner(image=""))


def test_gpus_without_a_driver(bench: ContainerBench) -> None:
    try:
        found = run(bench, "", bench.runner(gpus="all", device_policy="runtime"))
    except NotStarted as exc:
        assert "could not select device driver" in str(exc) and "NVIDIA Container Toolkit" in str(exc)
    else:
        assert found.rc == 0  # it has one


def test_limit_that_the_host_does_not_grant(bench: ContainerBench) -> None:
    try:
        found = run(bench, "import resource; print(resource.getrlimit(8))", bench.runner(ulimits={"memlock": -1}))
    except NotStarted as exc:
        assert "rlimit" in str(exc) and "lower memlock" in str(exc) and "\n" not in str(exc)
    else:
        assert found.tail == ("(-1, -1)",)


def test_mount_that_is_not_there(bench: ContainerBench) -> None:
    with pytest.raises(NotStarted, match="bind source path does not exist.*; a directory to be mounted is not there"):
        run(bench, "", bench.runner(volumes=["/no/such/directory"]))


class Daemon:
    """The engine's socket at another place, so that it can go away without taking others along."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen(64)
        self.open: list[socket.socket] = [self.server]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _address = self.server.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect("/var/run/docker.sock")
            self.open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def stop(self) -> None:
        self.path.unlink(missing_ok=True)
        for end in self.open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The engine behind a socket of its own; calling it makes the engine go away."""
    path = Path(f"/tmp/trtllm-{uuid.uuid4().hex[:8]}.sock")
    found = Daemon(path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    yield found.stop
    found.stop()


@pytest.mark.parametrize("loud", [True, False])
def test_daemon_goes_away_in_the_middle(bench: ContainerBench, daemon: Callable[[], None], loud: bool) -> None:
    code = "import time\nprint('up', flush=True)\nfor n in range(3000): time.sleep(.02); print(n) if %d else 0" % loud
    with pytest.raises(
        Lost, match="the Docker daemon went away while the tool ran: .*systemctl status docker"
    ) as caught:
        run(bench, code, on_line=lambda line: daemon() if line == "up" else None)
    assert "\n" not in str(caught.value)
    # Nothing of it runs, although there was nobody to ask for that; what is left is for the next run.
    (left,) = bench.containers()
    assert left.wait(timeout=20)["StatusCode"] != 0
    os.environ.pop("DOCKER_HOST")
    bench.runner().sweep()
    assert not bench.containers()


def test_daemon_is_not_there(bench: ContainerBench, daemon: Callable[[], None]) -> None:
    daemon()
    for work in (lambda: run(bench, ""), bench.runner().sweep):
        with pytest.raises((NotStarted, ContainerError), match="the Docker daemon cannot be used: .*systemctl status"):
            work()
    os.environ.pop("DOCKER_HOST")


# --- what it leaves ---------------------------------------------------------------------------------------------


def test_sweep_takes_what_is_left_below_this_home_only(
    bench: ContainerBench, docker_client: Any, python_image: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = ContainerBench(tmp_path / "elsewhere", python_image, docker_client)
    running, ended = (
        bench.start("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"),
        bench.start(""),
    )
    ended.wait(timeout=20)
    server = docker_client.containers.create(
        python_image, ["true"], labels=_containers.labels(bench.home, "server", generation="1")
    )
    stays = other.start(SLEEP)
    try:
        bench.runner().sweep()
        assert bench.containers() == [] and len(other.containers()) == 1
        server.reload()
        stays.reload()
        assert stays.status == "running"
        with pytest.raises(Exception, match="[Nn]o such container"):
            running.reload()
    finally:
        other.runner().sweep()
        server.remove()


def test_nothing_is_left_of_any_way_to_end(bench: ContainerBench) -> None:
    volumes = len(bench.client.volumes.list())
    run(bench, "")
    run(bench, "raise SystemExit(3)")
    assert bench.containers() == [] and len(bench.client.volumes.list()) == volumes
    assert stat.S_IMODE(bench.log.stat().st_mode) == 0o640
