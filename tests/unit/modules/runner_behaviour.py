# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How every runner behaves. Imported by the tests of each, which say by the fixture ``bench`` which one it is."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _runner_base
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import NoSpace
from ansible_collections.trtllm.serving.plugins.module_utils._runner import (
    TAIL_LINES,
    Cancellation,
    Cancelled,
    NotStarted,
    Runner,
    RunResult,
    TimedOut,
)

SLEEP = "import time; time.sleep(60)"


class Bench(Protocol):
    """A runner and the directories that its tool may use: it works in ``cwd`` and writes into ``out``."""

    killed: int
    # Seconds in which a tool has surely started.
    timeout: float
    cwd: Path
    out: Path
    log: Path

    def runner(self, cancellation: Cancellation | None = None, grace_s: float = 0.5) -> Runner: ...

    def python(self, code: str) -> list[str]:
        """The command that runs Python code where the runner runs things."""

    def running(self, pids: Sequence[int]) -> bool:
        """Whether anything of the tool runs still; its processes have these ids where it runs."""


def run(bench: Any, code: str, runner: Runner | None = None, **how: Any) -> RunResult:
    runner = runner or bench.runner()
    found = runner.run(bench.python(code), log_file=bench.log, cwd=bench.cwd, writes=[bench.out], **how)
    assert isinstance(found, RunResult)
    return found


def pids_of(bench: Any) -> list[int]:
    return [int(line) for line in (bench.out / "pids").read_text().split()]


def test_result_and_log(bench: Any) -> None:
    lines: list[str] = []
    code = (
        "import os, sys\nfor n in range(20): print('out', n); print('err', n, file=sys.stderr)\n"
        "print(os.getcwd()); sys.exit(3)"
    )
    found = run(bench, code, on_line=lines.append)
    assert found.rc == 3 and found.duration_s > 0 and found.log_file == str(bench.log)
    assert found.argv == tuple(bench.python(code))
    expected = [f"{name} {number}" for number in range(20) for name in ("out", "err")]
    assert list(found.tail) == [*expected, str(bench.cwd)] == lines
    assert bench.log.stat().st_mode & 0o777 == 0o640
    log = bench.log.read_text()
    assert "\nout 0\nerr 0\n" in log and log.startswith("# 2") and log.rstrip().splitlines()[-1].startswith("# ended ")


def test_both_outputs_keep_their_order(bench: Any) -> None:
    lines: list[str] = []
    run(bench, "import os\nfor n in range(4000): os.write(1 + n % 2, b'%d\\n' % n)", on_line=lines.append)
    assert lines == [str(number) for number in range(4000)]


def test_lines_come_while_the_tool_runs(bench: Any) -> None:
    """The tool waits for a file that is made when its line has come."""
    code = (
        "import os, time\nprint('ready')\nfor n in range(500):\n if os.path.exists('go'): break\n time.sleep(.02)\n"
        "else: raise SystemExit('nobody heard it')\nprint('went')"
    )
    found = run(bench, code, on_line=lambda line: (bench.cwd / "go").touch() if line == "ready" else None)
    assert (found.rc, found.tail) == (0, ("ready", "went"))
    assert "ready" in bench.log.read_text()


def test_environment_reaches_the_tool(bench: Any) -> None:
    found = run(bench, "import os; print(os.environ['NAME'], os.environ['NUMBER'])", env={"NAME": "ä ö", "NUMBER": 1})
    assert found.tail == ("ä ö 1",)


def test_signal_of_the_tool_is_its_return_code(bench: Any) -> None:
    # A tool that is process 1 of its container could not even be killed.
    assert run(bench, "import os; os.kill(os.getpid(), 9)").rc == bench.killed


def test_a_lot_of_output_is_kept_in_the_log_only(bench: Any) -> None:
    code = "import sys\nfor n in range(20000): print('line %d' % n)\nsys.stdout.write('x' * 3000000)"
    found = run(bench, code)
    assert len(found.tail) <= TAIL_LINES and max(map(len, found.tail)) <= 4096
    log = bench.log.read_text().splitlines()
    assert [line for line in log if re.match(r"line \d+$", line)] == [f"line {number}" for number in range(20000)]
    assert log[-2] == "x" * 3000000 and log[-1].startswith("# ended after ")


def test_output_that_is_no_text(bench: Any) -> None:
    found = run(bench, r"import sys; sys.stdout.buffer.write(b'caf\xe9 \xff\x00\n')")
    assert found.tail == ("caf\ufffd \ufffd\x00",)
    assert b"\ncaf\xe9 \xff\x00\n" in bench.log.read_bytes()


def test_progress_bars_are_cut_into_lines(bench: Any) -> None:
    assert run(bench, "print('1%\\r50%\\r100%')").tail == ("1%", "50%", "100%")


def test_no_output_at_all(bench: Any) -> None:
    found = run(bench, "")
    assert (found.rc, found.tail) == (0, ())


