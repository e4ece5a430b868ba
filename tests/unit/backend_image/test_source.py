# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A checkout by the real git, with a submodule and a large file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _image, _source
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import ImageError
from ansible_collections.trtllm.serving.plugins.module_utils._releases import get
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancelled, NotStarted
from ansible_collections.trtllm.serving.plugins.module_utils._source import (
    REPOSITORY,
    Source,
    SourceError,
    Wanted,
    fetch,
    find,
    git_environment,
    git_failure,
    lfs_pointers,
    version_problem,
)
from ansible_collections.trtllm.serving.tests.unit.backend_image.conftest import LARGE, Repositories, Tools, git

Fetch = Callable[..., Source]


@pytest.fixture(name="get_source")
def _get_source(home: Path, tools: Tools, repositories: Repositories, tmp_path: Path) -> Fetch:
    def run(version: str = "v0.12.0", **values: Any) -> Source:
        given = {"repository": repositories.url, "name": version, "version": version, **values}
        return fetch(home, Wanted(**given), tools, tmp_path / "log")

    return run


def wanted(repositories: Repositories, **values: Any) -> Wanted:
    return Wanted(**{"repository": repositories.url, "name": "v0.12.0", "version": "v0.12.0", **values})


def test_whole(get_source: Fetch, home: Path, repositories: Repositories) -> None:
    made = get_source()
    assert made.path == home / "src" / f"v0.12.0-{repositories.commit[:12]}" and made.commit == repositories.commit
    assert made.submodules == {"tensorrt_llm": repositories.inner}
    assert (made.path / "tensorrt_llm" / "lib.a").read_bytes() == LARGE
    assert find(home, wanted(repositories)) == made
    assert find(home, wanted(repositories, version=made.commit)) == made
    assert find(home, wanted(repositories, commit=made.commit)) == made
    for other in ({"commit": "1" * 40}, {"repository": "/other"}, {"version": "v0.13.0"}):
        assert find(home, wanted(repositories, **other)) is None
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]


def test_a_commit(get_source: Fetch, home: Path, repositories: Repositories) -> None:
    later = repositories.commit_again("later")
    made = get_source(later, name="r25.12")
    assert made.path.name == "r25.12-" + later[:12] and (made.path / "later").is_file()
    assert get_source(repositories.commit).commit == repositories.commit


def test_without_submodules_of_submodules_and_large_files(
    get_source: Fetch, home: Path, repositories: Repositories
) -> None:
    repositories.lose_large_files()
    made = get_source(complete=False)
    assert not made.complete and (made.path / "tensorrt_llm/examples/llama/convert_checkpoint.py").is_file()
    assert lfs_pointers(made.path) == ["tensorrt_llm/lib.a"]
    assert find(home, wanted(repositories)) is None, "a build needs more"
    assert find(home, wanted(repositories, complete=False)) == made


def test_a_whole_one_takes_the_place_of_the_other(get_source: Fetch, home: Path, repositories: Repositories) -> None:
    first = get_source(complete=False)
    second = get_source()
    assert second.path == first.path and lfs_pointers(second.path) == []
    assert find(home, wanted(repositories, complete=False)) == second
    assert [path.name for path in second.path.parent.iterdir()] == [second.path.name]


@pytest.mark.parametrize(
    ("version", "values", "said"),
    [
        ("side", {}, "'side' is a branch of .* name a tag, or its commit [0-9a-f]{40}"),
        ("v9.9.9", {}, "has no tag 'v9.9.9'"),
        ("v0.12.0", {"commit": "1" * 40}, "not 1{40} as pinned: somebody moved the tag"),
        ("main", {}, "no fixed version"),
        ("f" * 40, {}, "cloning .* at f{40} failed"),
        ("v0.12.0", {"repository": "/no/such/repository"}, "asking /no/such/repository failed: .*correct the URL"),
        ("v0.12.0", {"repository": "https://me:secret@example.com/x"}, r"https://\*{8}@example.com/x has a password"),
    ],
)
def test_refused_and_nothing_left(get_source: Fetch, home: Path, version: str, values: Any, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        get_source(version, **values)
    text = str(caught.value)
    assert "\n" not in text and "secret" not in text
    assert not (home / "src").exists() or list((home / "src").iterdir()) == []


def test_missing_large_files(get_source: Fetch, home: Path, repositories: Repositories) -> None:
    repositories.lose_large_files()
    with pytest.raises(SourceError, match=r"large files \(git-lfs\).*large file storage"):
        get_source()
    assert list((home / "src").iterdir()) == []


def test_what_an_interrupted_run_left_is_removed(get_source: Fetch, home: Path) -> None:
    left = home / "src" / ".v0.11.0-0123.partial"
    left.mkdir(parents=True)
    (left / "file").write_text("")
    get_source()
    assert not left.exists()


def test_mirrors_take_the_place_of_urls(get_source: Fetch, repositories: Repositories) -> None:
    place = {"https://nowhere.invalid/upstream/": f"file://{repositories.backend.parent}/"}
    made = get_source(repository="https://nowhere.invalid/upstream/tensorrtllm_backend", mirrors=place)
    assert made.commit == repositories.commit and (made.path / "tensorrt_llm" / "lib.a").read_bytes() == LARGE


def test_nobodys_configuration_is_written(get_source: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    get_source()
    assert list((tmp_path / "me").iterdir()) == []


def test_settings_are_in_the_environment_only(repositories: Repositories) -> None:
    environment = git_environment(wanted(repositories, proxies={"https_proxy": "http://proxy:1"}))
    assert environment["HTTPS_PROXY"] == environment["https_proxy"] == "http://proxy:1"
    assert environment["GIT_TERMINAL_PROMPT"] == "0"
    keys = [environment[f"GIT_CONFIG_KEY_{number}"] for number in range(int(environment["GIT_CONFIG_COUNT"]))]
    assert "protocol.file.allow" in keys and "filter.lfs.process" in keys
    remote = git_environment(Wanted(REPOSITORY, "v", "v", complete=False))
    assert not any(name in remote.values() for name in ("protocol.file.allow", "filter.lfs.process"))


@pytest.mark.parametrize("version", ["v0.12.0", "1" * 40, "release/1.0", "v1.0.0-rc1"])
def test_fixed_versions(version: str) -> None:
    assert version_problem(version) == ""


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("main", "it moves"), ("HEAD", "it moves"), ("master", "it moves"), ("origin/x", "it moves"),
        ("9a78477", "cut short"), ("-x", "neither"), ("a b", "neither"), ("a..b", "neither"),
    ],
)  # fmt: skip
def test_versions_that_are_not(version: str, said: str) -> None:
    assert said in version_problem(version)


