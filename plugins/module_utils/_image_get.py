# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gets an image from a registry or an archive, through the engine, with progress, a limit and a way to stop.

Private to the collection.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, TextIO

from ansible_collections.trtllm.serving.plugins.module_utils import _progress
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import PathLike, hash_files
from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import human
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError, explain, failures, sdk
from ansible_collections.trtllm.serving.plugins.module_utils._image_probe import read_record, write_record
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import ImageError, Reference, parse
from ansible_collections.trtllm.serving.plugins.module_utils._lock import utc_now
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Cancelled, TimedOut

PROGRESS_S = 5.0
PAUSE_S = 5.0
_CHUNK = 1024 * 1024
_POLL_S = 0.2

# What may go well the next time: the line was cut, or the registry was busy. Whole layers are kept by the engine.
_PASSING = re.compile(
    r"EOF|connection reset|connection refused|broken pipe|i/o timeout|timed? ?out|TLS handshake|too many requests"
    r"|50[0234]|service unavailable|bad gateway|short read|incomplete|remote end closed|httpReadSeeker",
    re.I,
)
# (what the engine says, what to do); the first that matches wins.
_KNOWN = (
    (
        r"unauthorized|authentication required|access denied|denied|forbidden|no basic auth",
        "log in: set tensorrtllm_backend_build_registry_auth_file, or correct the name",
    ),
    (r"manifest unknown|not found|no such image|name unknown", "correct the image's name or tag, or the mirror"),
    (r"no space left|disk quota", "free some space below the engine's data-root, or move it (docker_nvidia)"),
    (
        r"no such host|name resolution|network is unreachable",
        "set tensorrtllm_backend_build_registry_mirror or a proxy",
    ),
    (r"x509|certificate", "put the registry's certificate authority into /etc/docker/certs.d"),
    (r"HTTP response to HTTPS client", "list the registry under insecure-registries (docker_nvidia)"),
    (r"digest|verification failed|mismatch", "the registry holds something else: trust neither until you know why"),
    (r"no matching manifest", "this image is not made for this machine type"),
    (_PASSING.pattern, "run again: what was received is kept"),
)


class Progress:
    """Lines of a log file, and the size done so far every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.layers: dict[str, tuple[int, int]] = {}
        self._states: dict[str, str] = {}
        self._told = time.monotonic()

    def line(self, text: str) -> None:
        self.stream.write(f"{utc_now()} {text}\n")
        self.stream.flush()

    def event(self, event: Mapping[str, Any]) -> None:
        """One message of the engine: each layer's steps once, and the sum of what is on the way now and then."""
        layer, status = str(event.get("id") or ""), str(event.get("status") or "").strip()
        detail = event.get("progressDetail") or {}
        if layer and detail.get("total"):
            self.layers[layer] = (int(detail.get("current") or 0), int(detail["total"]))
            done, total = self.sums()
            _progress.tell("pulling the image", done=done, total=total, unit="bytes")
        if status and self._states.get(layer) != status:
            self._states[layer] = status
            self.line(f"{layer}: {status}" if layer else status)
        self.tell()

    def sums(self) -> tuple[int, int]:
        """Bytes of all layers that are there, and in all."""
        return sum(pair[0] for pair in self.layers.values()), sum(pair[1] for pair in self.layers.values())

    def tell(self, text: str = "") -> None:
        if time.monotonic() - self._told < PROGRESS_S:
            return
        self._told = time.monotonic()
        if not text and self.layers:
            done, total = self.sums()
            text = f"{human(done)} of {human(total)} in {len(self.layers)} layers"
        if text:
            self.line(text)


def open_log(path: Path) -> TextIO:
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    fd = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    return os.fdopen(fd, "w", encoding="utf-8")


