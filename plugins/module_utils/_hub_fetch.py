# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists or fetches the files of a repository with huggingface_hub: a process of its own, in an environment that has it.

Run with a JSON file as its argument, it does what that says, and leaves its outcome in the file that it names. Of
this collection it needs only what lies beside it. The token comes through a pipe, so that neither the command line
nor the environment of any process shows it.

The client speaks to the hub; the files are ours. Its own downloads begin again when their process has ended, and
weights are too large for that: what has come is kept here, and asked for no second time.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils._hub_words import (
    Failure,
    Stopped,
    Wait,
    become,
    classify,
    clean,
    human,
    origin,
    seconds_to_wait,
    secrets_of,
)

OLDEST = (1, 0)
_CHUNK = 4 * 1024 * 1024
_HASHES = {40: "blob_id", 64: "sha256"}
# Worth another attempt: the network, a server that is starting, or an address that has expired meanwhile.
_PASSING = ("cut", "connect", "timeout", "server")


class Progress:
    """Bytes and files that are there, told in the log now and then."""

    def __init__(self, total: int, files: int, say: Callable[[str], None], every_s: float) -> None:
        self.total, self.files, self.say, self.every_s = total, files, say, every_s
        self.bytes = self.done = self.fetched = 0
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._ended = threading.Event()

    def add(self, count: int, *, fetched: bool = True) -> None:
        with self._lock:
            self.bytes += count
            self.fetched += count if fetched else 0

    def finished(self, path: str, size: int, how: str) -> None:
        with self._lock:
            self.done += 1
            done = self.done
        self.say(f"{path}: {human(size)}, {how} ({done} of {self.files} files)")

    def line(self) -> str:
        rate = self.fetched / max(0.001, time.monotonic() - self._began)
        share = 100 * self.bytes // max(1, self.total)
        text = f"{human(self.bytes)} of {human(self.total)} ({share} %), {self.done} of {self.files} files"
        if rate > 0:
            text += f", {human(rate)}/s, {(self.total - self.bytes) / rate / 60:.0f} min left"
        return text

    def __enter__(self) -> Progress:
        threading.Thread(target=self._report, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()

    def _report(self) -> None:
        while not self._ended.wait(self.every_s):
            self.say(self.line())


class Part:
    """What has come of one file; the client writes into it as into any file, and what it wrote stays."""

    def __init__(self, path: Path, progress: Progress, stop: threading.Event) -> None:
        self.progress, self.stop = progress, stop
        self.stream = open(os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640), "r+b", buffering=0)
        self.size = self.stream.seek(0, os.SEEK_END)

    def write(self, data: bytes) -> int:
        if self.stop.is_set():
            raise Stopped
        view = memoryview(data)
        while view:
            written = self.stream.write(view) or 0
            view = view[written:]
            self.size += written
            self.progress.add(written)
        return len(data)

    def tell(self) -> int:
        return self.stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        length = self.stream.truncate(size)
        self.progress.add(length - self.size, fetched=False)
        self.size = length
        return length

    def close(self) -> None:
        self.stream.close()


