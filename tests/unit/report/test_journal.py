# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many processes write into the journal at once, and each of them may be killed or find the disk full."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal


def test_an_event_is_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.event("a", "chat", "drain", "end", "failed", at=12.3456, cause="Grüße\nand more", lost=None)
    line = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "time": 12.346, "host": "a", "pool": "chat", "stage": "drain", "event": "end", "outcome": "failed",
        "cause": "Grüße\nand more",
    }  # fmt: skip
    assert list(journal.events()) == [json.loads(line)]
    assert stat.S_IMODE((tmp_path / "events.jsonl").stat().st_mode) & 0o027 == 0


def test_without_a_directory_nothing_is_kept() -> None:
    for journal in (Journal(""), Journal(None), Journal.of({}), Journal.of({"triton_pool_run": {"dir": ""}})):
        journal.event("a", "p", "drain", "start")
        assert list(journal.events()) == [] and journal.problem == ""


def test_the_run_of_a_task_has_the_journal(tmp_path: Path) -> None:
    assert Journal.of({"triton_pool_run": {"dir": str(tmp_path)}}).path == tmp_path / "events.jsonl"
    # A first task that was skipped registers something else.
    assert Journal.of({"triton_pool_run": {"skipped": True}}).path is None


def test_a_journal_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gone")
    journal.event("a", "p", "drain", "start")
    assert journal.problem == f"{tmp_path / 'gone' / 'events.jsonl'} cannot be written: No such file or directory"
    assert list(journal.events()) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    journal = Journal(tmp_path)
    journal.event("a", "p", "drain", "start")
    assert journal.problem and not (tmp_path / "elsewhere").exists()


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.event("a", "p", "drain", "start", at=1.0)
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"time": 2.0, "host": "a", "sta')
    journal.event("a", "p", "drain", "end", at=3.0)
    assert [entry["time"] for entry in journal.events()] == [1.0, 3.0]


def test_lines_of_others_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('[]\n7\n{"host": "a"}\n{"time": "now"}\n\n{"time": 1}\n', encoding="utf-8")
    assert list(Journal(tmp_path).events()) == [{"time": 1}]


def test_an_event_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="event 'begin' is not known: use one of start, end, progress, note"):
        Journal(tmp_path).event("a", "p", "drain", "begin")


def _many(directory: Path, who: int) -> None:
    journal = Journal(directory)
    for number in range(50):
        journal.event(f"h{who}", "p", "drain", "note", number=number, text="x" * (37 * who))


def test_workers_do_not_mix_their_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_many, args=(tmp_path, who)) for who in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    found = [(entry["host"], entry["number"]) for entry in Journal(tmp_path).events()]
    assert sorted(found) == sorted((f"h{who}", number) for who in range(6) for number in range(50))
