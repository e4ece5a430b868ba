# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts by what decides their engine, and the one of each kind that builds it.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import flatten, key_of

# Rounds with the same builder; each use of the role in a run is one.
LONGEST = 20
# Sources whose name and revision say what the weights are. What a directory holds is known on its host alone.
PINNED = ("huggingface", "smollm2", "tiny")


def plain(value: Any) -> Any:
    """The value without the types that Ansible gives to strings, dictionaries and lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


def _paths(value: Any) -> bool:
    """Whether an option names a file, whose content no controller knows."""
    if isinstance(value, Mapping):
        return any(_paths(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_paths(item) for item in value)
    return isinstance(value, str) and value.startswith("/")


def signature_of(decides: Mapping[str, Any]) -> dict[str, Any]:
    """The hash of all that decides an engine, and whether it alone leads to one."""
    parts = plain(decides)
    weights = parts.get("weights") or {}
    resolvable = weights.get("source") in PINNED and not _paths([parts.get("convert"), parts.get("build")])
    return {"signature": key_of(parts), "decides": parts, "resolvable": bool(resolvable)}


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The first part in which two hosts differ."""
    before, after = flatten(plain(first)), flatten(plain(second))
    for name in sorted(set(before) | set(after)):
        if before.get(name) != after.get(name):
            return f"{name} is {before.get(name, 'not given')} and {after.get(name, 'not given')}"
    return "nothing"


def has_engine(facts: Mapping[str, Any]) -> bool:
    """Whether a host of this run has its engine, or in check mode would get it."""
    engine, signature = facts.get("engine") or {}, facts.get("signature") or {}
    if engine.get("failed") or engine.get("unreachable") or engine.get("signature") != signature.get("signature"):
        return False
    return bool(engine.get("path")) or bool(engine.get("changed"))


def cause_of(facts: Mapping[str, Any]) -> str:
    """Why a builder has not built."""
    for name in ("weights", "checkpoint", "engine"):
        found = facts.get(name) or {}
        if found.get("failed") or found.get("unreachable"):
            return " ".join(str(found.get("msg") or "no reason given").split())[:300]
    return "lost"


def assign(
    hosts: Sequence[str],
    facts: Mapping[str, Mapping[str, Any]],
    previous: Mapping[str, Any],
    attempts: int,
    everybody: Sequence[str],
) -> dict[str, Any]:
    """Who builds for whom, among the hosts that are left; ``previous`` is what this said in the round before."""
    before = {str(group["signature"]): group for group in previous.get("groups") or []}
    groups: dict[str, list[str]] = {}
    for host in hosts:
        signature = (facts.get(host, {}).get("signature") or {}).get("signature")
        if signature:
            groups.setdefault(str(signature), []).append(host)
    made, roles, problems, warnings = [], {}, {}, []
    for signature, members in groups.items():
        known = before.get(signature) or {}
        tried = list(known.get("tried") or [])
        builder = str(known.get("builder") or "")
        # Of an earlier play or role of the same run, the engines are there.
        ready = [host for host in members if has_engine(facts[host])]
        problem = ""
        if builder and builder not in ready and known.get("began"):
            tried.append(builder)
            builder = ""
            said = ", ".join(f"{host}: {cause_of(facts.get(host, {}))}" for host in tried)
            if len(tried) >= attempts:
                problem = f"no engine for this kind of host was built by {said}; mend that, and run again"
            else:
                warnings.append(f"the builder was lost or failed ({said}); the next host of its kind builds")
        if not builder or builder not in members:
            wanted, wrong = _wanted(members, facts, everybody, warnings, tried)
            problem = problem or wrong
            left = [host for host in members if host not in tried]
            builder = wanted if wanted and wanted not in tried else (ready + left + [""])[0]
        if not builder and not problem:
            problem = "no host of this kind is left to build its engine; mend those that failed, and run again"
        # A round in which nothing can change must not follow another for ever.
        rounds = int(known.get("rounds") or 0) + 1 if builder == known.get("builder") else 1
        if rounds > LONGEST:
            problem = problem or f"{builder} has its engine, but this host got none in {LONGEST} rounds; report that"
        made.append(
            {
                "signature": signature,
                "hosts": members,
                "builder": builder,
                "tried": tried,
                "began": True,
                "rounds": rounds,
            }
        )
        for host in members:
            roles[host] = builder
            if problem:
                problems[host] = problem
    return {"groups": made, "builder_of": roles, "problems": problems, "warnings": warnings}


def _wanted(
    members: Sequence[str],
    facts: Mapping[str, Mapping[str, Any]],
    everybody: Sequence[str],
    warnings: list[str],
    tried: Sequence[str],
) -> tuple[str, str]:
    """The builder that the inventory names, and what is wrong with it."""
    named = sorted({str((facts[host].get("signature") or {}).get("builder") or "") for host in members} - {""})
    if not named:
        return "", ""
    if len(named) > 1:
        return "", f"mixtral_engine_builder is {' and '.join(named)} for hosts that need the same engine: name one"
    wanted = named[0]
    if wanted in members:
        return wanted, ""
    if wanted not in everybody:
        return "", f"mixtral_engine_builder {wanted!r} is no host of the inventory: name one, or leave it empty"
    other = (facts.get(wanted, {}).get("signature") or {}).get("decides")
    own = (facts[members[0]].get("signature") or {}).get("decides") or {}
    if other and plain(other) != plain(own):
        return "", (
            f"mixtral_engine_builder {wanted} needs another engine than {members[0]} ({difference(own, other)}):"
            " name a host of the same kind"
        )
    if wanted not in tried:
        warnings.append(f"mixtral_engine_builder {wanted} is not in this run; {members[0]} builds, if it must be built")
    return "", ""
