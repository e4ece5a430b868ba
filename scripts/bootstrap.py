#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at what `make demo` needs, says all that is missing, and makes the controller's virtual environment.

The checks are those of the playbooks' preflight, before anything is downloaded. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".collections"))
sys.dont_write_bytecode = True

from ansible_collections.trtllm.serving.plugins.module_utils._host import (
    ask_python,
    examine,
)

# ansible-core 2.19 runs on these.
CONTROLLER = ("3.11", "3.12")


def find_controller() -> str | None:
    for name in ("python3", *("python" + version for version in CONTROLLER)):
        path = shutil.which(name)
        facts = ask_python(path) if path else None
        if facts and facts["version"] in CONTROLLER and facts["venv"]:
            return str(facts["executable"])
    return None


def make_environment(venv: Path, requirements: Path, python: str) -> None:
    """The environment counts as made only with its stamp, which is written last."""
    stamp = venv / "COMPLETE"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="ascii").strip() == wanted:
        return
    print("Installing %s into %s" % (requirements.name, os.path.relpath(venv)), flush=True)
    if venv.exists():
        shutil.rmtree(venv)
    subprocess.run([python, "-I", "-m", "venv", str(venv)], check=True)
    subprocess.run(
        [str(venv / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet", "--no-input", "--no-compile",
         "--disable-pip-version-check", "--require-hashes", "--requirement", str(requirements)],
        check=True,
    )  # fmt: skip
    stamp.write_text(wanted + "\n", encoding="ascii")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--requirements", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="trtllm_home; without it the host is not looked at")
    parser.add_argument("--port", type=int, action="append", default=[], help="HTTP, gRPC, metrics")
    parser.add_argument("--space", type=int, default=4500, help="room that a first deployment needs, in MiB")
    options = parser.parse_args()

    problems: list[str] = []
    if options.home is not None:
        ports = dict(zip(("http_port", "grpc_port", "metrics_port"), options.port))
        _record, problems = examine(str(options.home.absolute()), "127.0.0.1", ports, "", options.space)
    python = find_controller()
    if python is None:
        problems.append("no Python 3.11 or 3.12 with venv for ansible-core: apt-get install python3.11 python3.11-venv")
    if problems or python is None:
        for problem in problems:
            print("ERROR: %s" % problem, file=sys.stderr)
        if options.home is not None:
            hint = "Other ports, another place: make demo HTTP_PORT=.. GRPC_PORT=.. METRICS_PORT=.. TRTLLM_HOME=/.."
            print(hint, file=sys.stderr)
        return 1
    try:
        make_environment(options.venv.absolute(), options.requirements.absolute(), python)
    except (OSError, subprocess.CalledProcessError) as exc:
        print("ERROR: installing %s failed: %s" % (options.requirements, exc), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
