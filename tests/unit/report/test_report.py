# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report tells of a journal, in the table, the files and the page."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.plugin_utils import _report, _report_page
from ansible_collections.trtllm.serving.plugins.plugin_utils._journal import Journal

sys.path.insert(0, str(Path(__file__).parent))
from story import CAUSE, NEW, OLD, SPENT, STARTED, UNREACHABLE, Story, fleet, write

RUN = {"id": "20251124-160000-0a1b2c", "started": STARTED}


def lane(report: _report.Report, host: str) -> _report.Lane:
    return next(each for each in report.lanes if each.host == host)


@pytest.fixture(scope="module")
def told() -> _report.Report:
    return _report.build(fleet(), RUN)


def test_hosts_stand_by_pool_and_batch_and_those_in_no_batch_last(told: _report.Report) -> None:
    assert [(each.host, each.pool, each.batch) for each in told.lanes] == [
        ("chat001", "chat", 1), ("chat002", "chat", 2), ("chat003", "chat", 3), ("chat004", "chat", 0),
        ("embed001", "embed", 1), ("embed002", "embed", 2),
    ]  # fmt: skip


def test_each_host_has_its_outcome_and_its_way(told: _report.Report) -> None:
    assert [each.outcome for each in told.lanes] == ["done", "done", "done", "lost", "failed", "skipped"]
    done, failed = lane(told, "chat001"), lane(told, "embed001")
    assert (done.source, done.target, done.left) == (OLD, NEW, f"serves {NEW}")
    assert (failed.cause, failed.left) == (CAUSE, f"serves {OLD}")
    assert lane(told, "chat004").cause == UNREACHABLE


def test_a_step_with_parts_is_told_by_its_parts(told: _report.Report) -> None:
    took = lane(told, "chat002").seconds()
    assert took["load"] == 11.2 and took["smoke"] == 2.0 and "gate" not in took
    assert took["undrain"] == 1.4
    # What is said of a drain and of a bake is all in their own time.
    assert took["bake"] == 5.0
    # The switch had 6.8 of its 7.4 seconds, the gate 13.6 of its 14.
    assert took["rest"] == pytest.approx(1.0)
    # One of its parts has the name of the step itself.
    assert took["switch"] == pytest.approx(0.1)
    steps = [span for span in lane(told, "chat002").spans if not span.within]
    assert sum(took.values()) == pytest.approx(sum(span.seconds for span in steps))


def test_stages_stand_in_the_order_in_which_they_happen(told: _report.Report) -> None:
    took = list(lane(told, "chat001").seconds())
    assert took == [
        "image", "weights", "convert", "build", "publish", "generation", "begin", "drain", "stop", "switch", "start",
        "load", "gpu", "smoke", "undrain", "bake", "settle", "rest",
    ]  # fmt: skip


def test_failures_have_their_cause_in_one_line(told: _report.Report) -> None:
    failures = told.failures()
    assert sorted(failures) == ["chat004", "embed001", "embed002"]
    assert failures["embed001"] == f"failed: {CAUSE} (serves {OLD})"
    assert failures["chat004"] == f"lost: {UNREACHABLE}"
    assert all("\n" not in said for said in failures.values())


def test_a_cause_that_many_share_is_told_once() -> None:
    report = _report.build(fleet(4, 9), RUN)
    said = dict(report.troubles())
    assert said[f"skipped: {SPENT} (serves {OLD})"] == [f"embed00{number}" for number in range(2, 10)]


def test_the_table_is_aligned_and_ends_with_the_causes(told: _report.Report) -> None:
    lines = _report.table(told)
    head = lines[0].split()
    assert head[:5] == ["host", "pool", "from", "to", "outcome"] and "load" in head and "gate" not in head
    assert [line.split()[0] for line in lines[1:7]] == [each.host for each in told.lanes]
    assert len({line.index(each.outcome) for line, each in zip(lines[1:7], told.lanes)}) == 1
    assert f"embed001: failed: {CAUSE} (serves {OLD})" in lines
    assert lines[-1] == SPENT