class Hub:
    """The client, and what was asked of it."""

    def __init__(self, request: dict[str, Any], token: str, say: Callable[[str], None]) -> None:
        self.request, self.token, self.say = request, token, say
        self.endpoint, self.repository = str(request["endpoint"]), str(request["repository"])
        self.pause_s, self.patience_s = float(request["pause_s"]), float(request["patience_s"])
        self.stop = threading.Event()
        self.client = importlib.import_module("huggingface_hub")
        self.download = importlib.import_module("huggingface_hub.file_download")
        version = [int(part) for part in re.findall(r"\d+", self.client.__version__)[:2]]
        if tuple(version) < OLDEST:
            raise Failure("client", f"huggingface_hub {self.client.__version__}")
        http = importlib.import_module("huggingface_hub.utils._http")
        constants: Any = importlib.import_module("huggingface_hub.constants")
        # As much as this is lost when a connection is cut: the client hands over whole chunks only.
        constants.DOWNLOAD_CHUNK_SIZE = int(request["chunk_bytes"])

        def limited(response: Any) -> None:
            if response.status_code == 429:
                raise Wait(seconds_to_wait(response.headers))

        def factory() -> Any:
            made = http.default_client_factory()
            made.event_hooks = {**made.event_hooks, "response": [limited]}
            return made

        self.client.set_client_factory(factory)

    def patiently(self, what: str, work: Callable[[], Any], progressed: Callable[[], int] = lambda: 0) -> Any:
        """Work, again after what passes; as often as was allowed without anything new, and as long as the hub asks."""
        attempts, waited, before = 0, 0.0, progressed()
        while True:
            try:
                return work()
            except Stopped:
                raise
            except Wait as limit:
                waited += limit.seconds
                if waited > self.patience_s:
                    raise Failure("limit", f"{limit.seconds:g} s more, {waited:g} s in all", what) from limit
                self.say(f"{what}: {limit}")
                self.sleep(limit.seconds)
            except Exception as error:
                failure = classify(error, self.endpoint)
                if failure.kind not in _PASSING:
                    raise failure from error
                now = progressed()
                attempts = 1 if now > before else attempts + 1
                before = now
                if attempts > int(self.request["retries"]):
                    raise failure from error
                self.say(f"{what}: {failure}; attempt {attempts + 1}")
                self.sleep(min(30.0, self.pause_s * 2 ** (attempts - 1)))

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped

    # --- what there is ---

    def listing(self) -> dict[str, Any]:
        api = self.client.HfApi(endpoint=self.endpoint, token=self.token or False)
        info = self.patiently(
            self.repository,
            lambda: api.model_info(
                self.repository,
                revision=self.request["revision"],
                files_metadata=True,
                timeout=float(self.request["timeout_s"]),
            ),
        )
        files = []
        for sibling in info.siblings or []:
            lfs = sibling.lfs
            files.append(
                {
                    "path": sibling.rfilename,
                    "size": sibling.size if lfs is None else lfs.size,
                    "sha256": None if lfs is None else lfs.sha256,
                    "blob_id": sibling.blob_id if lfs is None else None,
                }
            )
        # With it, so that a wrong repository, or one that may be listed but not read, shows before anything else.
        config = [entry for entry in files if entry["path"] == "config.json"]
        if str(info.sha) == self.request["revision"] and config:
            for entry in config:
                self.patiently("config.json", lambda entry=entry: self.head(entry))  # type: ignore[misc]
            self.fetch(Path(self.request["directory"]), config)
        return {"commit": str(info.sha), "files": files}

    def url(self, entry: dict[str, Any]) -> str:
        revision = self.request["revision"]
        return str(self.client.hf_hub_url(self.repository, entry["path"], revision=revision, endpoint=self.endpoint))

    def head(self, entry: dict[str, Any]) -> Any:
        """Where a file is, its size and hash. What the listing did not say is taken from here."""
        url = self.url(entry)
        found = self.client.get_hf_file_metadata(
            url, token=self.token or False, timeout=float(self.request["timeout_s"])
        )
        if found.commit_hash not in (None, self.request["revision"]):
            raise Failure("mirror", f"{entry['path']} is of commit {found.commit_hash}", url)
        name = _HASHES.get(len(found.etag or ""))
        if name is not None and entry.get(name) is None and not entry.get("sha256") and not entry.get("blob_id"):
            entry[name] = found.etag
        if name is not None and entry.get(name) not in (None, found.etag):
            raise Failure("mirror", f"{entry['path']} has hash {found.etag}, the listing says {entry[name]}", url)
        if entry.get("size") is None:
            entry["size"] = found.size
        if entry["size"] is None or not (entry.get("sha256") or entry.get("blob_id")):
            raise Failure("nohash", entry["path"], url)
        return found

    # --- fetching ---

    def fetch(self, directory: Path, files: list[dict[str, Any]]) -> None:
        total = sum(int(entry["size"]) for entry in files)
        parts = directory / ".hub"
        self.say(
            f"{self.repository} at {self.request['revision']} from {self.endpoint}: {human(total)}"
            f" in {len(files)} files, by huggingface_hub {self.client.__version__}"
        )
        with Progress(total, len(files), self.say, float(self.request["report_s"])) as progress:
            with ThreadPoolExecutor(max_workers=int(self.request["workers"])) as pool:
                jobs = [pool.submit(self.one, directory, parts, entry, progress) for entry in files]
                wait(jobs, return_when=FIRST_EXCEPTION)
                if any(job.done() and job.exception() is not None for job in jobs):
                    self.stop.set()
                for job in jobs:
                    job.cancel()
            errors = [job.exception() for job in jobs if not job.cancelled() and job.exception() is not None]
            for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
                raise classify(error, self.endpoint) if error is not None else AssertionError
            self.say(progress.line())

    def one(self, directory: Path, parts: Path, entry: dict[str, Any], progress: Progress) -> None:
        target, part = directory / entry["path"], parts / (entry["path"].replace("/", "--") + ".part")
        size = int(entry["size"])
        if target.is_file() and target.stat().st_size == size:
            # It got its name when its hash was right.
            progress.add(size, fetched=False)
            progress.finished(entry["path"], size, "there already")
            return
        for last in (False, True):
            self.bring(part, entry, progress)
            found = self.hash_of(part, entry)
            if found == (entry.get("sha256") or entry["blob_id"]):
                break
            part.unlink()
            progress.add(-size, fetched=False)
            text = f"{entry['path']} has hash {found}, not {entry.get('sha256') or entry['blob_id']}"
            if last:
                raise Failure("hash", text)
            self.say(f"{text}: thrown away, fetched once more")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)
        progress.finished(entry["path"], size, "its hash is right")

    def bring(self, path: Path, entry: dict[str, Any], progress: Progress) -> None:
        """Fills the part, from where it ends."""
        size = int(entry["size"])
        part = Part(path, progress, self.stop)
        try:
            if part.size > size:
                part.stream.truncate(0)
                part.size = 0
            progress.add(part.size, fetched=False)
            if 0 < part.size < size:
                self.say(f"{entry['path']}: goes on at {human(part.size)} of {human(size)}")

            def attempt() -> None:
                if self.stop.is_set():
                    raise Stopped
                found = self.head(entry)
                headers = self.client.utils.build_hf_headers(token=self.token or False)
                headers["Accept-Encoding"] = "identity"
                # What the hub keeps by its other protocol has a plain address only at the end of a redirect.
                where = self.url(entry) if found.xet_file_data is not None else found.location
                if origin(where) != origin(self.endpoint):
                    # The token is for the hub, not for whoever keeps its files.
                    headers.pop("authorization", None)
                part.seek(0, os.SEEK_END)
                if self.request["xet"] and part.size == 0 and size:
                    self.by_xet(path, entry, part)
                    return
                self.download.http_get(where, part, resume_size=part.size, headers=headers, expected_size=size)

            if part.size < size or size == 0:
                self.patiently(entry["path"], attempt, lambda: part.size)
        finally:
            part.close()

    def by_xet(self, path: Path, entry: dict[str, Any], part: Part) -> None:
        """By the client's own download, which knows the other protocol and begins a file anew."""
        made = self.client.hf_hub_download(
            self.repository,
            entry["path"],
            revision=self.request["revision"],
            local_dir=str(path.parent / "xet"),
            token=self.token or False,
            endpoint=self.endpoint,
        )
        os.replace(made, path)
        part.size = path.stat().st_size
        part.progress.add(part.size)

    def hash_of(self, path: Path, entry: dict[str, Any]) -> str:
        """Of what lies on the disk, as the hub counts it: sha256 of a large file, git's own of a small one."""
        digest = hashlib.sha256() if entry.get("sha256") else hashlib.sha1(usedforsecurity=False)
        if not entry.get("sha256"):
            digest.update(b"blob %d\0" % path.stat().st_size)
        with open(path, "rb", buffering=0) as stream:
            while True:
                data = stream.read(_CHUNK)
                if not data:
                    return digest.hexdigest()
                if self.stop.is_set():
                    raise Stopped
                digest.update(data)


