# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Becomes the server that launch.json describes. Run by the supervisor, in trtllm_home, at every (re)start.

Writes run/triton.pid, so that whoever waits for the server can see it die, and clears what a killed one left behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

SHM = Path("/dev/shm")


def shm_prefix(home: Path) -> str:
    """Names this home's shared memory, so that two servers on one machine never touch each other's."""
    return "trtllm_%s_" % hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:8]


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name("." + path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def main() -> None:
    home = Path.cwd()
    launch = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    prefix = shm_prefix(home)
    for leftover in SHM.glob(prefix + "*"):
        leftover.unlink(missing_ok=True)
    argv = [*map(str, launch["argv"]), "--backend-config=python,shm-region-prefix-name=" + prefix]
    env = dict(os.environ)
    for name, given in launch["env"].items():
        value = str(given)
        # PATH-like variables go in front of what the host already has.
        env[name] = os.pathsep.join([value, env[name]]) if name in launch["prepend"] and env.get(name) else value
    write_atomically(home / "run" / "triton.pid", "%d\n" % os.getpid())
    print("=== triton pid %d generation %s" % (os.getpid(), os.path.basename(os.path.realpath("current"))), flush=True)
    os.execve(argv[0], argv, env)


if __name__ == "__main__":
    main()
