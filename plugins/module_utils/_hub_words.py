# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the fetching process says, and as whom: why it ended, in words that no release of its client changes.

It runs where nothing of this collection is installed, so this imports the standard library only.
Private to the collection.
"""

from __future__ import annotations

import ctypes
import email.utils
import errno
import os
import re
import signal
import ssl
import sys
import time
import urllib.parse
from typing import Any

_PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """Why the work ended; ``kind`` is one of the words that the caller has a remedy for."""

    def __init__(self, kind: str, text: str, where: str = "", status: int = 0) -> None:
        super().__init__(text)
        self.kind, self.where, self.status = kind, where, status


class Wait(Exception):
    """The hub asks to be left alone for some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the hub asks to wait {seconds:g} s")
        self.seconds = seconds


class Stopped(Exception):
    """Another file has failed, so this one is left as it is."""


def clean(text: str, secrets: list[str]) -> str:
    """One line without secrets; the query of an address may be a signature."""
    for secret in secrets:
        text = text.replace(secret, "********")
    text = re.sub(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>]+", r"\1", text)
    return " ".join(text.split())[:400]


def human(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024.0
    return f"{size:.1f} GiB"


def seconds_to_wait(headers: Any) -> float:
    """Retry-After as seconds or as a date, or what the rate limit's header says; 10 when there is neither."""
    value = str(headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            pass
    found = re.search(r"\bt\s*=\s*(\d+)", str(headers.get("RateLimit") or ""))
    return float(found.group(1)) if found else 10.0


def origin(url: str) -> tuple[str, str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def classify(error: BaseException, endpoint: str) -> Failure:
    """What went wrong, in words that do not depend on the release of the client or of its HTTP library."""
    if isinstance(error, Failure):
        return error
    text = str(error) or type(error).__name__
    responses = [getattr(cause, "response", None) for cause in _chain(error)]
    response = next((found for found in responses if found is not None), None)
    if response is not None:
        status, code = int(response.status_code), str(response.headers.get("X-Error-Code") or "")
        url = str(response.request.url)
        where = urllib.parse.urlsplit(url)._replace(query="", fragment="").geturl()
        if origin(url) != origin(endpoint) and status < 500:
            # Only the hub itself judges rights; elsewhere an address that was signed for some minutes has expired.
            return Failure("cut", text, where, status)
        kind = {401: "unauthorized", 403: "forbidden", 404: "missing", 407: "proxy", 416: "cut"}.get(status, "unknown")
        kind = {"GatedRepo": "gated", "RepoNotFound": "repository", "RevisionNotFound": "revision"}.get(code, kind)
        if status == 401 and kind != "gated":
            kind = "unauthorized"
        elif status in (408, 425) or status >= 500:
            kind = "server"
        return Failure(kind, text, where, status)
    for cause in _chain(error):
        names = {kind.__name__ for kind in type(cause).__mro__}
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return Failure("space", text, str(cause.filename or ""))
        if isinstance(cause, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(cause) or "SSL:" in str(cause):
            return Failure("tls", str(cause))
        for name, kind in (
            ("ProxyError", "proxy"),
            ("TimeoutException", "timeout"),
            ("ConnectError", "connect"),
            ("ConnectionRefusedError", "connect"),
            ("NetworkError", "cut"),
            ("ProtocolError", "cut"),
            ("ConnectionError", "cut"),
        ):
            if name in names:
                return Failure(kind, text)
    if "Consistency check failed" in text:
        return Failure("cut", text)
    if "too large to be downloaded" in text:
        return Failure("xet", text)
    return Failure("unknown", f"{type(error).__name__}: {text}")


def secrets_of(token: str) -> list[str]:
    """The token, and what proxies are told to let us through."""
    found = [token] if token else []
    for name, value in os.environ.items():
        if name.lower().endswith("_proxy") and "@" in value:
            user = value.rpartition("@")[0].rpartition("/")[2]
            found += [user, user.partition(":")[2]]
    return [secret for secret in found if secret]


def become(uid: int, gid: int, parent: int) -> str:
    """What root has started goes on as the owner of the weights: nothing from the network needs root.

    Returns why it stays root, which it does where that owner cannot read this Python.
    """
    os.umask(0o027)
    if os.geteuid() != 0 or uid == 0:
        return ""
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    unreadable = [path for path in (os.__file__, sys.prefix) if not os.access(path, os.R_OK, effective_ids=True)]
    os.seteuid(0)
    os.setegid(0)
    if unreadable:
        return f"as root, since uid {uid} cannot read {unreadable[0]}"
    os.setgid(gid)
    os.setuid(uid)
    # Another user's process no longer ends with its parent, unless it asks for that again.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)
    return ""
