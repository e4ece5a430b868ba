# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of Docker Engine and of the NVIDIA Container Toolkit: what is there, what is missing, what is in the way.

Only asks the package manager, never changes anything. Private to the collection.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import Done

Run = Callable[[Sequence[str]], Done]

DEBIAN = "debian"
REDHAT = "redhat"

SUPPORTED = {
    "ol": ("Oracle Linux", ("8", "9")),
    "rhel": ("Red Hat Enterprise Linux", ("9",)),
    "almalinux": ("AlmaLinux", ("9",)),
    "rocky": ("Rocky Linux", ("9",)),
    "centos": ("CentOS Stream", ("9",)),
    "ubuntu": ("Ubuntu", ("22.04", "24.04")),
    "debian": ("Debian", ("12",)),
}

# kind: package, in the order in which they are named to the package manager.
ENGINES: dict[tuple[str, str], dict[str, str]] = {
    ("docker-ce", family): {
        "engine": "docker-ce",
        "cli": "docker-ce-cli",
        "containerd": "containerd.io",
        "buildx": "docker-buildx-plugin",
    }
    for family in (DEBIAN, REDHAT)
}
ENGINES["distribution", "debian"] = {"engine": "docker.io", "containerd": "containerd"}
ENGINES["distribution", "ubuntu"] = {"engine": "docker.io", "containerd": "containerd", "buildx": "docker-buildx"}

TOOLKIT = "nvidia-container-toolkit"
# apt takes the newest of each unless told otherwise, and the toolkit wants all of them in its own version.
TOOLKIT_PARTS = ("nvidia-container-toolkit-base", "libnvidia-container-tools", "libnvidia-container1")

# What keeps docker-ce and containerd.io out by its files or its Conflicts; podman and buildah only go along.
IN_THE_WAY: dict[tuple[str, str], tuple[str, ...]] = {
    ("docker-ce", DEBIAN): (
        "docker.io", "docker-engine", "docker-buildx", "docker-compose-v2",
        "podman-docker", "containerd", "runc",
    ),
    ("docker-ce", REDHAT): (
        "docker", "docker-client", "docker-client-latest", "docker-common", "docker-engine", "docker-engine-selinux",
        "docker-latest", "docker-latest-logrotate", "docker-logrotate", "docker-selinux", "podman-docker", "containerd",
        "runc",
    ),
    ("distribution", DEBIAN): ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "podman-docker"),
}  # fmt: skip


class PackageError(Exception):
    """One line that says what is wrong with a package, and what to do."""


@dataclass(frozen=True)
class System:
    """What /etc/os-release says."""

    id: str = ""
    like: tuple[str, ...] = ()
    version: str = ""
    codename: str = ""
    name: str = ""

    @property
    def major(self) -> str:
        return self.version.partition(".")[0]

    @property
    def family(self) -> str:
        names = {self.id, *self.like}
        if names & {"debian", "ubuntu"}:
            return DEBIAN
        return REDHAT if names & {"rhel", "fedora", "centos", "ol"} else ""


def parse_os_release(text: str) -> System:
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals:
            found[name] = value.strip("\"'")
    return System(
        id=found.get("ID", ""),
        like=tuple(found.get("ID_LIKE", "").split()),
        version=found.get("VERSION_ID", ""),
        codename=found.get("VERSION_CODENAME", ""),
        name=found.get("PRETTY_NAME", "") or found.get("NAME", ""),
    )


def supported_list() -> str:
    return ", ".join("%s %s" % (name, " and ".join(versions)) for name, versions in SUPPORTED.values())


def judge_system(system: System, allowed: bool) -> str:
    """What is wrong with this operating system for an installation; the empty string when nothing is."""
    versions = SUPPORTED.get(system.id, ("", ()))[1]
    if system.version in versions or system.major in versions:
        return ""
    if allowed and system.family:
        return ""
    remedy = "set docker_nvidia_allow_unsupported_os to try it nevertheless" if system.family else (
        "install Docker by hand and set docker_nvidia_docker_source to existing")  # fmt: skip
    return "%s is not one of the systems on which packages are installed (%s): %s" % (
        system.name or "the operating system", supported_list(), remedy,
    )  # fmt: skip


# --- versions -----------------------------------------------------------------------------------------------------


def matches(pin: str, version: str) -> bool:
    """Whether a version of a package is the one that was asked for, with or without epoch and revision."""
    if not pin:
        return True
    bare = version.partition(":")[2] if ":" in version else version
    upstream = re.split(r"[-~+]", bare, maxsplit=1)[0]
    known = {version, bare, upstream, bare.rpartition("-")[0] or bare}
    return pin in known or ("*" in pin and any(fnmatch.fnmatchcase(each, pin) for each in known))


