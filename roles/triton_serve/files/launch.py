# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Becomes the server that launch.json describes. Run by the supervisor, in trtllm_home, at every (re)start.

Writes run/triton.pid, so that whoever waits for the server can see it die, and clears what a killed one left behind.

A host has two slots for servers. In the second one (TRTLLM_SLOT is -b) the server has ports of its own, higher by
surge_port_offset of launch.json, and its files have that suffix.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

SHM = Path("/dev/shm")
SLOT = os.environ.get("TRTLLM_SLOT", "")
GENERATION = os.environ.get("TRTLLM_GENERATION", "current")
PORT = re.compile(r"(--(?:http|grpc|metrics)-port=)(\d+)")


def shm_prefix(home: Path) -> str:
    """Names this server's shared memory, so that two servers on one machine never touch each other's."""
    return "trtllm_%s%s_" % (hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:8], "b" if SLOT else "")


def in_slot(word: str, offset: int) -> str:
    """An argument as it is for this slot. The generation by its own name: current may name another one by now."""
    port = PORT.fullmatch(word)
    if port:
        return "%s%d" % (port[1], int(port[2]) + offset)
    return word.replace("=current/", "=%s/" % GENERATION)


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
    offset = int(launch.get("surge_port_offset", 100)) if SLOT else 0
    words = [in_slot(str(word), offset) for word in launch["argv"]]
    argv = [*words, "--backend-config=python,shm-region-prefix-name=" + prefix]
    env = dict(os.environ)
    for name, given in launch["env"].items():
        value = str(given)
        # PATH-like variables go in front of what the host already has.
        env[name] = os.pathsep.join([value, env[name]]) if name in launch["prepend"] and env.get(name) else value
    write_atomically(home / "run" / ("triton%s.pid" % SLOT), "%d\n" % os.getpid())
    print("=== triton pid %d generation %s" % (os.getpid(), os.path.basename(os.path.realpath(GENERATION))), flush=True)
    os.execve(argv[0], argv, env)


if __name__ == "__main__":
    main()
