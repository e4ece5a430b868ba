# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load client: a count of failures that overlooks one makes every test behind it worthless."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LOAD = Path(__file__).resolve().parent / "load.py"
ANSWER = json.dumps({"model_name": "ensemble", "text_output": "a b"}).encode()
EVENTS = b"".join(b'data: {"model_name":"ensemble","text_output":"%s"}\n\n' % word for word in (b"a", b" b"))


def plain(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    head = "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body) if length is None else length)
    return head.encode() + body


def chunked(body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%s" % (len(body), body, end)


@contextmanager
def server(generate: bytes, stream: bytes = chunked(EVENTS), delay: float = 0) -> Iterator[int]:
    """Sends the same bytes to each request, by what it asks for, and closes."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:

        def answer(peer: socket.socket) -> None:
            # A client that has given up is gone.
            with peer, contextlib.suppress(OSError):
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += peer.recv(65536)
                time.sleep(delay)
                peer.sendall(stream if b"generate_stream" in asked.split(b"\r\n")[0] else generate)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65536):
                    pass

        def serve() -> None:
            while True:
                try:
                    peer, _address = listening.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(peer,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def load(out: Path, port: int, *more: str, seconds: float = 0.4) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, str(LOAD), "--out", str(out), "--rate=50", "--tokens=2", "--seconds=%g" % seconds,
            "--target=pool=http://127.0.0.1:%d" % port, *more]  # fmt: skip
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False, timeout=60)
    return done.returncode, json.loads(out.read_text("utf-8"))


def test_good_answers(tmp_path: Path) -> None:
    with server(plain(ANSWER)) as port:
        code, found = load(tmp_path / "out", port)
    assert code == 0 and found["ended"]
    assert found["sent"] == found["answered"] >= 10 and found["failed"] == 0
    target = found["targets"]["pool"]
    assert target["texts"] == {"a b": found["sent"]}
    assert abs(target["kinds"]["generate"] - target["kinds"]["generate_stream"]) <= 1


REFUSAL = json.dumps({"error": "the model is not ready"}).encode()
WRONG = {
    "busy": (plain(b"no server", "503 Service Unavailable"), "HTTP 503 no server"),
    "error": (plain(REFUSAL), "the answer is an error: the model is not ready"),
    "no text": (plain(ANSWER.replace(b"a b", b"")), "the answer has no text"),
    "other form": (plain(b'{"text": 1}'), "the answer lacks text_output or model_name"),
    "no JSON": (plain(b"<html>"), "the answer is no JSON"),
    "cut body": (plain(ANSWER[:-5], length=len(ANSWER)), "closed within the body"),
    "cut head": (b"HTTP/1.1 200 OK\r\nContent-Le", "closed within the headers"),
    "closed": (b"", "closed without an answer"),
    "no HTTP": (b"hello\r\n", "no HTTP answer"),
}
WRONG_STREAM = {
    "no end": (chunked(EVENTS, end=b""), "closed within the body"),
    "cut event": (chunked(EVENTS)[:-30], "closed within the body"),
    "too few events": (chunked(EVENTS[: len(EVENTS) // 2]), "the stream ended after 1 of 2 events"),
    "error event": (chunked(EVENTS + b"data: %s\n\n" % REFUSAL), "the answer is an error: the model is not ready"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_answer(name: str, tmp_path: Path) -> None:
    content, why = WRONG[name]
    with server(content) as port:
        code, found = load(tmp_path / "out", port)
    target = found["targets"]["pool"]
    assert code == 1 and target["kinds"].keys() == {"generate_stream"}
    assert found["failed"] == found["sent"] - target["kinds"]["generate_stream"] > 0
    assert all(failure["kind"] == "generate" and why in failure["why"] for failure in target["failures"]), target


@pytest.mark.parametrize("name", WRONG_STREAM)
def test_what_is_no_stream(name: str, tmp_path: Path) -> None:
    content, why = WRONG_STREAM[name]
    with server(plain(ANSWER), content) as port:
        code, found = load(tmp_path / "out", port)
    target = found["targets"]["pool"]
    assert code == 1 and target["kinds"].keys() == {"generate"}
    assert all(failure["kind"] == "generate_stream" and why in failure["why"] for failure in target["failures"]), target


def test_nobody_listens(tmp_path: Path) -> None:
    with server(b"") as port:
        pass
    code, found = load(tmp_path / "out", port)
    assert code == 1 and found["failed"] == found["sent"] > 0


def test_too_late(tmp_path: Path) -> None:
    with server(plain(ANSWER), delay=1) as port:
        code, found = load(tmp_path / "out", port, "--timeout=0.2")
    assert code == 1 and found["failed"] == found["sent"] > 0
    assert found["targets"]["pool"]["failures"][0]["why"] == "no answer within 0.2 s"


def test_told_to_end_it_waits_for_what_is_under_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with server(plain(ANSWER), delay=1) as port:
        argv = [sys.executable, str(LOAD), "--out", str(out), "--rate=20", "--tokens=2", "--most=5",
                "--target=pool=http://127.0.0.1:%d" % port]  # fmt: skip
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            while not out.is_file() or not json.loads(out.read_text("utf-8"))["sent"]:
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
    found = json.loads(out.read_text("utf-8"))
    assert code == 0 and found["ended"] and found["answered"] == found["sent"] > 0
