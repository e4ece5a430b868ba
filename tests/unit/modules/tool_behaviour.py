# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module drives its tool, wherever that runs. Imported by the tests of each runner, which make the ``site``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._checkpoint import convert
from ansible_collections.trtllm.serving.plugins.module_utils._engine import build
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import ToolError


def test_converted_and_built_once(site: Any, cancellation: Any) -> None:
    first = convert(site.convert_args(tp_size=2), False, cancellation)
    assert (first["changed"] and first["command"][-1] == first["path"]) or first["path"] in " ".join(first["command"])
    engine = build(site.build_args(first["path"], max_batch_size=4), False, cancellation)
    assert engine["changed"] and engine["engine"]["max_batch_size"] == 4 and engine["world_size"] == 2
    assert sorted(os.listdir(engine["path"])) == ["config.json", "manifest.json", "rank0.engine", "rank1.engine"]
    assert not convert(site.convert_args(tp_size=2), False, cancellation)["changed"]
    assert not build(site.build_args(first["path"], max_batch_size=4), False, cancellation)["changed"]
    assert len(site.runs) == 2 and site.partials() == [] and not site.running()
    # Caches that the tool drops into its working directory are gone with it.
    assert not list(site.home.rglob("model.cache"))


@pytest.mark.parametrize(
    ("mode", "line", "hint"),
    [
        ("argparse", "tool: error: unrecognized arguments: --nonsense", "another release"),
        ("traceback", "RuntimeError: CUDA out of memory. Tried to allocate 112.00 MiB", "load_model_on_cpu"),
        ("full", "OSError: [Errno 27] File too large", ""),
    ],
)
def test_failure_shows_the_tools_own_line(site: Any, cancellation: Any, mode: str, line: str, hint: str) -> None:
    site.mode(mode)
    with pytest.raises(ToolError) as caught:
        convert(site.convert_args(), False, cancellation)
    details = caught.value.details
    assert details["error"] == line and line in str(caught.value)
    assert hint in details["hint"] and details["log_file"] in str(caught.value)
    assert details["rc"] != 0 and details["tail"][0] == "converting" and details["command"]
    assert list((site.home / "checkpoints").iterdir()) == []
    site.mode("ok")
    assert convert(site.convert_args(), False, cancellation)["changed"]


def test_tool_that_forgets_a_rank(site: Any, cancellation: Any) -> None:
    site.mode("missing_rank")
    with pytest.raises(ToolError, match="rank1.safetensors is missing: rank 1 of 2") as caught:
        convert(site.convert_args(tp_size=2), False, cancellation)
    assert "partial" not in str(caught.value)
    assert list((site.home / "checkpoints").iterdir()) == []


def test_timeout_ends_the_tool_and_leaves_nothing(site: Any, cancellation: Any, helpers: Any) -> None:
    site.mode("hang")
    with pytest.raises(ToolError, match=f"did not end within {site.timeout:g} s"):
        convert(site.convert_args(timeout=site.timeout), False, cancellation)
    assert site.partials() == [] and list((site.home / "checkpoints").iterdir()) == []
    assert site.pids and not site.running()


def test_missing_executable(site: Any, cancellation: Any) -> None:
    with pytest.raises(ToolError, match="/no/such/tool cannot be started .*(No such file|not found)"):
        convert(site.convert_args(executable=["/no/such/tool"]), False, cancellation)
    assert site.partials() == []


def test_stale_partial_is_removed(site: Any, cancellation: Any) -> None:
    stale = site.home / "checkpoints" / ".0123.partial"
    stale.mkdir(parents=True)
    (stale / "rank0.safetensors").write_text("half")
    convert(site.convert_args(), False, cancellation)
    assert not stale.exists()


@pytest.mark.parametrize("how", ["terminate", "hang up"])
def test_interrupted_process_leaves_nothing(site: Any, start_module: Any, helpers: Any, how: str) -> None:
    site.mode("hang")
    module = start_module("convert_checkpoint", site.convert_args())
    helpers.wait_for(lambda: site.pids)
    assert site.partials()
    if how == "terminate":
        module.process.send_signal(signal.SIGTERM)
        found = module.result()
        assert found["failed"] and "received SIGTERM" in found["msg"]
    else:
        module.process.stdout.close()
        module.process.stdout = None
        module.process.wait(timeout=30)
    helpers.wait_for(lambda: not site.running())
    assert site.partials() == [] and list((site.home / "checkpoints").iterdir()) == []
    site.mode("ok")
    assert start_module("convert_checkpoint", site.convert_args()).result()["changed"]


def test_killed_controller_ends_the_task_although_its_worker_reads_on(
    site: Any, helpers: Any, cancellation: Any, tmp_path: Path
) -> None:
    site.mode("hang")
    controller = tmp_path / "ansible-playbook"
    controller.write_text(
        "import os, subprocess, sys, time\n"
        "if os.fork():\n"
        "    time.sleep(60)\n"
        "module = 'ansible_collections.trtllm.serving.plugins.modules.convert_checkpoint'\n"
        "task = subprocess.Popen([sys.executable, '-m', module], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "open(sys.argv[2], 'wb').write(task.communicate(sys.argv[1].encode())[0])\n"
    )
    out = tmp_path / "result"
    given = json.dumps({"ANSIBLE_MODULE_ARGS": site.convert_args()})
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    process = subprocess.Popen([sys.executable, str(controller), given, str(out)], env=environ)
    try:
        helpers.wait_for(lambda: site.pids)
    finally:
        process.kill()
        process.wait()
    found = json.loads(helpers.wait_for(lambda: out.exists() and out.read_text()))
    assert "the controller was killed" in found["msg"] and site.partials() == []
    assert not site.running()


def test_killed_process_is_cleaned_up_after(site: Any, start_module: Any, helpers: Any, cancellation: Any) -> None:
    site.mode("hang")
    module = start_module("convert_checkpoint", site.convert_args())
    helpers.wait_for(lambda: site.pids)
    module.process.kill()
    module.process.wait()
    assert site.partials()
    site.mode("ok")
    assert convert(site.convert_args(), False, cancellation)["changed"]
    assert site.partials() == [] and not site.running()


def test_no_log_no_run(site: Any, cancellation: Any) -> None:
    (site.home / "logs").write_text("in the way")
    with pytest.raises(ToolError, match="log .* cannot be written .*choose a directory"):
        convert(site.convert_args(), False, cancellation)
    assert site.runs == [] and site.partials() == []
