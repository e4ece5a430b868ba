# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Event listener of supervisord: asks the server for one token and ends a server that cannot give it.

Triton's health endpoints and its repository index stay green when a model's Python process has crashed, while every
request fails for ever. supervisord starts the ended server again.

Settings come from the "probe" object of launch.json: url, model, prompt, interval (s), timeout (s), failures,
startup_timeout (s). In the second slot of a host (TRTLLM_SLOT is -b) the server's port is higher, and its pid file has
that suffix.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from supervisor import childutils

SLOT = os.environ.get("TRTLLM_SLOT", "")
PID_FILE = Path("run/triton%s.pid" % SLOT)
# Answers of a busy server, not of a broken one.
BUSY = ("exceeds maximum queue size", "max queue size", "request timeout expired", "queue is full")


def log(text: str) -> None:
    # stdout belongs to supervisord's protocol.
    print("%s probe: %s" % (time.strftime("%Y-%m-%dT%H:%M:%S%z"), text), file=sys.stderr, flush=True)


def ask(settings: dict) -> str:
    """Asks for one token; the empty string when it came, else what went wrong."""
    body = json.dumps({"text_input": settings["prompt"], "max_tokens": 1, "bad_words": "", "stop_words": ""}).encode()
    url = "%s/v2/models/%s/generate" % (settings["url"], settings["model"])
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=body, method="POST"), timeout=settings["timeout"]
        ) as answer:
            reply = json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        text = exc.read(2000).decode("utf-8", "replace")
        return "" if any(word in text.lower() for word in BUSY) else "HTTP %d %s" % (exc.code, text.strip())
    except (OSError, ValueError) as exc:
        return str(exc)
    return "" if "text_output" in reply else json.dumps(reply)


def is_ready(settings: dict) -> bool:
    try:
        with urllib.request.urlopen("%s/v2/models/%s/ready" % (settings["url"], settings["model"]), timeout=5):
            return True
    except (OSError, ValueError):
        return False


class Watch:
    """What is known of the present server process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.since = time.monotonic()
        self.asked = 0.0
        self.ready = False
        self.failures = 0


def end(pid: int, grace: float = 10.0) -> None:
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if read_pid() != pid or not os.path.exists("/proc/%d" % pid):
                return
            time.sleep(0.2)


def read_pid() -> int:
    try:
        return int(PID_FILE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def check(watch: Watch, settings: dict) -> None:
    now = time.monotonic()
    if not watch.ready:
        watch.ready = is_ready(settings)
        if not watch.ready and now - watch.since > settings["startup_timeout"]:
            log("pid %d is not ready after %g s: ending it" % (watch.pid, settings["startup_timeout"]))
            end(watch.pid)
        return
    if now - watch.asked < settings["interval"] and not watch.failures:
        return
    watch.asked = now
    wrong = ask(settings)
    watch.failures = watch.failures + 1 if wrong else 0
    if wrong:
        log("pid %d gave no token (%d of %d): %s" % (watch.pid, watch.failures, settings["failures"], wrong))
    if watch.failures >= settings["failures"]:
        log("ending pid %d, so that it is started again" % watch.pid)
        end(watch.pid)


def settings_of(launch: dict) -> dict:
    """What to ask the server of this slot."""
    settings = dict(launch["probe"])
    place, colon, port = settings["url"].rpartition(":")
    if SLOT and port.isdigit():
        settings["url"] = "%s%s%d" % (place, colon, int(port) + int(launch.get("surge_port_offset", 100)))
    return settings


def main() -> None:
    settings = settings_of(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    watch = Watch(0)
    while True:
        headers, _payload = childutils.listener.wait(sys.stdin, sys.stdout)
        if headers["eventname"].startswith("TICK"):
            pid = read_pid()
            if pid != watch.pid:
                watch = Watch(pid)
            if pid and os.path.exists("/proc/%d" % pid):
                try:
                    check(watch, settings)
                except Exception as exc:  # the listener must outlive any surprise
                    log("check failed: %r" % exc)
        childutils.listener.ok(sys.stdout)


if __name__ == "__main__":
    main()