def follow(start: Callable[[], Iterable[Any]], cancellation: Cancellation, timeout: float | None) -> Iterator[Any]:
    """What start() yields, while the wish to stop and the limit are looked at.

    The engine may say nothing for minutes, so that its answer is read beside. A reader that is left behind ends with
    the module, and the engine stops when its connection closes.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1000)

    def read() -> None:
        try:
            for item in start():
                items.put(("item", item))
            items.put(("end", None))
        except BaseException as exc:
            items.put(("error", exc))

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + timeout if timeout else None
    while True:
        cancellation.check()
        if deadline is not None and time.monotonic() >= deadline:
            raise TimedOut(f"did not end within {timeout:g} s: raise the timeout, or see why it is slow")
        try:
            kind, value = items.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if kind == "error":
            raise value
        if kind == "end":
            return
        yield value


@contextmanager
def patient(client: Any, timeout: float | None) -> Iterator[None]:
    """The engine may be silent for as long as the whole step may take; every other question is answered at once."""
    usual = getattr(client.api, "timeout", None)
    client.api.timeout = timeout
    try:
        yield
    finally:
        client.api.timeout = usual


def find(client: Any, name: str) -> Any | None:
    """The image of that name on this host; None when there is none."""
    try:
        return client.images.get(name)
    except sdk("docker.errors").ImageNotFound:
        return None
    except failures() as exc:
        raise ContainerError(explain(exc, f"image {name} cannot be looked up")) from exc


def failure(what: str, said: str) -> ImageError:
    text = " ".join(said.split())[:400]
    remedy = next((remedy for pattern, remedy in _KNOWN if re.search(pattern, text, re.I)), "see the engine's log")
    return ImageError(f"{what} failed: {text}; {remedy}")


# --- pull -------------------------------------------------------------------------------------------------------


def pull(
    client: Any,
    reference: Reference,
    login: Mapping[str, str] | None,
    cancellation: Cancellation,
    log: TextIO,
    timeout: float | None,
    retries: int,
) -> Any:
    """Pulls an image, again after a cut; returns it."""
    progress = Progress(log)
    what = f"pulling image {reference.exact}"
    for attempt in range(retries + 1):
        progress.line(f"{what}, try {attempt + 1} of {retries + 1}")
        said = _pull(client, reference, login, cancellation, progress, timeout)
        if said is None:
            break
        progress.line(f"failed: {said}")
        if attempt == retries or not _PASSING.search(said) or re.search(r"unauthorized|denied|not found", said, re.I):
            raise failure(what, said)
        waited = time.monotonic() + PAUSE_S * (attempt + 1)
        while time.monotonic() < waited:
            cancellation.check()
            time.sleep(_POLL_S)
    image = find(client, reference.exact)
    if image is None:
        raise ImageError(f"{what} ended well, and the engine has no such image: run again")
    need_digest(image, reference)
    return image


def _pull(
    client: Any,
    reference: Reference,
    login: Mapping[str, str] | None,
    cancellation: Cancellation,
    progress: Progress,
    timeout: float | None,
) -> str | None:
    """One try; what the engine said when it failed."""

    def start() -> Iterable[Any]:
        events: Iterable[Any] = client.api.pull(
            reference.name, tag=reference.digest or reference.tag, stream=True, decode=True, auth_config=login
        )
        return events

    try:
        with patient(client, timeout):
            for event in follow(start, cancellation, timeout):
                if event.get("error"):
                    return str(event["error"])
                progress.event(event)
    except (Cancelled, TimedOut) as exc:
        raise type(exc)(f"pulling image {reference.exact}: {exc}") from exc
    except failures() as exc:
        return str(getattr(exc, "explanation", None) or exc)
    return None


def need_digest(image: Any, reference: Reference) -> None:
    """The engine checks what it receives against the digest; this, that it says so."""
    if not reference.digest:
        return
    known = [str(each) for each in image.attrs.get("RepoDigests") or []]
    if not any(each.endswith("@" + reference.digest) for each in known) and image.id != reference.digest:
        raise ImageError(
            f"image {reference} has digest {', '.join(known) or 'none'} on this host, not {reference.digest}: remove it"
            " and run again"
        )


def tag(client: Any, image: Any, name: str) -> bool:
    """Gives an image a name; whether it had another or none."""
    if name in (image.attrs.get("RepoTags") or []):
        return False
    reference = parse(name)
    try:
        image.tag(reference.name, tag=reference.tag)
    except failures() as exc:
        raise ContainerError(explain(exc, f"image {image.id} cannot be named {name}")) from exc
    return True


def keep(client: Any, before: Any | None, after: Any, reference: Reference) -> str:
    """Gives an image that has lost its last name to another one a new name; returns that, or nothing.

    A generation that was started from it is rolled back to by its id, which 'docker image prune' must not remove.
    """
    if before is None or before.id == after.id:
        return ""
    left = find(client, before.id)
    if left is None or left.attrs.get("RepoTags"):
        return ""
    name = f"{reference.name}:id-{left.id.rpartition(':')[2][:12]}"
    tag(client, left, name)
    return name


# --- load -------------------------------------------------------------------------------------------------------


def archive_record(home: Path, sha256: str) -> Path:
    return home / "images" / f"archive-{sha256[:16]}.json"


def loaded(client: Any, home: Path, sha256: str, wanted: str) -> Any | None:
    """The image that the archive with this hash gave before; the archive itself is not looked at."""
    value = read_record(archive_record(home, sha256))
    if value.get("sha256") != sha256 or value.get("wanted") != wanted or not value.get("image_id"):
        return None
    return find(client, str(value["image_id"]))


def check_archive(path: PathLike, sha256: str, tick: Callable[[], None]) -> None:
    where = Path(path)
    if not where.is_file():
        raise ImageError(f"archive {path} is not a file on the host: copy it there, or correct the path")
    try:
        found = hash_files(where.parent, [where.name], tick)[where.name]
    except OSError as exc:
        raise ImageError(f"archive {path} cannot be read ({exc.strerror or exc}): give it to whoever deploys") from exc
    if found != sha256:
        raise ImageError(
            f"archive {path} has sha256 {found}, not {sha256} as pinned: copy it again, or correct the pin; nothing was"
            " loaded"
        )


def load(
    client: Any,
    path: PathLike,
    sha256: str,
    wanted: str,
    home: Path,
    cancellation: Cancellation,
    log: TextIO,
    timeout: float | None,
) -> Any:
    """Loads the archive, whose hash is checked first; returns the one image, or the wanted one of several."""
    progress = Progress(log)
    progress.line(f"checking {path}")
    check_archive(path, sha256, cancellation.check)
    size = os.path.getsize(str(path))
    progress.line(f"loading {path}, {human(size)}")

    def data() -> Iterator[bytes]:
        done = 0
        with open(str(path), "rb") as stream:
            while True:
                block = stream.read(_CHUNK)
                if not block:
                    return
                cancellation.check()
                done += len(block)
                progress.tell(f"{human(done)} of {human(size)} read")
                _progress.tell("loading the archive", done=done, total=size, unit="bytes")
                yield block

    names: list[str] = []
    try:
        with patient(client, timeout):
            for event in follow(lambda: client.api.load_image(data(), quiet=True), cancellation, timeout):
                if event.get("error"):
                    raise failure(f"loading {path}", str(event["error"]))
                for line in str(event.get("stream") or "").splitlines():
                    match = re.match(r"^Loaded image(?: ID)?: (\S+)", line.strip())
                    if match:
                        names.append(match.group(1))
                        progress.line(line.strip())
    except (Cancelled, TimedOut) as exc:
        raise type(exc)(f"loading {path}: {exc}") from exc
    except failures() as exc:
        raise failure(f"loading {path}", str(getattr(exc, "explanation", None) or exc)) from exc
    chosen = choose(names, wanted, str(path))
    image = find(client, chosen)
    if image is None:
        raise ImageError(f"archive {path}: the engine has no image {chosen} after loading it: run again")
    record = {"sha256": sha256, "image_id": image.id, "names": names, "wanted": wanted, "bytes": size}
    write_record(archive_record(home, sha256), record, home)
    return image


def choose(names: list[str], wanted: str, path: str) -> str:
    if not names:
        raise ImageError(f"archive {path} holds no image: make it with 'docker save NAME:TAG -o FILE'")
    if wanted:
        same = [name for name in names if name == wanted or name.partition(":")[2] == wanted]
        if same:
            return same[0]
        if len(names) > 1 or not names[0].startswith("sha256:"):
            raise ImageError(f"archive {path} holds {', '.join(names)}, not {wanted}: name one of these as the image")
    if len(names) > 1:
        raise ImageError(f"archive {path} holds {', '.join(names)}: name one of these as the image")
    return names[0]
