# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work of backend_image: have the image pulled, built or loaded, ask it what it holds, and say how it is used.

Private to the collection.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils import (
    _containers,
    _image_build,
    _image_get,
    _image_probe,
    _source,
)
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import existing_parent, hand_over
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import (
    ImageError,
    Reference,
    credentials,
    parse,
)
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock
from ansible_collections.trtllm.serving.plugins.module_utils._releases import Release, get
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, NativeRunner, Runner

BUILD_NAME = "triton_trt_llm"
CONNECT_TIMEOUT_S = 60.0


@dataclass
class Work:
    """One call of the module: what it was asked for, and what it has found out so far."""

    params: Mapping[str, Any]
    check_mode: bool
    cancellation: Cancellation
    client: Any = None
    runner: Runner | None = None
    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    log_files: list[str] = field(default_factory=list)
    lock: HostLock | None = None

    def __post_init__(self) -> None:
        self.home = Path(self.params["home"])
        self.release: Release = get(str(self.params["release"]))
        self.now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())

    def log(self, what: str) -> Path:
        path = self.home / "logs" / f"backend_image-{what}-{self.now}.log"
        if str(path) not in self.log_files:
            self.log_files.append(str(path))
        return path

    def change(self, text: str) -> bool:
        """Notes a change; whether it may be made. The host's lock is taken with the first."""
        self.changes.append(text)
        if self.check_mode:
            return False
        self.hold()
        return True

    def hold(self) -> None:
        if self.lock is None:
            lock = HostLock(self.home, f"{self.params['method']} of the backend image").acquire()
            self.lock = lock
            self.cancellation.on_stop(lock.mark_stopping)

    def tools(self) -> Runner:
        if self.runner is None:
            self.runner = NativeRunner(self.cancellation)
        return self.runner

    def timeout(self) -> float:
        return float(self.params["timeout"])

    def close(self) -> None:
        if self.lock is not None:
            hand_over(self.lock.path, self.home)
            if (self.home / "logs").is_dir():
                hand_over(self.home / "logs", self.home)
            self.lock.release()
            self.lock = None


# --- the image --------------------------------------------------------------------------------------------------


def asked_reference(params: Mapping[str, Any], release: Release) -> Reference | None:
    """The image as asked for; None when an archive decides its name."""
    image, digest, method = (str(params.get(name) or "") for name in ("image", "digest", "method"))
    if method == "load":
        return parse(image) if image else None
    if method == "build":
        name = parse(image or BUILD_NAME, default_tag=release.version)
        if name.digest:
            raise ImageError(f"image '{image}' has a digest, which a build cannot know: name it by a tag")
        return name
    if not image:
        if not release.images:
            raise ImageError(f"release {release.version} has no image on NGC: name one, or use the method build")
        image = release.images[0]
    return parse(image, digest)


def _login(params: Mapping[str, Any], registry: str) -> dict[str, str] | None:
    files = (str(params.get(f"registry_{name}_file") or "") for name in ("auth", "username", "password"))
    return credentials(registry, *files)


def pulled(work: Work, reference: Reference) -> Any | None:
    """The image in a registry; None in check mode when it is not here."""
    params = work.params
    source = reference.mirrored(str(params.get("registry_mirror") or ""))
    image = _image_get.find(work.client, source.exact)
    if image is not None:
        _image_get.need_digest(image, source)
    always = params.get("pull") == "always" and not source.digest
    if image is not None and not always:
        if source.digest and source.tagged not in (image.attrs.get("RepoTags") or []):
            # A name keeps it from 'docker image prune'.
            if work.change(f"name {source.tagged}"):
                _image_get.tag(work.client, image, source.tagged)
        return image
    if always and image is not None and work.check_mode:
        return image
    before = image
    if before is None and not work.change(f"image {source.exact}"):
        return None
    work.hold()
    with _image_get.open_log(work.log("pull")) as log:
        image = _image_get.pull(
            work.client, source, _login(params, source.host), work.cancellation, log, work.timeout(),
            int(params["retries"]),
        )  # fmt: skip
    if before is not None and image.id != before.id:
        work.change(f"image {source.exact}: {before.id} -> {image.id}")
        _image_get.keep(work.client, before, image, source)
    if source.digest:
        _image_get.tag(work.client, image, source.tagged)
    return image


