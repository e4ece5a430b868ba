# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a play knows of its hosts, read from Ansible's variables for the plan of a rollout.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.trtllm.serving.plugins.plugin_utils._pools import (
    AGREED,
    DEFAULTS,
    NAME,
    OUTDATED,
    POOL_DEFAULT,
    Member,
    Pool,
    PoolError,
    Settings,
    renamed,
)

GENERATION = re.compile(r"^[0-9a-f]{8,64}$")


def target_of(value: object) -> str:
    """new, previous, or the id of a generation."""
    text = str(value or "new").strip()
    if text in ("new", "previous") or GENERATION.match(text):
        return text
    raise PoolError(
        f"triton_pool_rollback_to {text!r} is no generation: give an id as the report shows it, or leave it empty for"
        " the previous one"
    )


class Fleet:
    """The hosts of the inventory's group, of which the play may have some only."""

    def __init__(self, variables: Mapping[str, Any], hosts: object = None, settings: object = None) -> None:
        self.hostvars: Mapping[str, Any] = variables.get("hostvars") or {}
        self.asked = [str(host) for host in variables.get("ansible_play_hosts_all") or []]
        self.alive = {str(host) for host in variables.get("ansible_play_hosts") or []}
        listed = [str(host) for host in hosts] if isinstance(hosts, (list, tuple)) else []
        self.hosts = list(dict.fromkeys([*(listed or self.asked), *self.asked]))
        # The role's values as its own host has them. What the inventory gives that host alone is no default of others.
        own = self.of(str(variables.get("inventory_hostname") or ""))
        given = settings if isinstance(settings, Mapping) else {}
        self.defaults = {
            **DEFAULTS,
            **{name: value for name, value in given.items() if name in DEFAULTS and name not in own},
        }

    def of(self, host: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.hostvars[host] if host in self.hostvars else {}
        return found

    def value(self, host: str, name: str, default: Any = None) -> Any:
        """A variable of a host; one whose expression cannot be worked out is an error that names both."""
        try:
            return self.of(host).get(name, default)
        except Exception as exc:
            raise PoolError(f"{host}: {name} cannot be worked out ({exc}): correct it") from exc

    def pool_of(self, host: str) -> str:
        name = str(self.value(host, "triton_pool") or POOL_DEFAULT)
        if not NAME.match(name):
            raise PoolError(f"{host}: triton_pool {name!r} is no name: use letters, digits, '_', '.' and '-'")
        return name

    def seen(self, host: str) -> Mapping[str, Any]:
        """What preflight has seen of the host; empty where it has not."""
        found = (self.value(host, "triton_serve_preflight") or {}).get("host")
        return found if isinstance(found, Mapping) else {}

    # --- what is wrong before any batch is laid out ---

    def renamed(self) -> list[str]:
        """Variables of earlier versions, which would be ignored now."""
        names = {str(name) for host in self.hosts for name in self.of(host) if str(name).startswith(OUTDATED)}
        return renamed(names)

    def agreement(self) -> list[str]:
        """A pool's variables that its hosts disagree on, with both values."""
        first: dict[str, str] = {}
        problems = []
        for host in self.hosts:
            pool = self.pool_of(host)
            other = first.setdefault(pool, host)
            for name in (*DEFAULTS, *AGREED):
                mine, theirs = (self.value(each, name, self.defaults.get(name)) for each in (host, other))
                if _plain(mine) != _plain(theirs):
                    problems.append(
                        f"pool {pool}: {name} is {_plain(theirs)} on {other} and {_plain(mine)} on {host}: a pool"
                        " has one value, set it in the pool's group_vars, or give the host another triton_pool"
                    )
        return problems

    def leases(self) -> list[str]:
        """Another run that is at work on any of the hosts keeps this one from all of them."""
        held: dict[str, list[str]] = {}
        for host in self.asked:
            lease = self.seen(host).get("lease")
            if isinstance(lease, Mapping) and lease.get("foreign"):
                held.setdefault(str(lease.get("message") or lease.get("who") or "another run"), []).append(host)
        return [
            f"{', '.join(hosts)}: in the hands of another run ({who}), so no host is touched: wait until it ends, or"
            " take over with -e triton_pool_take_over=true if it cannot come back"
            for who, hosts in held.items()
        ]

    def surges(self, pools: list[Pool]) -> list[str]:
        """Hosts on which a second server would find no GPUs, or no load balancer to take requests from the first."""
        problems = []
        for pool in pools:
            if pool.settings.strategy != "surge":
                continue
            for member in pool.members:
                problem = self._surge(member.name)
                if problem:
                    problems.append(
                        f"{member.name}: triton_pool_strategy surge {problem}; use in_place for pool {pool.name}"
                    )
        return problems

    def _surge(self, host: str) -> str:
        if str(self.value(host, "triton_serve_load_balancer") or "none") == "none":
            return "needs a load balancer that leads requests to the new server, and triton_serve_load_balancer is none"
        numbers = self.value(host, "triton_serve_gpu_device_ids")
        if numbers:
            # Each place sees GPUs of its own, numbered from 0.
            return f"cannot keep to triton_serve_gpu_device_ids {numbers}, which name one server's GPUs: leave it out"
        tensor, pipeline = (int(self.value(host, f"mixtral_engine_{name}_size") or 1) for name in ("tp", "pp"))
        gpu = self.seen(host).get("gpu") or self.value(host, "mixtral_engine_gpu") or {}
        there = gpu.get("count") if isinstance(gpu, Mapping) else None
        if there is None or 2 * tensor * pipeline <= int(there):
            return ""
        return (
            f"needs {2 * tensor * pipeline} GPUs for two servers (tp {tensor}, pp {pipeline}), and the host has {there}"
        )

    # --- the pools ---

    def pools(self, state: str, target: str) -> list[Pool]:
        """The pools in the inventory's order, their hosts as far as they are known."""
        found: dict[str, Pool] = {}
        for host in self.hosts:
            name = self.pool_of(host)
            if name not in found:
                try:
                    settings = Settings.of(
                        {each: self.value(host, each, self.defaults[each]) for each in self.defaults}
                    )
                except PoolError as exc:
                    raise PoolError(f"pool {name}: {exc}") from exc
                release = str(self.value(host, "trtllm_release") or "")
                found[name] = Pool(name, settings, [], release)
            found[name].members.append(Member(host) if state == "validated" else self._member(host, state, target))
        if state == "planned" and target == "previous":
            for pool in found.values():
                _undo_half(pool)
        return list(found.values())

    def _member(self, host: str, state: str, target: str) -> Member:
        if host not in self.asked:
            return Member(host, asked=False, needs=False)
        if host not in self.alive:
            return Member(host, lost=self._why_lost(host), up=False)
        seen = self.seen(host)
        current, unfinished = seen.get("current"), seen.get("unfinished")
        up = bool(current) and seen.get("ready") is not False and not unfinished
        member = Member(host, up=up, source=current)
        if state != "planned":
            return member
        member.target, member.why = self._wanted(host, seen, target)
        if not member.why and unfinished:
            member.why = "a rollout of it was not finished"
        member.needs = bool(member.why)
        return member

    def _why_lost(self, host: str) -> str:
        preflight = self.value(host, "triton_serve_preflight") or {}
        if preflight.get("failed") or preflight.get("unreachable"):
            return str(preflight.get("msg") or "unreachable").strip().splitlines()[0]
        return "unreachable" if not preflight else "failed or lost before the rollout"

    def _wanted(self, host: str, seen: Mapping[str, Any], target: str) -> tuple[str | None, str]:
        """The generation that the host shall serve, and why it must be touched for that; empty when it need not."""
        current, ready = seen.get("current"), seen.get("ready") is not False
        generation = self.value(host, "triton_serve_generation")
        if target == "new" and isinstance(generation, Mapping):
            wanted = generation.get("id") or None
            if not generation.get("serving"):
                guess = "does not serve" if wanted and wanted == current else "new generation"
                return wanted, str(generation.get("reason") or guess)
            engine = self.value(host, "docker_nvidia_engine") or {}
            return wanted, "Docker waits for a restart" if engine.get("restart_pending") else ""
        wanted = {"new": (seen.get("staged") or {}).get("id"), "previous": seen.get("previous")}.get(target, target)
        if wanted and (wanted != current or not ready):
            if wanted == current:
                return wanted, "does not serve"
            return wanted, {"new": "new generation", "previous": "back to what served before"}.get(target, "named")
        return wanted, ""

    def targets(self, pools: list[Pool], target: str) -> list[str]:
        """Hosts that do not have what they shall serve."""
        problems = []
        for member in (each for pool in pools for each in pool.members):
            if not member.asked or member.lost:
                continue
            seen = self.seen(member.name)
            there = seen.get("generations")
            if target == "new" and "triton_serve_generation" not in self.of(member.name) and not seen.get("staged"):
                problems.append(f"{member.name}: nothing is staged: run playbooks/prepare.yml, or site.yml, which does")
            elif target == "previous" and not seen.get("previous"):
                problems.append(
                    f"{member.name}: no generation served before: leave it out with --limit '!{member.name}', or name"
                    " one that it has with -e triton_pool_rollback_to=ID"
                )
            elif target not in ("new", "previous") and there is not None and target not in there:
                problems.append(
                    f"{member.name}: generation {target} is not on the host, which has {', '.join(there) or 'none'}:"
                    f" name one of these, or leave the host out with --limit '!{member.name}'"
                )
        return problems


def _undo_half(pool: Pool) -> None:
    """A rollout that stopped half-way is undone: a host that serves what the others go back to stays as it is."""
    back = {each.target for each in pool.members if each.asked and not each.lost and each.target != each.source}
    goes_back = {each.name: each.target for each in pool.members if each.needs and each.asked and not each.lost}
    for member in pool.members:
        if member.name in goes_back and member.up and member.source in back:
            member.needs, member.why, member.target = False, "", member.source


def _plain(value: object) -> str:
    """The value as it is compared and shown: 1 from the command line is a text."""
    return str(value) if not isinstance(value, (list, tuple)) else "[%s]" % ", ".join(str(each) for each in value)