@pytest.mark.parametrize(
    ("tail", "parts"),
    [
        (
            ["fatal: unable to access 'https://x/': Could not resolve host: x"],
            ["Could not resolve", "mirror or a proxy"],
        ),
        (["fatal: could not read Username for 'https://x': terminal prompts disabled"], ["let root on the host"]),
        (["Downloading", "error: 28 No space left on device"], ["free some space"]),
        (["[" + "a" * 64 + "] Object does not exist", "fatal: run_command returned non-zero status"], ["storage"]),
        (["git-lfs filter-process: 1: git-lfs: not found", "fatal: x"], ["install the package git-lfs"]),
        ([], ["rc 128", "see the log"]),
    ],
)
def test_failures_of_git(tail: list[str], parts: list[str]) -> None:
    said = git_failure(tail, 128, "cloning", Path("/log"))
    for part in ["cloning failed: ", "(log /log)", *parts]:
        assert part in said
    assert "run_command" not in said


def test_the_address_of_a_repository_says_nothing_about_a_failure() -> None:
    what = "cloning http://certificate.lfs:45403/403.git at " + "0" * 40
    tail = ["fatal: remote error: upload-pack: not our ref " + "0" * 40]
    assert "name a tag or commit that the repository has" in git_failure(tail, 128, what, Path("/log"))
    tail = ["fatal: unable to access 'http://x:45403/x.git/': The requested URL returned error: 403"]
    assert "let root on the host read it" in git_failure(tail, 128, what, Path("/log"))


def test_pointers_are_found_and_nothing_else(tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name in (".git/lfs/x", "a/pointer", "b/long", "b/other", "b/link"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / ".git/lfs/x").write_text(text)
    (tmp_path / "a/pointer").write_text(text)
    (tmp_path / "b/long").write_text(text + "#" * 1024)
    (tmp_path / "b/other").write_text("version 2\n")
    os.symlink("../a/pointer", tmp_path / "b/link")
    assert lfs_pointers(tmp_path) == ["a/pointer"]


@pytest.mark.parametrize(
    ("params", "release", "version", "commit"),
    [
        ({}, "0.12.0", "v0.12.0", get("0.12.0").backend_commit),
        ({}, "1.1.0", get("1.1.0").backend_commit, ""),
        ({"repository": "/mine"}, "0.12.0", "v0.12.0", ""),
        ({"version": "v0.13.0"}, "0.12.0", "v0.13.0", ""),
        ({"version": "v0.13.0", "commit": "1" * 40}, "0.12.0", "v0.13.0", "1" * 40),
    ],
)
def test_what_a_release_is_checked_out_at(params: dict[str, str], release: str, version: str, commit: str) -> None:
    found = _image.wanted_source(params, get(release), complete=True)
    assert (found.version, found.commit) == (version, commit)
    assert found.name == params.get("version", get(release).backend_tag)


def test_a_release_newer_than_the_matrix_needs_a_version() -> None:
    with pytest.raises(ImageError, match="give version"):
        _image.wanted_source({}, get("1.3.0"), complete=True)


def test_a_host_without_git(home: Path, repositories: Repositories, tmp_path: Path) -> None:
    class Without:
        def run(self, argv: Any, **unused: Any) -> Any:
            raise NotStarted("git cannot be started")

    with pytest.raises(SourceError, match="install the package git"):
        fetch(home, wanted(repositories), Without(), tmp_path / "log")


def test_a_stop_says_what_was_stopped(home: Path, repositories: Repositories, tmp_path: Path) -> None:
    class Stopped:
        def run(self, argv: Any, **unused: Any) -> Any:
            raise Cancelled("stopped: received SIGTERM")

    with pytest.raises(Cancelled, match="asking file://.*: stopped: received SIGTERM"):
        fetch(home, wanted(repositories), Stopped(), tmp_path / "log")


def test_the_record_is_no_part_of_the_tree(get_source: Fetch) -> None:
    made = get_source()
    assert git(made.path, "status", "--porcelain", "--ignore-submodules") == ""
    (made.path / _source.RECORD).write_text("{}")
    assert _source.read_source(made.path) is None