def loaded(work: Work, reference: Reference | None) -> Any | None:
    archive, sha256 = str(work.params.get("archive") or ""), str(work.params.get("sha256") or "").lower()
    sha256 = sha256[len("sha256:") :] if sha256.startswith("sha256:") else sha256
    wanted = str(reference) if reference is not None else ""
    image = _image_get.loaded(work.client, work.home, sha256, wanted)
    if image is not None:
        return image
    if not work.change(f"image of {archive} (sha256:{sha256[:12]})"):
        if not Path(archive).is_file():
            raise ImageError(f"archive {archive} is not a file on the host: copy it there, or correct the path")
        return None
    with _image_get.open_log(work.log("load")) as log:
        return _image_get.load(
            work.client, archive, sha256, wanted, work.home, work.cancellation, log, work.timeout()
        )  # fmt: skip


# --- the checkout -----------------------------------------------------------------------------------------------


def wanted_source(params: Mapping[str, Any], release: Release, *, complete: bool) -> _source.Wanted:
    """The checkout of the release: by its tag, or by its commit where upstream has only a branch of that name."""
    repository = str(params.get("repository") or _source.REPOSITORY)
    version, commit = str(params.get("version") or ""), str(params.get("commit") or "")
    name = version
    if not version:
        if not release.backend_tag:
            raise ImageError(f"release {release.version} has no known tag of tensorrtllm_backend: give version")
        name = release.backend_tag
        version = name if name.startswith("v") else release.backend_commit
    if not commit and repository == _source.REPOSITORY and version == release.backend_tag:
        commit = release.backend_commit
    proxies = {str(name): value for name, value in (params.get("proxies") or {}).items()}
    return _source.Wanted(
        repository, name, version, commit, complete, dict(params.get("repository_mirrors") or {}), proxies
    )


def checked_out(work: Work, *, complete: bool) -> _source.Source | None:
    """The checkout; None in check mode when it is not here."""
    wanted = wanted_source(work.params, work.release, complete=complete)
    problem = _source.version_problem(wanted.version) or _source.repository_problem(wanted.repository)
    if problem:
        raise _source.SourceError(problem)
    found = _source.find(work.home, wanted)
    if found is not None:
        return found
    if not work.change(f"checkout of {wanted.repository} at {wanted.name}"):
        return None
    return _source.fetch(work.home, wanted, work.tools(), work.log("source"), work.timeout())


def built(work: Work, reference: Reference) -> Any | None:
    """The image built from the checkout; None in check mode when it is not here or not of these inputs."""
    params = work.params
    source = checked_out(work, complete=True)
    if source is None:
        return None
    dockerfile = str(params.get("dockerfile") or "") or work.release.dockerfile
    if not dockerfile:
        raise ImageError(
            f"release {work.release.version} cannot be built from its own tree: upstream's Dockerfile does not fit it;"
            " use the method pull, another release, or name a Dockerfile (tensorrtllm_backend_build_dockerfile)"
        )
    plan = _image_build.plan(reference, source, dockerfile, params.get("build_args") or {})
    image = _image_get.find(work.client, reference.tagged)
    why = _image_build.reasons(plan, image, work.client)
    if not why:
        return image
    if not work.change(f"image {reference}: {'; '.join(why)}"):
        return None
    _source.need_no_pointers(source.path, tick=work.cancellation.check)
    log = work.log("build")
    logins = {}
    for base in plan.bases:
        try:
            registry = parse(base, default_tag="latest").host
        except ImageError:
            continue
        login = _login(params, registry)
        if login is not None:
            logins[registry] = login
    proxies = params.get("proxies") or {}
    with _image_build.docker_client(str(params["docker"]), work.tools(), log, logins, proxies) as docker:
        without = "buildkit is off" if params.get("buildkit") == "never" else docker.buildkit()
        if without and params.get("buildkit") == "always":
            raise ImageError(f"BuildKit cannot be used, and buildkit is 'always': {without}")
        if without and params.get("buildkit") != "never":
            work.warnings.append(f"built without BuildKit, which takes longer: {without}")
        image = _image_build.build(
            plan, docker, work.client, release=work.release.version, buildkit=not without, proxies=proxies,
            timeout=work.timeout(),
        )  # fmt: skip
    try:
        _answer(work, image, str(reference))
    except BaseException:
        _image_build.forget_quietly(work.client, plan.partial)
        raise
    _image_build.name_it(work.client, plan, image)
    return image


# --- what it holds ----------------------------------------------------------------------------------------------


def _answer(work: Work, image: Any, name: str) -> _image_probe.Answer:
    """What the image holds, asked once for each image and release."""
    expected = str(work.params.get("image_version") or "")
    answer = _image_probe.known_answer(work.home, image.id, work.release)
    if answer is None:
        answer = _image_probe.ask(work.client, image.id, name, work.release, work.home)
        _image_probe.judge(answer, name, work.release, expected)
        if not work.check_mode:
            _image_probe.keep_answer(work.home, image.id, work.release, answer)
    else:
        _image_probe.judge(answer, name, work.release, expected)
    return answer


