# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the reference backend's tools share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REFERENCE = Path(__file__).resolve().parents[3] / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
if str(REFERENCE) not in sys.path:
    sys.path.insert(0, str(REFERENCE))


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of standard error."""
        return self.err.strip().splitlines()[-1]


Tool = Callable[..., Outcome]


@pytest.fixture
def reference() -> Path:
    return REFERENCE


@pytest.fixture
def run_tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a tool's main as its script does."""
    from tensorrtllm_reference import cli

    def run(main: Callable[[Sequence[str] | None], None], *argv: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(main, [str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def convert(run_tool: Tool) -> Tool:
    from tensorrtllm_reference import convert

    return lambda *argv: run_tool(convert.main, *argv)


@pytest.fixture
def build(run_tool: Tool) -> Tool:
    from tensorrtllm_reference import build

    return lambda *argv: run_tool(build.main, *argv)


def make_tiny(directory: Path, **changes: Any) -> Path:
    from tensorrtllm_reference import tiny

    options = tiny.parser().parse_args(["--output_dir", str(directory)], namespace=tiny.TinyOptions())
    for name, value in changes.items():
        setattr(options, name, value)
    tiny.write_model(options)
    return directory


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 Mixtral in three shards; not to be changed."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "hf", shards=3)


@pytest.fixture
def tiny_factory() -> Callable[..., Path]:
    return make_tiny


@pytest.fixture
def checkpoint_dir(tiny_dir: Path, tmp_path: Path, convert: Tool) -> Path:
    """A converted checkpoint of two ranks, to be changed at will."""
    target = tmp_path / "checkpoint"
    assert convert("--model_dir", tiny_dir, "--output_dir", target, "--dtype", "float32", "--tp_size", 2).code == 0
    return target