def test_what_takes_no_time_takes_no_column() -> None:
    story = Story()
    story.step(0, "a", "p", "begin", 0.01)
    story.step(1, "a", "p", "drain", 2.0)
    assert _report.table(_report.build(story.events))[0].split() == ["host", "pool", "from", "to", "outcome", "drain"]


def test_a_run_that_ends_in_the_middle_tells_of_it() -> None:
    story = Story()
    story.add(0, None, "p", "plan", "note", batches=[["a"], ["b"]], causes={}, unchanged=["c"])
    story.step(1, "a", "p", "drain", 2.0)
    story.add(3, "a", "p", "convert", "start")
    story.add(5, "a", "p", "convert", "progress", what="converting", done=3, total=8, unit="ranks")
    report = _report.build(story.events, RUN)
    assert [each.outcome for each in report.lanes] == ["", "", "unchanged"]
    span = lane(report, "a").spans[-1]
    assert (span.end, span.outcome, span.told) == (None, _report.OPEN, "rank 3 of 8")
    assert report.failures() == {}
    page = _report_page.page(report, STARTED + 6)
    assert "under way" in page and "in convert, rank 3 of 8" in page and "not reached" in page


def test_what_hosts_have_registered_stands_above_the_journal() -> None:
    events = [event for event in fleet() if event["stage"] != "outcome"]
    plan = {"pools": {"chat": {"batches": [["chat001"]], "unchanged": ["chat002"], "causes": {"chat004": "no route"},
                               "moves": {"chat002": {"from": NEW, "to": NEW}}}}}  # fmt: skip
    outcomes: dict[str, Any] = {
        "chat001": ("chat", {"outcome": "failed", "cause": "it broke", "from": OLD, "to": NEW, "left": "no server"}),
        "chat002": ("chat", {}),
    }
    report = _report.of_run(events, RUN, plan, outcomes)
    assert report.failures()["chat001"] == "failed: it broke (no server)"
    assert (lane(report, "chat002").outcome, lane(report, "chat002").target) == ("unchanged", NEW)
    # Without a journal too there is a report.
    report = _report.of_run([], {}, plan, outcomes)
    assert report.failures() == {"chat001": "failed: it broke (no server)", "chat004": "lost: no route"}


def test_a_host_that_has_failed_before_the_plan_tells_the_step_and_not_only_that_it_is_gone() -> None:
    story = Story()
    story.step(0, "a", "p", "convert", 2.0)
    story.step(2, "a", "p", "build", 3.0, outcome="failed", cause="trtllm-build: no memory")
    story.step(0, "b", "p", "fetch", 3.0, outcome="lost", cause="No route to host")
    # Failed once, and was tried again.
    story.step(0, "c", "p", "image", 1.0, outcome="failed", cause="the registry is busy")
    story.step(1, "c", "p", "image", 1.0)
    said = {"a": "failed: trtllm-build: no memory", "b": "lost: No route to host"}
    # Without a plan, where nobody is left; and with the one that the others have.
    everybody = {host: ("p", {}) for host in "abcd"}
    report = _report.of_run(story.events, RUN, {}, everybody)
    assert report.failures() == said and [each.outcome for each in report.lanes] == ["failed", "lost", "", ""]
    causes = dict.fromkeys("abd", "failed or lost before the rollout")
    story.add(6, None, "p", "plan", "note", batches=[["c"]], causes=causes, unchanged=[])
    said["d"] = "lost: failed or lost before the rollout"
    assert _report.build(story.events, RUN).failures() == said
    plan = {"pools": {"p": {"batches": [["c"]], "causes": causes}}}
    assert _report.of_run(story.events, RUN, plan, {}).failures() == said
    # What fails in a batch is for its outcome to tell.
    story.step(7, "c", "p", "gate", 1.0, outcome="failed", cause="slow")
    assert _report.build(story.events, RUN).failures() == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"done": 3, "total": 8, "unit": "ranks"}, "rank 3 of 8"),
        ({"done": 1288490188, "total": 128849018880, "unit": "bytes"}, "1.2 GiB of 120.0 GiB (0 %)"),
        ({"done": 96636764160, "total": 128849018880, "unit": "bytes"}, "90.0 GiB of 120.0 GiB (75 %)"),
        ({"done": 512, "unit": "bytes"}, "512 B"),
        ({"done": 4, "total": 5, "unit": "models"}, "4 of 5 models"),
        ({"text": "1 GiB of 2 GiB,\n 3 min left"}, "1 GiB of 2 GiB, 3 min left"),
        ({"done": 0, "total": 0, "unit": "bytes"}, "0 B"),
        ({}, ""),
        ({"done": "many"}, ""),
    ],
)
def test_progress_is_told_in_words(given: dict[str, Any], said: str) -> None:
    assert _report.how_far(given) == said


