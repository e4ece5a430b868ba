# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that run one of upstream's tools have in common: options, the run, results and failures.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils import _progress, _releases
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    MANIFEST,
    ArtifactError,
    PathLike,
    describe_files,
    explain,
    file_sha256,
    hand_over,
    key_of,
    make_parents,
    making,
    newest_sibling,
    remove_tree,
    short_key,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._containers import POLICIES, ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, LockError
from ansible_collections.trtllm.serving.plugins.module_utils._options import check_options
from ansible_collections.trtllm.serving.plugins.module_utils._runner import (
    Cancellation,
    Cancelled,
    NativeRunner,
    Runner,
    RunnerError,
    RunResult,
    TimedOut,
    mask,
    secret_values,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner_container import ContainerRunner
from ansible_collections.trtllm.serving.plugins.module_utils._runner_settings import ContainerSettings, refuse_secrets
from ansible_collections.trtllm.serving.plugins.module_utils._tool_errors import (
    Finding,
    failure_message,
    find_error,
    tail_of,
)
from ansible_collections.trtllm.serving.plugins.module_utils._weights import WeightsError

TAIL_SHOWN = 20

# Directory parameters and where below home they are when they are not given.
_BELOW_HOME = {
    "log_dir": "logs",
    "weights_dir": "weights",
    "checkpoints_dir": "checkpoints",
    "engines_dir": "engines",
}


class ToolError(Exception):
    """A failure to be shown: one line, and what else the result of the task holds."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


# What a module reports as its own failure; anything else is a bug and shows its traceback.
REPORTED = (ToolError, ArtifactError, ContainerError, LockError, RunnerError, WeightsError)


def refuse(problems: Sequence[str]) -> None:
    """ToolError that lists the problems, when there are any."""
    if problems:
        raise ToolError("; ".join(problems), problems=list(problems))


def release_problems(release: str, flavour: str = "engine") -> list[str]:
    return _releases.check_flavour(release, flavour)


def merge_options(
    tool: str, release: str, params: Mapping[str, Any], typed: Sequence[str], reserved: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The tool's options from a module's typed parameters and its free ``options``, and what is wrong with them."""
    free = params.get("options") or {}
    merged: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in free.items():
        plain = str(name).lstrip("-").replace("-", "_")
        if plain in reserved:
            problems.append(f"options.{name} cannot be given: {reserved[plain]}")
        elif plain in typed and params.get(plain) not in (None, "") and params[plain] != value:
            problems.append(f"{plain} is given twice, as {params[plain]!r} and as options.{name} {value!r}: drop one")
        else:
            merged[str(name)] = value
    for name in typed:
        if params.get(name) not in (None, ""):
            merged[name] = params[name]
    problems += check_options(tool, release, merged)
    return merged, problems


def content_of(path: PathLike) -> str:
    """A hash for what a path option names, so that a key follows the content and not the place."""
    where = Path(path)
    try:
        if where.is_dir():
            return key_of(
                {name: entry.get("sha256", entry.get("link")) for name, entry in describe_files(where).items()}
            )
        return file_sha256(where)
    except OSError as exc:
        raise ToolError(f"{path} cannot be read ({exc.strerror or exc}): give a path that exists on the host") from exc


def key_options(effective: Mapping[str, Any], without: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """The effective options that decide what comes out, path options by their content."""
    kept: dict[str, Any] = {}
    for name, value in effective.items():
        if name in without:
            continue
        if name in paths and value:
            # A name such as that of a data set or a registered model is kept as it is.
            kept[name] = content_of(value) if os.path.exists(str(value)) else value
        else:
            kept[name] = value
    return kept


def difference(final: Path, kind: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    """How the inputs differ from those of the artefact made last beside it."""
    sibling = newest_sibling(final.parent, kind, besides=final)
    shown = explain(sibling[1].inputs if sibling else None, inputs)
    shown["before_header"] = str(sibling[0]) if sibling else f"no {kind}"
    shown["after_header"] = str(final)
    return shown


def stamp(final: PathLike) -> tuple[int, int] | None:
    """What changes when an artefact is replaced; None when there is none."""
    try:
        status = os.stat(os.path.join(final, MANIFEST))
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@dataclass(frozen=True)
class Job:
    """One artefact to be made by one run of a tool.

    ``before`` is the stamp of what was found there and judged not good enough.
    """

    tool: str
    kind: str
    final: Path
    key: str
    inputs: Mapping[str, Any]
    command: Callable[[Path], list[str]]
    check: Callable[[Path], list[str]]
    home: Path
    log_dir: Path
    before: tuple[int, int] | None
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    container: ContainerSettings | None = None
    # What the tool reads, and the user's directories that it writes into: all that it sees in a container.
    reads: Sequence[str] = ()
    writes: Sequence[str] = ()
    # What is told while it runs: of ranks, how many have come.
    doing: str = ""
    ranks: int = 0

    def shown_command(self) -> list[str]:
        secrets = secret_values(self.environment)
        return [mask(part, secrets) for part in self.command(self.final)]


def make(job: Job, cancellation: Cancellation, runner: Runner | None = None) -> RunResult | None:
    """Runs the tool under the host's lock and puts what it made into place; None when another run just did."""
    runner = runner or runner_for(job, cancellation)
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    log_file = job.log_dir / f"{job.tool}-{short_key(job.key)}-{now}.log"
    details: dict[str, Any] = {"command": job.shown_command(), "log_file": str(log_file)}
    with HostLock(job.home, f"{job.tool} {short_key(job.key)}") as lock:
        cancellation.on_stop(lock.mark_stopping)
        try:
            if stamp(job.final) != job.before and verify(job.final, kind=job.kind, key=job.key).ok:
                return None
            runner.sweep()
            with contextlib.suppress(OSError):  # the runner says what is wrong with the log
                make_parents(job.log_dir, job.home)
            with making(job.final, job.kind, job.inputs, key=job.key, tick=cancellation.check, home=job.home) as made:
                result = _run(job, runner, made.path, log_file)
                if result.rc != 0:
                    finding = find_error(result.tail, result.rc)
                    if result.cause:
                        finding = Finding(result.cause, result.remedy)
                    raise ToolError(
                        failure_message(job.tool, finding, result.rc, str(log_file)),
                        error=finding.line,
                        hint=finding.hint,
                        rc=result.rc,
                        duration_s=result.duration_s,
                        tail=list(result.tail[-TAIL_SHOWN:]),
                    )
                problems = [problem.replace(str(made.path), str(job.final)) for problem in job.check(made.path)]
                if problems:
                    raise ToolError(
                        f"{job.tool} ended well but what it made is not usable: {problems[0]}; log: {log_file}",
                        problems=problems,
                        rc=result.rc,
                        duration_s=result.duration_s,
                        tail=list(result.tail[-TAIL_SHOWN:]),
                    )
            return result
        except ToolError as exc:
            raise ToolError(str(exc), **{**details, **exc.details}) from exc
        except Cancelled as exc:
            raise ToolError(f"{job.tool} {exc}; nothing half-made was left, run again", **details) from exc
        except TimedOut as exc:
            tail = [mask(line, secret_values(job.environment)) for line in tail_of(log_file)[-TAIL_SHOWN:]]
            raise ToolError(
                f"{job.tool} {exc}; nothing half-made was left; log: {log_file}", tail=tail, **details
            ) from exc
        except (RunnerError, ContainerError, ArtifactError) as exc:
            raise ToolError(f"{job.tool}: {exc}", **details) from exc
        finally:
            cancellation.on_stop(None)
            with contextlib.suppress(ArtifactError):
                hand_over(log_file, job.home)


def runner_for(job: Job, cancellation: Cancellation) -> Runner:
    """What runs a job's tool: a container when the job has one, this host otherwise."""
    if job.container is None:
        return NativeRunner(cancellation)
    shared = [f"{path}:{path}:rw" for path in job.writes]
    settings = replace(job.container, volumes=(*job.container.volumes, *shared))
    return ContainerRunner(settings, job.home, job.tool, short_key(job.key), cancellation)


def container_of(params: Mapping[str, Any]) -> ContainerSettings | None:
    """The settings of a module's parameter ``container``; ContainerError when they cannot be meant."""
    if not params.get("container"):
        return None
    refuse_secrets(environment_of(params), "environment")
    return ContainerSettings.of(params["container"])


def environment_of(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in (params.get("environment") or {}).items()}


def existing_paths(options: Mapping[str, Any], besides: Sequence[str] = ()) -> list[str]:
    """Every absolute path that the options name and that is there."""
    found: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if name not in besides:
            found += [item for item in values if isinstance(item, str) and os.path.isabs(item)]
    return sorted({path for path in found if os.path.exists(path)})


def _run(job: Job, runner: Runner, partial: Path, log_file: Path) -> RunResult:
    # Upstream's tools drop caches into their working directory: give them one that goes away.
    scratch = tempfile.mkdtemp(prefix=".scratch-", suffix=".partial", dir=partial.parent)
    try:
        with _progress.RankFiles(_progress.current, partial, job.ranks, job.doing or f"running {job.tool}"):
            return runner.run(
                job.command(partial),
                log_file=log_file,
                env=job.environment,
                cwd=scratch,
                timeout=job.timeout,
                reads=job.reads,
                writes=[partial],
            )
    finally:
        remove_tree(scratch)


def argument_spec(**own: Any) -> dict[str, Any]:
    """The parameters that all tool modules share, and a module's own."""
    return {
        "release": {"type": "str", "required": True},
        "executable": {"type": "list", "elements": "str", "required": True},
        "options": {"type": "dict", "default": {}},
        "home": {"type": "path", "required": True},
        "log_dir": {"type": "path"},
        "timeout": {"type": "float"},
        "environment": {"type": "dict", "default": {}},
        "container": {
            "type": "dict",
            "options": {
                "image": {"type": "str", "required": True},
                "user": {"type": "str"},
                "gpus": {"type": "raw", "default": "all"},
                "device_policy": {"type": "str", "choices": list(POLICIES), "default": "auto"},
                "volumes": {"type": "list", "elements": "str", "default": []},
                "shm_size": {"type": "str", "default": "2g"},
                "ulimits": {"type": "dict", "default": {}},
                "environment": {"type": "dict", "default": {}},
                "memory": {"type": "str"},
            },
        },
        "verify": {"type": "str", "choices": ["fast", "full"], "default": "fast"},
        "progress": {"type": "path"},
        **own,
    }


Work = Callable[[Mapping[str, Any], bool, Cancellation], dict[str, Any]]


def run_module(module: Any, work: Work) -> None:
    """Runs a module's work and ends the module with its result, or with a failure of one line."""
    params = dict(module.params)
    _progress.use(params.get("progress"))
    for name, folder in _BELOW_HOME.items():
        if name in params and not params[name]:
            params[name] = os.path.join(params["home"], folder)
    # Hidden one by one: no_log for the whole option would blot out every "1" and "0" in the result.
    for given in (params, params.get("container") or {}):
        module.no_log_values.update(secret_values(given.get("environment")))
    with Cancellation() as cancellation:
        try:
            result = work(params, module.check_mode, cancellation)
        except ToolError as exc:
            module.fail_json(msg=str(exc), **exc.details)
        except Cancelled as exc:
            module.fail_json(msg=f"{exc}; nothing half-made was left, run again")
        except REPORTED as exc:
            module.fail_json(msg=str(exc))
    module.exit_json(**result)


def finish(job: Job, result: RunResult | None) -> dict[str, Any]:
    """The part of a module's result that tells of the run."""
    return {
        "changed": result is not None,
        "command": job.shown_command(),
        "log_file": result.log_file if result is not None else "",
        "duration_s": result.duration_s if result is not None else 0.0,
    }