def _gpus(work: Work, image: Any, name: str) -> list[str]:
    gpus, policy = work.params.get("gpus"), str(work.params.get("device_policy") or "auto")
    if _containers.parse_gpus(gpus) == 0:
        return []
    seen = _image_probe.known_gpus(work.home, image.id, gpus, policy)
    if seen is None:
        if work.check_mode:
            return []
        seen = _image_probe.prove_gpus(work.client, image.id, name, work.home, gpus, policy)
    return seen


def described(work: Work, reference: Reference | None, image: Any | None) -> dict[str, Any]:
    """How what comes after uses the image."""
    python = work.home / "venv" / "bin" / "python"
    tags = (image.attrs.get("RepoTags") or [image.id]) if image is not None else [""]
    result: dict[str, Any] = {
        "image": str(reference) if reference is not None else str(tags[0]),
        "image_id": image.id if image is not None else "",
        "digest": image.id if image is not None else "",
        "release": work.release.version,
        "python": str(python),
        "python_ready": python.exists(),
        "root": "",
        "library_path": "",
        "backends_dir": "",
        "repaired": False,
    }
    if image is None:
        return {**result, **_usage(work, _image_probe.likely(work.release), None), "version": "", "gpus": []}
    answer = _answer(work, image, result["image"])
    lacking = [each for each in _needed(work) if not answer.path(each)]
    source = checked_out(work, complete=False) if lacking else None
    usage = _usage(work, answer, source)
    return {**result, **usage, "version": answer.version, "gpus": _gpus(work, image, result["image"])}


def _needed(work: Work) -> tuple[str, ...]:
    return ("templates", "converter") if work.params.get("flavour") == "engine" else ("llmapi",)


def _usage(work: Work, answer: _image_probe.Answer, source: _source.Source | None) -> dict[str, Any]:
    """Paths inside the image, and where it lacks them, inside a checkout that is mounted at its own path."""

    def place(name: str) -> str:
        if answer.path(name) or source is None:
            return answer.path(name)
        inside = source.path / work.release.in_source(name)
        if not inside.exists():
            raise ImageError(f"{inside} does not exist, and the image has none: check version and repository")
        return str(inside)

    engine = work.params.get("flavour") == "engine"
    models = place("templates" if engine else "llmapi")
    converter = place("converter") if engine else ""
    build = answer.path("trtllm_build")
    if engine and not build:
        raise ImageError(
            f"the image has no trtllm-build, which release {work.release.version} needs: use another image"
        )
    return {
        "convert_checkpoint": [answer.path("python") or "python3", converter] if converter else [],
        "trtllm_build": [build] if build else [],
        "tritonserver": answer.path("tritonserver"),
        "launcher": answer.path("launcher"),
        "mpirun": answer.path("mpirun"),
        "models_dir": models,
        "models_on_host": bool(source is not None and models.startswith(str(source.path))),
        "source_dir": str(source.path) if source is not None else "",
        "volumes": [f"{source.path}:{source.path}:ro"] if source is not None else [],
    }


# --- all of it --------------------------------------------------------------------------------------------------


def provide(
    params: Mapping[str, Any],
    check_mode: bool,
    cancellation: Cancellation,
    connect: Callable[[float], Any] = _containers.connect,
    runner: Runner | None = None,
) -> dict[str, Any]:
    """The module's work; returns its result."""
    work = Work(params, check_mode, cancellation, runner=runner)
    reference = asked_reference(params, work.release)
    need_home(work)
    try:
        image: Any | None = None
        work.client = _connect(work, connect)
        if work.client is None:
            work.change(f"image {reference or params.get('archive')}")
        else:
            if params["method"] == "load":
                image = loaded(work, reference)
            elif reference is None:
                raise AssertionError("every other method has a reference")
            else:
                image = pulled(work, reference) if params["method"] == "pull" else built(work, reference)
        result = described(work, reference, image)
    finally:
        work.close()
    result.update(
        changed=bool(work.changes),
        actions=work.changes,
        log_files=work.log_files,
        diff={"before": "", "after": "".join(f"{line}\n" for line in work.changes)},
    )
    if work.warnings:
        result["warnings"] = work.warnings
    return result


def _connect(work: Work, connect: Callable[[float], Any]) -> Any | None:
    """The engine; None in check mode where it, or the SDK, is made earlier in the same run and not there yet."""
    try:
        return connect(CONNECT_TIMEOUT_S)
    except _containers.ContainerError:
        if work.check_mode:
            return None
        raise


def need_home(work: Work) -> None:
    if not work.check_mode and not work.home.is_dir():
        parent = existing_parent(work.home)
        raise ImageError(f"{work.home} does not exist (only {parent}): run host_environment first, or correct home")
