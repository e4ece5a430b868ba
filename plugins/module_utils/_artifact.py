# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories that are made once, whole or not at all, and known by the hash of what they were made from.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import (
    MANIFEST,
    ArtifactError,
    NoSpace,
    PathLike,
    Tick,
    describe_files,
    describe_os_error,
    existing_parent,
    file_sha256,
    free_bytes,
    fsync,
    give_to,
    hand_over,
    hash_files,
    list_files,
    make_parents,
    need_space,
    need_writable,
    owner_name,
    owner_of,
    remove_tree,
)

__all__ = [
    "KEY_CHARS",
    "KINDS",
    "MANIFEST",
    "ArtifactError",
    "Making",
    "Manifest",
    "NoSpace",
    "PathLike",
    "Tick",
    "Verification",
    "canonical_json",
    "changed_inputs",
    "describe_files",
    "describe_os_error",
    "existing_parent",
    "explain",
    "file_sha256",
    "flatten",
    "free_bytes",
    "fsync",
    "give_to",
    "hand_over",
    "hash_files",
    "key_of",
    "list_files",
    "make_parents",
    "making",
    "need_space",
    "need_writable",
    "newest_sibling",
    "owner_name",
    "owner_of",
    "partial_path",
    "read_manifest",
    "refresh_times",
    "remove_stale_partials",
    "remove_tree",
    "short_key",
    "stale_partials",
    "verify",
]

KINDS = ("checkpoint", "engine", "weights", "generation")
KEY_CHARS = 16


# --- identity ---------------------------------------------------------------------------------------------------


def canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def key_of(inputs: Any) -> str:
    return hashlib.sha256(canonical_json(inputs)).hexdigest()


def short_key(key: str) -> str:
    return key[:KEY_CHARS]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested inputs as one level of dotted names, each with its value as JSON text."""
    if isinstance(value, Mapping) and value:
        flat: dict[str, str] = {}
        for name in sorted(value, key=str):
            flat.update(flatten(value[name], f"{prefix}.{name}" if prefix else str(name)))
        return flat
    return {prefix or "value": json.dumps(value, sort_keys=True, ensure_ascii=False)}


def changed_inputs(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, old value, new value) of every input that differs; an absent side is the empty string."""
    before = flatten(old) if old else {}
    after = flatten(new)
    return [
        (name, before.get(name, ""), after.get(name, ""))
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    ]


def explain(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, str]:
    """The inputs that differ, in the form in which Ansible shows a difference."""
    changes = changed_inputs(old, new)
    return {
        "before": "".join(f"{name}: {before}\n" for name, before, unused in changes if before),
        "after": "".join(f"{name}: {after}\n" for name, unused, after in changes if after),
    }


# --- manifests --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    kind: str
    key: str
    inputs: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "key": self.key, "inputs": self.inputs, "files": self.files, "complete": True}

    @property
    def total_bytes(self) -> int:
        return sum(int(entry["size"]) for entry in self.files.values())


def read_manifest(path: PathLike) -> Manifest | None:
    """The manifest of an artefact directory; None when it is missing or not that of a finished artefact."""
    try:
        with open(os.path.join(str(path), MANIFEST), encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict) or value.get("complete") is not True:
        return None
    kind, key, inputs, files = (value.get(name) for name in ("kind", "key", "inputs", "files"))
    if not (isinstance(kind, str) and isinstance(key, str) and isinstance(inputs, dict) and isinstance(files, dict)):
        return None
    if not all(isinstance(entry, dict) and isinstance(entry.get("size"), int) for entry in files.values()):
        return None
    return Manifest(kind, key, inputs, files)


def newest_sibling(parent: PathLike, kind: str, *, besides: PathLike | None = None) -> tuple[Path, Manifest] | None:
    """The artefact of this kind that was made last in a directory: what a new one is compared with."""
    best: tuple[float, Path, Manifest] | None = None
    try:
        entries = sorted(os.scandir(str(parent)), key=lambda entry: entry.name)
    except OSError:
        return None
    for entry in entries:
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            continue
        if besides is not None and entry.name == Path(besides).name:
            continue
        manifest = read_manifest(entry.path)
        if manifest is None or manifest.kind != kind:
            continue
        made = os.stat(os.path.join(entry.path, MANIFEST)).st_mtime
        if best is None or made > best[0]:
            best = (made, Path(entry.path), manifest)
    return None if best is None else (best[1], best[2])


# --- verifying --------------------------------------------------------------------------------------------------


@dataclass
class Verification:
    """Whether an artefact is what its manifest says. ``problems`` has one line for each file that is not."""

    path: Path
    manifest: Manifest | None
    problems: list[str] = field(default_factory=list)
    # Files with a new time but unchanged content, as after a copy that did not keep times.
    touched: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.manifest is not None and not self.problems


