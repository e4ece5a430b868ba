# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Element types of weights, and safetensors files read and written as a stream.

numpy has no bfloat16, so bfloat16 tensors are carried as uint16 bit patterns together with their type's name.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Union

import numpy as np
from safetensors import SafetensorError, safe_open

Array = np.ndarray[Any, np.dtype[Any]]
PathLike = Union[str, "os.PathLike[str]"]

CARRIERS: dict[str, Any] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES_FROM_SAFETENSORS = {value: key for key, value in SAFETENSORS_NAMES.items()}
LFS_PREFIX = b"version https://git-lfs"
_MAX_HEADER = 100_000_000


class WeightsError(Exception):
    """Weights that cannot be read: what is wrong with which file, and what to do. One line."""


def to_float32(array: Array, dtype: str) -> Array:
    """The values of a tensor as float32 (the same memory when they are already)."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def from_float32(array: Array, dtype: str) -> Array:
    """float32 values as the given type, rounded to nearest even."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
        return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)
    with np.errstate(over="ignore"):
        return array.astype(CARRIERS[dtype], copy=False)


def cast(array: Array, source: str, target: str) -> Array:
    """A tensor's values in another type; unchanged, and not copied, when the type is the same."""
    if source == target:
        return array
    return from_float32(to_float32(array, source), target)


def raw_bytes(array: Array) -> memoryview:
    """The tensor's bytes in row-major order, without a copy when it is contiguous already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class SafetensorsFile:
    """A memory-mapped safetensors file; tensors are views, so only what is used is read."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as stream:
                head = stream.read(64)
                if head.startswith(LFS_PREFIX):
                    raise WeightsError(
                        f"{self.path} is a git-lfs pointer ({size} bytes), not weights: run `git lfs pull` in its "
                        "repository, or download the file itself"
                    )
                if size < 8:
                    raise WeightsError(f"{self.path} is truncated: {size} bytes, too short for a safetensors header")
                (header_size,) = struct.unpack("<Q", head[:8])
                if header_size > _MAX_HEADER or head[8:9] not in (b"{", b""):
                    raise WeightsError(f"{self.path} is not a safetensors file (first bytes {head[:8]!r})")
                if size < 8 + header_size:
                    raise WeightsError(
                        f"{self.path} is truncated: {size} bytes, and its header alone needs {8 + header_size}; "
                        "fetch it again"
                    )
                stream.seek(8)
                try:
                    header = json.loads(stream.read(header_size))
                except ValueError as exc:
                    raise WeightsError(f"{self.path} is not a safetensors file (bad header: {exc})") from exc
        except FileNotFoundError as exc:
            raise WeightsError(f"{self.path} is missing") from exc
        except OSError as exc:
            raise WeightsError(f"{self.path} cannot be read: {exc.strerror}") from exc
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        try:
            data_size = max([int(entry["data_offsets"][1]) for entry in header.values()], default=0)
        except (TypeError, KeyError, IndexError, ValueError) as exc:
            raise WeightsError(f"{self.path} is not a safetensors file (bad tensor entry in its header)") from exc
        expected = 8 + header_size + data_size
        if size < expected:
            raise WeightsError(f"{self.path} is truncated: {size} bytes, expected {expected}; fetch it again")
        try:
            # The library's own reader is the judge of the header's consistency (offsets, shapes, overlaps).
            with safe_open(str(self.path), framework="np") as handle:
                self.names: list[str] = list(handle.keys())
        except SafetensorError as exc:
            raise WeightsError(f"{self.path} is not a valid safetensors file: {exc}") from exc
        self.size = size
        self._entries: dict[str, Any] = header
        self._base = 8 + header_size
        with self.path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> str:
        """float32, float16 or bfloat16; any other type is an error that names the tensor."""
        found = self._entries[name]["dtype"]
        if found not in NAMES_FROM_SAFETENSORS:
            raise WeightsError(
                f"{self.path}: tensor {name} has type {found}; only {', '.join(NAMES_FROM_SAFETENSORS)} can be read"
            )
        return NAMES_FROM_SAFETENSORS[found]

    def tensor(self, name: str) -> Array:
        """A read-only view of the tensor in its carrier type."""
        carrier = CARRIERS[self.dtype(name)]
        begin, end = self._entries[name]["data_offsets"]
        count = (end - begin) // carrier.itemsize
        flat: Array = np.frombuffer(self._map, carrier, count, self._base + begin)
        return flat.reshape(self.shape(name))

    def forget(self) -> None:
        """Unmap what has been read: views stay valid, and a large file does not pile up in this process's memory."""
        self._map.madvise(mmap.MADV_DONTNEED)


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, in the declared order.

    The file only ever grows, so an interrupted run leaves a file that is seen to be truncated.
    """

    def __init__(
        self,
        path: PathLike,
        tensors: Sequence[tuple[str, str, Sequence[int]]],
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
        offset = 0
        self._pending: list[tuple[str, int]] = []
        for name, dtype, shape in tensors:
            size = CARRIERS[dtype].itemsize * int(np.prod(shape, dtype=np.int64))
            header[name] = {
                "dtype": SAFETENSORS_NAMES[dtype],
                "shape": [int(length) for length in shape],
                "data_offsets": [offset, offset + size],
            }
            self._pending.append((name, size))
            offset += size
        self.data_size = offset
        self._pending.reverse()
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        write_all(self._fd, memoryview(struct.pack("<Q", len(text)) + text), self.path)

    def write(self, name: str, parts: Iterable[Array]) -> None:
        """Write the next tensor, given as one or several arrays that follow each other in memory order."""
        expected, size = self._pending.pop()
        if name != expected:
            raise ValueError(f"{self.path}: tensor {name} written where {expected} was declared")
        for part in parts:
            data = raw_bytes(part)
            size -= len(data)
            write_all(self._fd, data, self.path)
        if size:
            raise ValueError(f"{self.path}: tensor {name} differs from its declared size by {-size} bytes")

    def close(self, *, sync: bool = True) -> None:
        if self._fd < 0:
            return
        try:
            if self._pending:
                raise ValueError(f"{self.path}: {len(self._pending)} declared tensors were not written")
            if sync:
                os.fsync(self._fd)
        finally:
            os.close(self._fd)
            self._fd = -1

    def detach(self) -> int:
        """Give up the finished file's descriptor, for the caller to fsync and close."""
        if self._pending:
            raise ValueError(f"{self.path}: {len(self._pending)} declared tensors were not written")
        fd, self._fd = self._fd, -1
        return fd

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_all(fd: int, chunk: memoryview, path: PathLike) -> None:
    """write(2) until everything is written: one call may take only a part (2 GiB at most on Linux)."""
    try:
        while len(chunk):
            chunk = chunk[os.write(fd, chunk) :]
    except OSError as exc:
        raise type(exc)(exc.errno, exc.strerror, str(path)) from exc


def write_json(path: PathLike, data: Any) -> None:
    """Write a JSON file as people read it, fsynced."""
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=4, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(path: PathLike) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
