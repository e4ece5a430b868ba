# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Git repositories laid out as tensorrtllm_backend and TensorRT-LLM, around the collection's reference backend.

The submodule has files in Git LFS; its objects lie where git-lfs looks for them in a repository given by file://, and
where gitserver.py serves them from. The same commits come out every time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UPSTREAM = HERE / "upstream"
REFERENCE = ROOT / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
RELEASES = ROOT / "plugins" / "module_utils" / "_releases"
MODELS = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")
ARCHIVE = b"!<arch>\nstand-in for a static library of the TensorRT-LLM source tree\n"
LFS_FILES = {
    "cpp/tensorrt_llm/batch_manager/aarch64-linux-gnu/libtensorrt_llm_batch_manager_static.a": ARCHIVE + b"aarch64\n",
    "cpp/tensorrt_llm/batch_manager/x86_64-linux-gnu/libtensorrt_llm_batch_manager_static.a": ARCHIVE + b"x86_64\n",
    "cpp/tensorrt_llm/batch_manager/x86_64-windows-msvc/tensorrt_llm_batch_manager_static.lib": ARCHIVE + b"windows\n",
}
GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Test bed", "GIT_AUTHOR_EMAIL": "testbed@example.invalid",
    "GIT_COMMITTER_NAME": "Test bed", "GIT_COMMITTER_EMAIL": "testbed@example.invalid",
    "GIT_AUTHOR_DATE": "2024-08-29T00:00:00Z", "GIT_COMMITTER_DATE": "2024-08-29T00:00:00Z",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Where a release has its parts."""

    release: str
    ref: str
    is_tag: bool
    dockerfile: str
    moved: bool  # models, launcher and tools are in the submodule


LAYOUTS = {
    layout.release: layout
    for layout in (
        Layout("0.12.0", "v0.12.0", True, "dockerfile/Dockerfile.trt_llm_backend", False),
        Layout("1.1.0", "r25.12", False, "dockerfile/Dockerfile.triton.trt_llm_backend", True),
    )
}


def inputs() -> tuple[Path, ...]:
    """The files that the trees are made of."""
    found = [HERE / "source.py"]
    for folder in (UPSTREAM, REFERENCE, RELEASES):
        found += [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return tuple(sorted(found))


def release_record(release: str) -> dict[str, Any]:
    """The option tables, as the collection's installer records them beside the reference tools."""
    name = "_testbed_releases"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, RELEASES / "__init__.py", submodule_search_locations=[str(RELEASES)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    found = sys.modules[name].get(release)
    return {
        "release": found.version, "convert_checkpoint": found.convert_checkpoint, "trtllm_build": found.trtllm_build,
        "launch": found.launch,
    }  # fmt: skip


def put(target: Path, content: str | bytes | Path, executable: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        content = content.read_bytes()
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    target.chmod(0o755 if executable else 0o644)


def copy(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            put(target / path.relative_to(source), path, bool(path.stat().st_mode & 0o111))


def template(model: str) -> str:
    """A config.pbtxt as upstream leaves it to its reader to fill in; enough to be asked for its placeholders."""
    backend = {"ensemble": 'platform: "ensemble"', "tensorrt_llm": 'backend: "${triton_backend}"'}
    kind = backend.get(model, 'backend: "python"')
    return 'name: "%s"\n%s\nmax_batch_size: ${triton_max_batch_size}\n' % (model, kind)


def write_models(target: Path) -> None:
    copy(REFERENCE / "all_models" / "inflight_batcher_llm", target)
    for model in MODELS:
        put(target / model / "config.pbtxt", template(model))
    for model in ("ensemble", "tensorrt_llm"):
        put(target / model / "1" / ".gitkeep", "")


def pointer(content: bytes) -> bytes:
    """What Git keeps in place of a file in LFS."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
    return (text % (hashlib.sha256(content).hexdigest(), len(content))).encode()


def write_submodule(target: Path, release: str, lfs: bool) -> None:
    """TensorRT-LLM's tree; with lfs False its large files are the pointers that Git keeps."""
    layout = LAYOUTS[release]
    copy(UPSTREAM / "tensorrt_llm", target)
    put(target / "tensorrt_llm" / "version.py", '__version__ = "%s"\n' % release)
    put(target / "release.json", json.dumps(release_record(release), sort_keys=True) + "\n")
    copy(REFERENCE / "tensorrtllm_reference", target / "tensorrtllm_reference")
    put(target / "bin" / "trtllm-build", REFERENCE / "bin" / "trtllm-build", True)
    converter = Path("examples", *(("models", "core") if layout.moved else ()), "llama", "convert_checkpoint.py")
    put(target / converter, REFERENCE / converter, True)
    put(target / ".gitattributes", "".join("*.%s filter=lfs diff=lfs merge=lfs -text\n" % end for end in ("a", "lib")))
    for name, content in LFS_FILES.items():
        put(target / name, content if lfs else pointer(content))
    if layout.moved:
        write_models(target / "triton_backend" / "all_models" / "inflight_batcher_llm")
        write_scripts(target / "triton_backend")


def write_scripts(target: Path) -> None:
    put(target / "scripts" / "launch_triton_server.py", REFERENCE / "scripts" / "launch_triton_server.py", True)
    copy(REFERENCE / "tools", target / "tools")


def write_backend(target: Path, release: str) -> None:
    """tensorrtllm_backend's tree without its submodule."""
    layout = LAYOUTS[release]
    copy(UPSTREAM / "tensorrtllm_backend", target)
    put(target / layout.dockerfile, UPSTREAM / ("%s.Dockerfile" % release))
    copy(REFERENCE / "backends" / "tensorrtllm", target / "inflight_batcher_llm" / "src")
    required = (REFERENCE / "requirements.txt").read_text("utf-8").splitlines()
    pins = [line.split()[0] for line in required if "==" in line]
    put(target / "requirements.txt", "\n".join(pins) + "\n")
    if not layout.moved:
        write_models(target / "all_models" / "inflight_batcher_llm")
        write_scripts(target)


def write_tree(target: Path, release: str) -> None:
    """A checkout with its submodule and the content of its LFS files."""
    write_backend(target, release)
    write_submodule(target / "tensorrt_llm", release, lfs=True)


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "init.defaultBranch=main", "-c", "filter.lfs.required=false", *arguments],
        env={**os.environ, **GIT_ENVIRONMENT}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError("git %s: %s" % (" ".join(arguments), done.stderr.strip()))
    return done.stdout.strip()


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == ".git":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@dataclass(frozen=True)
class Repositories:
    """Bare repositories below one folder: tensorrtllm_backend.git and, as its submodule, tensorrt_llm.git."""

    folder: Path
    commits: dict[str, str]  # of the backend, by release
    submodules: dict[str, str]

    @property
    def path(self) -> Path:
        return self.folder / "tensorrtllm_backend.git"

    @property
    def url(self) -> str:
        """Needs protocol.file.allow=always for the submodule; gitserver.py serves the same over HTTP."""
        return "file://%s" % self.path


def make_repositories(folder: Path) -> Repositories:
    """Bare repositories with every release of LAYOUTS as a tag or a branch; main has lost what upstream's has lost."""
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    commits: dict[str, str] = {}
    submodules: dict[str, str] = {}
    for name in ("tensorrt_llm", "tensorrtllm_backend"):
        (work / name).mkdir(parents=True)
        git(work / name, "init", "--quiet")
    for release in LAYOUTS:
        tree = work / "tensorrt_llm"
        clear(tree)
        write_submodule(tree, release, lfs=False)
        git(tree, "add", "--all")
        git(tree, "commit", "--quiet", "--message", "TensorRT-LLM %s" % release)
        git(tree, "tag", "v" + release)
        submodules[release] = git(tree, "rev-parse", "HEAD")
    for release, layout in LAYOUTS.items():
        tree = work / "tensorrtllm_backend"
        clear(tree)
        write_backend(tree, release)
        put(
            tree / ".gitmodules",
            '[submodule "tensorrt_llm"]\n\tpath = tensorrt_llm\n\turl = ../tensorrt_llm.git\n',
        )
        git(tree, "add", "--all")
        git(tree, "update-index", "--add", "--cacheinfo", "160000,%s,tensorrt_llm" % submodules[release])
        git(tree, "commit", "--quiet", "--message", "Release %s" % release)
        git(tree, *(("tag", layout.ref) if layout.is_tag else ("branch", layout.ref)))
        commits[release] = git(tree, "rev-parse", "HEAD")
    git(tree, "rm", "-r", "--quiet", "dockerfile")
    git(tree, "commit", "--quiet", "--message", "Engines are gone")
    for name in ("tensorrt_llm", "tensorrtllm_backend"):
        bare = folder / (name + ".git")
        git(folder, "clone", "--quiet", "--bare", "--no-hardlinks", str(work / name), str(bare))
        git(bare, "config", "uploadpack.allowAnySHA1InWant", "true")
        git(bare, "remote", "remove", "origin")
    for content in LFS_FILES.values():
        oid = hashlib.sha256(content).hexdigest()
        put(folder / "tensorrt_llm.git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid, content)
    shutil.rmtree(work)
    return Repositories(folder, commits, submodules)


if __name__ == "__main__":
    made = make_repositories(Path(sys.argv[1]).resolve())
    print(json.dumps({"folder": str(made.folder), "commits": made.commits, "submodules": made.submodules}))
