# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Triton's HTTP interface over one keep-alive session, every wait bounded.

Private to the collection. Needs requests, which the caller imports and hands in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

CONNECT_S = 1.0
PROBE_S = 2.0


class TritonError(Exception):
    """One line that says what is wrong and what to do."""


class Unreachable(TritonError):
    """There was no answer. ``kind`` is refused, timeout or broken."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    status: int
    text: str

    def json(self) -> Any:
        """The body as JSON; None when it is not JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    @property
    def error(self) -> str:
        """What the server calls the error, whatever the status: an error can come with status 200."""
        value = self.json()
        if isinstance(value, Mapping) and value.get("error"):
            return str(value["error"])
        return ""


def check_url(url: str) -> str:
    """The base URL without a trailing slash. TritonError when it is none."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise TritonError(f"url {url!r} is no http URL: give one such as http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise TritonError("url must not hold a user name or password: Triton has no use for them")
    if parts.query or parts.fragment:
        raise TritonError(f"url {url!r} has a query or fragment: give only scheme, host, port and path")
    return url.rstrip("/")


def _root_cause(exc: BaseException) -> str:
    """The innermost reason of a nested connection error, without object addresses."""
    seen: set[int] = set()
    current: BaseException | None = exc
    text = type(exc).__name__
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.strerror:
            text = current.strerror
        reason = getattr(current, "reason", None)
        nested = reason if isinstance(reason, BaseException) else None
        if nested is None:
            nested = next((arg for arg in current.args if isinstance(arg, BaseException)), None)
        current = nested or current.__cause__ or current.__context__
    return text


class TritonClient:
    """Requests to one server. No proxies from the environment: the server is asked directly."""

    def __init__(self, url: str, requests: Any) -> None:
        self.url = check_url(url)
        self._requests = requests
        self._session = requests.Session()
        self._session.trust_env = False

    def close(self) -> None:
        self._session.close()

    def _send(self, method: str, path: str, *, timeout: float, payload: Any = None, stream: bool = False) -> Any:
        body = None if payload is None else json.dumps(payload).encode("utf-8")
        try:
            return self._session.request(
                method,
                self.url + path,
                data=body,
                headers={"Content-Type": "application/json"} if body is not None else None,
                timeout=(max(0.05, min(CONNECT_S, timeout)), max(0.05, timeout)),
                allow_redirects=False,
                stream=stream,
            )
        except self._requests.exceptions.RequestException as exc:
            raise self._unreachable(exc, timeout) from exc

    def _unreachable(self, exc: BaseException, timeout: float) -> Unreachable:
        errors = self._requests.exceptions
        if isinstance(exc, errors.ConnectTimeout):
            return Unreachable(
                "timeout", f"{self.url} did not accept a connection within {min(CONNECT_S, timeout):g} s"
            )
        if isinstance(exc, errors.Timeout):
            return Unreachable("timeout", f"{self.url} did not answer within {timeout:g} s")
        cause = _root_cause(exc)
        if "refused" in cause.lower():
            return Unreachable("refused", f"{self.url} refused the connection: nothing listens there")
        return Unreachable("broken", f"{self.url} gave no answer ({cause})")

    def get(self, path: str, timeout: float = PROBE_S) -> Reply:
        answer = self._send("GET", path, timeout=timeout)
        return Reply(answer.status_code, answer.text)

    def post(self, path: str, payload: Any, timeout: float) -> Reply:
        answer = self._send("POST", path, timeout=timeout, payload=payload)
        return Reply(answer.status_code, answer.text)

    def live(self, timeout: float = PROBE_S) -> int:
        return self.get("/v2/health/live", timeout).status

    def ready(self, timeout: float = PROBE_S) -> bool:
        return self.get("/v2/health/ready", timeout).status == 200

    def model_ready(self, model: str, timeout: float = PROBE_S) -> bool:
        return self.get(f"/v2/models/{quote(model, safe='')}/ready", timeout).status == 200

    def index(self, timeout: float = PROBE_S) -> list[dict[str, Any]] | None:
        """Every model that the server knows of; None when it does not tell (the API may be closed)."""
        reply = self.post("/v2/repository/index", {}, timeout)
        value = reply.json()
        if reply.status != 200 or not isinstance(value, list):
            return None
        return [entry for entry in value if isinstance(entry, dict)]

    def events(self, path: str, payload: Any, timeout: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """(status, event) for each server-sent event of a streaming request.

        An answer that is not a stream of events is passed on as one event.
        """
        deadline = time.monotonic() + timeout
        answer = self._send("POST", path, timeout=timeout, payload=payload, stream=True)
        rest = b""
        seen = False
        try:
            for chunk in answer.iter_content(chunk_size=None):
                rest += chunk
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    event = _event(line)
                    if event is not None:
                        seen = True
                        yield answer.status_code, event
                if time.monotonic() > deadline:
                    raise Unreachable("timeout", f"{self.url} did not end its answer within {timeout:g} s")
            event = _event(rest)
            if event is None and not seen:
                value = Reply(answer.status_code, rest.decode("utf-8", errors="replace")).json()
                event = value if isinstance(value, dict) else None
            if event is not None:
                yield answer.status_code, event
            elif not seen and answer.status_code != 200:
                yield answer.status_code, {}
        except self._requests.exceptions.RequestException as exc:
            raise self._unreachable(exc, timeout) from exc
        finally:
            answer.close()


def _event(line: bytes) -> dict[str, Any] | None:
    text = line.strip().decode("utf-8", errors="replace")
    if not text.startswith("data:"):
        return None
    try:
        value = json.loads(text[len("data:") :])
    except ValueError:
        raise TritonError(f"the stream holds an event that is not JSON: {text[:200]}") from None
    return value if isinstance(value, dict) else None
