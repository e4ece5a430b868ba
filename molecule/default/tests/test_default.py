# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The deployed host as its operating system and its clients see it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["local://"]

HOME = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / ".work" / "test" / "molecule"
PORTS = {
    name: int(os.environ.get("TRTLLM_TEST_%s_PORT" % name, default))
    for name, default in (("HTTP", "18600"), ("GRPC", "18601"), ("METRICS", "18602"))
}
# 127.0.0.1 as the kernel of a little-endian machine writes it.
LOOPBACK = "0100007F"
MODELS = ("ensemble", "preprocessing", "postprocessing", "tensorrt_llm", "tensorrt_llm_bls")


def read(host: Any, path: str) -> Any:
    return json.loads(host.file(str(HOME / path)).content_string)


def listening(host: Any, port: int) -> set[str]:
    """Addresses that somebody listens on, as the kernel writes them; a small machine has neither ss nor netstat."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in host.file(table).content_string.splitlines()[1:]:
            address, number = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(number, 16) == port:
                found.add(address)
    return found


@pytest.mark.parametrize("name", PORTS)
def test_port_is_open_on_loopback_only(host: Any, name: str) -> None:
    mapped = "0000000000000000FFFF0000" + LOOPBACK
    found = listening(host, PORTS[name])
    assert found and found <= {LOOPBACK, mapped}, found


def test_current_generation_is_whole(host: Any) -> None:
    current = host.file(str(HOME / "current"))
    assert current.is_symlink
    manifest = read(host, "current/manifest.json")
    assert manifest["complete"] is True and manifest["kind"] == "generation"
    for name, recorded in manifest["files"].items():
        assert host.file(str(HOME / "current" / name)).sha256sum == recorded["sha256"], name
    for model in MODELS:
        assert host.file(str(HOME / "current" / "model_repo" / model / "config.pbtxt")).contains('^name: "%s"' % model)


def test_server_runs_the_current_generation(host: Any) -> None:
    pid = int(host.file(str(HOME / "run" / "triton.pid")).content_string)
    status = dict(line.split(":", 1) for line in host.file("/proc/%d/status" % pid).content_string.splitlines())
    assert status["Name"].strip() == "tritonserver"
    assert os.readlink("/proc/%d/cwd" % pid) == str(HOME)
    assert status["PPid"].strip() == host.file(str(HOME / "run" / "supervisord.pid")).content_string.strip()
    assert read(host, "run/server.json")["generation"] == os.path.basename(os.readlink(str(HOME / "current")))


def test_nobody_else_can_read_or_write_the_home(host: Any) -> None:
    folder = host.file(str(HOME))
    assert folder.mode & 0o007 == 0, oct(folder.mode)
    assert host.run("find %s -perm -o+w ! -type l", str(HOME)).stdout == ""


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_model_answers(host: Any, model: str) -> None:
    url = "http://127.0.0.1:%d/v2/models/%s/generate" % (PORTS["HTTP"], model)
    body = json.dumps({"text_input": "What is machine learning?", "max_tokens": 8, "bad_words": "", "stop_words": ""})
    code = (
        "import sys, urllib.request as u;"
        "print(u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode()), timeout=60).read().decode())"
    )
    done = host.run("%s -c %s %s %s", str(HOME / "venv" / "bin" / "python"), code, url, body)
    assert done.rc == 0, done.stderr
    assert json.loads(done.stdout)["text_output"]


def test_ledger_ends_with_a_passed_gate_or_a_switch(host: Any) -> None:
    last = json.loads(host.file(str(HOME / "ledger.jsonl")).content_string.splitlines()[-1])
    assert last["generation"] == os.path.basename(os.readlink(str(HOME / "current"))), last
    assert last["outcome"] in ("passed", "started"), last
