# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small web server: Git repositories (read only, by git's own http-backend), their LFS objects, and plain files.

    gitserver.py FOLDER [PORT]
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Handler(SimpleHTTPRequestHandler):
    """Everything below the server's folder; NAME.git is a repository."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_arguments: object) -> None:
        self.server.requests.append("%s %s" % (self.command, self.path))

    def do_GET(self) -> None:
        name, inside = self.repository()
        if not name:
            super().do_GET()
        elif inside.startswith("/lfs-objects/"):
            self.lfs_object(name, inside.rsplit("/", 1)[1])
        else:
            self.backend(name, inside)

    def do_POST(self) -> None:
        name, inside = self.repository()
        if inside == "/info/lfs/objects/batch":
            self.lfs_batch(name)
        elif name:
            self.backend(name, inside)
        else:
            self.send_error(405)

    def repository(self) -> tuple[str, str]:
        """The repository's path below the folder and the rest, or two empty texts."""
        path = posixpath.normpath(unquote(urlsplit(self.path).path))
        head, git, tail = path.partition(".git/")
        return ((head + ".git").lstrip("/"), "/" + tail) if git else ("", "")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            found = b""
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                found += self.rfile.read(size)
                self.rfile.readline()
                if size == 0:
                    return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def backend(self, name: str, inside: str) -> None:
        done = subprocess.run(
            ["git", "http-backend"], input=self.body(), capture_output=True, check=False,
            env={
                "PATH": os.environ.get("PATH", os.defpath), "GIT_PROJECT_ROOT": str(self.server.folder),
                "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": "/%s%s" % (name, inside), "REQUEST_METHOD": self.command,
                "QUERY_STRING": urlsplit(self.path).query, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_ADDR": self.client_address[0],
                "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            },
        )  # fmt: skip
        head, _empty, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode("latin-1").splitlines() if ": " in line)
        code = int(fields.pop("Status", "200" if done.stdout else "500").split()[0])
        self.answer(code, fields.get("Content-Type", "text/plain"), content)

    def lfs_path(self, name: str, oid: str) -> Path:
        return self.server.folder / name / "lfs" / "objects" / oid[:2] / oid[2:4] / oid

    def lfs_batch(self, name: str) -> None:
        asked = json.loads(self.body())
        base = "http://%s/%s/lfs-objects/" % (self.headers["Host"], name)
        objects = []
        for entry in asked["objects"]:
            found = {"oid": entry["oid"], "size": entry["size"]}
            if self.lfs_path(name, entry["oid"]).is_file():
                found["actions"] = {"download": {"href": base + entry["oid"]}}
            else:
                found["error"] = {"code": 404, "message": "Object does not exist"}
            objects.append(found)
        content = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self.answer(200, "application/vnd.git-lfs+json", content)

    def lfs_object(self, name: str, oid: str) -> None:
        path = self.lfs_path(name, oid)
        if path.is_file():
            self.answer(200, "application/octet-stream", path.read_bytes())
        else:
            self.send_error(404)


class Server(ThreadingHTTPServer):
    """Serves one folder; keeps what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.folder = folder.resolve()
        self.requests: list[str] = []

        def handler(*arguments: object) -> Handler:
            return Handler(*arguments, directory=str(self.folder))  # type: ignore[arg-type]

        super().__init__((address, port), handler)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return "http://%s:%d" % self.server_address[:2]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The folder on a free port of the loopback address."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with Server(Path(sys.argv[1]), "", int(sys.argv[2]) if len(sys.argv) > 2 else 80) as main_server:
        main_server.serve_forever()