def verify(
    path: PathLike,
    *,
    full: bool = False,
    kind: str | None = None,
    key: str | None = None,
    extra: bool = False,
    tick: Tick | None = None,
) -> Verification:
    """Compares a directory with its manifest.

    By default by size and modification time, and by content only for a file whose time alone differs; with full,
    every file's content is read. With extra, a file that the manifest does not know is a problem too.
    """
    root = Path(path)
    manifest = read_manifest(root)
    result = Verification(root, manifest)
    if manifest is None:
        result.problems.append(
            f"{root} does not exist" if not root.is_dir() else f"{root} is incomplete: it has no valid {MANIFEST}"
        )
        return result
    if kind is not None and manifest.kind != kind:
        result.problems.append(f"{root} holds a {manifest.kind}, not a {kind}")
    if key is not None and manifest.key != key:
        result.problems.append(f"{root} has key {short_key(manifest.key)}, not {short_key(key)}")
    to_hash: list[str] = []
    for name, entry in sorted(manifest.files.items()):
        target = root / name
        try:
            status = os.lstat(str(target))
        except OSError:
            result.problems.append(f"{target} is missing")
            continue
        if "link" in entry:
            if not stat.S_ISLNK(status.st_mode) or os.readlink(str(target)) != entry["link"]:
                result.problems.append("{} is no longer a link to {}".format(target, entry["link"]))
            continue
        if not stat.S_ISREG(status.st_mode):
            result.problems.append(f"{target} is no longer a regular file")
        elif status.st_size != entry["size"]:
            result.problems.append(f"{target} has {status.st_size} bytes, not {entry['size']}")
        elif status.st_mtime_ns != entry.get("mtime_ns"):
            to_hash.append(name)
            result.touched.append(name)
        elif full:
            to_hash.append(name)
    if to_hash:
        try:
            hashes = hash_files(root, to_hash, tick)
        except OSError as exc:
            result.problems.append(f"{exc.filename or root} cannot be read: {exc.strerror or exc}")
            hashes = {}
        for name, found in sorted(hashes.items()):
            if found != manifest.files[name].get("sha256"):
                result.problems.append(f"{root / name} has other content than when it was made")
    if extra:
        result.problems.extend(
            f"{root / name} does not belong there" for name in list_files(root) if name not in manifest.files
        )
    return result


def refresh_times(checked: Verification) -> bool:
    """Writes the present times of touched but unchanged files into the manifest, so that they are not read again."""
    if not checked.ok or checked.manifest is None or not checked.touched:
        return False
    files = {name: dict(entry) for name, entry in checked.manifest.files.items()}
    for name in checked.touched:
        files[name]["mtime_ns"] = os.stat(str(checked.path / name)).st_mtime_ns
    fresh = Manifest(checked.manifest.kind, checked.manifest.key, checked.manifest.inputs, files)
    try:
        _write_manifest(checked.path, fresh)
    except OSError:
        return False
    return True


# --- making -----------------------------------------------------------------------------------------------------


def partial_path(final: PathLike) -> Path:
    path = Path(final)
    return path.parent / (f".{path.name}.partial")


def stale_partials(parent: PathLike) -> list[Path]:
    """What an interrupted run left behind in a directory."""
    try:
        return sorted(
            path for path in Path(parent).iterdir() if path.name.startswith(".") and path.name.endswith(".partial")
        )
    except OSError:
        return []


def remove_stale_partials(parent: PathLike) -> list[Path]:
    """Removes what an interrupted run left behind. Only for the holder of the host's lock."""
    removed = stale_partials(parent)
    for path in removed:
        remove_tree(path)
    return removed


@dataclass
class Making:
    """An artefact being made: write into ``path``, and leave the with block."""

    path: Path
    final: Path
    kind: str
    inputs: dict[str, Any]
    key: str
    manifest: Manifest | None = None


@contextlib.contextmanager
def making(
    final: PathLike,
    kind: str,
    inputs: Mapping[str, Any],
    *,
    key: str | None = None,
    mode: int = 0o750,
    tick: Tick | None = None,
    home: PathLike | None = None,
) -> Iterator[Making]:
    """Makes the directory ``final`` whole or not at all.

    The block fills a partial sibling. When the block ends well, everything is flushed to disk, the manifest is
    written last, and the directory renamed into place; a directory that was there (incomplete or damaged) is replaced
    only then. When it ends in any exception, nothing is left. The caller holds the host's lock.

    What root makes belongs to the owner of home; without a home, to the owner of the nearest directory that exists.
    """
    target = Path(final)
    partial = partial_path(target)
    try:
        owner = make_parents(target.parent, home)
        remove_stale_partials(target.parent)
        partial.mkdir(mode=mode)
        give_to(partial, owner)
    except OSError as exc:
        raise describe_os_error(exc, target.parent) from exc
    made = Making(partial, target, kind, dict(inputs), key or key_of(inputs))
    try:
        yield made
        _finish(made, tick, owner)
    except BaseException as exc:
        with contextlib.suppress(OSError):
            remove_tree(partial)
        if isinstance(exc, OSError):
            raise describe_os_error(exc, target.parent) from exc
        raise


def _finish(made: Making, tick: Tick | None, owner: tuple[int, int]) -> None:
    files = describe_files(made.path, tick)
    for name in files:
        if tick is not None:
            tick()
        if "link" not in files[name]:
            fsync(made.path / name)
    made.manifest = Manifest(made.kind, made.key, made.inputs, files)
    _write_manifest(made.path, made.manifest)
    give_to(made.path, owner)
    for folder, _folders, _names in os.walk(str(made.path)):
        fsync(folder)
    replaced: Path | None = None
    if os.path.lexists(str(made.final)):
        replaced = made.final.parent / (f".{made.final.name}.replaced.partial")
        os.rename(str(made.final), str(replaced))
    os.rename(str(made.path), str(made.final))
    fsync(made.final.parent)
    if replaced is not None:
        with contextlib.suppress(OSError):
            remove_tree(replaced)


def _write_manifest(root: Path, manifest: Manifest) -> None:
    temporary = root / (f".{MANIFEST}.new")
    fd = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with os.fdopen(fd, "w", encoding="ascii") as stream:
        json.dump(manifest.as_dict(), stream, sort_keys=True, indent=1, ensure_ascii=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    hand_over(temporary, root)
    os.rename(str(temporary), str(root / MANIFEST))
    fsync(root)
