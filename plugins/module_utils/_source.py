# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkout of tensorrtllm_backend at one commit, with its submodules and large files: there whole or not at all.

Private to the collection.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    describe_os_error,
    hand_over,
    remove_stale_partials,
    remove_tree,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner import (
    NotStarted,
    Runner,
    RunnerError,
    RunResult,
)

REPOSITORY = "https://github.com/triton-inference-server/tensorrtllm_backend.git"
# Inside .git, so that the tree itself holds nothing but what was checked out.
RECORD = os.path.join(".git", "trtllm-source.json")
POINTER = b"version https://git-lfs.github.com/spec/v1"
# A pointer is smaller than this by its specification.
POINTER_BYTES = 1024
SHOWN = 5

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_MOVING = ("main", "master", "HEAD", "latest", "develop", "trunk")

# What 'git lfs install' would write into root's configuration.
_LFS = [
    ("filter.lfs.clean", "git-lfs clean -- %f"),
    ("filter.lfs.smudge", "git-lfs smudge -- %f"),
    ("filter.lfs.process", "git-lfs filter-process"),
    ("filter.lfs.required", "true"),
]

# (what git says, what to do); the first that matches wins.
_KNOWN = (
    (r"git-lfs: (command )?not found|'lfs' is not a git command|run git-lfs", "install the package git-lfs"),
    (r"smudge|\blfs\b|object does not exist", "see that the repository's large file storage has them"),
    (r"could not resolve host|temporary failure in name resolution", "set a mirror or a proxy, or correct the URL"),
    (r"authentication failed|could not read username|permission denied|\b403\b", "let root on the host read it"),
    (r"no space left|disk quota", "free some space, or choose another trtllm_home"),
    (r"certificate", "let the host trust the server's certificate authority"),
    (r"does not exist|not found|does not appear to be a git repository", "correct the URL or the mirror"),
    (r"not our ref|couldn't find remote ref|unadvertised object", "name a tag or commit that the repository has"),
)


