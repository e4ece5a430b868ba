# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Mixtral as Hugging Face lays it out: whether it is all there, and what its identity is.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import read_manifest
from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import (
    ArtifactError,
    PathLike,
    Tick,
    hand_over,
    hash_files,
    make_parents,
)

KIND = "weights"
ARCHITECTURE = "MixtralForCausalLM"
INDEX = "model.safetensors.index.json"
IDENTITY_CACHE = "weights/.identity"

_LFS_MAGIC = b"version https://git-lfs"
# Larger headers are refused by the safetensors library too.
_HEADER_LIMIT = 100_000_000
_SHARD_OF = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
# What belongs to a model and decides what is served. Read-me files, other formats and caches do not.
_MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".jinja", ".tiktoken")
_MODEL_NAMES = ("merges.txt", "vocab.txt")


class WeightsError(Exception):
    """One line that says what is wrong with the weights and what to do."""


def is_lfs_pointer(path: PathLike) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(len(_LFS_MAGIC)) == _LFS_MAGIC
    except OSError:
        return False


def read_safetensors_header(path: PathLike) -> dict[str, Any]:
    """The tensors that a safetensors file declares. WeightsError when the file is not complete."""
    where = str(path)
    try:
        with open(where, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            if start == _LFS_MAGIC[:8] and is_lfs_pointer(path):
                raise WeightsError(
                    f"{where} is a git-lfs pointer of {size} bytes, not weights: run 'git lfs pull' in its directory,"
                    " or download the file itself"
                )
            if len(start) < 8:
                raise WeightsError(f"{where} has only {size} bytes: download it again")
            length = int(struct.unpack("<Q", start)[0])
            if length > _HEADER_LIMIT or length < 2:
                raise WeightsError(f"{where} is no safetensors file (header of {length} bytes): download it again")
            if 8 + length > size:
                raise WeightsError(
                    f"{where} is truncated: {size} bytes, its header alone needs {8 + length}; download it again"
                )
            raw = stream.read(length)
    except OSError as exc:
        raise WeightsError(f"{where} cannot be read: {exc.strerror or exc}") from exc
    try:
        header = json.loads(raw.decode("utf-8"))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max([int(entry["data_offsets"][1]) for entry in tensors.values()] or [0])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise WeightsError(f"{where} is no safetensors file (its header cannot be read): download it again") from exc
    needed = 8 + length + end
    if size < needed:
        raise WeightsError(f"{where} is truncated: {size} bytes of {needed}; download it again")
    if size > needed:
        raise WeightsError(f"{where} is damaged: {size} bytes where its header says {needed}; download it again")
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    if is_lfs_pointer(path):
        raise WeightsError(
            f"{path} is a git-lfs pointer, not the file itself: run 'git lfs pull' in its directory, or download it"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise WeightsError(f"{path} is not valid JSON ({exc}): download it again") from exc
    if not isinstance(value, dict):
        raise WeightsError(f"{path} is not a JSON object: download it again")
    return value


@dataclass
class Inspection:
    """What a model directory holds. ``problems`` has one line for each thing that keeps it from being used."""

    path: Path
    problems: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


def summarize(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that decide how a model can be split; a value is null when config.json does not say."""
    heads = config.get("num_attention_heads")
    dtype = config.get("torch_dtype", config.get("dtype"))
    return {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads", heads),
        "experts": config.get("num_local_experts"),
        "experts_per_token": config.get("num_experts_per_tok"),
        "layers": config.get("num_hidden_layers"),
        "vocab_size": config.get("vocab_size"),
        "hidden_size": config.get("hidden_size"),
        "intermediate_size": config.get("intermediate_size"),
        "max_position_embeddings": config.get("max_position_embeddings"),
        "dtype": dtype,
    }


def check_config(path: Path, config: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    where = path / "config.json"
    architectures = config.get("architectures") or []
    if not isinstance(config.get("num_local_experts"), int) or config["num_local_experts"] < 1:
        problems.append(
            f"{where} has no num_local_experts (architectures: {', '.join(map(str, architectures)) or 'none'}):"
            " this is no Mixtral; give a directory of a model with experts"
        )
    elif architectures and ARCHITECTURE not in architectures:
        problems.append(
            f"{where} is of {', '.join(map(str, architectures))}, not {ARCHITECTURE}: give a directory of a Mixtral"
        )
    for name in ("num_attention_heads", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{where} has no usable {name} ({value!r}): download it again")
    return problems


def _shards(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The weights files with the tensors that an index expects in each, and problems."""
    problems: list[str] = []
    present = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(".safetensors"))
    if (path / INDEX).exists():
        try:
            mapping = _read_json(path / INDEX).get("weight_map")
        except WeightsError as exc:
            return {}, [str(exc)]
        if not isinstance(mapping, dict) or not mapping:
            return {}, [f"{path / INDEX} has no weight_map: download it again"]
        expected: dict[str, list[str]] = {}
        for tensor, name in mapping.items():
            expected.setdefault(str(name), []).append(tensor)
        missing = [name for name in sorted(expected) if not (path / name).is_file()]
        if missing:
            problems.append(_missing(path, missing, len(expected)))
        return {name: expected[name] for name in sorted(expected) if name not in missing}, problems
    if not present:
        other = sorted(entry.name for entry in path.iterdir() if entry.name.endswith((".bin", ".pt", ".gguf")))
        found = f" (found {other[0]})" if other else ""
        return {}, [f"{path} has no *.safetensors{found}: give a directory with the weights in safetensors"]
    for stem, count in sorted({(m["stem"], int(m["count"])) for m in map(_SHARD_OF.match, present) if m}):
        names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        missing = [name for name in names if name not in present]
        if missing:
            problems.append(_missing(path, missing, count))
    return {name: [] for name in present}, problems


def _missing(path: Path, missing: list[str], count: int) -> str:
    names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    return f"{path} lacks {len(missing)} of {count} weights files: {names}; download them"


def _tokenizer_problems(path: Path) -> list[str]:
    fast, config, model = path / "tokenizer.json", path / "tokenizer_config.json", path / "tokenizer.model"
    for candidate in (fast, config, model):
        if candidate.is_file() and is_lfs_pointer(candidate):
            return [f"{candidate} is a git-lfs pointer, not the file itself: run 'git lfs pull', or download it"]
    if fast.is_file():
        try:
            _read_json(fast)
            if config.is_file():
                _read_json(config)
                return []
        except WeightsError as exc:
            return [str(exc)]
        if not model.is_file():
            return [f"{path} has tokenizer.json but no tokenizer_config.json: download it too"]
    if model.is_file():
        return []
    return [f"{path} has no tokenizer (tokenizer.json with tokenizer_config.json, or tokenizer.model): download it too"]


def inspect(path: PathLike, *, tokenizer: bool = True) -> Inspection:
    """Looks at a Hugging Face Mixtral directory without reading the weights themselves: milliseconds a file."""
    result = Inspection(Path(path))
    folder = result.path
    if not folder.is_dir():
        result.problems.append(f"{folder} is not a directory: give the directory that holds config.json")
        return result
    if not (folder / "config.json").exists():
        result.problems.append(f"{folder} has no config.json: give the directory of a Hugging Face model")
    else:
        try:
            result.config = _read_json(folder / "config.json")
            result.summary = summarize(result.config)
            result.problems += check_config(folder, result.config)
        except WeightsError as exc:
            result.problems.append(str(exc))
    try:
        shards, problems = _shards(folder)
    except OSError as exc:
        result.problems.append(f"{folder} cannot be read: {exc.strerror or exc}")
        return result
    result.problems += problems
    for name, expected in shards.items():
        try:
            tensors = read_safetensors_header(folder / name)
        except WeightsError as exc:
            result.problems.append(str(exc))
            continue
        result.weight_bytes += (folder / name).stat().st_size
        lacking = [tensor for tensor in expected if tensor not in tensors]
        if lacking:
            result.problems.append(
                f"{folder / name} lacks {len(lacking)} tensors that {INDEX} places in it ({lacking[0]}):"
                " both are not of one download; download them again"
            )
    if tokenizer:
        result.problems += _tokenizer_problems(folder)
    return result


# --- identity ---------------------------------------------------------------------------------------------------


def model_files(path: PathLike) -> list[str]:
    """The files of a model directory that make its identity."""
    names = []
    for entry in os.scandir(path):
        if entry.name.startswith(".") or entry.name == "manifest.json" or not entry.is_file():
            continue
        if entry.name.endswith(_MODEL_SUFFIXES) or entry.name in _MODEL_NAMES:
            names.append(entry.name)
    return sorted(names)


def _cache_file(home: PathLike, path: PathLike) -> Path:
    real = os.path.realpath(path)
    return Path(home) / IDENTITY_CACHE / (hashlib.sha256(os.fsencode(real)).hexdigest() + ".json")


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_cache(cache: Path, path: PathLike, files: Mapping[str, Any], home: PathLike) -> None:
    """Kept only to save time, so a failure to write it is not an error."""
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.new")
    try:
        make_parents(cache.parent, home)
        temporary.write_text(
            json.dumps({"path": os.path.realpath(path), "files": files}, sort_keys=True, indent=1), encoding="ascii"
        )
        hand_over(temporary, home)
        os.replace(temporary, cache)
    except (OSError, ArtifactError):
        try:
            os.unlink(temporary)
        except OSError:
            pass


def identify(
    path: PathLike,
    home: PathLike,
    *,
    name: str | None = None,
    revision: str | None = None,
    full: bool = False,
    write: bool = True,
    tick: Tick | None = None,
) -> dict[str, Any]:
    """{"name", "revision", "files": {file: {"size", "sha256"}}} of a model directory, wherever it lies.

    Hashes are taken from the directory's own manifest, or from a cache below home, as long as size and modification
    time of the file are unchanged; with full every file is read again. A directory made by this collection brings its
    own name and revision. WeightsError when a file cannot be read, or is not what the manifest says.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    ours = manifest is not None and manifest.kind == KIND
    cache = _cache_file(home, folder)
    known: dict[str, Any] = {}
    if ours and manifest is not None:
        known = manifest.files
        name = name or str(manifest.inputs.get("name") or "") or None
        revision = revision or str(manifest.inputs.get("revision") or "") or None
    else:
        known = _read_cache(cache)
    try:
        names = model_files(folder)
        stats = {file: os.stat(folder / file) for file in names}
        stale = [
            file
            for file in names
            if full
            or not isinstance(known.get(file), dict)
            or known[file].get("size") != stats[file].st_size
            or known[file].get("mtime_ns") != stats[file].st_mtime_ns
        ]
        fresh = hash_files(folder, stale, tick) if stale else {}
    except OSError as exc:
        raise WeightsError(f"{exc.filename or folder} cannot be read: {exc.strerror or exc}") from exc
    files = {
        file: {
            "size": stats[file].st_size,
            "mtime_ns": stats[file].st_mtime_ns,
            "sha256": fresh[file] if file in fresh else str(known[file].get("sha256")),
        }
        for file in names
    }
    if ours and manifest is not None:
        for file in stale:
            if file in manifest.files and manifest.files[file].get("sha256") != files[file]["sha256"]:
                raise WeightsError(
                    f"{folder / file} has other content than when it was fetched: remove {folder} and fetch it again"
                )
    elif stale and write and not (full and files == known):
        _write_cache(cache, folder, files, home)
    return {
        "name": name or "local",
        "revision": revision or "",
        "files": {file: {"size": entry["size"], "sha256": entry["sha256"]} for file, entry in files.items()},
    }


def identity_problems(identity: Mapping[str, Any], path: PathLike | None = None) -> list[str]:
    """Whether a given identity has the right form, and by size fits the directory that it is said to describe."""
    files = identity.get("files")
    if not isinstance(identity.get("name"), str) or not isinstance(identity.get("revision"), str):
        return ["weights must have a name and a revision: give the identity that mixtral_weights returned"]
    if not isinstance(files, Mapping) or not files:
        return ["weights.files is empty: give the identity that mixtral_weights returned"]
    problems = []
    for name, entry in sorted(files.items()):
        if not isinstance(entry, Mapping) or not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
            problems.append(f"weights.files.{name} has no sha256: give the identity that mixtral_weights returned")
            continue
        if path is not None:
            target = Path(path) / name
            size = target.stat().st_size if target.is_file() else None
            if size != entry.get("size"):
                found = "is missing" if size is None else f"has {size} bytes"
                problems.append(f"{target} {found}, the given weights say {entry.get('size')}: identify them again")
    return problems


# --- the module's work ------------------------------------------------------------------------------------------


def directory_name(name: str, revision: str) -> str:
    """name@revision as one path component; a repository's owner is kept apart by two dashes."""
    for what, value in (("name", name), ("revision", revision)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*", value):
            raise WeightsError(f"{what} {value!r} cannot be part of a path: use letters, digits and . _ - + /")
    return f"{name}@{revision}".replace("/", "--")
