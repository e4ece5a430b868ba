# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools of hosts: their settings, the batches of their rollout, and what a batch may still do.

Private to the collection. Nothing here contacts a host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STRATEGIES = ("in_place", "surge")
# What a pool's hosts have where the inventory says nothing: the role's defaults, as a test makes sure.
DEFAULTS: dict[str, Any] = {
    "triton_pool_serial": [1, "100%"],
    "triton_pool_max_unavailable": 1,
    "triton_pool_min_available": 0,
    "triton_pool_max_failures": 0,
    "triton_pool_bake": 0,
    "triton_pool_strategy": "in_place",
    "triton_pool_lock_ttl": 900,
}
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
POOL_DEFAULT = "default"
# A pool is one release of one model, besides its own settings.
AGREED = (
    "trtllm_release", "trtllm_flavour", "mixtral_engine_weights_source", "mixtral_engine_weights_repository",
    "mixtral_engine_weights_revision", "triton_serve_load_balancer",
)  # fmt: skip
# Settings of earlier versions, and what took their place.
RENAMED = {
    "trtllm_rollout_serial": "triton_pool_serial",
    "trtllm_rollout_max_lost": "triton_pool_max_failures",
    "trtllm_rollout_max_fail_percentage": "triton_pool_max_failures",
}
OUTDATED = "trtllm_rollout_"
# In the causes of others; its own is told once, with the host.
GONE = "lost before the rollout"
FAILED = ("failed", "lost")


class PoolError(Exception):
    """One line that says what is wrong and what to do."""


def renamed(names: set[str]) -> list[str]:
    """One line for each variable that no longer means anything."""
    return [f"{old} is {new} now: rename it" for old, new in RENAMED.items() if old in names] + [
        f"{name} is not known: the settings of a rollout begin with triton_pool_"
        for name in sorted(names)
        if name.startswith(OUTDATED) and name not in RENAMED
    ]


def share(variable: str, value: object, least: int = 0) -> tuple[int, bool]:
    """A number, or a percentage (then the second is true); PoolError for anything else."""
    text = str(value).strip()
    match = re.match(r"^(\d+)(%?)$", text)
    if isinstance(value, bool) or match is None:
        raise PoolError(f"{variable} {value!r} is neither a number nor a percentage: write 2 or '25%'")
    number, percent = int(match.group(1)), bool(match.group(2))
    if percent and number > 100:
        raise PoolError(f"{variable} {text} is more than the whole pool: write at most 100%")
    if number < least:
        raise PoolError(f"{variable} {text} is below {least}: write at least {least}{match.group(2)}")
    return number, percent


def seconds(variable: str, value: object, least: int = 0) -> int:
    number, percent = share(variable, value, least)
    if percent:
        raise PoolError(f"{variable} {value} is not a number of seconds: write {max(least, 60)}")
    return number


def hosts_of(variable: str, value: object, size: int, least: int = 0, up: bool = False) -> int:
    """How many hosts of a pool a number or a percentage is."""
    number, percent = share(variable, value, min(least, 1))
    if percent:
        number = -(-number * size // 100) if up else number * size // 100
        return max(number, least)
    return number


@dataclass
class Settings:
    """What a pool's variables say, checked."""

    serial: list[object]
    max_unavailable: object
    min_available: object
    max_failures: object
    bake: int
    strategy: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """From variables by their names; PoolError names the first that cannot be."""
        found = {**DEFAULTS, **values}
        serial = found["triton_pool_serial"]
        serial = list(serial) if isinstance(serial, (list, tuple)) else [serial]
        if not serial:
            raise PoolError("triton_pool_serial is empty: write [1, '100%'], the canary and then all others")
        for each in serial:
            share("triton_pool_serial", each, 1)
        share("triton_pool_max_unavailable", found["triton_pool_max_unavailable"], 1)
        share("triton_pool_min_available", found["triton_pool_min_available"])
        share("triton_pool_max_failures", found["triton_pool_max_failures"])
        bake = seconds("triton_pool_bake", found["triton_pool_bake"])
        # Below it a run would lose its hosts between two of its tasks.
        seconds("triton_pool_lock_ttl", found["triton_pool_lock_ttl"], 60)
        strategy = str(found["triton_pool_strategy"])
        if strategy not in STRATEGIES:
            raise PoolError(f"triton_pool_strategy {strategy!r} is not known: choose {' or '.join(STRATEGIES)}")
        return cls(
            serial, found["triton_pool_max_unavailable"], found["triton_pool_min_available"],
            found["triton_pool_max_failures"], bake, strategy,
        )  # fmt: skip


@dataclass
class Member:
    """A host of a pool, as far as this run knows it."""

    name: str
    # Outside --limit a host is not asked, and taken to serve.
    asked: bool = True
    lost: str = ""
    up: bool = True
    needs: bool = True
    why: str = ""
    source: str | None = None
    target: str | None = None


@dataclass
class Pool:
    """A pool and the rollout that is laid out for it."""

    name: str
    settings: Settings
    members: list[Member]
    release: str = ""
    batches: list[list[str]] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)
    stopped: str = ""

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def max_unavailable(self) -> int:
        return hosts_of("triton_pool_max_unavailable", self.settings.max_unavailable, self.size, 1)

    @property
    def min_available(self) -> int:
        return hosts_of("triton_pool_min_available", self.settings.min_available, self.size, up=True)

    @property
    def max_failures(self) -> int:
        return hosts_of("triton_pool_max_failures", self.settings.max_failures, self.size)

    @property
    def lost(self) -> list[Member]:
        return [member for member in self.members if member.lost]

    @property
    def todo(self) -> list[Member]:
        return [member for member in self.members if member.asked and not member.lost and member.needs]

    @property
    def unchanged(self) -> list[str]:
        return [each.name for each in self.members if each.asked and not each.lost and not each.needs]

    def as_dict(self) -> dict[str, Any]:
        up = [member.name for member in self.members if member.up and not member.lost]
        return {
            "hosts": [member.name for member in self.members],
            "batches": self.batches,
            "max_unavailable": self.max_unavailable,
            "min_available": self.min_available,
            "max_failures": self.max_failures,
            "bake": self.settings.bake,
            "strategy": self.settings.strategy,
            "release": self.release,
            "unchanged": self.unchanged,
            "lost": [member.name for member in self.lost],
            "causes": {member.name: member.lost for member in self.lost},
            "serving": up,
            "blocked": self.blocked,
            "stopped": self.stopped,
            "moves": {each.name: {"from": each.source, "to": each.target, "why": each.why} for each in self.todo},
        }


