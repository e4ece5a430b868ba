# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A steady load of generate and generate_stream requests, each of whose answers is looked at.

    python tests/fleet/load.py --out load.json --rate 20 --target chat=http://10.0.0.9:8080 --target embed=...

Runs until it is told to end (SIGTERM, SIGINT) or --seconds have passed, waits for the requests that are under way, and
leaves the summary in --out, which is also renewed every half second meanwhile. A request is repeated by nobody: what
does not come back whole, in form and in time is a failure, with its time and its cause. Requests that were held back,
because --most were under way already, were never sent and are counted apart. Every request has a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROMPT = "What is machine learning?"


class NoAnswer(Exception):
    """What came instead of an answer, in one line."""


@dataclass
class Target:
    name: str
    url: str
    model: str = "ensemble"
    headers: dict[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None
    sent: int = 0
    answered: int = 0
    held_back: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: collections.defaultdict(int))
    texts: dict[str, int] = field(default_factory=lambda: collections.defaultdict(int))
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    # Longest time between two answers in a row: a gap that nobody else would show.
    last: float = 0.0
    gap: float = 0.0

    def summary(self) -> dict[str, Any]:
        took = sorted(self.seconds)

        def share(part: float) -> float:
            return round(took[min(int(len(took) * part), len(took) - 1)], 4) if took else 0.0

        return {
            "sent": self.sent, "answered": self.answered, "failed": len(self.failures), "held_back": self.held_back,
            "kinds": dict(self.kinds), "texts": dict(self.texts), "p50_s": share(0.5), "p99_s": share(0.99),
            "worst_s": share(1.0), "longest_gap_s": round(self.gap, 3), "failures": self.failures[:50],
        }  # fmt: skip


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise NoAnswer("closed without an answer")
    words = line.decode("latin-1").split()
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise NoAnswer("no HTTP answer: %r" % line[:80])
    headers = {}
    while True:
        line = await reader.readline()
        if line in (b"\r\n", b"\n"):
            return int(words[1]), headers
        if not line.endswith(b"\n"):
            raise NoAnswer("closed within the headers")
        name, _colon, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()


async def body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The whole body; one that was cut off is no body."""
    try:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            found = b""
            while True:
                size = int((await reader.readline()).split(b";")[0].strip() or b"x", 16)
                part = await reader.readexactly(size + 2)
                if size == 0:
                    return found
                found += part[:-2]
        if "content-length" in headers:
            return await reader.readexactly(int(headers["content-length"]))
    except (asyncio.IncompleteReadError, ValueError):
        raise NoAnswer("closed within the body") from None
    return await reader.read()


def text_of(answer: Any) -> str:
    if not isinstance(answer, dict):
        raise NoAnswer("the answer is no object: %.80r" % answer)
    if "error" in answer:
        raise NoAnswer("the answer is an error: %.200s" % answer["error"])
    if not isinstance(answer.get("text_output"), str) or not isinstance(answer.get("model_name"), str):
        raise NoAnswer("the answer lacks text_output or model_name: %.200r" % answer)
    return str(answer["text_output"])


def judge(stream: bool, status: int, content: bytes, tokens: int) -> str:
    """The answer's text, or why it is none."""
    if status != 200:
        raise NoAnswer("HTTP %d %.200s" % (status, content.decode("utf-8", "replace").replace("\n", " ")))
    try:
        if not stream:
            text = text_of(json.loads(content))
        else:
            events = [json.loads(line[5:]) for line in content.splitlines() if line.startswith(b"data:")]
            if len(events) < tokens:
                raise NoAnswer("the stream ended after %d of %d events" % (len(events), tokens))
            text = "".join(text_of(event) for event in events)
    except ValueError:
        raise NoAnswer("the answer is no JSON: %.200r" % content) from None
    if not text:
        raise NoAnswer("the answer has no text")
    return text