def test_output_closed_early(bench: Any) -> None:
    code = "import os, sys, time\nos.close(1); os.close(2); time.sleep(.4)\nopen('done', 'w').close(); os._exit(4)"
    assert run(bench, code).rc == 4 and (bench.cwd / "done").exists()


def test_timeout_ends_even_what_ignores_it_and_moved_away(bench: Any) -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(0)\n"
        f"open({str(bench.out / 'pids')!r}, 'a').write('%d\\n' % os.getpid())\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    with pytest.raises(TimedOut, match=f"within {bench.timeout:g} s: raise timeout"):
        run(bench, code, bench.runner(grace_s=0.2), timeout=bench.timeout)
    assert time.monotonic() - began < 30
    assert len(pids_of(bench)) == 3 and not bench.running(pids_of(bench))


def test_timeout_while_it_prints_without_end(bench: Any) -> None:
    began = time.monotonic()
    with pytest.raises(TimedOut):
        run(bench, "while True: print('x' * 1000)", timeout=bench.timeout)
    assert time.monotonic() - began < 30 and not bench.running([])


def test_tool_may_clean_up_when_it_is_stopped(bench: Any) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*unused):\n open('stopped', 'w').close()\n sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\ntime.sleep(60)"
    )
    with pytest.raises(TimedOut):
        run(bench, code, bench.runner(grace_s=20), timeout=bench.timeout)
    assert (bench.cwd / "stopped").exists()


def test_left_over_processes_do_not_hold_the_run_up(bench: Any) -> None:
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n"
        f"open({str(bench.out / 'pids')!r}, 'w').write('%d' % child.pid)"
    )
    began = time.monotonic()
    assert run(bench, code).rc == 0 and time.monotonic() - began < 30
    assert not bench.running(pids_of(bench))


def test_signal_ends_the_run(bench: Any) -> None:
    told: list[int] = []
    with Cancellation(watch_fd=None, watch_parent=False, on_stop=lambda: told.append(1)) as cancellation:
        timer = threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Cancelled, match="received SIGTERM"):
            run(bench, SLEEP, bench.runner(cancellation))
        timer.join()
    assert told == [1] and not bench.running([])


def test_signal_that_came_before_starts_nothing(bench: Any) -> None:
    with Cancellation(watch_fd=None, watch_parent=False) as cancellation:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Cancelled):
            run(bench, "open('started', 'w')", bench.runner(cancellation))
    assert not (bench.cwd / "started").exists() and not bench.log.exists()


def test_reader_that_closes_is_noticed_at_once(bench: Any) -> None:
    reader, writer = os.pipe()
    try:
        with Cancellation(watch_fd=writer, watch_parent=False) as cancellation:
            cancellation.check()
            timer = threading.Timer(0.8, os.close, (reader,))
            timer.start()
            began = time.monotonic()
            with pytest.raises(Cancelled, match="closed the connection"):
                run(bench, SLEEP, bench.runner(cancellation))
            assert time.monotonic() - began < 30
    finally:
        os.close(writer)
    assert not bench.running([])


def test_not_started(bench: Any) -> None:
    runner = bench.runner()
    (bench.out / "plain").write_text("not executable")
    for command, why in (
        ([str(bench.out / "plain")], "[Pp]ermission denied"),
        ([str(bench.out / "none"), "--option"], "[Nn]o such file|not found"),
        (["no-such-tool"], "[Nn]o such file|not found"),
    ):
        with pytest.raises(
            NotStarted, match=f"^{command[0]} cannot be started .*({why})[^\n]*: check the path"
        ) as caught:
            runner.run(command, log_file=bench.log, cwd=bench.cwd, writes=[bench.out])
        assert "\n" not in str(caught.value)
    assert not bench.running([])


def test_tool_that_ends_as_if_it_were_missing(bench: Any) -> None:
    assert run(bench, "print('sh: not one'); raise SystemExit(127)").rc == 127


def test_log_that_cannot_be_written(bench: Any) -> None:
    (bench.out / "file").write_text("")
    with pytest.raises(NotStarted, match="log .* cannot be written .*choose a directory"):
        bench.runner().run(bench.python("open('started', 'w')"), log_file=bench.out / "file" / "a.log", cwd=bench.cwd)
    assert not (bench.cwd / "started").exists()


def test_disk_full_while_logging(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _runner_base.write_all

    def full(fd: int, data: bytes) -> None:
        if b"marker" in data or b"# ended" in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(fd, data)

    monkeypatch.setattr(_runner_base, "write_all", full)
    with pytest.raises(NoSpace, match=f"no space left .* below {bench.log.parent}: free some") as caught:
        run(bench, "import time; print('mark' + 'er'); time.sleep(60)")
    assert "\n" not in str(caught.value) and not bench.running([])


def test_sweep_of_nothing(bench: Any) -> None:
    bench.runner().sweep()