def main(argv: list[str]) -> int:
    request = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    token = ""
    if request["token_pipe"]:
        with open(request["token_pipe"], encoding="utf-8") as pipe:
            token = pipe.readline().strip()
        os.unlink(request["token_pipe"])
    root = become(int(request["uid"]), int(request["gid"]), int(request["parent"]))
    secrets = secrets_of(token)
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock:
            sys.stdout.write(clean(text, secrets) + "\n")
            sys.stdout.flush()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    if root:
        say(root)
    outcome: dict[str, Any]
    try:
        hub = Hub(request, token, say)
        logger = logging.getLogger("huggingface_hub")
        logger.handlers, logger.propagate = [Handler()], False
        outcome = {"version": hub.client.__version__}
        if request["action"] == "list":
            outcome.update(hub.listing())
        elif request["action"] == "measure":
            for entry in request["files"]:
                hub.patiently(entry["path"], lambda entry=entry: hub.head(entry))  # type: ignore[misc]
            outcome["files"] = request["files"]
        else:
            hub.fetch(Path(request["directory"]), request["files"])
    except ImportError as error:
        outcome = {"kind": "client", "text": clean(str(error), secrets)}
    except Exception as error:
        failure = classify(error, str(request["endpoint"]))
        outcome = {
            "kind": failure.kind,
            "text": clean(str(failure), secrets),
            "where": clean(failure.where, secrets),
            "status": failure.status,
        }
    temporary = request["outcome"] + ".new"
    Path(temporary).write_text(json.dumps(outcome), encoding="utf-8")
    os.replace(temporary, request["outcome"])
    if "kind" in outcome:
        say(f"failed: {outcome['kind']}: {outcome['text']}")
    return 1 if "kind" in outcome else 0