class SourceError(Exception):
    """One line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Wanted:
    """What to check out. ``commit`` is what ``version`` has to be; without it, what the tag is at the first clone."""

    repository: str
    name: str  # of the directory, before the commit
    version: str  # a tag or a whole commit
    commit: str = ""
    # With every submodule and large file, as a build needs it; else only the tree and its first submodules.
    complete: bool = True
    mirrors: Mapping[str, str] = field(default_factory=dict)  # URL prefix: what to use in its place
    proxies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    path: Path
    repository: str
    version: str
    commit: str
    complete: bool
    submodules: dict[str, str]


def version_problem(version: str) -> str:
    """Why something cannot name what is built; empty when it can."""
    if version in _MOVING or version.startswith(("refs/", "origin/")):
        return f"'{version}' is no fixed version, it moves: name a tag such as v0.12.0, or a commit of 40 digits"
    if re.match(r"^[0-9a-f]{7,39}$", version):
        return f"commit '{version}' is cut short: give all 40 digits"
    if not re.match(r"^[A-Za-z0-9][A-Za-z0-9._/+-]*$", version) or ".." in version:
        return f"'{version}' is neither a tag nor a commit: name a tag such as v0.12.0, or a commit of 40 digits"
    return ""


def repository_problem(repository: str) -> str:
    if re.match(r"^[a-z+]+://[^/]*:[^/]*@", repository):
        shown = re.sub(r"//[^/]*@", "//********@", repository)
        return f"repository {shown} has a password in it: give root on the host a git credential helper instead"
    return ""


# --- what is there ----------------------------------------------------------------------------------------------


def read_source(path: Path) -> Source | None:
    """The finished checkout in a directory; None for anything else."""
    try:
        value = json.loads((path / RECORD).read_text(encoding="utf-8"))
        return Source(path=path, **value)
    except (OSError, ValueError, TypeError):
        return None


def find(home: Path, wanted: Wanted) -> Source | None:
    """The checkout that was made before; nothing is asked of the network."""
    commit = wanted.version if _COMMIT.match(wanted.version) else wanted.commit
    folder = home / "src"
    if commit:
        candidates = [folder / directory_name(wanted.name, commit)]
    else:
        candidates = sorted(folder.glob(_slug(wanted.name) + "-*"))
    for path in candidates:
        found = read_source(path)
        if found is None or (wanted.complete and not found.complete):
            continue
        same = found.repository == wanted.repository and found.version == wanted.version
        if found.commit == commit if commit else same:
            return found
    return None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)


def directory_name(name: str, commit: str) -> str:
    return f"{_slug(name)}-{commit[:12]}"


def lfs_pointers(root: Path, tick: Callable[[], None] | None = None) -> list[str]:
    """Files that are still the pointer to a large file, in place of the file."""
    found: list[str] = []
    for folder, folders, names in os.walk(str(root)):
        if ".git" in folders:
            folders.remove(".git")
        folders.sort()
        if tick is not None:
            tick()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
                if not 0 < status.st_size < POINTER_BYTES or os.path.islink(path):
                    continue
                with open(path, "rb") as stream:
                    if stream.read(len(POINTER)) == POINTER:
                        found.append(os.path.relpath(path, str(root)))
            except OSError:
                continue
    return found


def need_no_pointers(root: Path, what: str = "", tick: Callable[[], None] | None = None) -> None:
    found = lfs_pointers(root, tick)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise SourceError(
            f"{len(found)} file(s) of {what or root} are git-lfs pointers, not the files themselves"
            f" ({', '.join(found[:SHOWN])}{more}): see that the repository's large file storage can be reached,"
            f" {'' if what else f'remove {root}, '}and run again"
        )


# --- making -----------------------------------------------------------------------------------------------------


def git_environment(wanted: Wanted) -> dict[str, str]:
    """Settings for these git commands alone; nothing is written to anybody's configuration."""
    settings = [
        ("advice.detachedHead", "false"),
        ("gc.auto", "0"),
        *((f"url.{mirror}.insteadOf", prefix) for prefix, mirror in wanted.mirrors.items()),
    ]
    if wanted.complete:
        settings += _LFS
    places = [wanted.repository, *wanted.mirrors.values()]
    if any(place.startswith(("/", "file://")) for place in places):
        settings.append(("protocol.file.allow", "always"))
    environment = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C.UTF-8"}
    environment["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (name, value) in enumerate(settings):
        environment[f"GIT_CONFIG_KEY_{number}"] = name
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    for name, value in wanted.proxies.items():
        environment[name.lower()] = environment[name.upper()] = str(value)
    return environment


@dataclass
class Git:
    """git with these settings; each failure is one line."""

    wanted: Wanted
    runner: Runner
    log: Path
    timeout: float | None

    def run(self, *words: str, check: bool = True, what: str = "") -> RunResult:
        try:
            done = self.runner.run(
                ["git", *words], log_file=self.log, env=git_environment(self.wanted), timeout=self.timeout
            )
        except NotStarted as exc:
            raise SourceError(f"git cannot be started on this host ({exc}): install the package git") from exc
        except RunnerError as exc:
            raise type(exc)(f"{what or 'checking out ' + self.wanted.repository}: {exc}") from exc
        if check and done.rc != 0:
            raise SourceError(git_failure(done.tail, done.rc, what or f"git {words[0]}", self.log))
        return done


def git_failure(tail: Sequence[str], rc: int, what: str, log: Path) -> str:
    """git's own error and what to do about it."""
    lines = [line.strip() for line in tail if line.strip() and "run_command returned non-zero" not in line]
    said = [line for line in lines if re.match(r"(remote: )?(fatal|error|ERROR)\b|\[[0-9a-f]{64}\]", line)]
    said = said or [line for line in lines if re.search(r"error|failed", line, re.I)] or lines or [f"rc {rc}"]
    text = said[0]
    # A repository's address has words and digits of its own, a port too.
    everything = re.sub(r"\w+://\S+", "", " ".join([what, *lines]))
    remedy = next((remedy for pattern, remedy in _KNOWN if re.search(pattern, everything, re.I)), "see the log")
    return f"{what} failed: {text}; {remedy} (log {log})"


def resolve(git: Git) -> str:
    """The commit that the wanted version is."""
    wanted = git.wanted
    if _COMMIT.match(wanted.version):
        return wanted.version
    tag, head = f"refs/tags/{wanted.version}", f"refs/heads/{wanted.version}"
    listed = git.run(
        "ls-remote", "--", wanted.repository, tag, tag + "^{}", head, what=f"asking {wanted.repository}"
    )  # fmt: skip
    lines = [line.split("\t", 1) for line in listed.tail if re.match(r"^[0-9a-f]{40}\t", line)]
    refs = {ref.strip(): commit for commit, ref in lines}
    commit = refs.get(tag + "^{}") or refs.get(tag)
    if commit is None:
        if head in refs:
            raise SourceError(
                f"'{wanted.version}' is a branch of {wanted.repository}, which moves: name a tag, or its commit"
                f" {refs[head]}"
            )
        raise SourceError(f"{wanted.repository} has no tag '{wanted.version}': name one that it has, or a commit")
    if wanted.commit and wanted.commit != commit:
        raise SourceError(
            f"tag '{wanted.version}' of {wanted.repository} is commit {commit}, not {wanted.commit} as pinned: somebody"
            " moved the tag; trust neither until you know why, or pin the commit that you want"
        )
    return str(commit)


def fetch(home: Path, wanted: Wanted, runner: Runner, log: Path, timeout: float | None = None) -> Source:
    """Makes the checkout. The caller holds the host's lock."""
    problem = version_problem(wanted.version) or repository_problem(wanted.repository)
    if problem:
        raise SourceError(problem)
    git = Git(wanted, runner, log, timeout)
    commit = resolve(git)
    folder = home / "src"
    final = folder / directory_name(wanted.name, commit)
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        remove_stale_partials(folder)
        try:
            submodules = _fill(git, partial, commit)
            source = Source(final, wanted.repository, wanted.version, commit, wanted.complete, submodules)
            _finish(partial, source, home)
        except BaseException:
            remove_tree(partial)
            raise
        hand_over(folder, home)
    except OSError as exc:
        raise describe_os_error(exc, folder) from exc
    return source


def _fill(git: Git, path: Path, commit: str) -> dict[str, str]:
    """Clone, submodules and large files; returns the commit of each submodule."""
    wanted, at = git.wanted, ("-C", str(path))
    git.run("init", "--quiet", str(path))
    git.run(*at, "remote", "add", "origin", wanted.repository)
    ref = commit if wanted.version == commit else f"+refs/tags/{wanted.version}:refs/tags/{wanted.version}"
    what = f"cloning {wanted.repository} at {wanted.version}"
    if git.run(*at, "fetch", "--quiet", "--depth", "1", "origin", ref, check=False).rc != 0:
        # Not every server gives out a single commit.
        git.run(*at, "fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*", what=what)
    git.run(*at, "checkout", "--quiet", "--detach", commit, what=what)
    update = [*at, "submodule", "update", "--init", *(["--recursive"] if wanted.complete else [])]
    if git.run(*update, "--depth", "1", check=False).rc != 0:
        git.run(*update, what=f"fetching the submodules of {wanted.repository} at {wanted.version}")
    if wanted.complete:
        what = "fetching large files (git-lfs)"
        git.run(*at, "lfs", "pull", what=what)
        git.run(*at, "submodule", "foreach", "--quiet", "--recursive", "git lfs pull", what=what)
        need_no_pointers(path, f"{wanted.repository} at {wanted.version}")
    listed = git.run(*at, "submodule", "status", *(["--recursive"] if wanted.complete else []))
    found = [re.match(r"^.?([0-9a-f]{40}) (.+?)(?: \(.*\))?$", line) for line in listed.tail]
    return {match.group(2): match.group(1) for match in found if match is not None}


def _finish(partial: Path, source: Source, home: Path) -> None:
    """Marks the checkout as finished, and puts it in place of what was there."""
    record: dict[str, Any] = {name: value for name, value in asdict(source).items() if name != "path"}
    (partial / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    hand_over(partial, home)
    # One flush of the file system instead of one for each of many thousand files.
    os.sync()
    old = source.path.parent / f".{source.path.name}.replaced.partial"
    if source.path.exists():
        os.rename(str(source.path), str(old))
    os.rename(str(partial), str(source.path))
    if old.exists():
        remove_tree(old)
