# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the backend image from a checkout with the docker client, whose BuildKit the engine's API does not offer.

Private to the collection.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _progress
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import changed_inputs, file_sha256, key_of
from ansible_collections.trtllm.serving.plugins.module_utils._containers import LABEL, ContainerError, explain, failures
from ansible_collections.trtllm.serving.plugins.module_utils._image_get import find, keep, tag
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import (
    ImageError,
    Reference,
    client_config,
    parse,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Runner, RunnerError
from ansible_collections.trtllm.serving.plugins.module_utils._source import Source

REVISION_LABEL = "org.opencontainers.image.revision"
SOURCE_LABEL = "org.opencontainers.image.source"
VERSION_LABEL = "org.opencontainers.image.version"
KEY_LABEL = f"{LABEL}.key"
INPUTS_LABEL = f"{LABEL}.inputs"
BASES_LABEL = f"{LABEL}.bases"
PARTIAL = ".partial"
CLIENT_TIMEOUT_S = 60

_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.I)
_ARG = re.compile(r"^\s*ARG\s+([A-Za-z_]\w*)(?:=(.*))?$")
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")

# (what the build says, what to do); the first that matches wins.
_KNOWN = (
    (r"no space left|disk quota", "free some space below the engine's data-root, or move it (docker_nvidia)"),
    (
        r"unauthorized|authentication required|denied|no basic auth|failed to authorize|fetch anonymous token",
        "log in to the base image's registry: set tensorrtllm_backend_build_registry_auth_file",
    ),
    (
        r"could not resolve|no such host|name resolution|network is unreachable|i/o timeout|connection refused",
        "set tensorrtllm_backend_build_proxies, or point the Dockerfile's arguments at a mirror",
    ),
    (r"exit code: 137|killed|out of memory|cannot allocate", "not enough memory: let fewer jobs run, or take more"),
    (r"x509|certificate", "let the engine trust the server's certificate authority"),
)


@dataclass(frozen=True)
class Plan:
    """What an image would be built from, and under which key."""

    reference: Reference
    source: Source
    dockerfile: Path
    inputs: dict[str, Any]
    arguments: dict[str, str]
    bases: tuple[str, ...]

    @property
    def key(self) -> str:
        return key_of(self.inputs)

    @property
    def partial(self) -> str:
        return f"{self.reference.name}:{self.reference.tag[:100]}{PARTIAL}"


def plan(reference: Reference, source: Source, dockerfile: str, arguments: Mapping[str, Any]) -> Plan:
    """Reads the checkout; the Dockerfile is a path in it, or an absolute one on the host."""
    path = source.path / dockerfile
    try:
        text = path.read_text(encoding="utf-8")
        digest = file_sha256(path)
    except (OSError, UnicodeDecodeError) as exc:
        raise ImageError(
            f"Dockerfile {path} cannot be read ({getattr(exc, 'strerror', None) or exc}): set"
            " tensorrtllm_backend_build_dockerfile to one of the repository, or to an absolute path on the host"
        ) from exc
    given = {str(name): _text(value) for name, value in arguments.items()}
    inputs = {
        "commit": source.commit,
        "submodules": source.submodules,
        "dockerfile": "" if os.path.isabs(dockerfile) else dockerfile,
        "dockerfile_sha256": digest,
        "args": given,
        "machine": platform.machine(),
    }
    return Plan(reference, source, path, inputs, given, tuple(base_images(text, given)))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def base_images(text: str, arguments: Mapping[str, str]) -> list[str]:
    """The images that a Dockerfile starts from, as far as its arguments tell."""
    values: dict[str, str] = {}
    stages: set[str] = set()
    found: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        arg = _ARG.match(line)
        if arg is not None and not found:
            values[arg.group(1)] = arguments.get(arg.group(1), (arg.group(2) or "").strip().strip("\"'"))
        start = _FROM.match(line)
        if start is None:
            continue
        name = _VARIABLE.sub(lambda match: values.get(match.group(1) or match.group(2), ""), start.group(1))
        if name and name.lower() != "scratch" and name.lower() not in stages and name not in found:
            found.append(name)
        if start.group(2):
            stages.add(start.group(2).lower())
    return found


