# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings the pieces of an engine from stores: several at a time, each verified, and none a second time.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Callable, Protocol, TypeVar

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    Manifest,
    describe_os_error,
    file_sha256,
    fsync,
    hash_files,
    make_parents,
    remove_tree,
)
from ansible_collections.trtllm.serving.plugins.module_utils._distribution import (
    Damaged,
    Description,
    DistributionError,
    Missing,
    Piece,
)

PROGRESS = ".progress"
_VERIFIED = 1 << 63
_NOTE_BYTES = 8 * 1024 * 1024
_READ = 4 * 1024 * 1024
_LONGEST_PAUSE_S = 30.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """Another piece failed, or the run was stopped."""


class Passing(DistributionError):
    """The network or a server that may be well again in a moment."""


def side_by_side(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    stop: threading.Event,
    meanwhile: Callable[[], None] | None = None,
) -> list[Result]:
    """What work makes of each item, several at a time. The first error sets stop, for the others, and is raised.

    meanwhile is called a few times a second; what it raises ends the work too.
    """
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        jobs = [pool.submit(work, item) for item in items]
        try:
            pending = set(jobs)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                if any(job.exception() is not None for job in done):
                    break
                if meanwhile is not None:
                    meanwhile()
        finally:
            if not all(job.done() and job.exception() is None for job in jobs):
                stop.set()
            for job in jobs:
                job.cancel()
    errors = [job.exception() for job in jobs if not job.cancelled()]
    # Those that were only stopped do not say why.
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Stopped)):
        raise error
    return [job.result() for job in jobs]


class Source(Protocol):
    """One place that pieces come from: a store itself, or a mirror of it."""

    name: str

    def read(self, piece: Piece, start: int) -> Iterator[bytes]: ...


class Notes:
    """How much of each piece is there, eight bytes a piece; what was verified is marked.

    A killed run leaves the notes as they are. What a power cut took from the files is noticed by their hashes.
    """

    def __init__(self, path: Path, made: Description) -> None:
        self.header = hashlib.sha256(repr((made.text(), made.pieces)).encode()).digest()
        self.count = len(made.pieces)
        self.fd = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self.fresh = os.pread(self.fd, 32, 0) != self.header
        if self.fresh:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, self.header + bytes(8 * self.count), 0)

    def get(self, index: int) -> tuple[int, bool]:
        data = os.pread(self.fd, 8, 32 + 8 * index)
        value = struct.unpack("<Q", data)[0] if len(data) == 8 else 0
        return value & ~_VERIFIED, bool(value & _VERIFIED)

    def put(self, index: int, done: int, verified: bool = False) -> None:
        os.pwrite(self.fd, struct.pack("<Q", done | (_VERIFIED if verified else 0)), 32 + 8 * index)

    def close(self) -> None:
        os.close(self.fd)


