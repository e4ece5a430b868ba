# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights from a hub of models: asked for once, resumed where they stopped, and in place only when every hash is right.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import (
    _hub,
    _hub_fetch,
    _hub_words,
    _progress,
    _tool_module,
    _weights,
)
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    MANIFEST,
    Manifest,
    key_of,
    read_manifest,
    remove_stale_partials,
    short_key,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import (
    describe_os_error,
    free_bytes,
    fsync,
    give_to,
    hash_files,
    list_files,
    make_parents,
    remove_tree,
)
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock
from ansible_collections.trtllm.serving.plugins.module_utils._runner import (
    Cancellation,
    Cancelled,
    NativeRunner,
    Runner,
    RunnerError,
)

TOOL = "hub"
# What the client is told, so that it keeps nothing, sends nothing about us, and takes no token but ours.
_CLIENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_ENABLE_HF_TRANSFER": "0",
    "HF_HUB_OFFLINE": "0",
    "TRANSFORMERS_OFFLINE": "0",
    "HF_DEBUG": "0",
    "HF_TOKEN": "",
    "HUGGING_FACE_HUB_TOKEN": "",
}
_CHUNK = 1024 * 1024
_PAUSE_S = 1.0
_REPORT_S = 10.0
# What the client's process says now and then of all files.
_TOLD = re.compile(r"\(\d+ %\), \d+ of \d+ files")


def told(line: str) -> None:
    if _TOLD.search(line):
        _progress.tell("getting the weights", text=line)


def download_path(final: Path) -> Path:
    """Where an unfinished download is kept: visible, since it may hold much of what is needed."""
    return final.with_name(final.name + ".download")