def known_bases(client: Any, bases: Sequence[str]) -> dict[str, str]:
    """The identity of each base image that this host has. BuildKit keeps most of them to itself."""
    found = {}
    for name in bases:
        try:
            image = find(client, str(parse(name, default_tag="latest")))
        except ImageError:
            continue
        if image is not None:
            found[name] = str(image.id)
    return found


def reasons(plan: Plan, image: Any | None, client: Any) -> list[str]:
    """Why the image must be built; none when it was built from the very same."""
    if image is None:
        return [f"image {plan.reference} is not on this host"]
    labels = image.labels or {}
    if labels.get(KEY_LABEL) != plan.key:
        try:
            before = json.loads(labels.get(INPUTS_LABEL, ""))
        except ValueError:
            return [f"image {plan.reference} was not built by this collection"]
        return [f"{name}: {old or 'none'} -> {new or 'none'}" for name, old, new in changed_inputs(before, plan.inputs)]
    try:
        before = json.loads(labels.get(BASES_LABEL, ""))
    except ValueError:
        before = {}
    now = known_bases(client, plan.bases)
    return [
        f"base image {name}: {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]


# --- the docker client ------------------------------------------------------------------------------------------


@dataclass
class Docker:
    """The docker client with a configuration of its own, so that nothing is left in anybody's home."""

    executable: str
    runner: Runner
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def ask(self, *words: str) -> tuple[int, str]:
        done = self.runner.run(
            [self.executable, *words], log_file=self.log, env=self.environment, timeout=CLIENT_TIMEOUT_S
        )
        return done.rc, " ".join(line.strip() for line in done.tail)

    def buildkit(self) -> str:
        """Why BuildKit cannot be used; empty when it can."""
        rc, said = self.ask("version", "--format", "{{.Client.Version}}")
        match = re.search(r"\d+", said)
        if rc != 0 or match is None:
            raise ImageError(f"{self.executable} version said '{said[:200]}': see that Docker Engine runs on this host")
        if int(match.group(0)) < 23:
            return ""  # has BuildKit built in
        rc, said = self.ask("buildx", "version")
        return "" if rc == 0 else f"the docker client has no buildx ({said[:120]}): install docker-buildx-plugin"


@contextmanager
def docker_client(
    executable: str,
    runner: Runner,
    log: Path,
    logins: Mapping[str, Mapping[str, str]],
    proxies: Mapping[str, Any],
) -> Iterator[Docker]:
    """Logins are in a directory that only root may read and that is gone afterwards; never in an argument."""
    # In memory where there is such a place, so that a power loss leaves nothing either.
    memory = "/run" if os.access("/run", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="trtllm-docker-", dir=memory) as folder:
        config: dict[str, Any] = {}
        own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
        try:
            config = json.loads(own.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            pass
        for registry, login in logins.items():
            config.setdefault("auths", {}).update(client_config(registry, login).get("auths", {}))
        path = Path(folder) / "config.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config), encoding="utf-8")
        environment = {"DOCKER_CONFIG": folder, "DOCKER_CLI_HINTS": "false", "LC_ALL": "C.UTF-8"}
        for name, value in proxies.items():
            environment[name.lower()] = environment[name.upper()] = str(value)
        yield Docker(executable, runner, log, environment)


def build(
    plan: Plan, docker: Docker, client: Any, *, release: str, buildkit: bool, proxies: Mapping[str, Any], timeout: float
) -> Any:
    """Builds the image under a name of its own; the caller asks it, and then gives it its name."""
    labels = {
        REVISION_LABEL: plan.source.commit,
        SOURCE_LABEL: plan.source.repository,
        VERSION_LABEL: release,
        KEY_LABEL: plan.key,
        INPUTS_LABEL: json.dumps(plan.inputs, sort_keys=True),
        BASES_LABEL: json.dumps(known_bases(client, plan.bases), sort_keys=True),
    }
    names = [*plan.arguments, *(name for pair in proxies for name in (pair.lower(), pair.upper()))]
    argv = [
        docker.executable, "build", *(["--progress", "plain"] if buildkit else ["--force-rm"]),
        "--file", str(plan.dockerfile), "--tag", plan.partial,
        *(word for name, value in labels.items() for word in ("--label", f"{name}={value}")),
        # Without a value: docker takes it from the environment, which no process list shows.
        *(word for name in names for word in ("--build-arg", name)),
        str(plan.source.path),
    ]  # fmt: skip
    environment = {**docker.environment, **plan.arguments, "DOCKER_BUILDKIT": "1" if buildkit else "0"}
    try:
        done = docker.runner.run(argv, log_file=docker.log, env=environment, timeout=timeout, on_line=told)
    except RunnerError as exc:
        forget_quietly(client, plan.partial)
        raise type(exc)(f"building image {plan.reference}: {exc} (log {docker.log})") from exc
    if done.rc != 0:
        forget_quietly(client, plan.partial)
        raise ImageError(build_failure(done.tail, done.rc, str(plan.reference), docker.log))
    image = find(client, plan.partial)
    if image is None:
        raise ImageError(f"building image {plan.reference} ended well, and the engine has no such image: run again")
    return image


def name_it(client: Any, plan: Plan, image: Any) -> None:
    before = find(client, plan.reference.tagged)
    tag(client, image, plan.reference.tagged)
    keep(client, before, image, plan.reference)
    forget(client, plan.partial)


def forget(client: Any, name: str) -> None:
    """Takes a name from an image, and removes the image when that was its last."""
    if find(client, name) is None:
        return
    try:
        client.images.remove(name)
    except failures() as exc:
        raise ContainerError(explain(exc, f"image {name} cannot be removed")) from exc


def forget_quietly(client: Any, name: str) -> None:
    """The same after a failure, which must not be hidden by another."""
    with suppress(ContainerError):
        forget(client, name)


# --- failures ---------------------------------------------------------------------------------------------------


def told(line: str) -> None:
    """A step of the Dockerfile that begins, as either builder tells it."""
    match = re.match(r"^#\d+ \[[^\]]*?(\d+)/(\d+)\]", line) or re.match(r"^Step (\d+)/(\d+) :", line)
    if match is not None:
        _progress.tell("building the image", done=int(match.group(1)), total=int(match.group(2)), unit="steps")


def failing_step(lines: Sequence[str]) -> str:
    """The step of the Dockerfile at which a build ended, as either builder tells it."""
    for line in reversed(lines):
        match = re.match(r"^\s*> (\[[^\]]*\].*?):?\s*$", line)  # BuildKit, in its summary
        if match is None:
            match = re.match(r"^Step (\d+/\d+ : .*)$", line)  # the legacy builder
        if match is not None:
            return match.group(1).strip()
    return ""


def build_failure(tail: Sequence[str], rc: int, name: str, log: Path) -> str:
    """The failing step, its own last words, and what to do about it."""
    lines = [line.rstrip() for line in tail if line.strip() and not line.startswith("# ")]
    step = failing_step(lines)
    own = re.compile(r"^(ERROR|error|failed|The command .* returned a non-zero code)\b")
    said = [line.strip() for line in lines if own.match(line.strip()) and "CANCELED" not in line]
    verdict = said[-1] if said else (lines[-1].strip() if lines else f"exit code {rc}")
    words = _last_words(lines)
    text = "; ".join(dict.fromkeys(part for part in (words, verdict) if part))
    everything = " ".join(lines[-40:])
    remedy = next((remedy for pattern, remedy in _KNOWN if re.search(pattern, everything, re.I)), "see the log")
    where = f" at step '{step[:200]}'" if step else ""
    return f"building image {name} failed{where}: {text[:500]}; {remedy} (log {log})"


def _last_words(lines: Sequence[str]) -> str:
    """The last output of the failing step: BuildKit repeats it between rules, the legacy builder ends with it."""
    start = next((index for index, line in enumerate(lines) if re.match(r"^\s*> \[", line)), None)
    block: list[str] = []
    if start is not None:
        for line in lines[start + 1 :]:
            if line.startswith("------"):
                break
            block.append(re.sub(r"^#?\d+ (\d+\.\d+ )?|^\d+\.\d+ ", "", line.strip()))
    else:
        steps = [index for index, line in enumerate(lines) if line.startswith("Step ")]
        own = re.compile(r"^\s*--->|^Removing intermediate|^The command ")
        block = [line.strip() for line in (lines[steps[-1] + 1 :] if steps else []) if not own.match(line)]
    return next((line for line in reversed(block) if line), "")