async def exchange(target: Target, stream: bool, tokens: int) -> str:
    place = urlsplit(target.url)
    asked = {
        "text_input": PROMPT, "max_tokens": tokens, "bad_words": "", "stop_words": "", "end_id": -1, "stream": stream,
    }  # fmt: skip
    content = json.dumps(asked).encode()
    path = "%s/v2/models/%s/%s" % (place.path.rstrip("/"), target.model, "generate_stream" if stream else "generate")
    headers = {
        "Host": place.netloc, "Content-Type": "application/json", "Content-Length": str(len(content)),
        "Connection": "close", **target.headers,
    }  # fmt: skip
    request = "POST %s HTTP/1.1\r\n%s\r\n" % (path, "".join("%s: %s\r\n" % item for item in headers.items()))
    port = place.port or (443 if target.context else 80)
    reader, writer = await asyncio.open_connection(place.hostname, port, ssl=target.context)
    try:
        writer.write(request.encode("latin-1") + content)
        await writer.drain()
        status, given = await head(reader)
        return judge(stream, status, await body(reader, given), tokens)
    finally:
        writer.close()


class Load:
    def __init__(self, options: argparse.Namespace, targets: list[Target]) -> None:
        self.options = options
        self.targets = targets
        self.begun = time.time()
        self.ending = asyncio.Event()
        self.under_way: dict[str, set[asyncio.Task[None]]] = {target.name: set() for target in targets}

    async def one(self, target: Target, stream: bool) -> None:
        began = time.monotonic()
        kind = "generate_stream" if stream else "generate"
        try:
            text = await asyncio.wait_for(exchange(target, stream, self.options.tokens), self.options.timeout)
        except asyncio.TimeoutError as error:  # from Python 3.11 on also an OSError, as the kernel's own
            why = str(error) or "no answer within %g s" % self.options.timeout
        except (NoAnswer, OSError, asyncio.IncompleteReadError) as error:
            why = str(error) or type(error).__name__
        else:
            now = time.monotonic()
            target.answered += 1
            target.kinds[kind] += 1
            target.texts[text] += 1
            target.seconds.append(now - began)
            target.gap = max(target.gap, now - (target.last or began))
            target.last = now
            return
        target.failures.append({"at": round(time.time(), 3), "after_s": round(time.monotonic() - began, 3),
                                "kind": kind, "why": why})  # fmt: skip

    async def drive(self, target: Target) -> None:
        """A request at each tick, whether or not the ones before have been answered."""
        mine = self.under_way[target.name]
        begun = time.monotonic()
        for number in itertools.count():
            wait = begun + number / self.options.rate - time.monotonic()
            try:
                await asyncio.wait_for(self.ending.wait(), max(wait, 0.0))
            except asyncio.TimeoutError:
                pass
            if self.ending.is_set():
                break
            if len(mine) >= self.options.most:
                target.held_back += 1
                continue
            target.sent += 1
            task = asyncio.create_task(self.one(target, stream=number % 2 == 1))
            mine.add(task)
            task.add_done_callback(mine.discard)
        await asyncio.gather(*mine)

    def write(self, ended: bool = False) -> None:
        found = {target.name: target.summary() for target in self.targets}
        counted = ("sent", "answered", "failed", "held_back")
        total = {key: sum(summary[key] for summary in found.values()) for key in counted}
        whole = {"ended": ended, "seconds": round(time.time() - self.begun, 1), **total, "targets": found}
        partial = self.options.out.with_name("." + self.options.out.name)
        partial.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
        os.replace(partial, self.options.out)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ending.set)
        if self.options.seconds:
            loop.call_later(self.options.seconds, self.ending.set)
        drivers = asyncio.gather(*(self.drive(target) for target in self.targets))
        while not drivers.done():
            self.write()
            await asyncio.wait([drivers], timeout=0.5)
        await drivers
        self.write(ended=True)
        return 1 if any(target.failures for target in self.targets) else 0


def main(argv: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--out", type=Path, required=True, help="where the summary is written")
    parser.add_argument("--rate", type=float, default=10, help="requests a second and target")
    parser.add_argument("--most", type=int, default=32, help="requests under way at once, of a target")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=0, help="end by itself; 0: when told to")
    parser.add_argument("--model", default="ensemble")
    parser.add_argument("--token-file", type=Path, help="bearer token to send")
    parser.add_argument("--ca", type=Path, help="certificate to trust for https")
    options = parser.parse_args(argv)
    headers = {}
    if options.token_file:
        headers["Authorization"] = "Bearer %s" % options.token_file.read_text("ascii").strip()
    targets = []
    for text in options.target:
        name, _equals, url = text.partition("=")
        context = ssl.create_default_context(cafile=options.ca) if url.startswith("https:") else None
        targets.append(Target(name, url, options.model, headers, context))

    async def start() -> int:
        return await Load(options, targets).run()

    return asyncio.run(start())


if __name__ == "__main__":
    sys.exit(main())
