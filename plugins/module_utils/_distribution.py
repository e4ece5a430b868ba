# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine with its tokenizer as one thing that is made once and given to other hosts.

Private to the collection.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.trtllm.serving.plugins.module_utils import _engine, _weights
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    ArtifactError,
    Manifest,
    canonical_json,
    key_of,
    making,
    read_manifest,
    short_key,
    verify,
)

TOKENIZER = "tokenizer"
TOKENIZERS = "tokenizers"
VERSION = 1
# What of a model's directory is needed to serve it beside an engine: small files, and none of the weights.
_TOKENIZER_FILES = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|chat_template.*|vocab.*|merges\.txt"
    r"|config\.json|generation_config\.json)"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DistributionError(ArtifactError):
    """One line that says what is wrong and what to do."""


class Missing(DistributionError):
    """The store does not have it."""


class Damaged(DistributionError):
    """What came is not what it should be."""


@dataclass(frozen=True)
class Piece:
    """A part of a file that is fetched and verified by itself. ``file`` begins with engine/ or tokenizer/."""

    file: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """What is known of a published engine before any of it has come."""

    key: str
    inputs: dict[str, Any]
    files: dict[str, dict[str, Any]]
    engine: dict[str, Any]
    tokenizer_key: str
    tokenizer_files: dict[str, dict[str, Any]]
    pieces: tuple[Piece, ...] = field(default=(), compare=False)

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "key": self.key,
            "inputs": self.inputs,
            "files": self.files,
            "engine": self.engine,
            "tokenizer": {"key": self.tokenizer_key, "files": self.tokenizer_files},
        }

    def text(self) -> bytes:
        return canonical_json(self.as_dict())

    @property
    def total_bytes(self) -> int:
        return sum(int(entry["size"]) for entry in self.all_files().values())

    def all_files(self) -> dict[str, dict[str, Any]]:
        """Every file by its place in the artefact."""
        found = {f"engine/{name}": entry for name, entry in self.files.items()}
        found.update({f"tokenizer/{name}": entry for name, entry in self.tokenizer_files.items()})
        return found

    def whole_files(self) -> tuple[Piece, ...]:
        """Each file as one piece, for a store that keeps files."""
        return tuple(
            Piece(name, 0, int(entry["size"]), str(entry["sha256"])) for name, entry in sorted(self.all_files().items())
        )

    @classmethod
    def parse(cls, data: bytes, where: str, pieces: Sequence[Piece] | None = None) -> Description:
        """The description that a store gave; DistributionError when it cannot be one, or contradicts itself."""
        try:
            value = json.loads(data.decode("utf-8"))
            made = cls(
                key=str(value["key"]),
                inputs=dict(value["inputs"]),
                files=_entries(value["files"]),
                engine=dict(value["engine"]),
                tokenizer_key=str(value["tokenizer"]["key"]),
                tokenizer_files=_entries(value["tokenizer"]["files"]),
            )
            version = value["version"]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise Damaged(f"{where} describes no engine ({exc!r}): remove it, and it is published anew") from exc
        if version != VERSION:
            raise DistributionError(f"{where} is of form {version}, not {VERSION}: use one collection everywhere")
        if key_of(made.inputs) != made.key or tokenizer_key(made.tokenizer_files) != made.tokenizer_key:
            raise Damaged(f"{where} has another key than its content: remove it, and it is published anew")
        complete = cls(**{**made.__dict__, "pieces": tuple(made.whole_files() if pieces is None else pieces)})
        _check_pieces(complete, where)
        return complete