@dataclass
class Download:
    """One repository at one commit, on its way to ``final``."""

    final: Path
    hub: Mapping[str, Any]
    revision: str
    token: str
    runner: Runner
    cancellation: Cancellation
    log_file: Path
    environment: Mapping[str, str]
    timeout: float | None
    owner: tuple[int, int] = (0, 0)
    files: list[dict[str, Any]] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def place(self) -> Path:
        return download_path(self.final)

    @property
    def work(self) -> Path:
        return self.place / ".hub"

    # --- the process that speaks to the hub ---

    def ask(self, action: str, files: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Runs the fetching process; its outcome. ToolError when it failed."""
        outcome_path = self.work / "outcome.json"
        outcome_path.unlink(missing_ok=True)
        with _hub.token_pipe(self.work, self.token) as pipe:
            request = {
                "action": action,
                "repository": self.hub["repository"],
                "revision": self.revision,
                "endpoint": self.hub["endpoint"],
                "token_pipe": pipe,
                "directory": str(self.place),
                "outcome": str(outcome_path),
                "files": files or [],
                "workers": self.hub["workers"],
                "retries": self.hub["retries"],
                "timeout_s": self.hub["timeout"],
                "patience_s": self.hub["max_wait"],
                "pause_s": self.hub.get("pause", _PAUSE_S),
                "report_s": self.hub.get("report", _REPORT_S),
                "chunk_bytes": self.hub.get("chunk", _CHUNK),
                "xet": bool(self.hub["xet"]),
                "uid": self.owner[0],
                "gid": self.owner[1],
                "parent": os.getpid(),
            }
            (self.work / "request.json").write_text(json.dumps(request), encoding="utf-8")
            give_to(self.work, self.owner)
            left = None if self.timeout is None else max(0.1, self.timeout - self.duration_s)
            result = self.runner.run(
                [str(self.hub["python"]), "-I", str(self.work / "run"), str(self.work / "request.json")],
                log_file=self.log_file,
                env=self.client_environment(),
                cwd=self.work,
                timeout=left,
                on_line=told,
            )
        self.duration_s += result.duration_s
        try:
            outcome = json.loads(outcome_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = result.tail[-1] if result.tail else f"exit code {result.rc}"
            outcome = {"kind": "unknown", "text": f"its process ended early: {said}"}
        if "kind" in outcome:
            shown = _hub.explain(outcome, self.hub, self.revision, str(self.place), token=bool(self.token))
            raise _tool_module.ToolError(
                f"{shown}; log: {self.log_file}",
                error=str(outcome.get("text") or ""),
                kind=str(outcome["kind"]),
                rc=result.rc,
                tail=list(result.tail[-_tool_module.TAIL_SHOWN :]),
            )
        return dict(outcome)

    def client_environment(self) -> dict[str, str]:
        seconds = str(max(1, int(float(self.hub["timeout"]))))
        return {
            **_CLIENT,
            "HF_HUB_DISABLE_XET": "0" if self.hub["xet"] else "1",
            "HF_ENDPOINT": self.hub["endpoint"],
            "HF_HUB_DOWNLOAD_TIMEOUT": seconds,
            "HF_HUB_ETAG_TIMEOUT": seconds,
            **{name: str(value) for name, value in self.environment.items()},
            # Its caches, and where it would look for a token that somebody has left.
            "HF_HOME": str(self.work / "home"),
        }

    # --- the directory ---

    def prepare(self, home: Path, old: Manifest | None) -> None:
        self.owner = make_parents(self.place, home)
        remove_stale_partials(self.final.parent)
        if self.work.exists():
            for name in ("run", "home"):
                remove_tree(self.work / name)
        self.work.mkdir(mode=0o700, exist_ok=True)
        write_program(self.work / "run")
        if old is not None:
            self.keep_good(old)
        give_to(self.place, self.owner)

    def keep_good(self, old: Manifest) -> None:
        """What is still as it was in a damaged directory need not come again."""
        for name, entry in old.files.items():
            source, target = self.final / name, self.place / name
            with contextlib.suppress(OSError):
                status = os.lstat(source)
                same = status.st_size == entry["size"] and status.st_mtime_ns == entry.get("mtime_ns")
                if same and not target.exists() and "link" not in entry:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(source, target)

    def drop_wrong(self, tick: Any) -> None:
        """What lies there must be of this listing: other files go, and what came from elsewhere is read."""
        known = {str(entry["path"]): entry for entry in self.files}
        for name in list_files(self.place):
            if name.startswith(".hub/"):
                continue
            entry = known.get(name)
            if entry is None or (self.place / name).stat().st_size != entry["size"]:
                (self.place / name).unlink()
        linked = [name for name in known if (self.place / name).is_file() and os.stat(self.place / name).st_nlink > 1]
        hashes = hash_files(self.place, linked, tick) if linked else {}
        for name, found in hashes.items():
            if known[name].get("sha256") != found:
                (self.place / name).unlink()

    def tidy(self) -> None:
        """After a failure: what has come stays, the rest goes."""
        with contextlib.suppress(OSError):
            for name in ("run", "home", "request.json", "outcome.json"):
                remove_tree(self.work / name)
            for part in self.work.glob("*.part"):
                if part.stat().st_size == 0:
                    part.unlink()
            give_to(self.place, self.owner)
            # A few small files are not worth a directory that somebody has to understand.
            if sum((self.place / name).stat().st_size for name in list_files(self.place)) < _CHUNK:
                remove_tree(self.place)

    def missing_bytes(self) -> int:
        missing = 0
        for entry in self.files:
            name = str(entry["path"])
            part = self.work / (name.replace("/", "--") + ".part")
            there = [path.stat().st_size for path in (self.place / name, part) if path.is_file()]
            missing += max(0, int(entry["size"]) - (there[0] if there else 0))
        return missing

    def put_in_place(self, key: str, inputs: Mapping[str, Any]) -> None:
        """The manifest, written last, and the rename. The hashes are those that were verified on this disk."""
        hashes = {str(entry["path"]): entry.get("sha256") for entry in self.files}
        plain = [name for name, found in hashes.items() if not found]
        hashes.update(hash_files(self.place, plain, self.cancellation.check) if plain else {})
        files: dict[str, dict[str, Any]] = {}
        for name in sorted(hashes):
            self.cancellation.check()
            # A hard link has its time and its owner in common with what it replaces.
            fsync(self.place / name)
            status = os.stat(self.place / name)
            files[name] = {"size": status.st_size, "sha256": hashes[name], "mtime_ns": status.st_mtime_ns}
        remove_tree(self.work)
        manifest = Manifest(_weights.KIND, key, dict(inputs), files)
        temporary = self.place / f".{MANIFEST}.new"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640), "w") as stream:
            json.dump(manifest.as_dict(), stream, sort_keys=True, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, self.place / MANIFEST)
        give_to(self.place, self.owner)
        os.chmod(self.place, 0o750)
        fsync(self.place)
        replaced = self.final.with_name(f".{self.final.name}.replaced.partial")
        if os.path.lexists(self.final):
            os.rename(self.final, replaced)
        os.rename(self.place, self.final)
        fsync(self.final.parent)
        with contextlib.suppress(OSError):
            remove_tree(replaced)


def write_program(folder: Path) -> None:
    """The two files of this collection that the fetching process needs, under their own names."""
    package = folder
    for part in _hub_fetch.__name__.split(".")[:-1]:
        package = package / part
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    for module in (_hub_fetch, _hub_words):
        loader = module.__spec__.loader if module.__spec__ is not None else None
        # Beside a module that Ansible has sent there are no files, but an archive.
        source = str(loader.get_source(module.__name__)) if loader is not None else ""  # type: ignore[attr-defined]
        (package / (module.__name__.rpartition(".")[2] + ".py")).write_text(source, encoding="utf-8")
    (folder / "__main__.py").write_text(
        f"import sys\nfrom {_hub_fetch.__name__} import main\nsys.exit(main(sys.argv))\n", encoding="utf-8"
    )


# --- the module's work --------------------------------------------------------------------------------------------


def inputs_of(name: str, revision: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the directory's content; which mirror it came from, and how fast, does not."""
    return {
        "name": name,
        "revision": revision,
        "repository": hub["repository"],
        "allow_patterns": list(hub["allow_patterns"]),
        "ignore_patterns": list(hub["ignore_patterns"]),
    }


def fetch(
    params: Mapping[str, Any],
    final: Path,
    before: tuple[int, int] | None,
    inputs: Mapping[str, Any],
    cancellation: Cancellation,
    runner: Runner | None = None,
) -> dict[str, Any]:
    """Brings the weights into place; what the result tells of it. Raises one of _tool_module.REPORTED."""
    hub, home, key = dict(params["hub"]), Path(params["home"]), key_of(inputs)
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    download = Download(
        final=final,
        hub=hub,
        revision=str(inputs["revision"]),
        token=_hub.read_token(hub),
        runner=runner or NativeRunner(cancellation),
        cancellation=cancellation,
        log_file=Path(params["log_dir"]) / f"{TOOL}-{short_key(key)}-{now}.log",
        environment=params.get("environment") or {},
        timeout=params.get("timeout"),
    )
    if not os.access(str(hub["python"]), os.X_OK):
        raise _hub.HubError(f"hub.python {hub['python']} cannot be run: name the Python that has huggingface_hub")
    kept = f"what has come is kept in {download.place}, run again to go on"
    with HostLock(home, f"fetching {hub['repository']}") as lock:
        cancellation.on_stop(lock.mark_stopping)
        try:
            if _tool_module.stamp(final) != before and verify(final, kind=_weights.KIND, key=key).ok:
                return {"changed": False, "log_file": "", "duration_s": 0.0}
            try:
                download.prepare(home, read_manifest(final))
                steps(download, params)
                download.put_in_place(key, inputs)
            except BaseException:
                download.tidy()
                raise
        except Cancelled as exc:
            raise _tool_module.ToolError(f"fetching {hub['repository']} {exc}; {kept}") from exc
        except RunnerError as exc:
            raise _tool_module.ToolError(f"fetching {hub['repository']}: {exc}; {kept}") from exc
        except OSError as exc:
            raise describe_os_error(exc, download.place) from exc
        finally:
            cancellation.on_stop(None)
            with contextlib.suppress(OSError):
                give_to(download.log_file, download.owner)
    return {"changed": True, "log_file": str(download.log_file), "duration_s": round(download.duration_s, 3)}


def steps(download: Download, params: Mapping[str, Any]) -> None:
    """What there is, whether it is a Mixtral, whether there is room for it, and only then the gigabytes."""
    hub, revision = download.hub, download.revision
    try:
        listing = download.ask("list")
    except _tool_module.ToolError as exc:
        if _hub.is_commit(revision) or exc.details.get("kind") != "revision":
            raise
        listing = {"commit": ""}
    commit = str(listing["commit"])
    if not _hub.is_commit(revision):
        how = f"it is {commit} now" if commit else f"{hub['endpoint']}/{hub['repository']}/commits/main shows them"
        raise _hub.HubError(_hub.revision_problem(revision, "revision", how))
    if commit != revision:
        raise _hub.HubError(f"{hub['endpoint']} answers with commit {commit} for {revision}: use another endpoint")
    try:
        download.files = _hub.wanted(listing["files"], hub["allow_patterns"], hub["ignore_patterns"])
    except _hub.HubError as exc:
        raise _hub.HubError(f"{hub['repository']} at {revision}: {exc}") from exc
    # It has come with the listing: a wrong repository is noticed before its weights are fetched.
    config = json.loads((download.place / "config.json").read_text(encoding="utf-8"))
    wrong = _weights.check_config(Path(str(hub["repository"])), config)
    if wrong:
        (download.place / "config.json").unlink()
    _tool_module.refuse(wrong)
    if not _hub.measured(download.files):
        download.files = list(download.ask("measure", download.files)["files"])
    download.drop_wrong(download.cancellation.check)
    space = params.get("space") or {}
    needs = _hub.needs_of(
        download.missing_bytes(),
        sum(int(entry["size"]) for entry in download.files),
        space,
        download.place,
        Path(space.get("checkpoints_dir") or Path(params["home"]) / "checkpoints"),
        Path(space.get("engines_dir") or Path(params["home"]) / "engines"),
    )
    _tool_module.refuse(_hub.space_problems(needs, free_bytes))
    download.ask("fetch", download.files)
    _tool_module.refuse(_weights.inspect(download.place).problems)
