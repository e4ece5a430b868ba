# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _artifact, _artifact_files
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    ArtifactError,
    NoSpace,
    canonical_json,
    explain,
    key_of,
    making,
    need_space,
    need_writable,
    newest_sibling,
    read_manifest,
    refresh_times,
    verify,
)


def make(final: Path, kind: str = "engine", **inputs: object) -> Path:
    with making(final, kind, inputs) as made:
        (made.path / "sub").mkdir()
        (made.path / "a").write_text("content")
        (made.path / "sub" / "b").write_text("more")
        (made.path / "link").symlink_to("a")
    return final


def test_key_is_canonical() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "ä"}) == b'{"a":"\\u00e4","b":[1,2.5,null]}'
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": "1", "b": 2})
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_explain_names_what_differs() -> None:
    old = {"options": {"tp_size": 2, "dtype": "float16"}, "gone": 1}
    new = {"options": {"tp_size": 4, "dtype": "float16"}, "new": [1]}
    assert explain(old, new) == {
        "before": "gone: 1\noptions.tp_size: 2\n",
        "after": "new: [1]\noptions.tp_size: 4\n",
    }
    assert explain(new, new) == {"before": "", "after": ""}


def test_made_whole_with_the_manifest_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renames: list[tuple[str, list[str]]] = []
    rename = os.rename

    def spy(source: str, target: str) -> None:
        renames.append((os.path.basename(target), sorted(os.listdir(source)) if os.path.isdir(source) else []))
        rename(source, target)

    monkeypatch.setattr(os, "rename", spy)
    final = make(tmp_path / "k", tp=2)
    assert [name for name, unused in renames] == ["manifest.json", "k"]
    assert "manifest.json" in renames[1][1]
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest["files"]["sub/b"]["size"] == 4 and manifest["files"]["link"]["link"] == "a"
    assert manifest["inputs"] == {"tp": 2} and manifest["key"] == key_of({"tp": 2})
    assert verify(final, full=True, kind="engine", key=key_of({"tp": 2})).ok
    assert [entry.name for entry in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ValueError("x")])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), making(tmp_path / "k", "engine", {}) as made:
        (made.path / "a").write_text("half")
        made.path.chmod(0o500)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_full_disk_in_the_middle(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="no space left .* free. below .*: free some"):
        with making(tmp_path / "k", "engine", {}) as made:
            (made.path / "a").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", "a")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_finishing_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = make(tmp_path / "k", tp=2)

    def full(root: Path, manifest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_artifact, "_write_manifest", full)
    with pytest.raises(NoSpace):
        make(tmp_path / "k", tp=2)
    monkeypatch.undo()
    assert verify(final).ok and [entry.name for entry in tmp_path.iterdir()] == ["k"]


def test_stopped_while_hashing(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def tick() -> None:
        raise Stop

    (tmp_path / "file").write_text("x")
    with pytest.raises(Stop):
        _artifact.hash_files(tmp_path, ["file"], tick)
    (tmp_path / "file").unlink()
    with pytest.raises(Stop), making(tmp_path / "k", "engine", {}, tick=tick) as made:
        (made.path / "a").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_incomplete_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "old").write_text("")
    (tmp_path / ".other.partial").mkdir()
    (tmp_path / ".k.replaced.partial").mkdir()
    make(tmp_path / "k")
    assert sorted(entry.name for entry in (tmp_path / "k").iterdir()) == ["a", "link", "manifest.json", "sub"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "a").write_text("other!!"), "a has other content"),
        (lambda path: (path / "a").write_text("longer than before"), "a has 18 bytes, not 7"),
        (lambda path: (path / "sub" / "b").unlink(), "sub/b is missing"),
        (lambda path: ((path / "link").unlink(), (path / "link").symlink_to("b")), "no longer a link to a"),
        (lambda path: ((path / "a").unlink(), (path / "a").symlink_to("b")), "no longer a regular file"),
        (lambda path: (path / "manifest.json").write_text("{"), "is incomplete"),
        (lambda path: (path / "extra").write_text(""), "extra does not belong there"),
    ],
)
def test_verify_finds(tmp_path: Path, damage: object, message: str) -> None:
    path = make(tmp_path / "k")
    assert verify(path, extra=True).ok
    damage(path)  # type: ignore[operator]
    found = verify(path, extra=True)
    assert len(found.problems) == 1 and message in found.problems[0]


def test_verify_does_not_read_what_looks_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "k")
    read: list[str] = []
    monkeypatch.setattr(_artifact_files, "file_sha256", lambda name, stop=None: read.append(str(name)) or "0" * 64)
    assert verify(path).ok and read == []
    assert not verify(path, full=True).ok and len(read) == 2


