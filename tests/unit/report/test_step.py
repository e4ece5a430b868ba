# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps in real runs of ansible-playbook: their journal, their lost connections, and word of those that take long."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.trtllm.serving.plugins.plugin_utils import _step, _watcher
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal

ROOT = Path(__file__).resolve().parents[3]
ACTION = """
from ansible_collections.trtllm.serving.plugins.plugin_utils import _watcher
from ansible_collections.trtllm.serving.plugins.plugin_utils._step import StepAction

_watcher.Watcher.every_s = 0.3

class ActionModule(StepAction):
    STAGE = "work"
    STAGES = {"long": "convert"}
    PROGRESS = True
"""
MODULE = """#!/usr/bin/python
import os, time
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils import _progress

module = AnsibleModule(dict(state=dict(), fail=dict(), stages=dict(type="list", elements="dict"), until=dict(),
                            progress=dict(type="path")), supports_check_mode=True)
with _progress.use(module.params["progress"]) as told:
    end = time.time() + 30
    while module.params["until"] and not os.path.exists(module.params["until"]) and time.time() < end:
        told.update("converting", done=3, total=8, unit="ranks")
        time.sleep(0.05)
if module.params["fail"]:
    module.fail_json(msg=module.params["fail"], stages=module.params["stages"] or [])
module.exit_json(changed=True, stages=module.params["stages"] or [], progress=module.params["progress"])
"""


class Bench:
    """A playbook directory with a module of its own whose action is a step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dir = path / "run"
        self.dir.mkdir()
        (path / "ansible.cfg").touch()
        for name, text in (("action_plugins", ACTION), ("library", MODULE)):
            (path / name).mkdir()
            (path / name / "work.py").write_text(text, encoding="utf-8")

    def play(
        self, *tasks: dict[str, Any], check: bool = False, begin: bool = True, **variables: Any
    ) -> subprocess.CompletedProcess[str]:
        run = {"id": "1", "dir": str(self.dir) if begin else "", "started": time.time()}
        values = {"triton_pool_run": run, **variables}
        play = {"hosts": "a", "gather_facts": False, "vars": values, "tasks": list(tasks)}
        (self.path / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
        hosts = {"all": {"hosts": {
            "a": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable,
                  "triton_pool": "{{ 'ch' }}at"},
            "gone": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1},
        }}}  # fmt: skip
        (self.path / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", "play.yml"]
        environment = {
            **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_CONFIG": str(self.path / "ansible.cfg"),
            "ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "false",
            "PYTHONPATH": str(ROOT / ".collections"),
        }  # fmt: skip
        return subprocess.run(
            [*argv, *(["--check"] if check else [])],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def events(self) -> list[dict[str, Any]]:
        return list(Journal(self.dir).events())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_step_and_its_parts_are_journalled(bench: Bench) -> None:
    stages = [{"name": "stop", "offset_s": 0, "seconds": 0.01}, {"name": "start", "offset_s": 0.01, "seconds": 0.02}]
    done = bench.play({"work": {"stages": stages}})
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [each for each in bench.events() if each["event"] != "progress"]
    shown = [(each["stage"], each["event"], each.get("within"), each.get("outcome")) for each in steps]
    assert shown == [
        ("work", "start", None, None), ("stop", "start", "work", None), ("stop", "end", "work", "ok"),
        ("start", "start", "work", None), ("start", "end", "work", "ok"), ("work", "end", None, "ok"),
    ]  # fmt: skip
    first, last = steps[0], steps[-1]
    assert (first["host"], first["pool"], last["changed"]) == ("a", "chat", True)
    assert all(first["time"] <= each["time"] <= last["time"] for each in bench.events())


def test_a_failure_is_journalled_in_one_line_and_reported_at_once(bench: Bench) -> None:
    stages = [{"name": "load", "offset_s": 0, "seconds": 0.02}, {"name": "smoke", "offset_s": 0.02, "seconds": 0.01}]
    done = bench.play({"work": {"fail": "the answer is 'Lyon': see the log\nat length", "stages": stages}})
    assert done.returncode == 2
    last = bench.events()[-1]
    assert (last["outcome"], last["cause"]) == ("failed", "the answer is 'Lyon': see the log")
    ends = {each["stage"]: each["outcome"] for each in bench.events() if each["event"] == "end"}
    assert ends == {"load": "ok", "smoke": "failed", "work": "failed"}
    assert (bench.dir / "report.html").is_file()


def test_what_must_not_be_logged_is_not_journalled(bench: Bench) -> None:
    bench.play({"work": {"fail": "password hunter2 is wrong"}, "no_log": True})
    assert bench.events()[-1]["cause"] == _step.HIDDEN
    assert "hunter2" not in "".join(path.read_text(encoding="utf-8") for path in bench.dir.iterdir())


@pytest.mark.parametrize("how", [{"check": True}, {"begin": False}])
def test_a_dry_run_and_a_role_alone_have_no_journal(bench: Bench, how: dict[str, Any]) -> None:
    done = bench.play({"work": {}}, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(bench.dir.iterdir()) == []


LOST = {"work": {}, "delegate_to": "gone", "register": "found"}
RESCUED = {
    "block": [LOST],
    "rescue": [{"ansible.builtin.debug": {"msg": "LOST={{ found.lost }} {{ found.msg }}"}}],
}


def test_in_a_rollout_a_lost_balancer_is_a_failure_that_a_rescue_answers(bench: Bench) -> None:
    done = bench.play(RESCUED, __triton_serve_rolling=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LOST=False gone (for a) cannot be reached: " in done.stdout and "unreachable=0" in done.stdout
    assert bench.events()[-1]["outcome"] == "failed"


def test_elsewhere_a_lost_connection_is_what_ansible_says(bench: Bench) -> None:
    done = bench.play(RESCUED)
    assert done.returncode == 4 and "unreachable=1" in done.stdout
    assert bench.events()[-1]["outcome"] == "failed"


def test_elsewhere_a_lost_host_is_reported_as_lost_at_once(bench: Bench) -> None:
    done = bench.play({"work": {}}, ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    assert done.returncode == 4 and "unreachable=1" in done.stdout
    row = json.loads((bench.dir / "report.jsonl").read_text(encoding="utf-8"))
    assert (row["host"], row["outcome"]) == ("a", "lost") and row["cause"].startswith("Failed to connect")


def test_in_a_rollout_a_lost_host_is_marked_as_lost(bench: Bench) -> None:
    rescued = {"block": [{"work": {}, "register": "found"}], "rescue": RESCUED["rescue"]}
    done = bench.play(rescued, __triton_serve_rolling=True, ansible_connection="ssh", ansible_host="127.0.0.1",
                      ansible_port=1)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LOST=True a cannot be reached: " in done.stdout and "unreachable=0" in done.stdout
    assert bench.events()[-1]["outcome"] == "lost"


def test_a_long_step_tells_how_far_it_is(bench: Bench) -> None:
    flag = bench.path / "enough"
    running = subprocess.Popen(
        [sys.executable, "-c", WAIT, str(bench.dir / "events.jsonl"), str(flag)], env={**os.environ}
    )
    try:
        done = bench.play({"work": {"state": "long", "until": str(flag)}, "register": "found"},
                          {"ansible.builtin.stat": {"path": "{{ found.progress }}"}, "register": "left"},
                          {"ansible.builtin.assert": {"that": "not left.stat.exists"}})  # fmt: skip
    finally:
        running.kill()
        running.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^a: converting, \d+ s, rank 3 of 8$", done.stdout, re.M), done.stdout
    told = next(each for each in bench.events() if each["event"] == "progress" and "done" in each)
    assert (told["stage"], told["done"], told["total"], told["unit"]) == ("convert", 3, 8, "ranks")


# Lets the module end as soon as the controller has read what it tells.
WAIT = """
import pathlib, sys, time
events, flag = map(pathlib.Path, sys.argv[1:])
while not (events.exists() and '"unit"' in events.read_text()):
    time.sleep(0.05)
