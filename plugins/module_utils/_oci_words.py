# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Registries as they are named, with which credentials they are asked, and what cannot be meant.

Private to the collection.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils._distribution import DistributionError

_ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](?::[0-9]{1,5})?)"
    r"(?:/(?P<repository>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*))?/?"
)


@dataclass(frozen=True)
class Address:
    """Where a repository of a registry is."""

    host: str
    repository: str
    plain_http: bool

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"

    @property
    def origin(self) -> str:
        return f"{'http' if self.plain_http else 'https'}://{self.host}"


def parse_address(text: str, plain_http: bool = False, repository: str = "") -> Address:
    """HOST[:PORT]/REPOSITORY; a mirror without a repository has that of the registry."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise DistributionError(
            f"{text!r} is no repository of a registry: write HOST:PORT/NAME, in small letters, without a tag"
        )
    where = found["repository"] or repository
    if not where:
        raise DistributionError(f"{text!r} names no repository: write {found['host']}/NAME, such as trtllm/engines")
    return Address(found["host"], where, found["scheme"] == "http" if found["scheme"] else plain_http)


def problems_of(
    distribution: str,
    shared_path: str,
    registry: Mapping[str, Any],
    option: Callable[[str], str] = lambda name: f"registry.{name}",
    shared: str = "shared_path",
) -> list[str]:
    """One line for each setting with which engines cannot be distributed; ``option`` is how the reader knows one."""
    if distribution == "shared" and not os.path.isabs(shared_path):
        return [f"{shared} {shared_path!r} is not an absolute path: name the directory that every host has mounted"]
    if distribution != "registry":
        return []
    problems = []
    mirrors = registry.get("mirrors") or []
    repository = ""
    try:
        address = parse_address(str(registry.get("repository") or ""), bool(registry.get("plain_http")))
        repository = address.repository
        secret = registry.get("auth_file") or registry.get("password_file")
        if address.plain_http and secret and not _loopback(address.host):
            problems.append(
                f"{option('plain_http')}: {address.host} would see the password in clear: use TLS, or no credentials"
            )
    except DistributionError as exc:
        problems.append(f"{option('repository')}: {exc}")
    for mirror in mirrors:
        try:
            parse_address(str(mirror), bool(registry.get("plain_http")), repository or "any")
        except DistributionError as exc:
            problems.append(f"{option('mirrors')}: {exc}")
    if registry.get("auth_file") and (registry.get("username") or registry.get("password_file")):
        problems.append(f"{option('auth_file')} and {option('username')} are both given: give one")
    if bool(registry.get("username")) != bool(registry.get("password_file")):
        problems.append(f"{option('username')} and {option('password_file')} belong together: give both, or none")
    for name in ("auth_file", "password_file", "ca_file"):
        if registry.get(name) and not os.path.isabs(str(registry[name])):
            problems.append(f"{option(name)} {registry[name]!r} is not absolute: name a file on the host")
    for name, least in (("workers", 1), ("retries", 0), ("timeout", 1), ("chunk_mib", 1)):
        if registry.get(name) is not None and int(registry[name]) < least:
            problems.append(f"{option(name)} {registry[name]} is not possible: give {least} or more")
    return problems


def _loopback(host: str) -> bool:
    name = host.rpartition(":")[0] or host
    return name == "localhost" or name.startswith("127.") or name == "[::1]"


def _secret_file(path: str, what: str) -> str:
    try:
        with open(path, "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise DistributionError(f"{what} {path} is no regular file: put the credentials into one")
            if mode & 0o007:
                raise DistributionError(
                    f"{what} {path} has mode {stat.S_IMODE(mode):04o}, so everybody may use it: 'chmod 600 {path}',"
                    " and change the password, since it may have been read"
                )
            return stream.read(1 << 20).decode("utf-8", errors="replace")
    except FileNotFoundError as exc:
        raise DistributionError(f"{what} {path} is not on this host: put it there, or leave {what} out") from exc
    except OSError as exc:
        raise DistributionError(f"{what} {path} cannot be read: {exc.strerror or exc}") from exc


def credentials(registry: Mapping[str, Any], helper: Callable[[str, str], str | None]) -> Callable[[str], str]:
    """A function that gives a host's credentials, base64 of user:password; empty without any.

    A user and password are for the registry alone, never for a mirror. ``helper`` asks a program of docker's kind.
    """
    own = parse_address(str(registry["repository"]), bool(registry.get("plain_http"))).host
    if registry.get("password_file"):
        password = _secret_file(str(registry["password_file"]), "password_file").rstrip("\r\n")
        if not password:
            raise DistributionError(f"password_file {registry['password_file']} is empty: put the password there")
        pair = base64.b64encode(f"{registry['username']}:{password}".encode()).decode("ascii")
        return lambda host: pair if host == own else ""
    if not registry.get("auth_file"):
        return lambda host: ""
    path = str(registry["auth_file"])
    try:
        config = json.loads(_secret_file(path, "auth_file"))
        auths = dict(config.get("auths") or {})
        helpers, default = dict(config.get("credHelpers") or {}), str(config.get("credsStore") or "")
    except (ValueError, AttributeError, TypeError) as exc:
        raise DistributionError(f"auth_file {path} is no config.json of docker: make one with 'docker login'") from exc

    def of(host: str) -> str:
        for name in (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/"):
            entry = auths.get(name)
            if isinstance(entry, Mapping) and entry.get("auth"):
                return _checked(str(entry["auth"]), path, name)
            if isinstance(entry, Mapping) and entry.get("username"):
                text = f"{entry['username']}:{entry.get('password', '')}"
                return base64.b64encode(text.encode()).decode("ascii")
        program = str(helpers.get(host) or default)
        return (helper(program, host) or "") if program else ""

    return of


def _checked(auth: str, path: str, name: str) -> str:
    try:
        if b":" in base64.b64decode(auth, validate=True):
            return auth
    except (ValueError, binascii.Error):
        pass
    raise DistributionError(f"auth_file {path} has no user and password for {name}: log in again with 'docker login'")


def secrets_of(pairs: Sequence[str]) -> list[str]:
    """What no result may show."""
    found = []
    for pair in filter(None, pairs):
        found += [pair, base64.b64decode(pair).decode("utf-8", errors="replace").partition(":")[2]]
    return [secret for secret in found if secret]


def ca_of(registry: Mapping[str, Any]) -> str:
    path = str(registry.get("ca_file") or "")
    if path and not Path(path).is_file():
        raise DistributionError(f"ca_file {path} is not on this host: put the authority's certificate there")
    return path