class Page(HTMLParser):
    """What a page refers to, and whether its elements are closed."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("sizes", [(4, 2), (160, 40), (1, 0)])
def test_the_page_is_whole_and_needs_nothing_else(sizes: tuple[int, int]) -> None:
    report = _report.build(fleet(*sizes, trouble=sizes != (1, 0)), RUN)
    text = _report_page.page(report, report.ended)
    page = Page(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert "url(" not in text and "@import" not in text
    assert all(each.host in page.text for each in report.lanes)
    assert len(page.ids) == sum(sizes)
    assert "prefers-color-scheme:dark" in text


def test_the_page_shows_what_was_said_and_not_what_it_would_mean(told: _report.Report) -> None:
    text = _report_page.page(told, told.ended)
    assert "Lyon &lt;b&gt;&amp;amp;&lt;/b&gt;" in text and "<b>&amp;" not in text
    assert CAUSE in Page(text).text


def test_bars_lie_where_their_times_are(told: _report.Report) -> None:
    axis = _report_page.Axis(told.lanes, told.started, told.ended)
    for each in told.lanes:
        for span in each.leaves():
            left, width = axis.place(span)
            assert 0 <= left <= 100 and left + width <= 100.001
            assert left == pytest.approx(100 * (span.start - axis.begin) / axis.length)
            assert width == pytest.approx(100 * span.seconds / axis.length, abs=0.001)


def test_every_stage_has_a_colour_of_its_own_in_the_legend(told: _report.Report) -> None:
    text = _report_page.page(told, told.ended)
    stages = {span.stage for each in told.lanes for span in each.leaves()}
    for stage in stages:
        assert f'<i class="s-{stage}"></i>{stage}' in text
        assert re.search(r"\.s-%s\{background-color:#[0-9a-f]{6}\}" % stage, text)
    assert set(_report.STAGES) == set(_report_page.COLOURS)


def test_the_files_are_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: _report.Report
) -> None:
    page = _report.write(told, tmp_path)
    assert page == tmp_path / "report.html"
    rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["host"] for row in rows] == [each.host for each in told.lanes]
    assert rows[4]["outcome"] == "failed" and rows[4]["cause"] == CAUSE and rows[4]["stages"]["load"] == 11.2
    whole = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert whole["run"] == RUN["id"] and whole["notes"] == [SPENT] and len(whole["hosts"]) == 6
    before = page.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_report.os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        _report.write(told, tmp_path)
    assert page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.jsonl"]


def test_a_killed_run_leaves_the_report_of_its_last_outcome(tmp_path: Path) -> None:
    events = fleet()
    cut = next(number for number, event in enumerate(events) if event["stage"] == "outcome")
    write(tmp_path, events[: cut + 1])
    assert _report.so_far({"triton_pool_run": {**RUN, "dir": str(tmp_path)}}) == ""
    rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["outcome"] for row in rows].count("done") == 1 and rows[0]["outcome"] == "done"
    assert "under way" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert _report.so_far({}) == ""
    said = _report.so_far({"triton_pool_run": {"dir": str(tmp_path / "gone")}})
    assert said.startswith(f"the report cannot be written to {tmp_path / 'gone'}: ")


def test_the_journal_itself_can_be_reported(tmp_path: Path) -> None:
    write(tmp_path, fleet())
    assert _report.build(Journal(tmp_path).events(), RUN).as_dict() == _report.build(fleet(), RUN).as_dict()
