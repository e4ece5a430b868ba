# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts an engine into a registry: what is there is not sent again, and the manifest comes last.

Private to the collection.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.trtllm.serving.plugins.module_utils import _oci
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import describe_os_error
from ansible_collections.trtllm.serving.plugins.module_utils._distribution import (
    Damaged,
    Description,
    DistributionError,
    Missing,
    Piece,
)
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_fetch import Stopped, side_by_side

if TYPE_CHECKING:
    from ansible_collections.trtllm.serving.plugins.module_utils._oci import RegistryStore

_READ = 4 * 1024 * 1024


class Slice(io.RawIOBase):
    """A part of a file, as an upload's body."""

    def __init__(self, path: Path, offset: int, size: int, stop: threading.Event) -> None:
        self.fd = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
        self.offset, self.size, self.stop, self.at = offset, size, stop, 0

    def __len__(self) -> int:
        return self.size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.stop.is_set():
            raise Stopped
        left = self.size - self.at
        data = os.pread(self.fd, left if size is None or size < 0 else min(size, left), self.offset + self.at)
        self.at += len(data)
        return data

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def close(self) -> None:
        if not self.closed:
            os.close(self.fd)
        super().close()


class Push:
    """One engine on its way into the registry."""

    def __init__(self, store: RegistryStore, made: Description, folders: Mapping[str, Path]) -> None:
        self.store, self.made, self.folders = store, made, folders
        self.remote = store.registry
        self.stop = threading.Event()
        self.sent = 0

    def run(self, tags: Sequence[str]) -> bool:
        there = {tag: self._there(tag) for tag in tags}
        lacking = [tag for tag in tags if there[tag] is None]
        if not lacking:
            return False
        known = next((found for found in there.values() if found is not None), None)
        try:
            pieces = list(known.pieces) if known is not None else self._each(self._cut, self.made.whole_files())
            flat = [piece for part in pieces for piece in (part if isinstance(part, list) else [part])]
            self._each(self._send, {piece.sha256: piece for piece in flat}.values())
            self._text(self.made.text())
        except OSError as exc:
            raise describe_os_error(exc, self.folders["engine"]) from exc
        manifest = self._manifest(flat)
        for tag in lacking:
            self.store.patiently(functools.partial(self._put_manifest, tag, manifest))
        return True

    def _there(self, tag: str) -> Description | None:
        try:
            found: Description | None = self.store.patiently(lambda: self.remote.describe(tag))
        except (Damaged, Missing):
            return None
        # Another build of the same key is as good: whoever came first stays.
        if found is None or (found.key, found.tokenizer_key) != (self.made.key, self.made.tokenizer_key):
            return None
        if found != self.made:
            self.made = found
            return found
        return found

    def _each(self, work: Any, items: Any) -> list[Any]:
        return side_by_side(work, items, self.store.workers, self.stop, self.store.tick)

    def _path(self, piece: Piece) -> Path:
        folder, _slash, name = piece.file.partition("/")
        return self.folders[folder] / name

    def _cut(self, whole: Piece) -> list[Piece]:
        """A large file as pieces that can be fetched side by side, and again one by one."""
        if whole.size <= self.store.chunk:
            return [whole]
        pieces = []
        with open(self._path(whole), "rb", buffering=0) as stream:
            for offset in range(0, whole.size, self.store.chunk):
                left = min(self.store.chunk, whole.size - offset)
                digest = hashlib.sha256()
                piece_size = left
                while left:
                    if self.stop.is_set():
                        raise Stopped
                    data = stream.read(min(_READ, left))
                    if not data:
                        raise Damaged(f"{self._path(whole)} became shorter while it was read: build the engine anew")
                    digest.update(data)
                    left -= len(data)
                pieces.append(Piece(whole.file, offset, piece_size, digest.hexdigest()))
        return pieces

    def _send(self, piece: Piece) -> None:
        self.store.patiently(lambda: self._send_once(piece))

    def _send_once(self, piece: Piece) -> None:
        if self._exists(piece.sha256):
            return
        body = Slice(self._path(piece), piece.offset, piece.size, self.stop)
        try:
            self._upload(f"sha256:{piece.sha256}", body, piece.size)
        except DistributionError as exc:
            if "digest" in str(exc).lower():
                raise Damaged(
                    f"{self._path(piece)} is not what it was when it was made ({exc}): build the engine anew"
                ) from exc
            raise
        finally:
            body.close()
        self.sent += piece.size

    def _exists(self, sha256: str) -> bool:
        try:
            self.remote.request("HEAD", f"blobs/sha256:{sha256}").close()
        except Missing:
            return False
        return True

    def _upload(self, digest: str, body: Any, size: int) -> None:
        client = self.remote.client()
        headers = {"Content-Type": "application/octet-stream"}
        answer = self.remote.request(
            "POST", "blobs/uploads/", ok=(201, 202), headers={**headers, "Content-Length": "0"}
        )
        container = client.get_container(self.remote.name)
        place = client._get_location(answer, container)
        if not place:
            raise DistributionError(f"{self.remote.name} names no place for an upload: see its log")
        place += ("&" if "?" in place else "?") + f"digest={digest}"
        self.remote.request("PUT", place, ok=(201,), headers={**headers, "Content-Length": str(size)}, data=body)

    def _text(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if not self._exists(digest):
            self.store.patiently(lambda: self._upload(f"sha256:{digest}", data, len(data)))
        return digest

    def _manifest(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = self.made.text()
        parts: dict[str, int] = {}
        for piece in pieces:
            parts[piece.file] = parts.get(piece.file, 0) + 1
        layers = []
        for piece in sorted(pieces, key=lambda piece: (piece.file, piece.offset)):
            title = piece.file if parts[piece.file] == 1 else f"{piece.file}.part-{piece.offset:016d}"
            layers.append(
                {
                    "mediaType": _oci.LAYER,
                    "digest": f"sha256:{piece.sha256}",
                    "size": piece.size,
                    "annotations": {_oci.TITLE: title, _oci.FILE: piece.file, _oci.OFFSET: str(piece.offset)},
                }
            )
        return {
            "schemaVersion": 2,
            "mediaType": _oci.MANIFEST_TYPE,
            "artifactType": _oci.ARTIFACT,
            "config": {
                "mediaType": _oci.CONFIG,
                "digest": "sha256:" + hashlib.sha256(text).hexdigest(),
                "size": len(text),
            },
            "layers": layers,
            "annotations": {"io.trtllm.serving.key": self.made.key},
        }

    def _put_manifest(self, tag: str, manifest: dict[str, Any]) -> None:
        client = self.remote.client()
        answer = self.remote._guard(
            lambda: client.upload_manifest(manifest, client.get_container(f"{self.remote.name}:{tag}"))
        )
        if answer.status_code not in (200, 201, 202):
            raise DistributionError(
                f"{self.remote.name} refuses the manifest ({answer.status_code} {_oci._said(answer)}): see its log"
            )
