# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout says of its settings and of its failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.filter.failure import failure_line
from ansible_collections.trtllm.serving.plugins.filter.rollout import rollout_problems


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"msg": "the model\n is gone"}, "the model is gone"),
        (
            {"msg": "non-zero return code", "cmd": ["sh", "-c", "x"], "stderr": "first\nlast\n", "stdout": "said"},
            "sh -c x: non-zero return code: last",
        ),
        (
            {"msg": "The command exited with a non-zero return code.", "cmd": "x y", "stderr": "why"},
            "x y: The command exited with a non-zero return code.: why",
        ),
        ({"msg": "MODULE FAILURE", "module_stderr": "Traceback\nKeyError: 1"}, "MODULE FAILURE: KeyError: 1"),
        (
            {"msg": "One or more items failed", "results": [
                {"failed": True, "msg": "a"}, {"msg": "fine"}, {"failed": True, "msg": "a"},
                {"failed": True, "msg": "b"},
            ]},
            "a; b",
        ),
        ({}, "failed without a word"),
        (None, "the task failed without a word"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line(result: Any, line: str) -> None:
    assert failure_line(result) == line


def test_a_long_failure_is_cut() -> None:
    assert len(failure_line({"msg": "x" * 5000})) == 1000


def hook(path: Path, text: str) -> dict[str, Any]:
    path.write_text(text, "utf-8")
    return {"hooks": {"before_drain": str(path)}}


GOOD = """
- name: One
  command: /bin/true
- block:
    - include_role: {name: of_mine}
  rescue:
    - debug: {msg: "{{ what }}"}
"""


def test_hooks_that_can_be_run(tmp_path: Path) -> None:
    assert rollout_problems(hook(tmp_path / "hook.yml", GOOD)) == []
    assert rollout_problems({}) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: x\n  bad: [", "cannot be read"),
        ("name: x", "is not a list of tasks"),
        ("- just text", "task 1 is no task"),
        ("- name: nothing to do", "task 1: no module/action detected in task"),
        ("- name: a\n  command: x\n- name: b\n  command: x\n  shell: y", "task 2: conflicting action statements"),
        ("- block:\n    - nonsense", "task 1 is no task"),
    ],
)
def test_hooks_that_would_end_the_run_are_refused_before_it(tmp_path: Path, text: str, said: str) -> None:
    (problem,) = rollout_problems(hook(tmp_path / "hook.yml", text))
    assert said in problem and "hook.yml" in problem and "\n" not in problem


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hooks": {"before_lunch": "/x"}}, "use before_drain, after_drain, before_undrain, after_rollout"),
        ({"hooks": {"after_drain": "hooks/x.yml"}}, "is not absolute: write it as {{ inventory_dir }}/hooks/x.yml"),
        ({"hooks": {"after_drain": "/nowhere/x.yml"}}, "is not a file of the controller"),
        ({"hooks": ["x"]}, "give a task file for each of"),
        ({"load_balancer": "nginx"}, "'nginx' is not known: use none or haproxy"),
        ({"load_balancer": "haproxy"}, "give a list with the host of each"),
        ({"load_balancer": "haproxy", "haproxy": [{"socket": "/x"}]}, "has no host"),
        ({"load_balancer": "haproxy", "haproxy": [{"host": "lb9"}], "hosts": ["lb1"]}, "'lb9' is not in the inventory"),
        ({"load_balancer": "haproxy", "haproxy": [{"host": "lb1", "sock": "x"}]}, "has 'sock', which is not known"),
        ({"load_balancer": "haproxy", "haproxy": [{"host": "lb1", "min_up": "50%"}]}, "min_up '50%' is no number of"),
        ({"drain_expired": "wait"}, "'wait' is not known: use fail or continue"),
        ({"drain_timeout": "soon"}, "'soon' is no number of seconds"),
        ({"drain_timeout": -1}, "-1 is no number of seconds"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    (problem,) = rollout_problems(settings)
    assert said in problem
