# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a hub of models: which files, whether they fit, with which token, and why it did not work.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils._artifact_files import existing_parent, human
from ansible_collections.trtllm.serving.plugins.module_utils._weights import WeightsError

ENDPOINT = "https://huggingface.co"
# Configuration, tokenizer and safetensors: what serving needs, and nothing that runs when it is loaded.
ALLOW = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.safetensors",
    "*.safetensors.index.json",
)
# The same weights once more, in other formats.
IGNORE = ("consolidated*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
GIB = 1024**3

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN = re.compile(r"[\x21-\x7e]{8,}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")


class HubError(WeightsError):
    """One line that says what is wrong and what to do."""


def is_commit(revision: object) -> bool:
    return _COMMIT.fullmatch(str(revision)) is not None


def problems_of(hub: Mapping[str, Any], option: Callable[[str], str] = lambda name: f"hub.{name}") -> list[str]:
    """What cannot be asked of any hub, the revision apart. ``option`` says how the reader knows an option."""
    problems: list[str] = []
    repository = str(hub.get("repository") or "")
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        problems.append(
            f"{option('repository')} {repository!r} is no repository: write OWNER/NAME,"
            " such as mistralai/Mixtral-8x7B-Instruct-v0.1"
        )
    endpoint = urllib.parse.urlsplit(str(hub.get("endpoint") or ENDPOINT))
    if endpoint.scheme not in ("http", "https") or not endpoint.hostname or endpoint.query or endpoint.fragment:
        problems.append(f"{option('endpoint')} is no address of a hub: write https://HOST, without a query")
    elif endpoint.username or endpoint.password:
        problems.append(f"{option('endpoint')} has a password in it, which logs would show: give a token instead")
    elif endpoint.scheme == "http" and (hub.get("token") or hub.get("token_file")) and not _loopback(endpoint.hostname):
        problems.append(
            f"{option('endpoint')} http://{endpoint.hostname} would see the token in clear: use https, or no token"
        )
    if hub.get("token") and hub.get("token_file"):
        problems.append(f"{option('token')} and {option('token_file')} are both given: give one")
    if hub.get("token") and not _TOKEN.fullmatch(str(hub["token"])):
        problems.append(f"{option('token')} is no token: it has a blank in it, or is shorter than 8 characters")
    if hub.get("token_file") and not os.path.isabs(str(hub["token_file"])):
        problems.append(f"{option('token_file')} {hub['token_file']!r} is not absolute: name a file on the host")
    for name, least in (("workers", 1), ("retries", 0), ("timeout", 1), ("max_wait", 0)):
        value = hub.get(name)
        if value is not None and float(value) < least:
            problems.append(f"{option(name)} {value} is not possible: give {least} or more")
    if hub.get("allow_patterns") == []:
        problems.append(f"{option('allow_patterns')} is empty, so that nothing would be fetched: name what is needed")
    return problems


def _loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def revision_problem(revision: str, option: str, how: str) -> str:
    """The refusal of what is no commit; ``how`` tells the reader which commit it is, or how to find it."""
    if re.fullmatch(r"[0-9A-Fa-f]{7,40}", revision):
        return f"{option} {revision!r} is not a whole commit: give all 40 digits, in lower case; {how}"
    what = "is empty" if not revision else "is a branch or a tag, which may become something else"
    return f"{option} {revision!r} {what}: pin a commit of 40 hexadecimal digits; {how}"


def complete(hub: Mapping[str, Any]) -> dict[str, Any]:
    """The options with what they default to; an address without its last slash."""
    given = {name: value for name, value in hub.items() if value is not None}
    defaults = {"endpoint": ENDPOINT, "workers": 8, "retries": 5, "timeout": 30, "max_wait": 600, "xet": False}
    made = {**defaults, "allow_patterns": list(ALLOW), "ignore_patterns": list(IGNORE), **given}
    made["endpoint"] = str(made["endpoint"]).rstrip("/")
    return made


def proxy_secrets(environment: Mapping[str, Any] | None) -> list[str]:
    """What an address of a proxy holds of name and password."""
    found = []
    for value in (environment or {}).values():
        parts = urllib.parse.urlsplit(str(value)) if "://" in str(value) else None
        if parts is not None and parts.password:
            found += [parts.password, urllib.parse.unquote(parts.password)]
    return sorted(set(found))


# --- the token ---------------------------------------------------------------------------------------------------


def read_token(hub: Mapping[str, Any], *, missing_ok: bool = False) -> str:
    """The token that was given, or that lies in the given file; empty without either. Never shows any of it."""
    if hub.get("token"):
        return str(hub["token"])
    path = str(hub.get("token_file") or "")
    if not path:
        return ""
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise HubError(f"token_file {path} is no regular file: put the token into one")
            if status.st_mode & 0o007:
                raise HubError(
                    f"token_file {path} has mode {stat.S_IMODE(status.st_mode):04o}, so everybody may use the token:"
                    f" 'chmod 600 {path}', and make a new token, since this one may have been read"
                )
            text = stream.read(4096).decode("ascii", errors="replace").strip()
    except FileNotFoundError as exc:
        if missing_ok:
            return ""
        raise HubError(f"token_file {path} is not on this host: put it there, or leave token_file out") from exc
    except OSError as exc:
        raise HubError(f"token_file {path} cannot be read: {exc.strerror or exc}") from exc
    if not _TOKEN.fullmatch(text):
        raise HubError(f"token_file {path} holds no token: put the token there, alone on one line")
    return text


@contextlib.contextmanager
def token_pipe(folder: Path, token: str) -> Iterator[str]:
    """A named pipe with the token in it, which only this user can open and which never reaches the disk."""
    if not token:
        yield ""
        return
    path = folder / "token.pipe"
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    # Open both ways, so that neither end waits for the other.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, token.encode("ascii") + b"\n")
        yield str(path)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


# --- what is fetched ----------------------------------------------------------------------------------------------


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """A pattern without a slash is for files at the top: other folders hold other formats."""
    return any(fnmatch.fnmatchcase(path, pattern) and ("/" in pattern or "/" not in path) for pattern in patterns)


def wanted(files: Sequence[Mapping[str, Any]], allow: Sequence[str], ignore: Sequence[str]) -> list[dict[str, Any]]:
    """The files of a listing that are fetched; HubError when they cannot be a model."""
    chosen = [
        dict(entry)
        for entry in files
        if _matches(str(entry["path"]), allow)
        and not any(fnmatch.fnmatchcase(str(entry["path"]), pattern) for pattern in ignore)
    ]
    for entry in chosen:
        if not _NAME.fullmatch(str(entry["path"])):
            raise HubError(f"the repository has a file {entry['path']!r}, no safe name: use another repository")
    names = {str(entry["path"]) for entry in chosen}
    if "config.json" not in names:
        raise HubError("the repository has no config.json that the patterns allow: is it a model in that form?")
    if not any(name.endswith(".safetensors") for name in names):
        others = sorted(str(entry["path"]) for entry in files if str(entry["path"]).endswith((".bin", ".pt", ".gguf")))
        seen = f" (it has {others[0]})" if others else ""
        raise HubError(f"the repository has no *.safetensors that the patterns allow{seen}: use one that has")
    return sorted(chosen, key=lambda entry: str(entry["path"]))


def measured(files: Sequence[Mapping[str, Any]]) -> bool:
    """Whether size and hash of every file are known, which not every mirror's listing says."""
    return all(isinstance(entry.get("size"), int) and (entry.get("sha256") or entry.get("blob_id")) for entry in files)


# --- room -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    what: str
    path: Path
    size: int


def needs_of(
    missing: int, total: int, space: Mapping[str, Any], weights: Path, checkpoints: Path, engines: Path
) -> list[Need]:
    """What the weights, and what is made from them, will take on which file system."""
    found = [Need("weights", weights, missing)]
    for what, path in (("checkpoint", checkpoints), ("engine", engines)):
        found.append(Need(what, path, int(total * float(space.get(what, 1.0)))))
    if space.get("image_gib") and space.get("image_path"):
        found.append(Need("image", Path(str(space["image_path"])), int(float(space["image_gib"]) * GIB)))
    reserve = int(float(space.get("reserve_gib", 0)) * GIB)
    return [*found, Need("reserve", weights, reserve)]


def space_problems(needs: Sequence[Need], free: Callable[[Path], int]) -> list[str]:
    """One line for each file system that is too small for all that comes to it."""
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        if need.size > 0:
            by_device.setdefault(os.stat(existing_parent(need.path)).st_dev, []).append(need)
    problems = []
    for group in by_device.values():
        total, there = sum(need.size for need in group), free(group[0].path)
        if total > there:
            parts = ", ".join(f"{need.what} {human(need.size)}" for need in group)
            problems.append(
                f"{human(total)} needed below {existing_parent(group[0].path)} ({parts}), only {human(there)} free:"
                " free some, choose a larger file system, or correct the space factors"
            )
    return problems


# --- failures -------------------------------------------------------------------------------------------------------


def explain(outcome: Mapping[str, Any], hub: Mapping[str, Any], revision: str, kept: str, *, token: bool) -> str:
    """One line: what the hub or the network answered, and what to do."""
    kind, text = str(outcome.get("kind")), str(outcome.get("text") or "")
    repository, endpoint = str(hub["repository"]), str(hub["endpoint"])
    page = f"{endpoint}/{repository}"
    again = f"run again, and it goes on where it stopped ({kept})"
    status = f" ({outcome['status']})" if outcome.get("status") else ""
    with_token = "the account of the token" if token else "an account, and give its token as token_file or token"
    known = {
        "gated": f"{repository} is gated{status}: accept its conditions at {page} with {with_token}",
        "unauthorized": (
            f"{endpoint} does not accept the token{status}: make a new one with the right to read at"
            f" {endpoint}/settings/tokens, and check that {repository} exists"
            if token
            else f"{repository} does not exist or is not public{status}: correct repository,"
            " or give token_file or token of an account that may read it"
        ),
        "forbidden": (
            f"the token may not read {repository}{status}: give it the right to read this repository"
            f" (gated repositories are a right of their own) at {endpoint}/settings/tokens"
            if token
            else f"{endpoint} refuses {repository} without a token{status}: give token_file or token"
        ),
        "repository": f"{endpoint} has no repository {repository}{status}: correct repository, or the endpoint",
        "revision": f"{repository} has no commit {revision}{status}: take one from {page}/commits/main",
        "missing": f"{outcome.get('where') or page} was not found{status}: check endpoint, repository and revision",
        "limit": f"{endpoint} limits this address or token (429, {text}): raise max_wait, lower workers, or {again}",
        "server": f"{endpoint} has a fault{status}, attempts are used up: {again}",
        "cut": f"the connection to {endpoint} broke again and again ({text}): {again}",
        "timeout": f"{endpoint} sent nothing for {hub.get('timeout')} s, again and again: raise timeout, or {again}",
        "connect": f"{endpoint} cannot be reached ({text}): check its name, the route and the firewall, set"
        " HTTPS_PROXY in environment, or use a mirror as endpoint",
        "proxy": f"the proxy does not let this through ({text}): check HTTPS_PROXY and NO_PROXY in environment",
        "tls": f"the certificate of {endpoint} is not trusted ({text}): set SSL_CERT_FILE in environment to the"
        " authority of your proxy or mirror",
        "hash": f"{text}, twice: {endpoint}, or a proxy before it, serves damaged files; use another endpoint",
        "mirror": f"{text}: {endpoint} contradicts itself; use another endpoint",
        "nohash": f"{endpoint} names neither size nor hash of {text}, so it cannot be verified: use another endpoint",
        "space": f"no space left while fetching ({text}): free some, then {again}",
        "xet": f"{text}: set xet to true, so that the hub's other protocol brings it",
        "client": f"{hub.get('python')} has no huggingface_hub 1.0 or newer ({text}): install it, or name another",
    }
    return f"fetching {repository}: {known.get(kind) or f'{text or kind}{status}; {again}'}"
