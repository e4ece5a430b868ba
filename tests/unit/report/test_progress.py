# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module tells of itself while it works."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _hub_weights, _image_build, _image_get, _progress


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "progress.json"


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "EVERY_S", 0.0)


def said(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    value.pop("elapsed")
    return value


def await_(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_word_replaces_the_one_before(file: Path) -> None:
    with _progress.Progress(str(file)) as progress:
        assert not file.exists()
        progress.update("fetching a very long name of something", done=123456789, total=987654321, unit="bytes")
        progress.update("fetching", done=1, total=9, unit="bytes")
        assert said(file) == {"what": "fetching", "done": 1, "total": 9, "unit": "bytes"}
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_size == _progress.LENGTH
    assert not file.exists()


def test_words_come_at_most_once_a_second_but_the_last_always(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "EVERY_S", 3600.0)
    progress = _progress.Progress(str(file))
    progress.update("first", done=1, total=9)
    progress.update("second", done=2, total=9)
    assert said(file)["what"] == "first"
    progress.update("last", done=9, total=9)
    assert said(file)["what"] == "last"
    progress.close()


def test_a_long_word_is_cut_and_still_readable(file: Path) -> None:
    with _progress.Progress(str(file)) as progress:
        progress.update("é" * 5000, text="\n" + "é" * 5000)
        assert said(file) == {"what": "é" * 200, "text": "é" * 200}
        progress.update("\x00" * 300, text="\U0001f600" * 300)
        assert said(file)["text"] == "\U0001f600" * 200
        assert file.stat().st_size == _progress.LENGTH


def test_telling_never_fails(tmp_path: Path, file: Path) -> None:
    for path in (None, "", str(tmp_path / "no" / "such" / "place")):
        progress = _progress.Progress(path)
        progress.update("working")
        progress.update("working")
        progress.close()
    file.write_text("of somebody else", encoding="utf-8")
    progress = _progress.Progress(str(file))
    progress.update("working")
    progress.close()
    assert file.read_text(encoding="utf-8") == "of somebody else"


def test_a_link_that_waits_there_is_not_followed(tmp_path: Path, file: Path) -> None:
    file.symlink_to(tmp_path / "target")
    with _progress.Progress(str(file)) as progress:
        progress.update("working")
    assert not (tmp_path / "target").exists()


def test_a_module_that_ends_leaves_no_file(file: Path) -> None:
    code = (
        "import sys; from ansible_collections.trtllm.serving.plugins.module_utils import _progress;"
        "_progress.use(sys.argv[1]); _progress.tell('working', done=1, total=2);"
        "import os; print(os.path.exists(sys.argv[1])); sys.exit(1)"
    )
    root = Path(__file__).resolve().parents[3] / ".collections"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode, done.stderr) == ("True", 1, "")
    assert not file.exists()


def test_files_of_ranks_are_counted(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "EVERY_S", 0.01)
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").touch()
    progress = _progress.Progress(str(file))
    with _progress.RankFiles(progress, made, 4, "converting"):
        await_(file.exists)
        for name in ("rank0.safetensors", "rank1.engine", "rank2.tmp"):
            (made / name).touch()
        await_(lambda: said(file)["done"] == 2)
        assert said(file) == {"what": "converting", "done": 2, "total": 4, "unit": "ranks"}
    progress.close()


def test_a_tool_that_makes_no_ranks_tells_only_that_it_runs(tmp_path: Path, file: Path) -> None:
    progress = _progress.Progress(str(file))
    with _progress.RankFiles(progress, tmp_path, 0, "running importer"):
        await_(lambda: file.exists() and file.stat().st_size > 0)
        assert said(file) == {"what": "running importer"}
    progress.close()


def test_without_a_file_nothing_is_watched(tmp_path: Path) -> None:
    watch = _progress.RankFiles(_progress.Progress(None), tmp_path, 4, "converting")
    with watch:
        assert watch._thread is None


@pytest.fixture
def current(file: Path) -> Any:
    yield _progress.use(str(file))
    _progress.current.close()
    _progress.use(None)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("#12 [build 3/9] RUN make", (3, 9)),
        ("#4 [2/5] COPY . /app", (2, 5)),
        ("Step 7/20 : RUN make", (7, 20)),
        ("#12 DONE 3.1s", None),
    ],
)
def test_a_build_tells_its_steps(current: Any, file: Path, line: str, step: tuple[int, int] | None) -> None:
    _image_build.told(line)
    if step is None:
        assert not file.exists()
    else:
        assert said(file) == {"what": "building the image", "done": step[0], "total": step[1], "unit": "steps"}


def test_a_download_tells_what_its_client_says(current: Any, file: Path) -> None:
    _hub_weights.told("config.json: 1 KiB, its hash is right (1 of 20 files)")
    assert not file.exists()
    _hub_weights.told("1.2 GiB of 90.0 GiB (1 %), 3 of 20 files, 100.0 MiB/s, 15 min left")
    assert said(file)["text"] == "1.2 GiB of 90.0 GiB (1 %), 3 of 20 files, 100.0 MiB/s, 15 min left"


def test_a_pull_tells_the_bytes_of_all_layers(current: Any, file: Path, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        progress = _image_get.Progress(stream)
        for layer, current_bytes, total in (("a", 10, 100), ("b", 5, 50), ("a", 60, 100)):
            progress.event({"id": layer, "progressDetail": {"current": current_bytes, "total": total}})
    assert said(file) == {"what": "pulling the image", "done": 65, "total": 150, "unit": "bytes"}