def number(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, epoch left out."""
    bare = version.partition(":")[2] if ":" in version else version
    found = re.match(r"\d+(?:\.\d+)*", bare.strip().lstrip("v"))
    return tuple(int(part) for part in found.group(0).split(".")) if found else ()


# --- what is there ------------------------------------------------------------------------------------------------


class Packages:
    """The package manager's word."""

    def __init__(self, system: System, run: Run) -> None:
        self.system = system
        self.run = run

    def installed(self, names: Iterable[str]) -> dict[str, str]:
        """Versions of those that are installed."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        if self.system.family == DEBIAN:
            shown = self.run(["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${db:Status-Status}\n", *wanted])
            rows = [line.split("\t") for line in shown.out.splitlines()]
            return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}
        shown = self.run(["rpm", "-q", "--qf", "%{NAME}\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\n", *wanted])
        if shown.rc in (126, 127):
            raise PackageError("%s: rpm cannot be run: %s" % (self.system.name, shown.said))
        rows = [line.split("\t") for line in shown.out.splitlines()]
        return {row[0]: re.sub(r"^0:", "", row[1]) for row in rows if len(row) == 2}

    def removed_with(self, names: Sequence[str]) -> list[str]:
        """Everything that goes when these go, they themselves first."""
        if self.system.family == DEBIAN:
            shown = self.run(["apt-get", "-s", "-q", "-o", "Debug::NoLocking=1", "remove", *names])
            found = re.findall(r"(?m)^(?:Remv|Purg) (\S+)", shown.out)
            return [*names, *(name for name in found if name not in names)]
        result = list(names)
        while True:
            shown = self.run(["rpm", "-e", "--test", *result])
            needing = re.findall(r"is needed by \(installed\) (\S+)", shown.out + shown.err)
            further = sorted({_rpm_name(each) for each in needing} - set(result))
            if not further:
                return result
            result += further

    def candidates(self, name: str) -> list[str]:
        """Versions that apt could install, the newest first."""
        shown = self.run(["apt-cache", "madison", name])
        return [parts[1].strip() for parts in (line.split("|") for line in shown.out.splitlines()) if len(parts) >= 2]


def _rpm_name(nevra: str) -> str:
    """The name in NAME-[EPOCH:]VERSION-RELEASE.ARCH."""
    return nevra.rsplit("-", 2)[0]


# --- what is to be done -------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What an installation consists of; nothing in it when everything is there."""

    packages: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    # installed ones that get another version: NAME FROM -> TO
    changes: list[str] = field(default_factory=list)


def wanted_engine(source: str, system: System, pins: Mapping[str, str], override: Sequence[str]) -> dict[str, str]:
    """Package: pin of the engine's packages."""
    if override:
        return {name: pins.get("engine", "") if place == 0 else "" for place, name in enumerate(override)}
    kinds = ENGINES.get((source, system.id)) or ENGINES.get((source, system.family))
    if kinds is None:
        raise PackageError(
            "%s has no Docker Engine among its own packages: set docker_nvidia_docker_source to docker-ce, or"
            " docker_nvidia_engine_packages to the packages of yours" % (system.name or "this system")
        )
    # One pin for the engine is enough: its client is of the same release.
    known = {**pins, "cli": pins.get("cli") or pins.get("engine", "")}
    return {name: known.get(kind, "") for kind, name in kinds.items()}


def wanted_toolkit(system: System, pin: str, override: Sequence[str]) -> dict[str, str]:
    if override:
        return dict.fromkeys(override, pin)
    parts = TOOLKIT_PARTS if pin and system.family == DEBIAN else ()
    return dict.fromkeys((TOOLKIT, *parts), pin)


def plan(wanted: Mapping[str, str], installed: Mapping[str, str], packages: Packages) -> Plan:
    """What must be installed so that each is there in its version."""
    result = Plan()
    for name, pin in wanted.items():
        there = installed.get(name)
        if there is not None and matches(pin, there):
            continue
        result.names.append(name)
        result.packages.append(spec(name, pin, packages))
        if there is not None:
            result.changes.append("%s %s -> %s" % (name, there, pin))
    return result


def spec(name: str, pin: str, packages: Packages) -> str:
    """The package with its version, as apt and dnf take it."""
    if not pin:
        return name
    if packages.system.family == REDHAT:
        return "%s-%s" % (name, pin)
    exact = next((each for each in packages.candidates(name) if matches(pin, each)), pin)
    return "%s=%s" % (name, exact)


@dataclass(frozen=True)
class Conflict:
    """A package that is in the way, what goes with it, and what uses it now."""

    name: str
    version: str
    removes: tuple[str, ...] = ()
    used_by: tuple[str, ...] = ()


def find_conflicts(
    source: str, packages: Packages, installed: Mapping[str, str], users: Mapping[str, Sequence[str]]
) -> list[Conflict]:
    """Installed packages that keep the engine's out, each with its users."""
    names = [name for name in IN_THE_WAY.get((source, packages.system.family), ()) if name in installed]
    if not names:
        return []
    everything = packages.removed_with(names)
    further = [name for name in everything if name not in names]
    known = {**installed, **packages.installed(further)}
    result = []
    for name in everything:
        used = [user for kind, processes in users.items() if _concerns(kind, name) for user in processes]
        result.append(Conflict(name, known.get(name, ""), () if name in names else ("runc",), tuple(used)))
    return result


def _concerns(kind: str, package: str) -> bool:
    """Whether a running container of this kind would be lost with the package."""
    needed = {
        "podman": ("podman", "buildah", "runc", "crun", "conmon", "podman-docker", "containers-common"),
        "containerd": ("containerd", "containerd.io", "runc"),
        "docker": ("docker", "docker.io", "docker-engine", "docker-ce", "docker-common", "docker-latest", "containerd",
                   "containerd.io", "runc"),
    }  # fmt: skip
    return package in needed.get(kind, ())


def describe_conflicts(found: Sequence[Conflict], allowed: bool) -> str:
    """Why they cannot be removed now; the empty string when they can."""
    used = [each for each in found if each.used_by]
    if not found or (allowed and not used):
        return ""
    listed = ", ".join(
        "%s %s (%s)" % (each.name, each.version, "in use by %s" % ", ".join(each.used_by) if each.used_by else "unused")
        for each in found
    )
    if used:
        remedy = "stop what uses them, and run again" + (
            "" if allowed else " with docker_nvidia_remove_conflicts set to true"
        )
    else:
        remedy = "remove them, or set docker_nvidia_remove_conflicts to true to have exactly these removed"
    return "packages are in the way of Docker's: %s: %s" % (listed, remedy)
