# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bad input against a host that serves: one clear line, a failed run, nothing changed, and the server goes on.

TRTLLM_TEST_CONTROLLER names another Python with ansible-core than the one that runs the tests, TRTLLM_TEST_PORTS three
ports to use, as 8100,8101,8102.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.tests.demo._site import (
    ROOT,
    TIMEOUT,
    Recap,
    Site,
    environment,
    free_ports,
    tree,
    wait_until,
)

HOME = ROOT / ".work" / "test" / "bad-input"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4976698672\n" % ("0" * 64)
# What a run that fails may write: logs, its lease, and times that only save work.
VOLATILE = re.compile(r"(logs|run|weights/\.identity)(/|$)|\.lock$")


@dataclass
class Host:
    """A deployed home, the playbooks on it, and a directory for spoilt input."""

    site: Site
    python: str
    spoilt: Path

    def start(self, playbook: str, **variables: Any) -> subprocess.Popen[str]:
        site = self.site
        home = str(variables.pop("home", site.home))
        given = {
            "triton_serve_http_port": site.http, "triton_serve_grpc_port": site.grpc,
            "triton_serve_metrics_port": site.metrics, "mixtral_engine_weights_source": "tiny", **variables,
        }  # fmt: skip
        return subprocess.Popen(
            [self.python, "-m", "ansible", "playbook", "-i", "inventory/local", "-e", json.dumps(given), playbook],
            cwd=ROOT, env=environment(TRTLLM_HOME=home, ANSIBLE_CALLBACK_RESULT_FORMAT="json"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip

    def run(self, playbook: str = "site.yml", **variables: Any) -> Recap:
        process = self.start(playbook, **variables)
        output, _nothing = process.communicate(timeout=TIMEOUT)
        return Recap.of(subprocess.CompletedProcess(process.args, process.returncode, output, ""))

    def state(self) -> dict[str, Any]:
        return {name: seen for name, seen in tree(self.site.home).items() if not VOLATILE.match(name)}

    def weights(self, name: str) -> Path:
        """A sound copy of the tiny weights, to be spoilt."""
        source = next(self.site.home.glob("weights/tiny-mixtral@*"))
        shutil.copytree(source, self.spoilt / name, ignore=shutil.ignore_patterns("manifest.json"))
        return self.spoilt / name

    def engine(self, name: str) -> Path:
        source = next(self.site.home.glob("engines/*"))
        shutil.copytree(source, self.spoilt / name)
        return self.spoilt / name


def failures(output: str) -> list[str]:
    """The messages of the tasks that failed."""
    return [
        str(json.loads(text)["msg"]) for text in re.findall(r"(?m)^fatal: \[localhost\]: FAILED! => (\{.*\})$", output)
    ]


@pytest.fixture(name="host", scope="module")
def _host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    python = os.environ.get("TRTLLM_TEST_CONTROLLER") or sys.executable
    asked = subprocess.run([python, "-m", "ansible", "playbook", "--version"], capture_output=True, check=False)
    if asked.returncode != 0:
        pytest.skip("%s has no ansible-core: name a controller's Python in TRTLLM_TEST_CONTROLLER" % python)
    ports = [int(port) for port in os.environ.get("TRTLLM_TEST_PORTS", "").split(",") if port] or free_ports(3)
    HOME.parent.mkdir(parents=True, exist_ok=True)
    host = Host(Site(HOME, *ports), python, tmp_path_factory.mktemp("spoilt"))
    if HOME.exists():
        host.run("playbooks/teardown.yml")
        shutil.rmtree(HOME)
    try:
        host.run().succeeded()
        yield host
    finally:
        host.run("playbooks/teardown.yml")
        shutil.rmtree(HOME, ignore_errors=True)


def unchanged(host: Host, message: str, **variables: Any) -> None:
    """A run that fails with this message in one line, before anything on the host was touched."""
    before, pid = host.state(), host.site.pid()
    recap = host.run(**variables)
    assert recap.returncode != 0, recap.output
    told = failures(recap.output)
    assert len(told) == 1 and message in told[0], recap.output
    # Ansible's own validation of arguments puts a heading above each line.
    assert "\n" not in told[0].removeprefix("Validation of arguments failed:\n"), told
    assert recap.counts["changed"] == 0, recap.output
    assert host.state() == before
    assert host.site.pid() == pid and host.site.generate()


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown release": ({"trtllm_release": "9.9.9"}, "release '9.9.9' is not supported"),
    "tag": ({"trtllm_release": "v1.1.0"}, "release 'v1.1.0' is a tag, not a TensorRT-LLM version; use 1.1.0"),
    "no engines": ({"trtllm_release": "1.3.0"}, "release '1.3.0' has no engines: flavour engine needs"),
    "ranks": ({"mixtral_engine_tp_size": 16}, "tp_size 16 x pp_size 1 needs 16 GPUs, the host has 8"),
    "moe": (
        {"mixtral_engine_tp_size": 4, "mixtral_engine_moe_tp_size": 2, "mixtral_engine_moe_ep_size": 4},
        "moe_tp_size 2 x moe_ep_size 4 = 8 is not tp_size 4; use one of",
    ),
    "heads": ({"mixtral_engine_tp_size": 3}, "tp_size 3 does not divide num_attention_heads 8; use one of 1, 2, 4, 8"),
    "removed option": (
        {"mixtral_engine_build_options": {"use_custom_all_reduce": "disable"}},
        "'use_custom_all_reduce' is not in release 1.1.0: it was last in",
    ),
    "ill-typed option": (
        {"mixtral_engine_convert_options": {"load_model_on_cpu": "yes"}},
        "'load_model_on_cpu': 'yes' is not allowed, give true or false",
    ),
    "text for a dictionary": ({"mixtral_engine_convert_options": "a=b"}, "'a=b' is not a dictionary"),
    "word for a port": ({"triton_serve_http_port": "http"}, "argument 'triton_serve_http_port' is of type str"),
    "pattern": ({"triton_serve_smoke_expect": "["}, "triton_serve_smoke_expect '[' is no regular expression"),
    "relative home": ({"home": "work/host"}, "trtllm_home 'work/host' is not a plain absolute path"),
    "home that is a file": ({"home": str(ROOT / "LICENSE")}, "LICENSE' is not a directory: choose another path"),
    "room": ({"home": str(HOME) + "-2", "triton_serve_required_space_mib": 10**9}, "1000000000 MiB are needed"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting(host: Host, name: str) -> None:
    variables, message = SETTINGS[name]
    unchanged(host, message, **variables)
    assert not Path(str(HOME) + "-2").exists()


def cut(path: Path) -> None:
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def without_experts(path: Path) -> None:
    config = json.loads(path.read_text("utf-8"))
    del config["num_local_experts"]
    path.write_text(json.dumps(config), "utf-8")


def another_release(path: Path) -> None:
    """The engine of a release, whole and with an honest manifest."""
    manifest = json.loads((path.parent / "manifest.json").read_text("ascii"))
    text = path.read_text("utf-8").replace('"1.1.0"', '"0.12.0"')
    path.write_text(text, "utf-8")
    manifest["files"].pop("config.json")
    (path.parent / "manifest.json").write_text(json.dumps(manifest), "ascii")


WEIGHTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "truncated": ("model.safetensors", cut, "model.safetensors is truncated"),
    "git-lfs pointer": ("model.safetensors", lambda path: path.write_text(LFS), "is a git-lfs pointer"),
    "missing shard": (
        "model.safetensors",
        lambda path: path.rename(path.with_name("model-00001-of-00002.safetensors")),
        "lacks 1 of 2 weights files: model-00002-of-00002.safetensors",
    ),
    "no experts": ("config.json", without_experts, "has no num_local_experts"),
    "no tokenizer": ("tokenizer.json", Path.unlink, "has no tokenizer"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(host: Host, name: str) -> None:
    file, spoil, message = WEIGHTS[name]
    path = host.weights(name)
    spoil(path / file)
    unchanged(host, message, mixtral_engine_weights_source="directory", mixtral_engine_weights_path=str(path))


ENGINES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no marker": ("manifest.json", Path.unlink, "is incomplete: it has no valid manifest.json: build the engine again"),
    "missing rank": ("rank0.engine", Path.unlink, "rank0.engine is missing: build the engine again"),
    "another release": ("config.json", another_release, "was built by TensorRT-LLM 0.12.0, not 1.1.0: build it again"),
}


@pytest.mark.parametrize("name", ENGINES)
def test_engine(host: Host, name: str) -> None:
    file, spoil, message = ENGINES[name]
    path = host.engine(name)
    spoil(path / file)
    unchanged(host, message, triton_serve_engine_dir=str(path))


def test_port_in_use(host: Host) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        port = held.getsockname()[1]
        message = "port %d on 127.0.0.1 is in use by pid %d" % (port, os.getpid())
        unchanged(host, message, triton_serve_grpc_port=port)
        # The second place, which only a surge needs.
        second = {
            "triton_pool_strategy": "surge",
            "triton_serve_grpc_port": port - 70,
            "triton_serve_surge_port_offset": 70,
        }
        unchanged(host, "set triton_serve_grpc_port plus triton_serve_surge_port_offset to a free port", **second)


def other(number: int) -> dict[str, Any]:
    """Other weights, so that every stage has something to do."""
    return {
        "mixtral_engine_weights_options": {"seed": number},
        "mixtral_engine_weights_revision": str(number),
    }


def test_interrupted_while_another_run_waits_at_the_door(host: Host) -> None:
    """The second run is refused while the first converts; Ctrl-C ends the first; the next run succeeds."""
    wanted = other(7)
    pid = host.site.pid()
    first = host.start("site.yml", **wanted)
    try:
        wait_until(lambda: list(host.site.home.glob("checkpoints/.*.partial")), "the first run converts", 60)
        second = host.start("site.yml", **wanted)
        output, _nothing = second.communicate(timeout=TIMEOUT)
        assert first.poll() is None or second.returncode == 0
        if second.returncode:
            told = failures(output)
            assert told and all("in the hands of another run (pid %d " % first.pid in each for each in told), output
    finally:
        os.killpg(first.pid, signal.SIGINT)
        first.communicate(timeout=60)
    assert first.returncode != 0
    assert host.site.generate()
    wait_until(lambda: list(host.site.home.glob("*/.*.partial")) == [], "the first run cleans up", 30)
    host.run(**wanted).succeeded()
    assert host.site.pid() != pid
    assert host.run(**wanted).succeeded().counts["changed"] == 0


def test_a_gate_that_fails_leaves_what_served_before(host: Host) -> None:
    current = os.readlink(host.site.home / "current")
    recap = host.run(**other(7), triton_serve_probe_interval=31, triton_serve_smoke_expect="^cannot match$")
    assert recap.returncode != 0
    told = " ".join(failures(recap.output))
    assert "does not match pattern '^cannot match$' (serves %s)" % Path(current).name in told
    assert os.readlink(host.site.home / "current") == current
    assert host.site.generate()
    assert host.run(**other(7)).succeeded().counts["changed"] == 0
