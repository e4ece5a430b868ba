# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of images, and the credentials of the registries in them.

Private to the collection.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DOCKER_HUB = "docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
_PATH = re.compile(r"^[a-z0-9]+((\.|_|__|-+|/)[a-z0-9]+)*$")
_HOST = re.compile(r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:\d+)?$")


class ImageError(Exception):
    """One line that says what is wrong with an image and what to do."""


@dataclass(frozen=True)
class Reference:
    """REGISTRY/PATH:TAG@DIGEST; the registry is empty for an image of this host or of Docker Hub."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.path}" if self.registry else self.path

    @property
    def host(self) -> str:
        """The registry that is asked for it."""
        return self.registry or DOCKER_HUB

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def exact(self) -> str:
        """What is pulled and asked for: by digest where there is one, since a tag moves."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def tagged(self) -> str:
        """A name with a tag. An image that only a digest names is removed by 'docker image prune'."""
        return f"{self.name}:{self.tag or 'sha256-' + self.digest[7:19]}"

    def mirrored(self, mirror: str) -> Reference:
        """The same image in a mirror, which is a registry host with or without a path below it."""
        if not mirror:
            return self
        host, _slash, prefix = mirror.strip("/").partition("/")
        path = self.path if self.registry or "/" in self.path else f"library/{self.path}"
        return replace(self, registry=host, path=f"{prefix}/{path}" if prefix else path)


def parse(text: str, digest: str = "", default_tag: str = "") -> Reference:
    """The reference that a text is; a digest given beside it is part of it."""
    name, _at, own = text.strip().partition("@")
    digest = digest.strip()
    if digest and not digest.startswith("sha256:"):
        digest = "sha256:" + digest
    if own and digest and own != digest:
        raise ImageError(f"image '{text}' has another digest than {digest}: give it once")
    digest = own or digest
    if digest and not _DIGEST.match(digest):
        raise ImageError(f"digest '{digest}' is not sha256: and 64 hexadecimal digits: copy it whole")
    first, slash, rest = name.partition("/")
    registry = ""
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, name = first, rest
    path, colon, tag = name.partition(":")
    if not _PATH.match(path) or (colon and not _TAG.match(tag)) or (registry and not _HOST.match(registry)):
        raise ImageError(f"image '{text}' is no image name: write REGISTRY/PATH:TAG, the path in lower case")
    tag = tag or ("" if digest else default_tag)
    if not tag and not digest:
        raise ImageError(f"image '{text}' has neither tag nor digest, and 'latest' moves: add one")
    return Reference(registry, path, tag, digest)


# --- credentials ------------------------------------------------------------------------------------------------


def _read_secret(path: str, what: str) -> str:
    """A file that only its owner may read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_IMODE(mode) & 0o004:
            raise ImageError(f"{what} {path} can be read by everybody: chmod 600 it, and change what is in it")
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        said = getattr(exc, "strerror", None) or exc
        raise ImageError(f"{what} {path} cannot be read on the host ({said}): correct the path") from exc


def _keys(registry: str) -> tuple[str, ...]:
    names = (registry, *_HUB_KEYS) if registry == DOCKER_HUB else (registry,)
    return tuple(
        form for name in names for form in (name, f"https://{name}", f"https://{name}/v1/", f"https://{name}/")
    )


def _entry(auths: Mapping[str, Any], registry: str) -> Mapping[str, Any] | None:
    for key in _keys(registry):
        found = auths.get(key)
        if isinstance(found, Mapping):
            return found
    return None


def from_auth_file(path: str, registry: str) -> dict[str, str] | None:
    """Credentials of one registry from a file as docker login writes it; None when it has none for that registry."""
    try:
        value = json.loads(_read_secret(path, "registry_auth_file"))
        auths = value["auths"]
        entry = _entry(auths, registry)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ImageError(
            f"registry_auth_file {path} has no auths: it must look like ~/.docker/config.json after docker login"
        ) from exc
    if entry is None:
        return None
    if entry.get("identitytoken"):
        return {"identitytoken": str(entry["identitytoken"])}
    user, password = entry.get("username"), entry.get("password")
    if not user and entry.get("auth"):
        try:
            decoded = base64.b64decode(str(entry["auth"]), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise ImageError(f"registry_auth_file {path}: auth of {registry} is not base64: log in again") from exc
        user, _colon, password = decoded.partition(":")
    if not user or not password:
        raise ImageError(f"registry_auth_file {path} has no user and password for {registry}: log in again")
    return {"username": str(user), "password": str(password).rstrip("\0")}


def credentials(registry: str, auth_file: str, username_file: str, password_file: str) -> dict[str, str] | None:
    """What to log in with; None to go without, or with what docker itself finds."""
    if bool(username_file) != bool(password_file):
        raise ImageError(
            "registry_username_file and registry_password_file belong together: give both, or an auth file"
        )
    if username_file and auth_file:
        raise ImageError("registry_auth_file and registry_username_file are both given: drop one")
    if username_file:
        user = _read_secret(username_file, "registry_username_file").strip()
        password = _read_secret(password_file, "registry_password_file").strip()
        if not user or not password:
            raise ImageError(f"{username_file} or {password_file} is empty: write user and password into them")
        return {"username": user, "password": password}
    return from_auth_file(auth_file, registry) if auth_file else None


def client_config(registry: str, login: Mapping[str, str] | None) -> dict[str, Any]:
    """The config.json of a docker client that knows this login and nothing else."""
    if not login:
        return {}
    key = _HUB_KEYS[0] if registry == DOCKER_HUB else registry
    if "identitytoken" in login:
        return {"auths": {key: {"identitytoken": login["identitytoken"]}}}
    pair = f"{login['username']}:{login['password']}".encode()
    return {"auths": {key: {"auth": base64.b64encode(pair).decode("ascii")}}}
