# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rank<N>.engine container: one rank's weights, memory-mappable, with identical tensors stored once.

Layout: 8 bytes magic, uint32 format version, uint32 header size, uint64 file size, 32 bytes sha256 of the header,
the header (JSON), then blobs of raw little-endian data, each at a multiple of 64 bytes.

A tensor is a list of blobs: one for an ordinary tensor, one per expert for a stack of experts. Blobs with the same
content are the same blob, so experts that are equal share one number in EngineFile.blob_ids().
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .mapping import Mapping
from .tensors import CARRIERS, Array, PathLike, raw_bytes, to_float32, write_all

MAGIC = b"TRTLLMRE"
FORMAT_VERSION = 1
ALIGNMENT = 64
_PREFIX = struct.Struct("<8sIIQ32s")
_CHUNK = 1 << 20


class EngineFileError(Exception):
    """An engine file that cannot be used, in one line that names the file."""


class EngineTensor(NamedTuple):
    """One tensor to be stored: with per_expert, axis 0 counts experts and each one is stored by itself."""

    name: str
    dtype: str
    array: Array
    per_expert: bool = False


def _equal(left: Array, right: Array) -> bool:
    """Compare in pieces: a difference is usually found at once, and no large temporary is made."""
    for begin in range(0, len(left), _CHUNK):
        if not np.array_equal(left[begin : begin + _CHUNK], right[begin : begin + _CHUNK]):
            return False
    return True


class _Blobs:
    """Numbers blobs by content: a checksum of a sample finds candidates, the comparison of all bytes decides."""

    def __init__(self) -> None:
        self.data: list[Array] = []
        self._candidates: dict[tuple[int, int], list[int]] = {}

    def add(self, array: Array) -> int:
        data: Array = np.frombuffer(raw_bytes(array), dtype=np.uint8)
        size = len(data)
        if size % 8 == 0:
            data = data.view(np.uint64)
        step = max(1, len(data) // 1024)
        key = (size, zlib.crc32(np.ascontiguousarray(data[::step]).tobytes()))
        for number in self._candidates.get(key, []):
            if _equal(self.data[number], data):
                return number
        self.data.append(data)
        self._candidates.setdefault(key, []).append(len(self.data) - 1)
        return len(self.data) - 1


def write_engine(
    path: PathLike,
    tensors: Iterable[EngineTensor],
    *,
    release: str,
    mapping: Mapping,
    gpu: dict[str, str] | None = None,
    sync: bool = True,
) -> int:
    """Write one rank's engine and return its size in bytes. The arrays must stay valid until it returns.

    gpu is the device that it is bound to.
    """
    blobs = _Blobs()
    entries: dict[str, Any] = {}
    for tensor in tensors:
        if tensor.name in entries:
            raise ValueError(f"tensor {tensor.name} given twice")
        if tensor.array.dtype != CARRIERS[tensor.dtype]:
            raise ValueError(f"tensor {tensor.name} is {tensor.array.dtype}, not {tensor.dtype}")
        parts = list(tensor.array) if tensor.per_expert else [tensor.array]
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.array.shape),
            "per_expert": tensor.per_expert,
            "blobs": [blobs.add(part) for part in parts],
        }
    offsets: list[list[int]] = []
    position = 0
    for data in blobs.data:
        offsets.append([position, data.nbytes])
        position += data.nbytes + (-data.nbytes % ALIGNMENT)
    header = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "release": release,
            "rank": mapping.rank,
            "mapping": mapping.to_dict(),
            "tensors": entries,
            "blobs": offsets,
            **({"gpu": gpu} if gpu else {}),
        },
        separators=(",", ":"),
    ).encode()
    # Blob offsets are relative to the first aligned byte after the header.
    header += b" " * (-(_PREFIX.size + len(header)) % ALIGNMENT)
    total = _PREFIX.size + len(header) + position
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), total, hashlib.sha256(header).digest())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, memoryview(prefix + header), path)
        for data in blobs.data:
            write_all(fd, data.view(np.uint8).data, path)
            write_all(fd, memoryview(b"\0" * (-data.nbytes % ALIGNMENT)), path)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    return total


