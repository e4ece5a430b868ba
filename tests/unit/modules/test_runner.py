# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._runner import (
    TAIL_LINES,
    Cancellation,
    Cancelled,
    NativeRunner,
    NotStarted,
    TimedOut,
    _LineSink,
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_result_and_log(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import os, sys; print('out'); print('err', file=sys.stderr); print(os.getcwd()); sys.exit(3)"
    found = NativeRunner().run(python(code), log_file=tmp_path / "logs" / "a.log", cwd=tmp_path, on_line=lines.append)
    assert found.rc == 3 and found.duration_s > 0
    assert sorted(found.tail) == sorted(["out", "err", str(tmp_path)]) and sorted(lines) == sorted(found.tail)
    log = Path(found.log_file)
    assert log.stat().st_mode & 0o777 == 0o640
    assert "\nout\n" in log.read_text() and "ended after" in log.read_text()


def test_signal_of_the_tool_is_its_return_code(tmp_path: Path) -> None:
    found = NativeRunner().run(python("import os; os.kill(os.getpid(), 9)"), log_file=tmp_path / "a.log")
    assert found.rc == -9


def test_a_lot_of_output_is_kept_in_the_log_only(tmp_path: Path) -> None:
    code = "import sys\nfor n in range(20000): print('line %d' % n)\nsys.stdout.write('x' * 3000000)"
    found = NativeRunner().run(python(code), log_file=tmp_path / "a.log")
    assert len(found.tail) <= TAIL_LINES and max(map(len, found.tail)) <= 4096
    assert (tmp_path / "a.log").stat().st_size > 3000000


def test_progress_bars_are_cut_into_lines(tmp_path: Path) -> None:
    found = NativeRunner().run(python("print('1%\\r50%\\r100%')"), log_file=tmp_path / "a.log")
    assert found.tail == ("1%", "50%", "100%")


SECRET = b"hf_abcdefgh"
LONG = 70000  # longer than a line may get before it is passed on in pieces


@pytest.mark.parametrize(
    ("data", "step"),
    [
        (b"a " + SECRET + b" b\n", 1),
        (b"a " + SECRET + b" b\n", 3),
        (b"y" * (LONG - 5) + SECRET + b"z" * LONG + SECRET, LONG),  # only its beginning is there at the cut
        (b"y" * (LONG - len(SECRET) - 3) + SECRET + b"z" * LONG, LONG),  # the cut would go through it
        (b"y" * (LONG - 3) + SECRET * 3 + b"z" * LONG, LONG),
    ],
)
def test_secret_is_masked_wherever_the_stream_is_cut(tmp_path: Path, data: bytes, step: int) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    sink = _LineSink(fd, [SECRET.decode()], None)
    for start in range(0, len(data), step):
        sink.feed(data[start : start + step])
    sink.close()
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == data.replace(SECRET, b"*" * 8)


def test_timeout_ends_even_what_ignores_it_and_moved_away(tmp_path: Path, helpers: Any) -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(0)\n"
        f"open({str(tmp_path / 'pids')!r}, 'a').write('%d\\n' % os.getpid())\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    with pytest.raises(TimedOut, match="within 0.5 s"):
        NativeRunner(grace_s=0.2).run(python(code), log_file=tmp_path / "a.log", timeout=0.5)
    assert time.monotonic() - began < 5
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3 and not any(helpers.alive(pid) for pid in pids)


def test_left_over_processes_do_not_hold_the_run_up(tmp_path: Path, helpers: Any) -> None:
    code = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True).pid)"
    )
    began = time.monotonic()
    found = NativeRunner(grace_s=0.5).run(python(code), log_file=tmp_path / "a.log")
    assert found.rc == 0 and time.monotonic() - began < 5
    assert not helpers.alive(int(found.tail[0]))


def test_other_children_of_the_caller_are_left_alone(tmp_path: Path, helpers: Any) -> None:
    import subprocess

    other = subprocess.Popen(python("import time; time.sleep(60)"))
    try:
        with pytest.raises(TimedOut):
            NativeRunner(grace_s=0.2).run(python("import time; time.sleep(60)"), log_file=tmp_path / "a", timeout=0.3)
        assert helpers.alive(other.pid)
    finally:
        other.kill()
        other.wait()


def test_signal_ends_the_run(tmp_path: Path) -> None:
    told: list[int] = []
    with Cancellation(watch_fd=None, watch_parent=False, on_stop=lambda: told.append(1)) as cancellation:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Cancelled, match="received SIGTERM"):
            NativeRunner(cancellation).run(python("import time; time.sleep(60)"), log_file=tmp_path / "a.log")
        timer.join()
    assert told == [1]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Cancellation(watch_fd=None, watch_parent=False):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_reader_that_closes_is_noticed_at_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        with Cancellation(watch_fd=writer, watch_parent=False) as cancellation:
            cancellation.check()
            timer = threading.Timer(0.3, os.close, (reader,))
            timer.start()
            began = time.monotonic()
            with pytest.raises(Cancelled, match="closed the connection"):
                NativeRunner(cancellation).run(python("import time; time.sleep(60)"), log_file=tmp_path / "a.log")
            assert time.monotonic() - began < 3
    finally:
        os.close(writer)


def test_parent_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation = Cancellation(watch_fd=None)
    cancellation.check()
    monkeypatch.setattr(os, "getppid", lambda: 1 + cancellation._parent)  # type: ignore[operator]
    with pytest.raises(Cancelled, match="is gone"):
        cancellation.check()


def test_not_started(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("not executable")
    with pytest.raises(NotStarted, match="plain cannot be started .Permission denied"):
        NativeRunner().run([str(tmp_path / "plain")], log_file=tmp_path / "a.log")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotStarted, match="log .* cannot be written"):
        NativeRunner().run(["true"], log_file=tmp_path / "file" / "a.log")
