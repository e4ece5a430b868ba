# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looks for a token where it must not be: in files, in processes, in what Docker tells of its containers.

    python tests/hub/leaks.py --token-file FILE [--docker] [--watch SECONDS] PATH...

Prints a line for each place, without the token, and ends with 1 when there is one. With --watch it looks at command
lines and environments of all processes meanwhile, until the time is over or it is asked to end (SIGTERM).
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

_CHUNK = 4 * 1024 * 1024


def forms(token: str) -> list[bytes]:
    """The token as it is, in an address, and in base64 wherever it may begin."""
    plain = token.encode("ascii")
    found = {plain, urllib.parse.quote(token, safe="").encode("ascii")}
    for lead in range(3):
        coded = base64.b64encode(b"\0" * lead + plain).rstrip(b"=")
        # The first and the last characters also depend on what stands before and after.
        found.add(coded[(lead * 8 + 5) // 6 : len(coded) - 2])
    return sorted(found, key=len, reverse=True)


def in_bytes(data: bytes, wanted: Sequence[bytes]) -> bool:
    return any(form in data for form in wanted)


def in_file(path: Path, wanted: Sequence[bytes]) -> bool:
    keep = max(len(form) for form in wanted)
    rest = b""
    try:
        with path.open("rb") as stream:
            while True:
                data = stream.read(_CHUNK)
                if not data:
                    return False
                if in_bytes(rest + data, wanted):
                    return True
                rest = data[-keep:]
    except OSError:
        return False


def in_trees(paths: Iterable[Path], token: str, besides: Iterable[Path] = ()) -> list[str]:
    """Files and names below the paths that hold the token; the file that it came from is left out."""
    wanted = forms(token)
    left_out = {os.path.realpath(path) for path in besides}
    found = []
    for top in paths:
        if top.is_file():
            candidates = [top]
        else:
            candidates = [Path(folder, name) for folder, folders, names in os.walk(top) for name in (*folders, *names)]
        for path in candidates:
            if os.path.realpath(path) in left_out:
                continue
            if in_bytes(os.fsencode(path), wanted):
                found.append("a name below %s" % top)
            if path.is_file() and not path.is_symlink() and in_file(path, wanted):
                found.append(str(path).replace(token, "********"))
    return found


def in_processes(token: str, besides: Iterable[int] = ()) -> list[str]:
    """Processes that show the token in their command line or environment."""
    wanted, left_out = forms(token), {os.getpid(), *besides}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in left_out:
            continue
        for name in ("cmdline", "environ"):
            try:
                data = (entry / name).read_bytes()
            except OSError:
                continue
            if in_bytes(data, wanted):
                first = (entry / "cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
                found.append("%s of process %s (%s)" % (name, entry.name, Path(first).name))
    return found


def in_docker(token: str, docker: Sequence[str] = ("docker",)) -> list[str]:
    """What the engine tells of containers and images, and what containers have printed."""
    wanted = forms(token)
    found = []

    def ask(*words: str) -> bytes:
        done = subprocess.run([*docker, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.stdout

    for kind, listing in (("container", ("ps", "-aq", "--no-trunc")), ("image", ("images", "-q", "--no-trunc"))):
        for name in sorted(set(ask(*listing).decode().split())):
            if in_bytes(ask("inspect", "--type", kind, name), wanted):
                found.append("docker inspect %s" % name[:19])
            if kind == "image" and in_bytes(ask("history", "--no-trunc", name), wanted):
                found.append("docker history %s" % name[:19])
            if kind == "container" and in_bytes(ask("logs", name), wanted):
                found.append("docker logs %s" % name[:19])
    return found


class Watch:
    """Looks at all processes, again and again, while something runs."""

    def __init__(self, token: str, besides: Iterable[int] = ()) -> None:
        self.token, self.besides = token, tuple(besides)
        self.found: set[str] = set()
        self.rounds = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.is_set():
            self.found.update(in_processes(self.token, self.besides))
            self.rounds += 1
            self._ended.wait(0.05)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()
        self._thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--docker", action="store_true", help="ask Docker too")
    parser.add_argument("--watch", type=float, default=0.0, metavar="SECONDS", help="look at processes meanwhile")
    options = parser.parse_args()
    token = options.token_file.read_text("ascii").strip()
    if not re.fullmatch(r"[\x21-\x7e]{8,}", token):
        parser.error("%s holds no token" % options.token_file)
    with Watch(token) as watch:
        if options.watch:
            ended = threading.Event()
            signal.signal(signal.SIGTERM, lambda *unused: ended.set())
            ended.wait(options.watch)
    found = sorted(watch.found) + in_trees(options.paths, token, besides=[options.token_file])
    found += in_docker(token) if options.docker else []
    for place in found:
        print(place)
    print("%d places hold the token" % len(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
