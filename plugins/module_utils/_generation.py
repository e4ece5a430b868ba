# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations: everything that a server is started from, under one immutable identity.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    MANIFEST,
    Verification,
    describe_os_error,
    hand_over,
    key_of,
    list_files,
    making,
    read_manifest,
    refresh_times,
    remove_tree,
    short_key,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._server_state import active_slot, server_record

KIND = "generation"
HOME_TOKEN = "${trtllm_home}"
# Names the generation in service as long as its gate is not passed, and what served before it.
UNPROVEN = "run/unproven.json"
# Below home/run: the generation that was assembled last.
STAGED = "staged.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class GenerationError(Exception):
    """One line that says what is wrong and what to do."""


def link_target(home: Path, name: str) -> Optional[str]:
    """The id that home/current or home/previous names; None when there is no such link."""
    try:
        target = os.readlink(str(home / name))
    except OSError:
        return None
    return os.path.basename(target)


def unproven(home: Path) -> Dict[str, Any]:
    """What is known of a current generation whose gate was never passed; empty when it was."""
    try:
        value = json.loads((home / UNPROVEN).read_text(encoding="utf-8"))
        before = {name: value["before"][name] for name in ("current", "previous")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if value.get("generation") != link_target(home, "current"):
        return {}
    return {"generation": value["generation"], "before": before}


def normalised(text: str, home: str) -> str:
    """The text with the place of trtllm_home taken out, so that an identity never depends on it."""
    escaped = json.dumps(home, ensure_ascii=False)[1:-1]
    for form in (home, escaped):
        text = text.replace(form, HOME_TOKEN)
    return text


def model_files(models_dir: Path, names: List[str]) -> Dict[str, str]:
    """The Python models (every file below MODEL/1) of an inflight_batcher_llm tree, as model_repo paths and texts."""
    files: Dict[str, str] = {}
    for name in names:
        version = models_dir / name / "1"
        if not version.is_dir():
            raise GenerationError(
                "%s has no model %s (no directory %s): choose the models of the release in use"
                % (models_dir, name, version)
            )
        for rel in list_files(version):
            if "__pycache__" in rel:
                continue
            try:
                text = (version / rel).read_text(encoding="utf-8")
            except OSError as exc:
                raise GenerationError("%s: %s" % (version / rel, exc.strerror or exc)) from exc
            # .gitkeep too: Git keeps no empty directory, and Triton wants the version's to be there.
            files["model_repo/%s/1/%s" % (name, rel)] = text
    return files


def check_tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise GenerationError(
            "%s holds no tokenizer (%s): point triton_serve_tokenizer_dir at the directory that has it"
            % (path, " or ".join(TOKENIZER_FILES))
        )


@dataclass
class Plan:
    """A generation as it should be, and what differs from it on the host."""

    home: Path
    inputs: Dict[str, Any]
    files: Dict[str, str]
    key: str = ""
    current: Optional[str] = None
    previous: Optional[str] = None
    made: bool = False
    # Files of the generation that are not as they were made: changed, missing, or not ours.
    drift: List[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return short_key(self.key)

    @property
    def path(self) -> Path:
        return self.home / "generations" / self.id

    @property
    def in_place(self) -> bool:
        return self.made and not self.drift and self.current == self.id

    def outdated(self, *others: Path) -> bool:
        """Whether the server was started before one of its parts was put back. Also by a run that then broke off."""
        try:
            started = (self.home / "run" / server_record(active_slot(self.home))).stat().st_mtime
        except OSError:
            return False
        parts = [self.path / MANIFEST, *others]
        return any(part.stat().st_mtime > started for part in parts if part.is_file())

    @property
    def ungated(self) -> bool:
        """Whether it is in place, and the run that switched to it broke off before its gate was passed."""
        return self.in_place and bool(unproven(self.home))


def plan(home: Path, files: Mapping[str, str], identity: Mapping[str, Any]) -> Plan:
    """What the generation of these files and inputs is, and how the host compares with it."""
    inputs: Dict[str, Any] = dict(identity)
    inputs["files"] = {
        name: hashlib.sha256(normalised(text, str(home)).encode("utf-8")).hexdigest() for name, text in files.items()
    }
    result = Plan(home=home, inputs=inputs, files=dict(files), key=key_of(inputs))
    result.files["generation.json"] = json.dumps({"id": result.id, "inputs": inputs}, indent=1, sort_keys=True) + "\n"
    result.current = link_target(home, "current")
    result.previous = link_target(home, "previous")
    result.made = read_manifest(result.path) is not None
    if result.made:
        result.drift = drift_of(result)
    return result


def drift_of(wanted: Plan) -> List[str]:
    """The files whose text is not the wanted one, and those that do not belong there."""
    found: List[str] = []
    for name, text in wanted.files.items():
        try:
            same = (wanted.path / name).read_text(encoding="utf-8") == text and not (wanted.path / name).is_symlink()
        except (OSError, ValueError):
            same = False
        if not same:
            found.append(name)
    known = set(wanted.files)
    # Python leaves compiled files beside the models that it runs.
    found.extend(name for name in list_files(wanted.path) if name not in known and "__pycache__" not in name)
    return sorted(found)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _difference(old: str, before: str, new: str, after: str) -> Dict[str, str]:
    return {"before_header": old, "after_header": new, "before": before, "after": after}


def differences(wanted: Plan, complete: bool = True) -> List[Dict[str, str]]:
    """One Ansible diff for each file that is not as wanted, against the generation itself or the one in service.

    Not complete is a plan in check mode that lacks files which are not on the host yet.
    """
    against = wanted.path if wanted.made else None
    if against is None and wanted.current is not None:
        against = wanted.home / "generations" / wanted.current
    names = wanted.drift if wanted.made else sorted(wanted.files)
    result: List[Dict[str, str]] = []
    for name in names:
        before = read_text(against / name) if against is not None else ""
        after = wanted.files.get(name, "")
        if before != after:
            label = str((against or wanted.path) / name)
            result.append(_difference(label, before, str(wanted.path / name), after))
    if not wanted.made and against is not None and complete:
        for name in list_files(against):
            if name not in wanted.files and "__pycache__" not in name:
                result.append(_difference(str(against / name), read_text(against / name), "", ""))
    return result


def _write(root: Path, name: str, text: str) -> None:
    target = root / name
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    partial = target.with_name("." + target.name + ".new")
    fd = os.open(str(partial), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with os.fdopen(fd, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(str(partial), str(target))


def make(wanted: Plan) -> None:
    """Writes the generation whole or not at all. The caller holds the host's lock."""
    with making(wanted.path, KIND, wanted.inputs, key=wanted.key, home=wanted.home) as made:
        for name, text in wanted.files.items():
            _write(made.path, name, text)
    wanted.made = True


def repair(wanted: Plan) -> List[str]:
    """Puts each drifted file back, one by one, each whole. The caller holds the host's lock."""
    try:
        for name in wanted.drift:
            if name in wanted.files:
                _write(wanted.path, name, wanted.files[name])
            else:
                remove_tree(wanted.path / name)
        hand_over(wanted.path, wanted.home)
    except OSError as exc:
        raise describe_os_error(exc, wanted.path) from exc
    refresh_times(verify(wanted.path, kind=KIND))
    repaired, wanted.drift = wanted.drift, []
    return repaired


def verify_generation(path: Path) -> Verification:
    return verify(path, kind=KIND)


def generations(home: Path) -> List[Path]:
    """Finished generations, the one made last first."""
    parent = home / "generations"
    try:
        entries = [entry for entry in parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []
    found = [entry for entry in entries if read_manifest(entry) is not None]
    return sorted(found, key=lambda entry: (entry / MANIFEST).stat().st_mtime, reverse=True)


def prune(home: Path, keep: int) -> List[str]:
    """Removes the oldest generations above ``keep``; never current and previous."""
    protected = {link_target(home, "current"), link_target(home, "previous")}
    found = generations(home)
    room = max(0, keep - sum(1 for entry in found if entry.name in protected))
    spare = [entry for entry in found if entry.name not in protected]
    for entry in spare[room:]:
        remove_tree(entry)
    return [entry.name for entry in spare[room:]]
