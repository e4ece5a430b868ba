# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong with the settings of a host's rollout, before any host is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.mod_args import ModuleArgsParser

HOOKS = ("before_drain", "after_drain", "before_undrain", "after_rollout")
BALANCERS = ("none", "haproxy")
EXPIRED = ("fail", "continue")
HAPROXY = {"host", "socket", "backend", "server", "state_file", "min_up"}
BLOCKS = ("block", "rescue", "always")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _tasks(tasks: object, where: str) -> list[str]:
    """What keeps a list of tasks from being run: read too late it would end the run in the middle of a batch."""
    if not isinstance(tasks, (list, tuple)):
        return ["%s is not a list of tasks: write one as for include_tasks" % where]
    problems: list[str] = []
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, Mapping):
            problems.append("%s: task %d is no task: give it a name and a module" % (where, number))
        elif any(name in task for name in BLOCKS):
            problems += [line for name in BLOCKS if name in task for line in _tasks(task[name], where)]
        else:
            try:
                ModuleArgsParser(task).parse()
            except AnsibleError as exc:
                problems.append("%s: task %d: %s" % (where, number, _one_line(getattr(exc, "message", exc))))
    return problems


def hook_problems(hooks: object) -> list[str]:
    """One line for each hook that could not be run."""
    if not isinstance(hooks, Mapping):
        return ["triton_serve_hooks is %r: give a task file for each of %s" % (hooks, ", ".join(HOOKS))]
    problems = []
    for name, path in hooks.items():
        if name not in HOOKS:
            problems.append("triton_serve_hooks has '%s', which is not known: use %s" % (name, ", ".join(HOOKS)))
        elif not os.path.isabs(str(path)):
            problems.append(
                "triton_serve_hooks.%s '%s' is not absolute: write it as {{ inventory_dir }}/%s" % (name, path, path)
            )
        elif not os.path.isfile(str(path)):
            problems.append("triton_serve_hooks.%s '%s' is not a file of the controller: correct it" % (name, path))
        else:
            where = "triton_serve_hooks.%s '%s'" % (name, path)
            try:
                problems += _tasks(DataLoader().load_from_file(str(path), cache="none"), where)
            except AnsibleError as exc:
                problems.append("%s cannot be read: %s" % (where, _one_line(getattr(exc, "message", exc))))
    return problems


def haproxy_problems(balancers: object, hosts: Iterable[str]) -> list[str]:
    """One line for each balancer that could not be asked."""
    if not isinstance(balancers, (list, tuple)) or not balancers:
        return [
            "triton_serve_load_balancer is haproxy, and triton_serve_haproxy is %r: give a list with the host of each"
            " HAProxy" % (balancers,)
        ]
    problems = []
    known = set(hosts)
    for number, each in enumerate(balancers, 1):
        where = "triton_serve_haproxy, entry %d" % number
        if not isinstance(each, Mapping) or not each.get("host"):
            problems.append("%s, %r, has no host: name the machine of the inventory that talks to it" % (where, each))
            continue
        if known and each["host"] not in known:
            problems.append("%s: host '%s' is not in the inventory: correct the name" % (where, each["host"]))
        problems += [
            "%s has '%s', which is not known: use %s" % (where, name, ", ".join(sorted(HAPROXY)))
            for name in each
            if name not in HAPROXY
        ]
        if not str(each.get("min_up", 0)).isdecimal():
            problems.append("%s: min_up %r is no number of servers: give one of 0 or more" % (where, each["min_up"]))
    return problems


def rollout_problems(settings: Mapping[str, Any]) -> list[str]:
    """One line for each setting of triton_serve with which a host could not be rolled out."""
    problems: list[str] = []
    balancer = str(settings.get("load_balancer", "none"))
    if balancer not in BALANCERS:
        problems.append("triton_serve_load_balancer '%s' is not known: use %s" % (balancer, " or ".join(BALANCERS)))
    if balancer == "haproxy":
        problems += haproxy_problems(settings.get("haproxy"), settings.get("hosts") or ())
    if settings.get("drain_expired", "fail") not in EXPIRED:
        problems.append(
            "triton_serve_drain_expired '%s' is not known: use %s" % (settings["drain_expired"], " or ".join(EXPIRED))
        )
    try:
        timeout = int(str(settings.get("drain_timeout", 0)))
    except ValueError:
        timeout = -1
    if timeout < 0:
        problems.append(
            "triton_serve_drain_timeout %r is no number of seconds: give one of 0 or more" % settings["drain_timeout"]
        )
    return problems + hook_problems(settings.get("hooks") or {})


class FilterModule:
    """Filters of this collection for rollouts."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"rollout_problems": rollout_problems}