def _entries(value: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, entry in value.items():
        if not _NAME.fullmatch(name) or not _SHA256.fullmatch(str(entry["sha256"])) or int(entry["size"]) < 0:
            raise ValueError(f"file {name!r}")
        found[name] = {"size": int(entry["size"]), "sha256": str(entry["sha256"])}
    return found


def _check_pieces(made: Description, where: str) -> None:
    """Every file must be there from its first byte to its last, once."""
    ends: dict[str, int] = {}
    files = made.all_files()
    for piece in sorted(made.pieces, key=lambda piece: (piece.file, piece.offset)):
        if piece.file not in files or piece.offset != ends.get(piece.file, 0) or not _SHA256.fullmatch(piece.sha256):
            raise Damaged(
                f"{where} has a part of {piece.file!r} that does not fit: remove it, and it is published anew"
            )
        ends[piece.file] = piece.offset + piece.size
    for name, entry in files.items():
        if ends.get(name) != entry["size"]:
            raise Damaged(
                f"{where} has {ends.get(name, 0)} of {entry['size']} bytes of {name}: remove it, then publish it anew"
            )


class Store(Protocol):
    """Where engines are kept for other hosts."""

    name: str

    def find(self, key: str) -> Description | None:
        """The engine of this key; None when the store has none."""

    def resolve(self, signature: str) -> Description | None:
        """The engine that was made last for hosts of this signature."""

    def read(self, piece: Piece, start: int) -> Iterator[bytes]:
        """The bytes of a piece from start to its end. Missing when the store does not have it."""

    def publish(self, made: Description, folders: Mapping[str, Path], signature: str) -> bool:
        """Puts the engine and tokenizer into the store; whether anything was missing there."""


# --- the tokenizer ------------------------------------------------------------------------------------------------


def tokenizer_key(files: Mapping[str, Mapping[str, Any]]) -> str:
    return key_of({"files": {name: entry["sha256"] for name, entry in files.items()}})


def tokenizer_path(home: Path, key: str) -> Path:
    return home / TOKENIZERS / short_key(key)


def tokenizer_of(weights: Path, home: Path, tick: Any = None) -> tuple[dict[str, dict[str, Any]], str]:
    """The tokenizer's files in a model's directory with size and hash, and the key that they make."""
    try:
        identity = _weights.identify(weights, home, tick=tick)["files"]
        found = {name: dict(identity[name]) for name in sorted(identity) if _TOKENIZER_FILES.fullmatch(name)}
    except _weights.WeightsError as exc:
        raise DistributionError(str(exc)) from exc
    if not any(name in found for name in ("tokenizer.json", "tokenizer.model")):
        raise DistributionError(f"{weights} holds no tokenizer (tokenizer.json or tokenizer.model): give the weights'")
    return found, tokenizer_key(found)


def make_tokenizer(weights: Path, home: Path, files: Mapping[str, Mapping[str, Any]], tick: Any = None) -> Path:
    """The tokenizer alone, in a place that is the same on every host. The caller holds the host's lock."""
    key = tokenizer_key(files)
    final = tokenizer_path(home, key)
    with making(final, TOKENIZER, _tokenizer_inputs(files), key=key, tick=tick, home=home) as made:
        for name in files:
            data = (weights / name).read_bytes()
            (made.path / name).write_bytes(data)
            os.chmod(made.path / name, 0o640)
    if made.manifest is None or any(made.manifest.files[name]["sha256"] != files[name]["sha256"] for name in files):
        raise DistributionError(f"a file of {weights} changed while it was read: run again")
    return final


def _tokenizer_inputs(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"files": {name: entry["sha256"] for name, entry in files.items()}}


# --- what is on this host -----------------------------------------------------------------------------------------


def describe(engine: Path, files: Mapping[str, Mapping[str, Any]]) -> Description:
    """The engine in a directory of this host, and a tokenizer's files, as they are published."""
    manifest = read_manifest(engine)
    if manifest is None or manifest.kind != _engine.KIND:
        raise DistributionError(f"{engine} holds no finished engine: build it first")
    linked = sorted(name for name, entry in manifest.files.items() if "link" in entry)
    if linked:
        raise DistributionError(
            f"{engine / linked[0]} is a link, which other hosts cannot follow: build the engine anew"
        )
    return Description(
        key=manifest.key,
        inputs=manifest.inputs,
        files={name: {"size": entry["size"], "sha256": entry["sha256"]} for name, entry in manifest.files.items()},
        engine=_engine.summarize(engine),
        tokenizer_key=tokenizer_key(files),
        tokenizer_files={name: {"size": entry["size"], "sha256": entry["sha256"]} for name, entry in files.items()},
    )


def local_problems(home: Path, engine: Path, key: str, tokenizer: str, *, full: bool, tick: Any = None) -> list[str]:
    """What keeps this host from using the engine and tokenizer that it has; none when it can."""
    problems = []
    for path, kind, wanted in ((engine, _engine.KIND, key), (tokenizer_path(home, tokenizer), TOKENIZER, tokenizer)):
        problems += verify(path, kind=kind, key=wanted, full=full, tick=tick).problems
    return problems or _engine.check_content(engine)


def manifest_of(made: Description) -> dict[str, tuple[str, str, dict[str, Any], dict[str, dict[str, Any]]]]:
    """kind, key, inputs and files of what is made from each folder of the artefact."""
    return {
        "engine": (_engine.KIND, made.key, made.inputs, made.files),
        "tokenizer": (TOKENIZER, made.tokenizer_key, _tokenizer_inputs(made.tokenizer_files), made.tokenizer_files),
    }


def fits(made: Description, release: str, gpu: Mapping[str, Any] | None) -> list[str]:
    """Why an engine of a store is not for this host; none when it is."""
    problems = []
    of = made.inputs.get("tensorrt_llm")
    if of != release:
        problems.append(f"engine {short_key(made.key)} was built by TensorRT-LLM {of}, not {release}: build one for it")
    built_for = made.inputs.get("gpu") or {}
    for name in ("name", "compute_capability"):
        wanted, found = (gpu or {}).get(name), built_for.get(name)
        if wanted and found and str(wanted) != str(found):
            problems.append(
                f"engine {short_key(made.key)} was built for GPU {name} {found}, this host has {wanted}:"
                " an engine runs only on the GPU that it was built on"
            )
    return problems


# --- what a signature led to --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """Which engine and tokenizer hosts of a signature have, as this host knows it."""

    key: str
    tokenizer: str


def _known_path(home: Path, signature: str) -> Path:
    return home / "engines" / ".signatures" / f"{signature}.json"


def read_known(home: Path, signature: str) -> Known | None:
    try:
        value = json.loads(_known_path(home, signature).read_text(encoding="ascii"))
        known = Known(str(value["key"]), str(value["tokenizer"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if _SHA256.fullmatch(known.key) and _SHA256.fullmatch(known.tokenizer) else None


def known_text(known: Known) -> str:
    return json.dumps({"key": known.key, "tokenizer": known.tokenizer}, sort_keys=True)


def known_path(home: Path, signature: str) -> Path:
    return _known_path(home, signature)


def final_manifest(made: Description, folder: str, path: Path) -> Manifest:
    """The manifest of a fetched folder, with the times that its files have on this host."""
    kind, key, inputs, files = manifest_of(made)[folder]
    entries = {
        name: {"size": entry["size"], "sha256": entry["sha256"], "mtime_ns": os.stat(path / name).st_mtime_ns}
        for name, entry in sorted(files.items())
    }
    return Manifest(kind, key, dict(inputs), entries)