class Fetch:
    """All pieces of an artefact, into a directory of its own."""

    def __init__(
        self,
        made: Description,
        sources: Sequence[Source],
        place: Path,
        *,
        workers: int = 4,
        retries: int = 5,
        pause_s: float = 1.0,
        tick: Callable[[], None] | None = None,
        tell: Callable[[int, int], None] | None = None,
        folders: Sequence[str] = ("engine", "tokenizer"),
    ) -> None:
        self.made, self.sources, self.place = made, list(sources), place
        self.workers, self.retries, self.pause_s = workers, retries, pause_s
        self.tick, self.tell = tick, tell
        self.folders = tuple(folders)
        self.stop = threading.Event()
        self.total = sum(piece.size for piece in made.pieces if self.wanted(piece))
        self.there = self.fetched = 0
        # Failures in a row of each source: one that does not answer is asked last.
        self.failures: dict[str, int] = {}
        self.from_source: dict[str, int] = {}
        self._lock = threading.Lock()

    def wanted(self, piece: Piece) -> bool:
        return piece.file.partition("/")[0] in self.folders

    def prepare(self, home: Path, old: Mapping[str, Path]) -> int:
        """The directory with what earlier runs brought and what is good of a damaged one; bytes that are missing."""
        make_parents(self.place, home)
        notes = self._notes()
        try:
            if notes.fresh:
                for name in os.listdir(self.place):
                    if name != PROGRESS:
                        remove_tree(self.place / name)
            for folder, path in old.items():
                self._keep_good(folder, path, notes)
            missing = 0
            for index, piece in enumerate(self.made.pieces):
                if not self.wanted(piece):
                    continue
                (self.place / piece.file).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                if not (self.place / piece.file).exists():
                    notes.put(index, 0)
                missing += piece.size - notes.get(index)[0]
            return missing
        finally:
            notes.close()

    def _notes(self) -> Notes:
        return Notes(self.place / PROGRESS, self.made)

    def _keep_good(self, folder: str, path: Path, notes: Notes) -> None:
        for name, entry in self.made.all_files().items():
            head, _slash, rest = name.partition("/")
            source, target = path / rest, self.place / name
            if head != folder or target.exists() or not source.is_file() or source.stat().st_size != entry["size"]:
                continue
            if file_sha256(source) == entry["sha256"]:
                target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                os.link(source, target)
                for index, piece in enumerate(self.made.pieces):
                    if piece.file == name:
                        notes.put(index, piece.size, verified=True)

    # --- fetching ---

    def run(self) -> None:
        """Fetches what is missing. DistributionError when a piece cannot be had; what has come stays."""
        notes = self._notes()
        try:
            for again in (False, True):
                self._pieces(notes)
                bad = self._bad_files()
                if not bad:
                    return
                if again:
                    raise Damaged(f"{bad[0]} does not have the hash that its engine was made with: publish it anew")
                for index, piece in enumerate(self.made.pieces):
                    if piece.file in bad:
                        notes.put(index, 0)
                for name in bad:
                    (self.place / name).unlink()
        except OSError as exc:
            raise describe_os_error(exc, self.place) from exc
        finally:
            notes.close()

    def _pieces(self, notes: Notes) -> None:
        self.there = 0
        missing = [(index, piece) for index, piece in enumerate(self.made.pieces) if self.wanted(piece)]
        side_by_side(lambda each: self._one(*each, notes), missing, self.workers, self.stop, self._meanwhile)
        self._report()

    def _meanwhile(self) -> None:
        self._report()
        if self.tick is not None:
            self.tick()

    def _report(self) -> None:
        if self.tell is not None:
            self.tell(self.there, self.total)

    def _one(self, index: int, piece: Piece, notes: Notes) -> None:
        done, verified = notes.get(index)
        path = self.place / piece.file
        if verified and done == piece.size:
            self._count(done)
            return
        fd = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            damaged = 0
            while True:
                done, digest = self._prefix(fd, piece, min(done, piece.size))
                self._count(done)
                done = self._bring(fd, index, piece, done, digest, notes)
                if digest.hexdigest() == piece.sha256:
                    break
                self._count(-done)
                done, damaged = 0, damaged + 1
                notes.put(index, 0)
                if damaged > len(self.sources):
                    raise Damaged(f"{piece.file} comes damaged from {self._names()}: publish the engine anew")
            os.fdatasync(fd)
            notes.put(index, piece.size, verified=True)
        finally:
            os.close(fd)

    def _prefix(self, fd: int, piece: Piece, done: int) -> tuple[int, Any]:
        """The hash of what is there of a piece, as far as it is there."""
        digest, read = hashlib.sha256(), 0
        while read < done:
            data = os.pread(fd, min(_READ, done - read), piece.offset + read)
            if not data:
                break
            digest.update(data)
            read += len(data)
            self._check()
        return read, digest

    def _bring(self, fd: int, index: int, piece: Piece, done: int, digest: Any, notes: Notes) -> int:
        attempts, noted, reason = 0, done, ""
        missing: set[str] = set()
        while done < piece.size:
            self._check()
            before = done
            source = self._source(missing)
            if source is None:
                raise Missing(f"{piece.file} is not at {self._names()}: publish the engine anew")
            try:
                for data in source.read(piece, done):
                    self._check()
                    if done + len(data) > piece.size:
                        raise Damaged(f"{source.name} sent more of {piece.file} than there is")
                    os.pwrite(fd, data, piece.offset + done)
                    digest.update(data)
                    done += len(data)
                    self._count(len(data), source)
                    if done - noted >= _NOTE_BYTES:
                        notes.put(index, done)
                        noted = done
                if done < piece.size:
                    raise Passing(f"{source.name} ended {piece.file} early")
                self.failures[source.name] = 0
            except Missing as exc:
                missing.add(source.name)
                reason = str(exc)
            except Passing as exc:
                notes.put(index, done)
                self.failures[source.name] = self.failures.get(source.name, 0) + 1
                reason = str(exc)
                attempts = 0 if done > before else attempts + 1
                if attempts > self.retries:
                    raise DistributionError(f"{reason}; attempts are used up, run again to go on") from exc
                # Another source is asked at once; the same one again a little later.
                if self._source(missing) is source and self.stop.wait(self._pause(attempts)):
                    raise Stopped from exc
        return done

    def _pause(self, attempts: int) -> float:
        return float(min(_LONGEST_PAUSE_S, self.pause_s * 2 ** max(0, attempts - 1)))

    def _source(self, missing: set[str]) -> Source | None:
        """In the order given, but one that failed lately after those that did not."""
        found = [source for source in self.sources if source.name not in missing]
        return min(found, key=lambda source: self.failures.get(source.name, 0)) if found else None

    def _names(self) -> str:
        return ", ".join(source.name for source in self.sources)

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _count(self, count: int, source: Source | None = None) -> None:
        with self._lock:
            self.there += count
            if source is not None:
                self.fetched += count
                self.from_source[source.name] = self.from_source.get(source.name, 0) + count

    # --- afterwards ---

    def _bad_files(self) -> list[str]:
        """Files of several pieces, whose own hash nobody has seen yet."""
        parts: dict[str, int] = {}
        for piece in filter(self.wanted, self.made.pieces):
            parts[piece.file] = parts.get(piece.file, 0) + 1
        files = self.made.all_files()
        several = [name for name, count in parts.items() if count > 1]
        found = hash_files(self.place, several, self.tick) if several else {}
        return [name for name in several if found[name] != files[name]["sha256"]]


def put_in_place(source: Path, final: Path, manifest: Manifest, home: Path) -> None:
    """The manifest, written last, and the rename."""
    from ansible_collections.trtllm.serving.plugins.module_utils import _artifact

    owner = make_parents(final.parent, home)
    for name in manifest.files:
        fsync(source / name)
    _artifact._write_manifest(source, manifest)
    _artifact.give_to(source, owner)
    os.chmod(source, 0o750)
    fsync(source)
    replaced = final.with_name(f".{final.name}.replaced.partial")
    if os.path.lexists(final):
        os.rename(final, replaced)
    os.rename(source, final)
    fsync(final.parent)
    remove_tree(replaced)