flag.touch()
"""


def test_parts_are_placed_before_the_answer() -> None:
    parts = [{"name": "load", "offset_s": 0.0, "seconds": 3.0}, {"name": "smoke", "offset_s": 3.0, "seconds": 1.0}]
    found = _step.placed(parts, 100.0, 110.0)
    assert [(each["name"], each["start"], each["end"]) for each in found] == [("load", 106, 109), ("smoke", 109, 110)]
    # A clock that runs faster does not lead out of the step.
    slow = _step.placed(parts, 100.0, 102.0)
    assert all(100.0 <= each["start"] <= each["end"] <= 102.0 for each in slow)
    assert _step.placed([{"name": "x", "seconds": "?"}, {"offset_s": 1}, None], 0.0, 1.0) == []
    assert _step.placed("nothing", 0.0, 1.0) == []


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.9, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_elapsed_time_is_told_in_words(seconds: float, said: str) -> None:
    assert _watcher.seconds(seconds) == said


def test_a_line_of_a_step_that_tells_nothing(tmp_path: Path) -> None:
    assert _watcher.line("a", "convert", 40, {}) == "a: converting, 40 s"
    assert _watcher.line("a", "weights", 40, {"what": "asking", "text": "soon"}) == "a: asking, 40 s, soon"
    assert _watcher.line("a", "other", 1, {"what": "x\ny"}) == "a: x y, 1 s"


def test_files_for_progress_have_names_that_nobody_knows() -> None:
    assert _watcher.file_for() != _watcher.file_for()
    assert _watcher.file_for().startswith("/tmp/")
    assert json.dumps(_watcher.file_for())
