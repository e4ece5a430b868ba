# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hub of models on loopback, as huggingface_hub uses the real one, with a storage server behind it.

    python tests/hub/server.py --root MODELS [--port N] [--storage-port N] [--token-file FILE] [--gated OWNER/NAME]

MODELS holds OWNER/NAME/ directories; each is one repository with one commit, which is printed with the address.
What a client has no business to ask is refused with 400 and kept in ``unexpected``: a test fails on it.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import re
import signal
import socket
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".model", ".bin", ".pt", ".gguf")
SIGNATURE = "X-Signature=5ecret5ignature&Expires=1900000000"


@dataclass(frozen=True)
class File:
    path: str
    data: bytes
    large: bool

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer_id(self) -> str:
        """What git keeps of a large file is a pointer, and the hub's blob id is that pointer's."""
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (self.sha256, len(self.data))
        return hashlib.sha1(b"blob %d\0" % len(text) + text.encode("ascii")).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob_id


@dataclass
class Repository:
    name: str
    files: dict[str, File]
    gated: bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        lines = ["%s %s\n" % (file.etag, path) for path, file in sorted(self.files.items())]
        return hashlib.sha1("".join(lines).encode()).hexdigest()


@dataclass
class Fault:
    """What happens instead of, or during, the right answer to requests whose method and path match."""

    match: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    # Bytes of the body after which the connection is cut, or after which nothing more comes for a while.
    cut: int | None = None
    stall: tuple[int, float] | None = None
    # Content that is not what the hash says, or no regard for Range.
    corrupt: bool = False
    ignore_range: bool = False


@dataclass(frozen=True)
class Request:
    server: str
    method: str
    path: str
    headers: dict[str, str]

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


class Refused(Exception):
    """An answer other than the file: status, the hub's code, message."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    kind: str

    def log_message(self, *unused: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.kind, self.command, self.path, headers)
        with self.hub.lock:
            self.hub.requests.append(request)
        fault = self.hub.fault_for(request)
        try:
            if fault is not None and fault.status:
                body = json.dumps(fault.body or {}).encode()
                self.send(fault.status, body, {"Content-Type": "application/json", **fault.headers})
                return
            (self.hub.on_hub if self.kind == "hub" else self.hub.on_storage)(self, request, fault)
        except Refused as refused:
            if refused.status == 400:
                with self.hub.lock:
                    self.hub.unexpected.append("%s %s: %s" % (self.command, self.path, refused.message))
            more = {"X-Error-Message": refused.message}
            if refused.code:
                more["X-Error-Code"] = refused.code
            self.send(refused.status, json.dumps({"error": refused.message}).encode(), more)

    def send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        if fault is not None and fault.cut is not None:
            self.wfile.write(body[: fault.cut])
            self.wfile.flush()
            self.close_connection = True
            # No orderly end: as when a cable is pulled, or a balancer gives up.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            if fault.cut % 2:
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault is not None and fault.stall is not None:
            self.wfile.write(body[: fault.stall[0]])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.resume.wait(fault.stall[1])
            body = body[fault.stall[0] :]
        rate = self.hub.bytes_per_s
        step = max(1, rate // 50) if rate else max(1, len(body))
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if rate:
                time.sleep(step / rate)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *unused: Any) -> None:
        """A client that goes away is part of what is tested."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*unused)


