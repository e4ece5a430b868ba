# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dockerd's configuration file: what a change of it needs, and how it is changed without touching what is not ours.

Pure: nothing here reads or writes a file or asks an engine. Private to the collection.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RELOAD = "reload"
RESTART = "restart"
NONE = "none"

# What dockerd takes over on SIGHUP (moby's daemon/reload.go and reload_unix.go, and the authorization plugins in its
# command). cluster-* is there up to 20.10, allow-nondistributable-artifacts up to 27; both are refused afterwards
# or ignored, so that it does no harm to call them reloadable.
RELOADABLE = frozenset(
    {
        "allow-nondistributable-artifacts",
        "authorization-plugins",
        "cluster-advertise",
        "cluster-store",
        "cluster-store-opts",
        "debug",
        "default-cgroupns-mode",
        "default-ipc-mode",
        "default-runtime",
        "default-shm-size",
        "features",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "network-diagnostic-port",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)
# A reload goes back to the default only for these; any other key that is gone keeps its old value until a restart.
RESET_BY_RELOAD = frozenset(
    {
        "features",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "network-diagnostic-port",
    }
)
# Looked up each time they are used. Others, such as cdi and containerd-snapshotter, are read once when dockerd starts.
RELOADABLE_FEATURES = frozenset({"buildkit"})

# Options of dockerd whose name in the file is another one.
_FLAG_KEYS = {
    "add-runtime": "runtimes",
    "authorization-plugin": "authorization-plugins",
    "cdi-spec-dir": "cdi-spec-dirs",
    "cluster-store-opt": "cluster-store-opts",
    "containerd-plugins-namespace": "containerd-plugin-namespace",
    "default-address-pool": "default-address-pools",
    "default-network-opt": "default-network-opts",
    "default-ulimit": "default-ulimits",
    "dns-opt": "dns-opts",
    "exec-opt": "exec-opts",
    "feature": "features",
    "graph": "data-root",
    "host": "hosts",
    "host-gateway-ip": "host-gateway-ips",
    "insecure-registry": "insecure-registries",
    "label": "labels",
    "log-opt": "log-opts",
    "node-generic-resource": "node-generic-resources",
    "registry-mirror": "registry-mirrors",
    "storage-opt": "storage-opts",
}
_SHORT_FLAGS = {
    "b": "bridge",
    "D": "debug",
    "g": "data-root",
    "G": "group",
    "H": "hosts",
    "l": "log-level",
    "p": "pidfile",
    "s": "storage-driver",
}
_SHORT_BOOLEANS = frozenset({"D"})
# dockerd merges these instead of refusing to start.
_MERGED_FLAGS = frozenset({"runtimes"})
# dockerd looks inside these for further options.
_NESTED = frozenset({"proxies"})


class ConfigError(Exception):
    """One line that says what is wrong with the file or with a wish, and what to do."""


@dataclass(frozen=True)
class Style:
    """How a file was written, so that it is written like that again."""

    indent: int | str | None = 2
    newline: bool = True
    ascii: bool = False


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [pair[0] for pair in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError("key %s is there twice" % ", ".join(repr(name) for name in twice))
    return result


def _constant(name: str) -> Any:
    raise ConfigError("%s is not JSON" % name)


def parse(text: str, path: str) -> dict[str, Any]:
    """The file's object; an empty file is an empty object, as it is for dockerd."""
    remedy = "correct it, or move it away, and run again; it was left as it is"
    if not text.strip():
        return {}
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except json.JSONDecodeError as exc:
        raise ConfigError(
            "%s, line %d, column %d: %s; %s" % (path, exc.lineno, exc.colno, exc.msg.rstrip(), remedy)
        ) from exc
    except ConfigError as exc:
        raise ConfigError("%s: %s; %s" % (path, exc, remedy)) from exc
    if not isinstance(value, dict):
        raise ConfigError("%s holds a JSON %s, wanted is an object; %s" % (path, type(value).__name__, remedy))
    return value


def style_of(text: str) -> Style:
    """Indentation of the first indented line, and whether the file ends in a newline."""
    if not text.strip():
        return Style()
    found = re.search(r"\n([ \t]+)\S", text)
    indent: int | str | None = None
    if found is not None:
        indent = "\t" if "\t" in found.group(1) else len(found.group(1))
    elif text.strip() == "{}":
        indent = Style().indent
    return Style(indent, text.endswith("\n"), text.isascii() and "\\u" in text)


def render(config: Mapping[str, Any], style: Style) -> str:
    text = json.dumps(config, indent=style.indent, ensure_ascii=style.ascii)
    return text + ("\n" if style.newline else "")


def merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The file with our keys in it: objects are merged, null removes a key, everything else is replaced.

    Keys that were there keep their place; new ones come last.
    """
    result = copy.deepcopy(dict(current))
    for key, value in wanted.items():
        there = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            # An empty object of ours asks for nothing; one that only removes leaves nothing behind.
            merged = merge(there if isinstance(there, dict) else {}, value)
            if merged or isinstance(there, dict) or not value:
                result[key] = merged
        else:
            result[key] = copy.deepcopy(value)
    return result


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys of the file whose value differs, in the order of the new file; those that are gone come last."""
    differ = [key for key, value in after.items() if key not in before or not same(before[key], value)]
    return differ + [key for key in before if key not in after]


def same(one: Any, other: Any) -> bool:
    """JSON's equality: true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def needs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each changed key needs to take effect: {"reload": [...], "restart": [...]}."""
    result: dict[str, list[str]] = {RELOAD: [], RESTART: []}
    for key in changed_keys(before, after):
        if key == "features":
            old, new = (value if isinstance(value, dict) else {} for value in (before.get(key), after.get(key)))
            for name in changed_keys(old, new):
                result[RELOAD if name in RELOADABLE_FEATURES else RESTART].append("features.%s" % name)
        elif key in RELOADABLE and (key in after or key in RESET_BY_RELOAD):
            result[RELOAD].append(key)
        else:
            result[RESTART].append(key)
    return result


def action_of(needed: Mapping[str, Sequence[str]]) -> str:
    return RESTART if needed[RESTART] else RELOAD if needed[RELOAD] else NONE


# --- what the engine's command line sets --------------------------------------------------------------------------


def flag_keys(argv: Iterable[str]) -> dict[str, str]:
    """Keys of the file that dockerd's command line sets, with the option as it is written there."""
    found: dict[str, str] = {}
    words = list(argv)[1:]
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals = word[2:].partition("=")[:2]
            found[_FLAG_KEYS.get(name, name)] = word
            if not equals and words and not words[0].startswith("-"):
                found[_FLAG_KEYS.get(name, name)] += " " + words.pop(0)
        elif re.match(r"-[A-Za-z]", word):
            for place, letter in enumerate(word[1:]):
                key = _SHORT_FLAGS.get(letter, letter)
                found[key] = word
                if letter not in _SHORT_BOOLEANS:
                    if place == len(word) - 2 and words and not words[0].startswith("-"):
                        found[key] += " " + words.pop(0)
                    break
    found.pop("config-file", None)
    return found


def option(argv: Iterable[str], name: str) -> str:
    """The value of one long option of a command line, or the empty string."""
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--" + name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith("--%s=" % name):
            return word.partition("=")[2]
    return ""


def flat_keys(config: Mapping[str, Any]) -> list[str]:
    return [name for key, value in config.items()
            for name in ([key, *value] if key in _NESTED and isinstance(value, dict) else [key])]  # fmt: skip


def conflicts(config: Mapping[str, Any], argv: Iterable[str]) -> dict[str, str]:
    """Keys of the file that dockerd would not start with, because its command line sets them too."""
    flags = flag_keys(argv)
    return {key: flags[key] for key in flat_keys(config) if key in flags and key not in _MERGED_FLAGS}


def exec_start(shown: str, environment: Mapping[str, str]) -> list[str]:
    """The command line in the answer of `systemctl show -p ExecStart`, variables of the unit put in."""
    found = re.search(r"argv\[\]=(.*?) ; (?:ignore_errors|flags)=", shown, re.S)
    argv: list[str] = []
    for word in shlex.split(found.group(1)) if found else []:
        name = re.fullmatch(r"\$\{?(\w+)\}?", word)
        if name is None:
            argv.append(word)
        elif word.startswith("${"):
            argv.append(environment.get(name.group(1), ""))
        else:
            argv += shlex.split(environment.get(name.group(1), ""))
    return argv


def assignments(text: str) -> dict[str, str]:
    """The variables of an environment file of systemd."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and re.fullmatch(r"[A-Za-z_]\w*", name):
            found[name] = value.strip().strip("\"'")
    return found


# --- what the engine says of itself -------------------------------------------------------------------------------


def not_in_effect(config: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    """Keys of the file that the running engine visibly does not follow, from the answer of its API's /info."""
    registry = info.get("RegistryConfig") or {}
    checks: dict[str, Any] = {
        "data-root": lambda value: os.path.realpath(str(info.get("DockerRootDir"))) == os.path.realpath(str(value)),
        "debug": lambda value: info.get("Debug") is value,
        "default-runtime": lambda value: info.get("DefaultRuntime") == value,
        "insecure-registries": lambda value: _insecure(value, registry),
        "labels": lambda value: sorted(info.get("Labels") or []) == sorted(value),
        "live-restore": lambda value: info.get("LiveRestoreEnabled") is value,
        "log-driver": lambda value: info.get("LoggingDriver") == value,
        "registry-mirrors": lambda value: _urls(registry.get("Mirrors")) == _urls(value),
        "runtimes": lambda value: all(name in (info.get("Runtimes") or {}) for name in value),
        "storage-driver": lambda value: info.get("Driver") == value,
    }
    return [key for key, value in config.items() if value is not None and key in checks and not checks[key](value)]


def _urls(values: Any) -> list[str]:
    return sorted(str(value).rstrip("/") for value in values or [])


def _insecure(wanted: Any, registry: Mapping[str, Any]) -> bool:
    known = set(registry.get("InsecureRegistryCIDRs") or [])
    known.update(name for name, entry in (registry.get("IndexConfigs") or {}).items() if not entry.get("Secure"))
    return all(re.sub(r"^https?://", "", str(name)).rstrip("/") in known for name in wanted or [])


def hide_secrets(text: str) -> str:
    """Without the passwords of URLs."""
    return re.sub(r"(://)[^/@\s\"']+@", r"\1********@", text)
