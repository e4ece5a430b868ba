# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run from its beginning to its report, by the role's own tasks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
OLD, NEW = "16e27fbda35d9ef2", "28badbcdcfb8cef4"


def role(part: str, **more: Any) -> dict[str, Any]:
    return {"ansible.builtin.import_role": {"name": "trtllm.serving.triton_pool", "tasks_from": part}, **more}


OUTCOME = {
    "trtllm.serving.rollout_outcome": {
        "outcome": "{{ becomes }}", "cause": "{{ cause | default('') }}", "from": OLD, "to": NEW, "left": "serves x",
    },
    "register": "triton_serve_outcome",
}  # fmt: skip
PLAYS = [
    {"hosts": "trtllm", "gather_facts": False, "tasks": [role("begin")]},
    {"hosts": "trtllm", "gather_facts": False, "serial": 1, "tasks": [{**OUTCOME, "when": "becomes is defined"}]},
    {"hosts": "trtllm", "gather_facts": False, "tasks": [role("report")]},
]


def run(
    path: Path, hosts: dict[str, dict[str, Any]], *words: str, plan: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    variables: dict[str, Any] = {"triton_pool_report_dir": str(path / "runs"), "ansible_connection": "local"}
    if plan is not None:
        variables["triton_pool_plan"] = plan
    (path / "ansible.cfg").touch()
    (path / "play.yml").write_text(yaml.safe_dump(PLAYS), encoding="utf-8")
    inventory = {"trtllm": {"hosts": hosts, "vars": variables}}
    (path / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    environment = {
        **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(path / "ansible.cfg"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", "play.yml", *words],
        cwd=path, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_run_that_failed_on_some_hosts_tells_all_and_fails_those(tmp_path: Path) -> None:
    plan = {"pools": {"chat": {"batches": [["a"], ["b", "c"]], "unchanged": ["d"], "causes": {"e": "unreachable"},
                               "moves": {}}}}  # fmt: skip
    hosts = {
        "a": {"becomes": "done", "triton_pool": "chat"},
        "b": {"becomes": "failed", "cause": "smoke prompt 'x': late\nmuch more", "triton_pool": "chat"},
        "c": {"becomes": "skipped", "cause": "the budget is spent", "triton_pool": "chat"},
        "d": {"triton_pool": "chat", "triton_serve_preflight": {"host": {"current": NEW}}},
    }
    done = run(tmp_path, hosts, plan=plan)
    assert done.returncode == 2, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"[a-e] +chat ", line)]
    assert [(row[0], row[2], row[3], row[4]) for row in rows] == [
        ("a", OLD, NEW, "done"), ("b", OLD, NEW, "failed"), ("c", OLD, NEW, "skipped"), ("d", NEW, NEW, "unchanged"),
        ("e", "-", "-", "lost"),
    ]  # fmt: skip
    assert "b: failed: smoke prompt 'x': late (serves x)" in done.stdout
    # Those that are well stay well.
    recap = done.stdout.rpartition("PLAY RECAP")[2]
    assert [line.split("failed=")[1][0] for line in recap.splitlines() if "failed=" in line] == ["0", "1", "1", "0"]
    (directory,) = [path for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", directory.name)
    assert (tmp_path / "runs" / "latest").resolve() == directory
    assert f"{directory}/report.html has it as a timeline" in done.stdout
    found = [json.loads(line) for line in (directory / "report.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["host"], row["batch"], row["outcome"]) for row in found] == [
        ("a", 1, "done"), ("b", 2, "failed"), ("c", 2, "skipped"), ("d", None, "unchanged"), ("e", None, "lost"),
    ]  # fmt: skip
    assert {path.name for path in directory.iterdir()} == {
        "events.jsonl", "report.html", "report.json", "report.jsonl", ".report.lock",
    }  # fmt: skip
    assert directory.stat().st_mode & 0o007 == 0


def test_a_run_that_went_well_ends_well(tmp_path: Path) -> None:
    done = run(tmp_path, {"a": {"becomes": "done"}, "b": {"becomes": "unchanged"}})
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dry_run_writes_nothing_and_shows_what_is_planned(tmp_path: Path) -> None:
    plan = {"pools": {"default": {"batches": [["a"]], "unchanged": ["b"], "moves": {"a": {"from": OLD, "to": NEW}}}}}
    done = run(tmp_path, {"a": {}, "b": {}}, "--check", plan=plan)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^a +default +{OLD} +{NEW} +planned$", done.stdout, re.M)
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_cannot_be_made_is_refused_before_anything(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    done = run(tmp_path, {"a": {"becomes": "done"}})
    assert done.returncode == 2
    said = json.loads(done.stdout.partition("FAILED! => ")[2].partition("\n")[0])["msg"]
    assert said.startswith(f"the directory {tmp_path}/runs/") and "set triton_pool_report_dir" in said


def test_old_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    old = [runs / ("2026010%d-120000-abcdef" % day) for day in range(1, 5)]
    other = [runs / "20260101-notes", runs / "20250101-120000-ABCDEF"]
    for path in [*old, *other]:
        path.mkdir(parents=True)
    (old[0] / "events.jsonl").write_text("{}\n", encoding="utf-8")
    done = run(tmp_path, {"a": {"becomes": "done"}}, "-e", "triton_pool_reports_kept=3")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {path for path in runs.iterdir() if not path.is_symlink()}
    assert {*old, *other} & kept == {*old[2:], *other}
    assert len(kept) == 5
    assert run(tmp_path, {"a": {}}, "-e", "triton_pool_reports_kept=1", "--check").returncode == 0
    assert {path for path in runs.iterdir() if not path.is_symlink()} == kept, "not in check mode"
    refused = run(tmp_path, {"a": {}}, "-e", "triton_pool_reports_kept=-1")
    assert refused.returncode == 2 and "triton_pool_reports_kept '-1' is no number of runs" in refused.stdout


def test_an_outcome_that_is_not_known_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, {"a": {"becomes": "great"}})
    assert "outcome 'great' is not known: use one of done, unchanged, failed, lost, skipped" in done.stdout
