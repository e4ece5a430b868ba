# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory that every host has mounted, as a store of engines.

Below it: engines/KEY and tokenizers/KEY as they are on a host, and published/KEY.json, written last, which alone says
that an engine is whole; published/SIGNATURE.signature.json names the engine of a kind of host.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    describe_os_error,
    file_sha256,
    fsync,
    remove_tree,
    short_key,
)
from ansible_collections.trtllm.serving.plugins.module_utils._distribution import (
    TOKENIZERS,
    Damaged,
    Description,
    DistributionError,
    Missing,
    Piece,
)
from ansible_collections.trtllm.serving.plugins.module_utils._lock import pid_starttime

_BLOCK = 4 * 1024 * 1024


class SharedStore:
    """``published/`` decides what is there; everything else is written beside and renamed."""

    def __init__(self, root: Path, tick: Callable[[], None] | None = None) -> None:
        self.root, self.tick = root, tick
        self.name = str(root)
        self._reading: Description | None = None

    def check(self) -> None:
        if not self.root.is_dir():
            raise DistributionError(f"{self.root} is not a directory on this host: mount it, or correct shared_path")

    def find(self, key: str) -> Description | None:
        self.check()
        self._reading = self._described(self.root / "published" / f"{key}.json")
        return self._reading

    def resolve(self, signature: str) -> Description | None:
        self.check()
        self._reading = self._described(self.root / "published" / f"{signature}.signature.json")
        return self._reading

    @staticmethod
    def _described(path: Path) -> Description | None:
        try:
            return Description.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise describe_os_error(exc, path) from exc

    def _folders(self, made: Description) -> dict[str, Path]:
        return {
            "engine": self.root / "engines" / short_key(made.key),
            "tokenizer": self.root / TOKENIZERS / short_key(made.tokenizer_key),
        }

    def read(self, piece: Piece, start: int) -> Iterator[bytes]:
        if self._reading is None:
            raise AssertionError("nothing was looked up")
        folder, _slash, name = piece.file.partition("/")
        path = self._folders(self._reading)[folder] / name
        try:
            stream = open(path, "rb", buffering=0)
        except FileNotFoundError as exc:
            raise Missing(f"{path} is missing, although it was published: remove {self.root / 'published'}/*") from exc
        with stream:
            stream.seek(piece.offset + start)
            left = piece.size - start
            while left > 0:
                data = stream.read(min(_BLOCK, left))
                if not data:
                    raise Damaged(f"{path} is too short: remove it and what is in {self.root / 'published'}")
                left -= len(data)
                yield data

    def publish(self, made: Description, folders: Mapping[str, Path], signature: str) -> bool:
        self.check()
        missing = False
        try:
            for folder, final in self._folders(made).items():
                missing = self._put(folders[folder], final, made, folder) or missing
            names = [f"{made.key}.json"] + ([f"{signature}.signature.json"] if signature else [])
            for name in names:
                missing = self._write(self.root / "published" / name, made.text()) or missing
        except OSError as exc:
            raise describe_os_error(exc, self.root) from exc
        return missing

    def _put(self, source: Path, final: Path, made: Description, folder: str) -> bool:
        files = {
            name.partition("/")[2]: entry for name, entry in made.all_files().items() if name.startswith(folder + "/")
        }
        if all(_size(final / name) == entry["size"] for name, entry in files.items()):
            return False
        final.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._sweep(final.parent)
        partial = final.parent / f".{final.name}.{socket.gethostname()}.{os.getpid()}.partial"
        try:
            for name, entry in files.items():
                target = partial / name
                target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                self._copy(source / name, target)
                # Read back, as other hosts will get it.
                if file_sha256(target) != entry["sha256"]:
                    raise Damaged(f"{source / name} is not what it was when it was made: build the engine anew")
            if final.exists():
                old = partial.with_name(partial.name.replace(".partial", ".replaced.partial"))
                os.rename(final, old)
                remove_tree(old)
            os.rename(partial, final)
            fsync(final.parent)
        finally:
            with contextlib.suppress(OSError):
                if partial.exists():
                    remove_tree(partial)
        return True

    def _copy(self, source: Path, target: Path) -> None:
        with open(source, "rb", buffering=0) as reading, open(target, "wb", buffering=0) as writing:
            while True:
                if self.tick is not None:
                    self.tick()
                data = reading.read(_BLOCK)
                if not data:
                    break
                writing.write(data)
            os.fsync(writing.fileno())
        # Other hosts may read it as other users.
        os.chmod(target, 0o644)

    @staticmethod
    def _write(path: Path, text: bytes) -> bool:
        with contextlib.suppress(OSError):
            if path.read_bytes() == text:
                return False
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
        with open(temporary, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        fsync(path.parent)
        return True

    @staticmethod
    def _sweep(folder: Path) -> None:
        """What a killed run of this host left; that of other hosts may still be growing."""
        for path in folder.glob(f".*.{socket.gethostname()}.*.partial"):
            pid = path.name.replace(".replaced", "").rsplit(".", 2)[1]
            if pid.isdigit() and pid_starttime(int(pid)) is None:
                remove_tree(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
