# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Judges where the backend comes from, on the controller."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError, parse_gpus
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import ImageError, parse
from ansible_collections.trtllm.serving.plugins.module_utils._releases import UnknownRelease, get
from ansible_collections.trtllm.serving.plugins.module_utils._source import (
    REPOSITORY,
    repository_problem,
    version_problem,
)

# What one method alone uses; given with another, it would be ignored.
ONLY = {
    "digest": ("pull",),
    "registry_mirror": ("pull",),
    "archive": ("load",),
    "archive_sha256": ("load",),
    "dockerfile": ("build",),
}
PREFIX = "tensorrtllm_backend_build_"


def backend_problems(version: str, method: str, options: Mapping[str, Any]) -> list[str]:
    """One line for each setting of a method that cannot be."""
    if method == "reference":
        return []
    try:
        found = get(str(version))
    except UnknownRelease:
        return []  # told with the flavour
    given = {name: str(value or "") for name, value in options.items() if name != "gpus"}
    problems = [
        f"{PREFIX}{name} is given, and the method {method} does not use it: choose {' or '.join(methods)}, or drop it"
        for name, methods in ONLY.items()
        if given.get(name) and method not in methods
    ]
    if not re.match(r"^[a-z_][a-z0-9_-]{0,31}$", given.get("user", "")):
        problems.append(f"{PREFIX}user {given.get('user')!r} is no name of a user; use small letters, such as trtllm")
    if given.get("user") == "root":
        problems.append(f"{PREFIX}user is root, and containers must not run as root; name another, such as trtllm")
    problems += _image_problems(found, method, given)
    problems += _source_problems(found, method, given)
    problems += _login_problems(given)
    if method == "load" and not (given.get("archive", "").startswith("/") and given.get("archive_sha256")):
        problems.append(f"the method load needs {PREFIX}archive, an absolute path on the host, and its sha256")
    sha256 = given.get("archive_sha256", "")
    if method == "load" and sha256 and not re.match(r"^(sha256:)?[0-9a-fA-F]{64}$", sha256):
        problems.append(f"{PREFIX}archive_sha256 {sha256!r} is not 64 hexadecimal digits; copy it from sha256sum")
    try:
        parse_gpus(options.get("gpus"))
    except ContainerError as error:
        problems.append(f"{PREFIX}{error}")
    return problems


def _image_problems(found: Any, method: str, given: Mapping[str, str]) -> list[str]:
    image = given.get("image", "")
    if method == "pull" and not image and not found.images:
        return [f"release {found.version} has no image on NGC: set {PREFIX}image, or use another release or method"]
    if not image and not given.get("digest"):
        return []
    try:
        parse(
            image or next(iter(found.images), "none:none"), given.get("digest", "") if method == "pull" else "",
            default_tag="any" if method == "build" else "",
        )  # fmt: skip
    except ImageError as error:
        return [f"{PREFIX}{error}"]
    return []


def _source_problems(found: Any, method: str, given: Mapping[str, str]) -> list[str]:
    problems = []
    version = given.get("version", "")
    if version and version_problem(version):
        problems.append(f"{PREFIX}version {version_problem(version)}")
    commit = given.get("commit", "")
    if commit and not re.match(r"^[0-9a-f]{40}$", commit):
        problems.append(f"{PREFIX}commit {commit!r} is not 40 hexadecimal digits; copy it whole")
    if given.get("repository") and repository_problem(given["repository"]):
        problems.append(f"{PREFIX}{repository_problem(given['repository'])}")
    if method == "build" and not given.get("dockerfile") and not found.dockerfile:
        problems.append(
            f"release {found.version} cannot be built from its own tree, upstream's Dockerfile does not fit it; use the"
            f" method pull, another release, or set {PREFIX}dockerfile"
        )
    if method == "build" and not version and not found.backend_tag:
        problems.append(f"release {found.version} has no known tag of tensorrtllm_backend; set {PREFIX}version")
    if method == "build" and not version and given.get("repository", REPOSITORY) != REPOSITORY:
        if not found.backend_tag.startswith("v"):
            problems.append(
                f"release {found.version} is upstream's branch {found.backend_tag}, whose commit another repository may"
                f" not have; set {PREFIX}version to a tag or commit of {given['repository']}"
            )
    return problems


def _login_problems(given: Mapping[str, str]) -> list[str]:
    auth, user, password = (given.get(f"registry_{name}_file", "") for name in ("auth", "username", "password"))
    if bool(user) != bool(password):
        return [f"{PREFIX}registry_username_file and {PREFIX}registry_password_file belong together; give both"]
    if auth and user:
        return [f"{PREFIX}registry_auth_file and {PREFIX}registry_username_file are both given; drop one"]
    return []


class FilterModule:
    """Filters of this collection for the backend."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"backend_problems": backend_problems}