class EngineFile:
    """A rank's engine, memory-mapped read-only; every array is a view into the file."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                prefix = stream.read(_PREFIX.size)
                if prefix[:8] != MAGIC[: len(prefix)]:
                    raise EngineFileError(
                        f"{self.path} is not an engine of the CPU reference backend (first bytes {prefix[:8]!r}): "
                        "build it with this backend's trtllm-build; engines made on a GPU cannot be read here"
                    )
                if len(prefix) < _PREFIX.size:
                    raise EngineFileError(f"{self.path} is truncated: {size} bytes; build the engine again")
                _magic, version, header_size, total, digest = _PREFIX.unpack(prefix)
                if version != FORMAT_VERSION:
                    raise EngineFileError(
                        f"{self.path} has engine format {version}, and this runtime reads format {FORMAT_VERSION}: "
                        "build the engine again"
                    )
                if size != total:
                    state = "is truncated" if size < total else "has trailing bytes"
                    raise EngineFileError(
                        f"{self.path} {state}: {size} bytes, expected {total}; build the engine again"
                    )
                header = stream.read(header_size)
                if hashlib.sha256(header).digest() != digest:
                    raise EngineFileError(
                        f"{self.path} is damaged: its header does not match its checksum; build the engine again"
                    )
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as exc:
            raise EngineFileError(f"{self.path} is missing: the engine directory needs one such file a rank") from exc
        except OSError as exc:
            raise EngineFileError(f"{self.path} cannot be read: {exc.strerror}") from exc
        data = json.loads(header)
        self.release: str = data["release"]
        self.gpu: dict[str, str] | None = data.get("gpu")
        self.rank: int = data["rank"]
        self.mapping = Mapping.from_dict(data["mapping"], self.rank)
        self.size = size
        self._tensors: dict[str, dict[str, Any]] = data["tensors"]
        self._blobs: list[list[int]] = data["blobs"]
        self._base = _PREFIX.size + header_size

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            return self._tensors[name]
        except KeyError:
            raise EngineFileError(f"{self.path} has no tensor {name}: build the engine again") from None

    def dtype(self, name: str) -> str:
        """float32, float16 or bfloat16 (bfloat16 arrays are uint16 bit patterns)."""
        return str(self._entry(name)["dtype"])

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)["shape"])

    def is_per_expert(self, name: str) -> bool:
        return bool(self._entry(name)["per_expert"])

    def blob_ids(self, name: str) -> list[int]:
        """The storage behind a tensor: one number, or one for each expert. Equal numbers mean equal content."""
        return list(self._entry(name)["blobs"])

    def _view(self, blob: int, dtype: str, shape: tuple[int, ...]) -> Array:
        offset, size = self._blobs[blob]
        carrier = CARRIERS[dtype]
        view: Array = np.frombuffer(self._map, carrier, size // carrier.itemsize, self._base + offset)
        return view.reshape(shape)

    def tensor(self, name: str) -> Array:
        """The tensor in its carrier type: a view, but a copy for a stack of more than one expert (see experts())."""
        entry = self._entry(name)
        if entry["per_expert"]:
            return np.stack(self.experts(name))
        return self._view(entry["blobs"][0], entry["dtype"], tuple(entry["shape"]))

    def experts(self, name: str) -> list[Array]:
        """Views of the experts of a stack. Equal experts are views of the same memory."""
        entry = self._entry(name)
        if not entry["per_expert"]:
            raise EngineFileError(f"{self.path}: tensor {name} is not a stack of experts")
        shape = tuple(entry["shape"][1:])
        return [self._view(blob, entry["dtype"], shape) for blob in entry["blobs"]]

    def float32(self, name: str) -> Array:
        """The tensor's values as float32; only a float32 tensor is returned without a copy."""
        return to_float32(self.tensor(name), self.dtype(name))