def named(hosts: Mapping[str, str]) -> str:
    return ", ".join(f"{host} ({cause})" if cause else host for host, cause in hosts.items())


def stop_cause(pool: str, failures: Mapping[str, str], allowed: int) -> str:
    """Why a pool's rollout ends; empty while its failures are within the budget."""
    if len(failures) <= allowed:
        return ""
    return (
        f"the rollout of pool {pool} stopped: {named(failures)}, and triton_pool_max_failures allows {allowed}:"
        " mend what failed, then run again"
    )


def _serial(order: Sequence[str], serial: Sequence[object], size: int) -> list[list[str]]:
    """The order cut into batches; the last size holds for all that remain."""
    sizes = [max(1, hosts_of("triton_pool_serial", each, size)) for each in serial]
    chunks, begin, index = [], 0, 0
    while begin < len(order):
        count = sizes[min(index, len(sizes) - 1)]
        chunks.append(list(order[begin : begin + count]))
        begin, index = begin + count, index + 1
    return chunks


def lay_out(pool: Pool) -> list[str]:
    """Fills in the pool's batches; why the plan is refused, one line each."""
    pool.batches, pool.blocked = [], {}
    pool.stopped = stop_cause(pool.name, dict.fromkeys((each.name for each in pool.lost), GONE), pool.max_failures)
    todo = {member.name: member for member in pool.todo}
    # Hosts that are done count as the first batches, so a repeated run goes on where the last one ended. Then come
    # those that are out anyway: nobody misses them, and afterwards there is more room.
    order = pool.unchanged + sorted(todo, key=lambda name: todo[name].up)
    up = {member.name for member in pool.members if member.up and not member.lost}
    out = {member.name for member in pool.members} - up
    problems = []
    for chunk in _serial(order, pool.settings.serial, pool.size):
        batch: list[str] = []
        for name in (each for each in chunk if each in todo):
            if _fits(pool, batch + [name], up, out):
                batch.append(name)
                continue
            _close(pool, batch, out)
            batch = []
            if _fits(pool, [name], up, out):
                batch.append(name)
            else:
                pool.blocked[name] = no_room(
                    pool.name, {each: _cause(pool, each) for each in sorted(out)}, pool.max_unavailable
                )
        _close(pool, batch, out)
    if not pool.stopped:
        problems += shortage(pool)
    if pool.blocked:
        pool.batches.append(list(pool.blocked))
    return problems


def _cause(pool: Pool, name: str) -> str:
    member = next(each for each in pool.members if each.name == name)
    return GONE if member.lost else "does not serve"


def no_room(pool: str, out: Mapping[str, str], allowed: int) -> str:
    return (
        f"pool {pool} is short of {len(out)}: {named(out)}; triton_pool_max_unavailable {allowed} leaves no room for"
        " another host: mend those first, or raise it"
    )


def _fits(pool: Pool, batch: Sequence[str], up: set[str], out: set[str]) -> bool:
    """Whether the batch takes out no more than may be out; a host that is out anyway takes nothing."""
    if pool.settings.strategy == "surge" or not up.intersection(batch):
        return True
    return len(out.union(batch)) <= pool.max_unavailable


def _close(pool: Pool, batch: list[str], out: set[str]) -> None:
    if batch:
        pool.batches.append(batch)
        out.difference_update(batch)


