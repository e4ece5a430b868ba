# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and directories as artefacts need them: hashed, removed, given to their owner, and room for them.

Private to the collection.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import os
import pwd
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union

PathLike = Union[str, "os.PathLike[str]"]
Tick = Callable[[], None]

MANIFEST = "manifest.json"

_CHUNK = 4 * 1024 * 1024


class ArtifactError(Exception):
    """One line that says what is wrong and what to do."""


class NoSpace(ArtifactError):
    """The file system is, or would get, full."""


# --- hashing ----------------------------------------------------------------------------------------------------


def file_sha256(path: PathLike, stop: threading.Event | None = None) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with open(str(path), "rb", buffering=0) as stream:
        while True:
            count = stream.readinto(buffer)
            if not count:
                return digest.hexdigest()
            if stop is not None and stop.is_set():
                raise InterruptedError("stopped")
            digest.update(view[:count])


def hash_files(root: PathLike, names: Sequence[str], tick: Tick | None = None) -> dict[str, str]:
    """sha256 of each named file below root, a few at a time; tick is called often and may raise to stop it."""
    workers = max(1, min(4, os.cpu_count() or 1, len(names)))
    stop = threading.Event()
    result: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = {pool.submit(file_sha256, os.path.join(str(root), name), stop): name for name in names}
        try:
            pending = set(waiting)
            while pending:
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
                )
                for future in done:
                    result[waiting[future]] = future.result()
                if tick is not None:
                    tick()
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise
    return result


def list_files(root: PathLike) -> list[str]:
    """Every regular file and link below root, as paths with '/', the manifest left out."""
    found: list[str] = []
    top = str(root)
    for folder, subfolders, names in os.walk(top):
        subfolders.sort()
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + links):
            rel = os.path.relpath(os.path.join(folder, name), top).replace(os.sep, "/")
            if rel != MANIFEST:
                found.append(rel)
    return sorted(found)


def describe_files(root: PathLike, tick: Tick | None = None) -> dict[str, dict[str, Any]]:
    """size, sha256 and mtime_ns of each file below root; a link is described by where it points."""
    names = list_files(root)
    plain: list[str] = []
    files: dict[str, dict[str, Any]] = {}
    for name in names:
        path = os.path.join(str(root), name)
        if os.path.islink(path):
            files[name] = {"size": 0, "link": os.readlink(path)}
        else:
            plain.append(name)
    hashes = hash_files(root, plain, tick)
    for name in plain:
        status = os.stat(os.path.join(str(root), name))
        files[name] = {"size": status.st_size, "sha256": hashes[name], "mtime_ns": status.st_mtime_ns}
    return {name: files[name] for name in sorted(files)}


# --- removing ---------------------------------------------------------------------------------------------------


def remove_tree(path: PathLike) -> None:
    """Removes a file or directory, also one in which something took the write permission from itself."""
    target = str(path)
    if os.path.islink(target) or not os.path.isdir(target):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        return
    for folder, _folders, _names in os.walk(target):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
    shutil.rmtree(target)


def fsync(path: PathLike) -> None:
    fd = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- ownership --------------------------------------------------------------------------------------------------


def owner_of(path: PathLike) -> tuple[int, int] | None:
    """uid and gid of a directory; None when it does not exist."""
    try:
        status = os.stat(str(path))
    except OSError:
        return None
    return status.st_uid, status.st_gid


def hand_over(path: PathLike, home: PathLike) -> bool:
    """Gives a file or a whole directory that root made below a home to the home's owner; whether anything changed.

    Does nothing for anybody but root, who alone can: there, whoever makes something is the owner already.
    """
    owner = owner_of(home)
    return owner is not None and give_to(path, owner)


def give_to(path: PathLike, owner: tuple[int, int]) -> bool:
    """The same for a given uid and gid. Links are changed themselves, never followed."""
    if os.geteuid() != 0:
        return False
    changed = False

    def give(name: str, folder: int | None) -> None:
        nonlocal changed
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if (status.st_uid, status.st_gid) != owner:
                os.chown(name, owner[0], owner[1], dir_fd=folder, follow_symlinks=False)
                changed = True

    target = str(path)
    try:
        if os.path.isdir(target) and not os.path.islink(target):
            for _name, folders, files, handle in os.fwalk(target, topdown=False):
                for name in folders + files:
                    give(name, handle)
        give(target, None)
    except OSError as exc:
        raise describe_os_error(exc, target) from exc
    return changed


def make_parents(path: PathLike, home: PathLike | None = None) -> tuple[int, int]:
    """Makes a directory and those above it, each of the owner of home; returns that owner.

    Without a home, or without a directory there, the owner is that of the nearest directory that exists.
    """
    place = existing_parent(path)
    owner = (owner_of(home) if home is not None else None) or owner_of(place) or (os.geteuid(), os.getegid())
    wanted = Path(os.path.abspath(str(path)))
    if wanted != place:
        wanted.mkdir(mode=0o750, parents=True, exist_ok=True)
        give_to(place / wanted.relative_to(place).parts[0], owner)
    return owner


# --- room and permission ----------------------------------------------------------------------------------------


def existing_parent(path: PathLike) -> Path:
    """The path itself or its nearest ancestor that exists."""
    current = Path(os.path.abspath(str(path)))
    while not os.path.lexists(str(current)) and current != current.parent:
        current = current.parent
    return current


def human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024.0
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def free_bytes(path: PathLike) -> int:
    status = os.statvfs(str(existing_parent(path)))
    return status.f_bavail * status.f_frsize


def need_space(needed: int, path: PathLike) -> None:
    """NoSpace when the file system of a path, which need not exist yet, has less free than needed."""
    free = free_bytes(path)
    if free < needed:
        raise NoSpace(
            f"{human(needed)} needed below {path}, only {human(free)} free:"
            " free some, or choose a directory on a larger file system"
        )


def owner_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def need_writable(path: PathLike) -> None:
    """ArtifactError when this user could not make ``path`` or files in it. Writes nothing."""
    place = existing_parent(path)
    if not place.is_dir():
        raise ArtifactError(f"{place} is not a directory, so {path} cannot be made: choose another path")
    if os.statvfs(str(place)).f_flag & os.ST_RDONLY:
        raise ArtifactError(f"{place} is on a read-only file system: remount it, or choose another directory")
    if not os.access(str(place), os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise _not_ours(place, place.stat().st_uid)


def _not_ours(place: Path, owner: int) -> ArtifactError:
    me = owner_name(os.geteuid())
    return ArtifactError(
        f"{place} belongs to {owner_name(owner)} and cannot be written by {me}: run as its owner, or give it to {me}"
    )


def describe_os_error(exc: OSError, path: PathLike) -> ArtifactError:
    """What an error of the operating system means for whoever asked for the artefact."""
    place = existing_parent(path)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "no space left" if exc.errno == errno.ENOSPC else "the disk quota is used up"
        with contextlib.suppress(OSError):
            what += f" ({human(free_bytes(place))} free)"
        return NoSpace(f"{what} below {path}: free some, or choose a directory on a larger file system")
    if exc.errno == errno.EFBIG:
        return NoSpace(f"a file below {path} hit the file size limit of this user: raise it (ulimit -f)")
    if exc.errno == errno.EROFS:
        return ArtifactError(f"{place} is on a read-only file system: remount it, or choose another directory")
    if exc.errno in (errno.EACCES, errno.EPERM):
        with contextlib.suppress(OSError):
            return _not_ours(place, place.stat().st_uid)
    return ArtifactError(f"{exc.filename or path}: {exc.strerror or exc}")
