# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health check of the server's container: asks for one token, and whether the GPUs are still there.

Triton's health endpoints and its repository index stay green when a model's Python process has crashed, while every
request fails for ever; and a container can lose its GPUs while the host has them. Docker never restarts an unhealthy
container, but one whose main process has ended: after the given number of failures in a row this ends it.

Run inside the container, with launch.json as its argument: url, model, prompt, timeout (s), failures and
startup_timeout (s) of its "probe", its "ports" and its "gpus". With --stop it asks the server of rank 0 to end, and
returns when it has. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

STATE = Path("/tmp/.trtllm-health.json")
# Answers of a busy server, not of a broken one.
BUSY = ("exceeds maximum queue size", "max queue size", "request timeout expired", "queue is full")
SMI_TIMEOUT = 10
# Seconds that the main process is left to end: mpirun takes ten of them.
GRACE = 15
INIT = 1
# Where the container's log comes from.
LOG = "/proc/1/fd/1"


def say(text: str) -> None:
    """For whoever inspects the container's health, and into its log, which outlives the next start."""
    print(text, flush=True)
    try:
        with open(LOG, "w", encoding="utf-8") as stream:
            stream.write("%s health check: %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%S%z"), text))
    except OSError:
        pass


def started(pid: int) -> str:
    """The start time of a living process; empty for one that is gone."""
    try:
        fields = Path("/proc/%d/stat" % pid).read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


# --- the questions ---


def opener() -> urllib.request.OpenerDirector:
    # No proxy of the environment: the server is asked directly.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_ready(url: str, model: str) -> bool:
    try:
        with opener().open("%s/v2/models/%s/ready" % (url, model), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def no_token(url: str, probe: dict) -> str:
    """Asks for one token; the empty string when it came, else what went wrong."""
    body = json.dumps({"text_input": probe["prompt"], "max_tokens": 1, "bad_words": "", "stop_words": ""}).encode()
    try:
        address = "%s/v2/models/%s/generate" % (url, probe["model"])
        with opener().open(address, data=body, timeout=float(probe["timeout"])) as answer:
            reply = json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        text = exc.read(2000).decode("utf-8", "replace")
        return "" if any(word in text.lower() for word in BUSY) else "HTTP %d %s" % (exc.code, text.strip())
    except (OSError, ValueError) as exc:
        return str(exc)
    return "" if isinstance(reply, dict) and "text_output" in reply else str(reply)[:500]


def wanted_gpus(launch: dict) -> int:
    """How many GPUs there must be; 0 when the container was given none."""
    gpus = launch.get("gpus")
    text = str(gpus or "none").strip().lower()
    if text in ("none", "0", "false"):
        return 0
    # In the second slot of a host a server has only as many as it uses.
    if os.environ.get("TRTLLM_SLOT"):
        return int(launch["world_size"])
    if isinstance(gpus, list):
        return len(gpus)
    return int(text) if text.isdigit() else 1 if text.startswith(("gpu-", "mig-")) else int(launch["world_size"])


def lost_gpus(wanted: int) -> str:
    """What nvidia-smi says about GPUs that are gone; empty when all are there."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=SMI_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        return "nvidia-smi: %s" % exc
    text = done.stdout.decode("utf-8", "replace")
    seen = len(re.findall(r"(?m)^GPU \d+:.*\(UUID: ", text))
    # 14: the infoROM of a GPU is corrupted; it works nevertheless.
    if done.returncode not in (0, 14) or seen < wanted:
        return "%d of %d GPUs seen; nvidia-smi exits with %d: %s" % (
            seen, wanted, done.returncode, " ".join(text.split())[:300],
        )  # fmt: skip
    return ""


# --- what is known from question to question ---


def load_state() -> dict:
    """What earlier checks found in this start of the container."""
    fresh = {"init": started(INIT), "since": time.monotonic(), "ready": False, "failures": 0}
    try:
        state = json.loads(STATE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return fresh
    return {**fresh, **state} if isinstance(state, dict) and state.get("init") == fresh["init"] else fresh


def save_state(state: dict) -> None:
    try:
        partial = STATE.with_name(STATE.name + ".partial")
        partial.write_text(json.dumps(state), encoding="utf-8")
        os.replace(partial, STATE)
    except OSError as exc:
        print("%s cannot be written (%s): failures are not counted" % (STATE, exc))


def judge(launch: dict, state: dict) -> str:
    """Why the server does not count as healthy now; counts the failures in the state."""
    probe = launch["probe"]
    url = "http://127.0.0.1:%d" % int(launch["ports"]["http"])
    if not state["ready"] and not is_ready(url, probe["model"]):
        waited = time.monotonic() - state["since"]
        if waited > float(probe["startup_timeout"]):
            state["failures"] += int(probe["failures"])
        return "not ready after %d s" % waited
    state["ready"] = True
    wanted = wanted_gpus(launch)
    wrong = (lost_gpus(wanted) if wanted else "") or no_token(url, probe)
    state["failures"] = state["failures"] + 1 if wrong else 0
    return wrong


def end(state: dict, allowed: int) -> None:
    """Ends the main process, so that the container is started again; with force when that was not enough."""
    if state["failures"] < allowed:
        return
    asked = state.get("asked")
    state.setdefault("asked", time.monotonic())
    save_state(state)
    if asked is not None and time.monotonic() - asked > GRACE:
        say("ending every process with force, so that the container is started again")
        # All but the container's init, which then ends too.
        os.kill(-1, signal.SIGKILL)
    elif asked is None:
        say("ending the main process, so that the container is started again")
        os.kill(INIT, signal.SIGTERM)


def check(launch: dict) -> int:
    state = load_state()
    wrong = judge(launch, state)
    save_state(state)
    if not wrong:
        print("a token came")
        return 0
    if state["ready"] or state["failures"]:
        say("%s (%d in a row, %d end the server)" % (wrong, state["failures"], int(launch["probe"]["failures"])))
    else:
        print(wrong)
    end(state, int(launch["probe"]["failures"]))
    return 1


# --- an orderly end ---


def leader() -> int:
    """The server of rank 0 that works in this directory; 0 when there is none."""
    here = os.getcwd()
    for entry in sorted(Path("/proc").iterdir()):
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes().split(b"\0")
            place = os.readlink(entry / "cwd")
        except OSError:
            continue
        is_server = os.path.basename(words[0]) == b"tritonserver"
        if is_server and place == here and b"OMPI_COMM_WORLD_RANK=0" in variables:
            return int(entry.name)
    return 0


def stop(launch: dict) -> int:
    """Exit code 0 once the server of rank 0 has ended."""
    pid = leader()
    begun = started(pid) if pid else ""
    if not begun:
        return 1
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + float(launch["stop_timeout"])
    while started(pid) == begun and time.monotonic() < until:
        time.sleep(0.1)
    return 0 if started(pid) != begun else 1


def main(arguments: list) -> int:
    launch = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    return stop(launch) if "--stop" in arguments else check(launch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
