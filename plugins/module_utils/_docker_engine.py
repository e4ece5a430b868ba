# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at a host's Docker Engine and NVIDIA Container Toolkit: what is there, and what is left to do.

Changes nothing. Private to the collection.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _docker_engine_api as api
from ansible_collections.trtllm.serving.plugins.module_utils._daemon_config import (
    ConfigError,
    hide_secrets,
    merge,
    parse,
)
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import Engine, EngineError, run
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_host import ETC_CDI, RUN_CDI, Host
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_host import count_holdings as holdings
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_packages import (
    DEBIAN,
    IN_THE_WAY,
    TOOLKIT,
    PackageError,
    Packages,
    Plan,
    System,
    describe_conflicts,
    find_conflicts,
    judge_system,
    number,
    parse_os_release,
    plan,
    wanted_engine,
    wanted_toolkit,
)

# CDI came to dockerd with 25.0, behind features.cdi, and is on by default since 28.2. It is set up when dockerd
# starts, so that features.cdi needs a restart, while the runtime below only needs a reload.
CDI_SINCE = (25, 0)
CDI_DEFAULT = (28, 2)
# nvidia-ctk writes CDI specifications since then.
CDI_TOOLKIT = (1, 12)
# The key "proxies" of daemon.json.
PROXIES_SINCE = (23, 0)
# Since then a new engine keeps images in containerd's store, /var/lib/containerd, which data-root does not move.
SNAPSHOTTER_SINCE = (29, 0)
# What `nvidia-ctk runtime configure --runtime=docker` writes.
RUNTIME = {"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}
DATA_ROOT = "/var/lib/docker"
DROP_IN = "/etc/systemd/system/docker.service.d/trtllm.conf"


@dataclass
class Wish:
    """What the role is asked for."""

    source: str = "none"
    toolkit: str = "none"
    executable: str = "docker"
    minimum_version: str = "19.03"
    device_policy: str = "auto"
    versions: Mapping[str, str] = field(default_factory=dict)
    engine_packages: Sequence[str] = ()
    toolkit_packages: Sequence[str] = ()
    repositories: Sequence[str] = ()
    data_root: str = ""
    config_path: str = "/etc/docker/daemon.json"
    proxies: bool = False
    remove_conflicts: bool = False
    allow_unsupported: bool = False
    disruptive: bool = False
    socket: str = api.SOCKET
    pid_file: str = api.PID_FILE
    marker: str = api.MARKER

    @property
    def installs_engine(self) -> bool:
        return self.source in ("docker-ce", "distribution")

    @property
    def installs_toolkit(self) -> bool:
        return self.toolkit in ("stable", "experimental")


@dataclass
class Finding:
    """What was found, and what follows from it."""

    engine: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def decide_policy(asked: str, version: str, cdi_enabled: bool | None, toolkit: str) -> tuple[str, str]:
    """(policy, what is wrong with it). CDI where the engine has it by default, else the runtime."""
    engine = number(version)
    if asked == "cdi" and engine and engine < CDI_SINCE:
        return asked, (
            "device policy cdi needs Docker Engine %d.%d, here is %s: set docker_nvidia_device_policy to runtime"
            % (*CDI_SINCE, version)
        )
    if asked == "cdi" and toolkit and number(toolkit) < CDI_TOOLKIT:
        return asked, (
            "device policy cdi needs NVIDIA Container Toolkit %d.%d, here is %s: take a newer one, or set"
            " docker_nvidia_device_policy to runtime" % (*CDI_TOOLKIT, toolkit)
        )
    if asked != "auto":
        return asked, ""
    able = engine >= CDI_DEFAULT and cdi_enabled is not False
    return ("cdi" if able and (not toolkit or number(toolkit) >= CDI_TOOLKIT) else "runtime"), ""


def policy_config(policy: str, version: str, cdi_enabled: bool | None) -> dict[str, Any]:
    """The keys of daemon.json that a policy needs."""
    if policy == "runtime":
        return dict(RUNTIME)
    if policy == "cdi" and (number(version) < CDI_DEFAULT or cdi_enabled is False):
        return {"features": {"cdi": True}}
    return {}


def drop_in_text(data_root: str, proxy_file: bool) -> str:
    """What docker.service must know beside its own unit."""
    lines = ["# Written by the role trtllm.serving.docker_nvidia."]
    if data_root:
        lines += ["[Unit]", "# Without its disk the engine would begin a new, empty data-root on the boot volume.",
                  "RequiresMountsFor=%s" % data_root]  # fmt: skip
    if proxy_file:
        lines += ["[Service]", "EnvironmentFile=/etc/docker/trtllm-proxy.env"]
    return "\n".join(lines) + "\n" if len(lines) > 1 else ""


class Survey:
    """One host, seen once."""

    def __init__(self, wish: Wish, host: Host, command: Callable[[Sequence[str]], api.Done] = run) -> None:
        self.wish = wish
        self.host = host
        self.command = command
        self.system: System = parse_os_release(host.read("/etc/os-release"))
        self.packages = Packages(self.system, command)
        self.finding = Finding()
        self.process = api.process(wish.pid_file)
        self.unit = api.unit()
        self.info: dict[str, Any] = {}
        self.volumes = 0
        self.client_version = ""
        self.installed: dict[str, str] = {}

    def problem(self, text: str) -> None:
        if text and text not in self.finding.problems:
            self.finding.problems.append(text)

    def hint(self, text: str) -> None:
        if text:
            self.finding.hints.append(text)

    def look(self) -> Finding:
        wish = self.wish
        if wish.source == "existing":
            self.problem(self.ask_client())
        if self.process is not None:
            self.ask_engine()
        version = str(self.info.get("ServerVersion") or "")
        engine, toolkit = Plan(), Plan()
        remove: list[str] = []
        try:
            engine, toolkit, remove = self.look_at_packages()
        except PackageError as exc:
            self.problem(str(exc))
        version = version or self.client_version or self.installed_version() or wish.versions.get("engine", "")
        ctk = self.toolkit_version()
        policy, config, cdi = self.look_at_devices(version, ctk)
        config = merge(config, self.look_at_data_root(version))
        running = int(self.info.get("ContainersRunning") or 0) + int(self.info.get("ContainersPaused") or 0)
        deferred = bool(engine.changes) and running > 0 and not wish.disruptive
        pending = api.reasons_of(api.read_pending(wish.marker, self.process))
        self.hint(self.host.growth_hint())
        proxy_file = wish.proxies and bool(number(version)) and number(version) < PROXIES_SINCE
        drop_in = drop_in_text(wish.data_root, proxy_file) if api.systemd() else ""
        installs = wish.installs_engine
        self.finding.engine = {
            "system": {"id": self.system.id, "family": self.system.family, "version": self.system.version,
                       "major": self.system.major, "codename": self.system.codename, "name": self.system.name,
                       "architecture": os.uname().machine},
            "python": self.package_python(),
            "deb822": self.has_deb822(),
            "packages": self.installed,
            "version": version,
            "running": self.process is not None,
            "containers_running": running,
            "live_restore": bool(self.info.get("LiveRestoreEnabled")),
            "data_root": self.data_root(),
            "command_line": [hide_secrets(word) for word in api.command_line(self.process, self.unit)],
            "runtimes": sorted(self.info.get("Runtimes") or {}),
            "toolkit_version": ctk,
            "device_policy": policy,
            "cdi": cdi,
            "config": config,
            "proxies": "unit" if proxy_file else "file",
            "restart_pending": bool(pending),
            "reasons": pending,
            "install": {
                "engine": [] if deferred else engine.packages,
                "toolkit": toolkit.packages,
                "remove": remove,
                "new_toolkit": bool(toolkit.names) and not toolkit.changes and self.process is not None,
                # Other versions of an engine with running containers wait until the host is drained.
                "changes": engine.changes if deferred else [],
            },
            "drop_in": drop_in if drop_in and self.host.read(DROP_IN) != drop_in else "",
            "start": installs and api.systemd() and not (self.unit.enabled and self.unit.active),
        }  # fmt: skip
        if installs and not api.systemd():
            self.problem(
                "systemd does not run here, and it is what starts Docker Engine: start that yourself, and set"
                " docker_nvidia_docker_source to existing"
            )  # fmt: skip
        return self.finding

    # --- the engine -----------------------------------------------------------------------------------------------

    def ask_client(self) -> str:
        """What is wrong with the engine that is there already, as its own client says."""
        wish = self.wish
        done = self.command([wish.executable, "version", "--format", "{{ .Server.Version }}"])
        said = done.out.strip()
        if done.rc == 0 and number(said) >= number(wish.minimum_version):
            self.client_version = said
            return ""
        return (
            "Docker Engine: '%s version' said '%s', wanted is a server of version %s or newer; install or start it, or"
            " set docker_nvidia_docker_source to none"
            % (wish.executable, " ".join((done.err.strip() or said or "nothing").split()), wish.minimum_version)
        )  # fmt: skip

    def ask_engine(self) -> None:
        engine = Engine(self.wish.socket)
        try:
            self.info = engine.info()
            if self.wish.data_root and os.path.realpath(self.wish.data_root) != self.data_root():
                self.volumes = len(engine.get("/volumes").get("Volumes") or [])
        except EngineError as exc:
            self.problem(str(exc))

    def installed_version(self) -> str:
        """Of the package, where the engine itself does not run."""
        for name in ("docker-ce", "docker.io", *self.wish.engine_packages):
            if name in self.installed:
                return self.installed[name].rpartition(":")[2]
        return ""

    def data_root(self) -> str:
        """Where the engine keeps its data, or will when it starts."""
        configured = ""
        if not self.info:
            # A broken file is judged where it would be changed.
            with contextlib.suppress(ConfigError):
                configured = str(parse(self.host.read(self.wish.config_path), "").get("data-root") or "")
        return os.path.realpath(str(self.info.get("DockerRootDir") or configured or DATA_ROOT))

    # --- packages -------------------------------------------------------------------------------------------------

    def look_at_packages(self) -> tuple[Plan, Plan, list[str]]:
        wish = self.wish
        if not (wish.installs_engine or wish.installs_toolkit):
            return Plan(), Plan(), []
        bad = judge_system(self.system, wish.allow_unsupported)
        if bad:
            raise PackageError(bad)
        engine: dict[str, str] = {}
        toolkit: dict[str, str] = {}
        if wish.installs_engine:
            engine = wanted_engine(wish.source, self.system, wish.versions, wish.engine_packages)
        if wish.installs_toolkit:
            toolkit = wanted_toolkit(self.system, wish.versions.get("toolkit", ""), wish.toolkit_packages)
        rivals = IN_THE_WAY.get((wish.source, self.system.family), ())
        self.installed = self.packages.installed([*engine, *toolkit, *rivals])
        engine_plan = plan(engine, self.installed, self.packages)
        remove: list[str] = []
        if set(engine_plan.names) - set(self.installed):
            users = self.host.container_users()
            found = find_conflicts(wish.source, self.packages, self.installed, users)
            self.problem(describe_conflicts(found, wish.remove_conflicts))
            remove = [each.name for each in found]
        toolkit_plan = plan(toolkit, self.installed, self.packages)
        if engine_plan.packages or toolkit_plan.packages:
            self.problem(self.host.second_source(wish.repositories))
        return engine_plan, toolkit_plan, remove

    def package_python(self) -> str:
        """A Python that has the package manager's bindings: Ansible's own modules for packages need it."""
        name = "apt" if self.system.family == DEBIAN else "dnf"
        if importlib.util.find_spec(name) is not None:
            return sys.executable
        # Oracle Linux 8 has them for its platform Python alone.
        known = ("/usr/libexec/platform-python", "/usr/bin/python3")
        return next((each for each in known if os.path.exists(each)), sys.executable)

    def has_deb822(self) -> bool:
        """Whether that Python has what deb822_repository needs."""
        return self.host.exists("/usr/lib/python3/dist-packages/debian/deb822.py")

    # --- GPUs -----------------------------------------------------------------------------------------------------

    def toolkit_version(self) -> str:
        if self.wish.toolkit == "none":
            return ""
        if TOOLKIT in self.installed:
            return self.installed[TOOLKIT].rpartition(":")[2].partition("-")[0]
        done = self.command(["nvidia-ctk", "--version"])
        found = done.out.split("version", 1)[-1].split() if done.rc == 0 else []
        return found[0].strip(":") if found else ""

    def look_at_devices(self, version: str, ctk: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The policy, the keys that it needs, and what is to be done for CDI."""
        wish = self.wish
        if wish.toolkit == "none":
            return "none", {}, {"generate": False}
        if wish.toolkit == "existing" and not ctk and not self.client_of_toolkit():
            self.problem(
                "NVIDIA Container Toolkit: there is no nvidia-ctk on the PATH: install it, or set"
                " docker_nvidia_toolkit to stable"
            )  # fmt: skip
        enabled = bool(self.info.get("CDISpecDirs")) if self.info and number(version) >= CDI_SINCE else None
        # Where nothing is installed yet, the newest engine of Docker's repository comes.
        expected = version or ("99" if wish.source == "docker-ce" else "")
        policy, bad = decide_policy(wish.device_policy, expected, enabled, ctk)
        self.problem(bad)
        signature = self.host.signature(ctk)
        there = self.host.cdi_specification()
        current = there == RUN_CDI or (there == ETC_CDI and self.host.read(ETC_CDI + ".made-from").strip() == signature)
        if policy == "cdi" and not signature:
            self.hint("the NVIDIA driver is not loaded, so that no CDI specification of the GPUs can be made")
        cdi = {
            "enabled": bool(enabled),
            "specification": there,
            "signature": signature,
            "generate": policy == "cdi" and bool(signature and version) and not current,
        }
        return policy, policy_config(policy, expected, enabled), cdi

    def client_of_toolkit(self) -> bool:
        return shutil.which("nvidia-ctk") is not None

    # --- data-root ------------------------------------------------------------------------------------------------

    def look_at_data_root(self, version: str) -> dict[str, Any]:
        """The keys that the wanted data-root needs; a problem when there is something to lose."""
        wanted = self.wish.data_root
        if not wanted:
            return {}
        config: dict[str, Any] = {"data-root": wanted}
        snapshotter = any("io.containerd.snapshotter" in str(entry) for entry in self.info.get("DriverStatus") or [])
        images = int(self.info.get("Images") or 0)
        if snapshotter and images:
            self.hint(
                "the engine keeps its images in containerd's store, /var/lib/containerd, which"
                " docker_nvidia_data_root does not move"
            )
        elif not version or number(version) >= SNAPSHOTTER_SINCE:
            config["features"] = {"containerd-snapshotter": False}
        old = self.data_root()
        if os.path.realpath(wanted) == old:
            return config
        if self.info:
            held = holdings(images, int(self.info.get("Containers") or 0), self.volumes)
        else:
            held = self.host.holdings(old)
        if held:
            self.problem(
                "docker_nvidia_data_root is %s, and the present one, %s, holds %s: nothing is moved; remove them"
                " (docker system prune --all --volumes), move the directory yourself, or set the old path"
                % (wanted, old, ", ".join(held))
            )
        return config
