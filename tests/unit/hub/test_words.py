# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the fetching process makes of an answer, of an exception, and of a text before it is shown."""

from __future__ import annotations

import email.utils
import errno
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _hub_weights
from ansible_collections.trtllm.serving.plugins.module_utils._hub_fetch import Part, Progress
from ansible_collections.trtllm.serving.plugins.module_utils._hub_words import (
    Failure,
    Stopped,
    classify,
    clean,
    human,
    origin,
    seconds_to_wait,
    secrets_of,
)

HUB = "https://hub"


class Answered(Exception):
    def __init__(self, status: int, code: str = "", url: str = HUB + "/x?signature=1") -> None:
        super().__init__(f"{status} for {url}")
        headers = {"X-Error-Code": code} if code else {}
        self.response = SimpleNamespace(status_code=status, headers=headers, request=SimpleNamespace(url=url))


def named(name: str, *bases: type) -> Exception:
    made: Exception = type(name, bases or (Exception,), {})("SAID")
    return made


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Answered(401), "unauthorized"),
        (Answered(401, "RepoNotFound"), "unauthorized"),
        (Answered(401, "GatedRepo"), "gated"),
        (Answered(403, "GatedRepo"), "gated"),
        (Answered(403), "forbidden"),
        (Answered(404, "RepoNotFound"), "repository"),
        (Answered(404, "RevisionNotFound"), "revision"),
        (Answered(404, "EntryNotFound"), "missing"),
        (Answered(404), "missing"),
        (Answered(407), "proxy"),
        (Answered(416), "cut"),
        (Answered(408), "server"),
        (Answered(500), "server"),
        (Answered(503), "server"),
        (Answered(418), "unknown"),
        (Answered(403, url="https://storage/x"), "cut"),
        (Answered(503, url="https://storage/x"), "server"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "space"),
        (OSError(errno.EFBIG, "File too large"), "space"),
        (ssl.SSLError("bad"), "tls"),
        (named("ProxyError"), "proxy"),
        (named("ReadTimeout", type("TimeoutException", (Exception,), {})), "timeout"),
        (named("ConnectError"), "connect"),
        (named("ReadError", type("NetworkError", (Exception,), {})), "cut"),
        (named("RemoteProtocolError", type("ProtocolError", (Exception,), {})), "cut"),
        (ConnectionResetError("reset"), "cut"),
        (OSError("Consistency check failed: file should be of size 2"), "cut"),
        (ValueError("The file is too large to be downloaded using the regular download method."), "xet"),
        (ValueError("x"), "unknown"),
        (Failure("mirror", "x"), "mirror"),
    ],
)
def test_kinds(error: Exception, kind: str) -> None:
    assert classify(error, HUB).kind == kind


def test_cause_counts_too() -> None:
    found = None
    try:
        try:
            raise Answered(403, "GatedRepo")
        except Answered as cause:
            raise ValueError("not on the disk") from cause
    except ValueError as error:
        found = classify(error, HUB)
    assert found is not None
    assert (found.kind, found.status, found.where) == ("gated", 403, "https://hub/x")


def test_retry_after() -> None:
    assert seconds_to_wait({"Retry-After": "7"}) == 7
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < seconds_to_wait({"Retry-After": date}) <= 60
    assert seconds_to_wait({"Retry-After": email.utils.formatdate(0)}) == 0
    assert seconds_to_wait({"RateLimit": '"api";r=0;t=55'}) == 55
    assert seconds_to_wait({}) == seconds_to_wait({"Retry-After": "soon"}) == 10


def test_shown_text_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    text = clean("a hf_secret\n b https://s/x?X-Signature=12&e=1 c 'https://s/y?z' me:word", ["hf_secret", "me:word"])
    assert text == "a ******** b https://s/x c 'https://s/y' ********"
    assert len(clean("x" * 1000, [])) == 400
    monkeypatch.setenv("HTTPS_PROXY", "http://me:word@proxy:1")
    found = secrets_of("hf_secret")
    assert "hf_secret" in found and "me:word" in found and "word" in found


def test_small_things() -> None:
    assert [human(size) for size in (2, 2048, 3 << 20, 93 << 30)] == ["2 bytes", "2.0 KiB", "3.0 MiB", "93.0 GiB"]
    assert origin("https://Hub/x") == ("https", "hub", 443) and origin("http://h:81/") == ("http", "h", 81)


def test_part_keeps_what_was_written(tmp_path: Path) -> None:
    said: list[str] = []
    progress, stop = Progress(100, 2, said.append, 60), threading.Event()
    part = Part(tmp_path / "p", progress, stop)
    part.write(b"12345")
    # As the client does when a server has no ranges.
    part.seek(0)
    part.truncate(0)
    assert (part.size, progress.bytes) == (0, 0)
    part.write(b"abc")
    stop.set()
    with pytest.raises(Stopped):
        part.write(b"d")
    part.close()
    again = Part(tmp_path / "p", progress, threading.Event())
    assert again.size == 3 and again.tell() == 3
    again.write(b"def")
    again.close()
    assert (tmp_path / "p").read_bytes() == b"abcdef" and progress.bytes == 6
    progress.finished("x", 3, "its hash is right")
    assert said == ["x: 3 bytes, its hash is right (1 of 2 files)"] and progress.line().startswith(
        "6 bytes of 100 bytes (6 %)"
    )


def test_program_needs_nothing_of_the_collection(tmp_path: Path) -> None:
    """It runs by an interpreter that knows neither Ansible nor us, and says so when the client is missing."""
    _hub_weights.write_program(tmp_path / "run")
    request: dict[str, Any] = {
        "action": "list", "repository": "a/b", "revision": "main", "endpoint": HUB, "token_pipe": "",
        "outcome": str(tmp_path / "outcome"), "uid": os.geteuid(), "gid": os.getegid(), "parent": os.getpid(),
        "pause_s": 1, "patience_s": 1, "chunk_bytes": 1,
    }  # fmt: skip
    (tmp_path / "request").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(tmp_path / "run"), str(tmp_path / "request")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "No module named 'huggingface_hub'" in done.stdout, done.stderr
    assert '"kind": "client"' in (tmp_path / "outcome").read_text()


def test_progress_is_told_now_and_then() -> None:
    said: list[str] = []
    told = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    with Progress(4 << 30, 3, say, 0.01) as progress:
        progress.add(1 << 30, fetched=False)
        progress.add(1 << 30)
        told.clear()
        assert told.wait(5)
    assert said[-1].startswith("2.0 GiB of 4.0 GiB (50 %), 0 of 3 files, ") and "min left" in said[-1]