def test_fast_verify_of_a_large_artefact_takes_milliseconds(tmp_path: Path) -> None:
    with making(tmp_path / "k", "engine", {}) as made:
        for rank in range(64):
            with open(made.path / f"rank{rank}.engine", "wb") as stream:
                stream.truncate(1 << 20)
    began = time.perf_counter()
    assert verify(tmp_path / "k").ok
    assert time.perf_counter() - began < 0.1


def test_touched_files_are_read_once(tmp_path: Path) -> None:
    path = make(tmp_path / "k")
    os.utime(path / "a", ns=(1, 1))
    found = verify(path)
    assert found.ok and found.touched == ["a"]
    assert refresh_times(found) and verify(path).touched == []


def test_newest_sibling(tmp_path: Path) -> None:
    assert newest_sibling(tmp_path / "nowhere", "engine") is None
    old, new = make(tmp_path / "1", n=1), make(tmp_path / "2", n=2)
    make(tmp_path / "3", kind="checkpoint")
    os.utime(old / "manifest.json", (1, 1))
    found = newest_sibling(tmp_path, "engine")
    assert found is not None and found[0] == new and found[1].inputs == {"n": 2}
    other = newest_sibling(tmp_path, "engine", besides=new)
    assert other is not None and other[0] == old


def test_manifest_of_an_unfinished_artefact_counts_as_none(tmp_path: Path) -> None:
    path = make(tmp_path / "k")
    value = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**value, "complete": False}))
    assert read_manifest(path) is None


def test_room_and_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_space(1, tmp_path / "not" / "yet")
    with pytest.raises(NoSpace, match=r"1048576.0 GiB needed below .*/not/yet, only .* free"):
        need_space(1 << 50, tmp_path / "not" / "yet")
    need_writable(tmp_path / "not" / "yet")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is not a directory"):
        need_writable(tmp_path / "file" / "k")
    with pytest.raises(ArtifactError, match="/proc|/sys"):
        need_writable("/proc/sys/k")
    monkeypatch.setattr(os, "access", lambda *args, **more: False)
    with pytest.raises(ArtifactError, match="belongs to .* and cannot be written by .*: run as its owner"):
        need_writable(tmp_path / "k")


def test_read_only_file_system_is_named() -> None:
    place = next(
        (
            line.split()[1]
            for line in Path("/proc/mounts").read_text().splitlines()
            if line.split()[3].split(",")[0] == "ro" and os.path.isdir(line.split()[1])
        ),
        None,
    )
    if place is None:
        pytest.skip("nothing is mounted read-only here")
    with pytest.raises(ArtifactError, match="read-only"):
        need_writable(Path(place) / "k")


# --- who owns what root makes -----------------------------------------------------------------------------------


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, tuple[int, int]]:
    """As if root ran this and the home belonged to 990:991: what would be given to whom."""
    given: dict[str, tuple[int, int]] = {}
    real = os.stat

    def chown(name: str, uid: int, gid: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        assert not follow_symlinks
        folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}") + "/"
        given[f"{folder}{name}"] = (uid, gid)

    def stat_(path: object, **how: object) -> os.stat_result:
        found = list(real(path, **how))  # type: ignore[arg-type]
        if str(path) == str(tmp_path / "home"):
            found[4:6] = (990, 991)
        return os.stat_result(found)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(_artifact_files.os, "chown", chown)
    monkeypatch.setattr(_artifact_files.os, "stat", stat_)
    (tmp_path / "home").mkdir()
    return given


def test_root_hands_over_what_it_makes(root: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    home = tmp_path / "home"
    with making(home / "engines" / "k", "engine", {}, home=home) as made:
        (made.path / "sub").mkdir()
        (made.path / "sub" / "file").write_text("x")
        (made.path / "link").symlink_to("/etc/passwd")
        assert root == {str(home / "engines"): (990, 991), str(made.path): (990, 991)}
    below = [str(made.path / name) for name in ("sub", "sub/file", "link", "manifest.json")]
    assert set(below) < set(root) and set(root.values()) == {(990, 991)}
    assert "/etc/passwd" not in root


def test_nobody_but_root_hands_over(root: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert _artifact.owner_of(tmp_path / "home") == (990, 991)
    assert not _artifact.hand_over(tmp_path, tmp_path / "home") and not root
    assert _artifact.owner_of(tmp_path / "none") is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not _artifact.hand_over(tmp_path, tmp_path / "none") and not root
    assert _artifact.hand_over(tmp_path / "home", tmp_path / "home") is False