def shortage(pool: Pool) -> list[str]:
    """The first batch that would leave too few hosts serving."""
    if pool.settings.strategy == "surge":
        return []
    up = {member.name for member in pool.members if member.up and not member.lost}
    for batch in pool.batches:
        taken = up.intersection(batch)
        left = len(up - taken)
        if taken and left < pool.min_available:
            away = {each.name: _cause(pool, each.name) for each in pool.members if each.name not in up}
            short = f" ({named(away)})" if away else ""
            return [
                f"pool {pool.name}: the batch {', '.join(batch)} would leave {left} of {pool.size} hosts"
                f" serving{short}, and triton_pool_min_available is {pool.min_available}: lower triton_pool_serial or"
                " triton_pool_max_unavailable, add hosts, or lower triton_pool_min_available"
            ]
        up.update(batch)
    return []


def serial_of(pools: Iterable[Pool]) -> tuple[list[str], list[int]]:
    """The hosts of all batches in their order, and the sizes of the batches; no batch has hosts of two pools."""
    batches = [batch for pool in pools for batch in pool.batches]
    return [host for batch in batches for host in batch], [len(batch) for batch in batches]


def judge(
    name: str, pool: Mapping[str, Any], batch: Sequence[str], outcomes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """For each host of the batch that begins: whether it may go, and why not."""
    begun = [host for each in pool["batches"] for host in each]
    first = next((number for number, each in enumerate(pool["batches"]) if set(each) & set(batch)), None)
    before = begun if first is None else [host for each in pool["batches"][:first] for host in each]
    failures = dict.fromkeys(pool["causes"], GONE)
    up = set(pool["serving"])
    out = {host: failures.get(host, "does not serve") for host in pool["hosts"] if host not in up}
    for host in before:
        # Every host that went has an outcome, unless Ansible itself gave it up.
        outcome = outcomes.get(host) or {"outcome": "lost"}
        became = str(outcome.get("outcome"))
        serves = str(outcome.get("left") or "").startswith("serves")
        if became in FAILED:
            failures[host] = became
        if became in ("done", "unchanged") or (became == "failed" and serves):
            up.add(host)
            out.pop(host, None)
        elif became in FAILED:
            up.discard(host)
            out[host] = became
    stop = stop_cause(name, failures, pool["max_failures"])
    verdicts: dict[str, dict[str, Any]] = {}
    going: set[str] = set()
    for host in batch:
        cause = stop or pool["blocked"].get(host, "") or _room(name, pool, host, going, up, out)
        verdicts[host] = {"go": not cause, "cause": cause}
        if not cause:
            going.add(host)
    return verdicts


def _room(name: str, pool: Mapping[str, Any], host: str, going: set[str], up: set[str], out: Mapping[str, str]) -> str:
    """Why a host that serves may not be taken out now: others are, that were not when the plan was made."""
    if pool["strategy"] == "surge" or host not in up:
        return ""
    if len(set(out) | going | {host}) > pool["max_unavailable"]:
        others = {**out, **dict.fromkeys(sorted(going - set(out)), "in this batch")}
        return no_room(name, others, pool["max_unavailable"])
    left = len(up - going - {host})
    if left < pool["min_available"]:
        return (
            f"without {host} only {_count(left)} of pool {name} would serve, and triton_pool_min_available is"
            f" {pool['min_available']}: mend {named(out)} first"
        )
    return ""


def described(pools: Iterable[Pool]) -> list[str]:
    """The plan in lines for a person, one for each batch."""
    lines = []
    for pool in pools:
        moves = {each.name: each for each in pool.todo}
        limits = (
            "surge: nothing is taken out before the new server is in service"
            if pool.settings.strategy == "surge"
            else f"at most {pool.max_unavailable} out, at least {pool.min_available} serving"
        )
        lines.append(
            f"pool {pool.name}{' (' + pool.release + ')' if pool.release else ''}: {_count(len(pool.todo))} of"
            f" {pool.size} to do; {limits}; {pool.max_failures} may fail; bake {pool.settings.bake} s"
        )
        if pool.stopped:
            lines.append(f"  none is touched: {pool.stopped}")
        for number, batch in enumerate(() if pool.stopped else pool.batches, 1):
            if set(batch) <= set(pool.blocked):
                lines.append(f"  left alone: {', '.join(batch)}: {pool.blocked[batch[0]]}")
                continue
            lines.append(f"  batch {number}: {', '.join(_move(moves[name]) for name in batch)}")
        if pool.unchanged:
            lines.append(f"  stay as they are: {', '.join(pool.unchanged)}")
        if pool.lost:
            lines.append(f"  lost: {named({each.name: each.lost for each in pool.lost})}")
        beyond = [each.name for each in pool.members if not each.asked]
        if beyond:
            lines.append(f"  outside this run, taken to serve: {', '.join(beyond)}")
    return lines


def _move(host: Member) -> str:
    return f"{host.name} {host.source or 'nothing'} -> {host.target or 'not known yet'} ({host.why})"


def _count(number: int) -> str:
    return "1 host" if number == 1 else f"{number} hosts"