class Hub:
    """Both servers. ``with Hub() as hub: repository = hub.add("owner/name", directory)``."""

    def __init__(self, *, port: int = 0, storage_port: int = 0, token: str = "", blobs: bool = True) -> None:
        self.token, self.blobs = token, blobs
        # Tokens that are valid, and accounts whose conditions were not accepted.
        self.strangers: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.unexpected: list[str] = []
        self.lock = threading.Lock()
        self.bytes_per_s = 0
        self.xet = True
        self.stalled, self.resume = threading.Event(), threading.Event()
        self.servers = [self._serve("hub", port), self._serve("storage", storage_port)]
        self.url, self.storage_url = ("http://127.0.0.1:%d" % server.server_address[1] for server in self.servers)

    def _serve(self, kind: str, port: int) -> Server:
        handler: Callable[..., Any] = type("Handler", (Handler,), {"hub": self, "kind": kind})
        return Server(("127.0.0.1", port), handler)

    def __enter__(self) -> Hub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.resume.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, directory: Path, **how: Any) -> Repository:
        files = {}
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                relative = path.relative_to(directory).as_posix()
                files[relative] = File(relative, path.read_bytes(), relative.endswith(LARGE))
        self.repositories[name] = Repository(name, files, **how)
        return self.repositories[name]

    def fault_for(self, request: Request) -> Fault | None:
        text = "%s %s" % (request.method, request.path)
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.match, text):
                    fault.times -= 1
                    return fault
        return None

    # --- the hub ---

    def repository(self, name: str, revision: str, request: Request) -> Repository:
        """The repository, for who may see it at this revision."""
        if request.token and request.token != self.token and request.token not in self.strangers:
            raise Refused(401, message="Invalid credentials in Authorization header")
        found = self.repositories.get(name)
        if found is None or (found.private and not request.token):
            # Without an account the hub does not say whether a repository exists.
            raise Refused(404 if request.token else 401, "RepoNotFound", "Repository not found")
        if revision not in ("main", found.commit):
            raise Refused(404, "RevisionNotFound", "Invalid rev id: %s" % revision)
        return found

    @staticmethod
    def readable(found: Repository, request: Request, strangers: set[str]) -> None:
        """Everybody sees what a gated repository has; its files are for those who have accepted its conditions."""
        if found.gated and not request.token:
            raise Refused(401, "GatedRepo", "Access to model %s is restricted. You must be authenticated." % found.name)
        if found.gated and request.token in strangers:
            raise Refused(403, "GatedRepo", "Access to model %s is restricted: ask for access" % found.name)

    def on_hub(self, handler: Handler, request: Request, fault: Fault | None) -> None:
        parts = urllib.parse.urlsplit(request.path)
        query = urllib.parse.parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        path = urllib.parse.unquote(parts.path)
        if "user-agent" not in request.headers:
            raise Refused(400, message="no user agent")
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
        if found and request.method == "GET":
            if set(query) - {"blobs"}:
                raise Refused(400, message="unknown query")
            repository = self.repository(found[1], found[2], request)
            blobs = self.blobs and query.get("blobs") in (["True"], ["true"], ["1"])
            self.send_json(handler, self.info(repository, blobs), fault)
            return
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        if found and request.method == "GET":
            if set(query) - {"recursive", "expand"} or query.get("recursive") not in (["True"], ["true"], ["1"]):
                raise Refused(400, message="unknown query")
            self.send_json(handler, self.tree(self.repository(found[1], found[2], request)), fault)
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found and not query:
            repository = self.repository(found[1], found[2], request)
            self.readable(repository, request, self.strangers)
            file = repository.files.get(found[3])
            if file is None:
                raise Refused(404, "EntryNotFound", "Entry not found")
            headers = {"X-Repo-Commit": repository.commit, "X-Linked-Etag": '"%s"' % file.etag}
            headers["X-Linked-Size"] = str(len(file.data))
            if file.large:
                headers["Location"] = "%s/lfs/%s?%s" % (self.storage_url, file.sha256, SIGNATURE)
                if self.xet:
                    # As the hub does for what it also keeps by its own protocol.
                    headers["X-Xet-Hash"] = file.sha256[::-1]
                    route = "%s/api/models/%s/xet-read-token/%s" % (self.url, found[1], repository.commit)
                    headers["Link"] = '<%s>; rel="xet-auth"' % route
                handler.send(302, b"", headers)
            else:
                name = urllib.parse.quote(file.path)
                headers["Location"] = "/api/resolve-cache/models/%s/%s/%s" % (found[1], repository.commit, name)
                handler.send(307, b"", headers)
            return
        found = re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path)
        if found and not query:
            repository = self.repository(found[1], found[2], request)
            self.readable(repository, request, self.strangers)
            file = repository.files[found[3]]
            self.send_file(handler, request, file, fault, {"X-Repo-Commit": repository.commit})
            return
        raise Refused(400, message="no such call")

    @staticmethod
    def send_json(handler: Handler, value: Any, fault: Fault | None) -> None:
        handler.send(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"}, fault)

    @staticmethod
    def info(repository: Repository, blobs: bool) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for path, file in sorted(repository.files.items()):
            entry: dict[str, Any] = {"rfilename": path}
            if blobs:
                entry.update(size=len(file.data), blobId=file.pointer_id if file.large else file.blob_id)
                if file.large:
                    entry["lfs"] = {"sha256": file.sha256, "size": len(file.data), "pointerSize": 135}
            siblings.append(entry)
        return {
            "_id": "6581234567890abcdef01234",
            "id": repository.name,
            "modelId": repository.name,
            "sha": repository.commit,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "tags": ["mixtral"],
            "downloads": 1,
            "likes": 1,
            "siblings": siblings,
        }

    @staticmethod
    def tree(repository: Repository) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path, file in sorted(repository.files.items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.data)}
            entry["oid"] = file.pointer_id if file.large else file.blob_id
            if file.large:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 135}
            found.append(entry)
        return found

    # --- the storage ---

    def on_storage(self, handler: Handler, request: Request, fault: Fault | None) -> None:
        parts = urllib.parse.urlsplit(request.path)
        if "authorization" in request.headers:
            raise Refused(400, message="the token was sent to the storage")
        if request.method != "GET" or parts.query != SIGNATURE:
            raise Refused(400, message="not the address that was signed")
        for repository in self.repositories.values():
            for file in repository.files.values():
                if file.large and parts.path == "/lfs/" + file.sha256:
                    self.send_file(handler, request, file, fault, {})
                    return
        raise Refused(404, message="no such object")

    @staticmethod
    def send_file(handler: Handler, request: Request, file: File, fault: Fault | None, headers: dict[str, str]) -> None:
        body = file.data
        if fault is not None and fault.corrupt:
            body = bytes([body[0] ^ 1]) + body[1:]
        headers = {**headers, "ETag": '"%s"' % file.etag, "Accept-Ranges": "bytes"}
        asked = request.headers.get("range", "")
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if asked and not found:
            raise Refused(400, message="range %r" % asked)
        if found and not (fault is not None and fault.ignore_range):
            first, last = int(found[1]), int(found[2] or len(body) - 1)
            if first >= len(body):
                handler.send(416, b"", {**headers, "Content-Range": "bytes */%d" % len(body)})
                return
            headers["Content-Range"] = "bytes %d-%d/%d" % (first, last, len(body))
            handler.send(206, body[first : last + 1], headers, fault)
            return
        handler.send(200, body, headers, fault)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="directory of OWNER/NAME directories")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--storage-port", type=int, default=0)
    parser.add_argument("--token-file", type=Path, help="file with the one token that is valid")
    parser.add_argument("--gated", action="append", default=[], metavar="OWNER/NAME", help="only for that token")
    parser.add_argument("--private", action="append", default=[], metavar="OWNER/NAME")
    options = parser.parse_args()
    token = options.token_file.read_text("ascii").strip() if options.token_file else ""
    with Hub(port=options.port, storage_port=options.storage_port, token=token) as hub:
        for directory in sorted(path for path in options.root.glob("*/*") if path.is_dir()):
            name = directory.relative_to(options.root).as_posix()
            found = hub.add(name, directory, gated=name in options.gated, private=name in options.private)
            print("%s %s@%s" % (hub.url, name, found.commit), flush=True)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *unused: ended.set())
        ended.wait()
        if hub.unexpected:
            print("unexpected: " + "; ".join(hub.unexpected), file=sys.stderr)
        return 1 if hub.unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
