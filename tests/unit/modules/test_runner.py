# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._runner import (
    Cancellation,
    Cancelled,
    NativeRunner,
    TimedOut,
    secret_names,
    secret_values,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import LineSink

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("runner_behaviour")

# The tests themselves, which are the same for both runners.
from runner_behaviour import *  # noqa: F403 # pylint: disable=wildcard-import,unused-wildcard-import


class NativeBench:
    killed = -9
    timeout = 1.0

    def __init__(self, root: Path) -> None:
        self.cwd, self.out, self.log = root / "cwd", root / "out", root / "logs" / "a.log"
        self.cwd.mkdir()
        self.out.mkdir()

    def runner(self, cancellation: Cancellation | None = None, grace_s: float = 0.5) -> NativeRunner:
        return NativeRunner(cancellation, grace_s=grace_s)

    def python(self, code: str) -> list[str]:
        return [sys.executable, "-c", code]

    def running(self, pids: Sequence[int]) -> bool:
        """Everything that a tool starts has its working directory, unless it left it."""
        return any(alive(pid) for pid in pids) or any(cwd_of(path) == str(self.cwd) for path in Path("/proc").iterdir())


def cwd_of(process: Path) -> str:
    try:
        return os.readlink(process / "cwd") if process.name.isdigit() else ""
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.fixture
def bench(tmp_path: Path) -> NativeBench:
    return NativeBench(tmp_path)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


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
    sink = LineSink(fd, [SECRET.decode()], None)
    for start in range(0, len(data), step):
        sink.feed(data[start : start + step])
    sink.close()
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == data.replace(SECRET, b"*" * 8)


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


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Cancellation(watch_fd=None, watch_parent=False):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_parent_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation = Cancellation(watch_fd=None)
    cancellation.check()
    monkeypatch.setattr(os, "getppid", lambda: 1 + cancellation._parent)  # type: ignore[operator]
    with pytest.raises(Cancelled, match="is gone"):
        cancellation.check()


def test_secret_is_in_no_log_and_no_result(bench: NativeBench) -> None:
    code = "import os, sys; print('token', os.environ['HF_TOKEN']); sys.exit(sys.argv[1] != os.environ['HF_TOKEN'])"
    found = bench.runner().run(
        [*bench.python(code), "hf_secret"], log_file=bench.log, env={"HF_TOKEN": "hf_secret", "TOKENIZERS_X": "true"}
    )
    assert found.rc == 0 and found.tail == ("token ********",) and found.argv[-1] == "********"
    assert "hf_secret" not in bench.log.read_text()


def test_which_variables_hold_secrets() -> None:
    env = {"HF_TOKEN": "x", "TOKENIZERS_PARALLELISM": "false", "HF_TOKEN_PATH": "/run/token", "PASSWORD": "", "A": "b"}
    assert secret_names(env) == ["HF_TOKEN"]
    assert secret_values({"TOKENIZERS_PARALLELISM": "false"}) == []
