# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's Docker Engine says of itself, asked over its socket with the standard library alone.

Private to the collection.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import SOCKET, EngineError
from ansible_collections.trtllm.serving.plugins.module_utils._docker_engine_api import Engine as Api
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import Finding, error, warning
from ansible_collections.trtllm.serving.plugins.module_utils._server_state import active_slot

# First engine with GPU requests.
MINIMUM = (19, 3)
# First engine that has CDI switched on, and the first that knows it at all.
CDI_DEFAULT, CDI_KNOWN = (28, 2), (25, 0)
CDI_SPECS = ("/etc/cdi", "/var/run/cdi")
LABEL = "trtllm.serving"


@dataclass(frozen=True)
class Engine:
    """The engine as it is now; installed and not reachable, or neither, before the role docker_nvidia has run."""

    installed: bool = False
    problem: str = ""
    name: str = ""
    version: str = ""
    cgroup_driver: str = ""
    runtimes: List[str] = field(default_factory=list)
    cdi: bool = False
    selinux: bool = False
    data_root: str = ""
    image_present: bool = False
    # Ours of this home: ids of all, and ports and generation of the server that runs.
    containers: List[str] = field(default_factory=list)
    ports: List[int] = field(default_factory=list)
    generation: Optional[str] = None

    @property
    def reachable(self) -> bool:
        return bool(self.version)


def socket_path() -> str:
    named = os.environ.get("DOCKER_HOST", "")
    return named[len("unix://") :] if named.startswith("unix://") else SOCKET


def cdi_specs() -> bool:
    """Whether a CDI specification of NVIDIA's GPUs is there."""
    for directory in CDI_SPECS:
        for path in glob.glob(os.path.join(directory, "*.yaml")) + glob.glob(os.path.join(directory, "*.json")):
            try:
                with open(path, encoding="utf-8", errors="replace") as stream:
                    if re.search(r"kind[\"']?\s*:\s*[\"']?nvidia\.com/gpu", stream.read(65536)):
                        return True
            except OSError:
                continue
    return False


def numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _cdi_on(info: Dict[str, Any], version: str) -> bool:
    # Engines before 28.2 say their directories only where the feature is on.
    return bool(info.get("CDISpecDirs")) and numbers(version) >= CDI_KNOWN and cdi_specs()


def look(home: str, image: str = "", socket_file: str = "", timeout: float = 20) -> Engine:
    """The engine of this host; one that does not answer is told as a problem, not raised."""
    path = socket_file or socket_path()
    installed = shutil.which("dockerd") is not None
    if not os.path.exists(path):
        return Engine(installed=installed)
    try:
        return _look(home, image, Api(path, timeout))
    except (EngineError, OSError, ValueError) as exc:
        return Engine(installed=installed, problem=str(exc))


def _has_image(api: Api, image: str) -> bool:
    """Whether an image is there, by its name or by the same name of another registry, as a mirror leaves it."""
    name = image.rpartition("/")[2]
    tags = [str(tag) for entry in api.get("/images/json") or [] for tag in entry.get("RepoTags") or []]
    return bool(image) and any(tag == image or tag.rpartition("/")[2] == name for tag in tags)


def _look(home: str, image: str, api: Api) -> Engine:
    version, info = api.get("/version"), api.get("/info")
    wanted = urllib.parse.quote(json.dumps({"label": ["%s.home=%s" % (LABEL, home)]}))
    listed = api.get("/containers/json?all=1&filters=" + wanted)
    if not isinstance(version, dict) or not isinstance(info, dict) or not isinstance(listed, list):
        raise ValueError("this is no Docker Engine")
    running = [
        entry
        for entry in listed
        if entry.get("State") == "running" and (entry.get("Labels") or {}).get(LABEL + ".role") == "server"
    ]
    names = [str(part.get("Name", "")) for part in version.get("Components") or []]
    # Of two servers, as a surge has them, the one in the active slot is the host's.
    slot = active_slot(Path(home))
    active = [entry["Labels"] for entry in running if entry["Labels"].get(LABEL + ".slot", "a") == slot]
    return Engine(
        installed=True,
        name="Podman" if any("podman" in name.lower() for name in names) else "Docker",
        version=str(version.get("Version", "")),
        cgroup_driver=str(info.get("CgroupDriver", "")),
        runtimes=sorted(info.get("Runtimes") or {}),
        cdi=_cdi_on(info, str(version.get("Version", ""))),
        selinux=any("selinux" in str(option) for option in info.get("SecurityOptions") or []),
        data_root=str(info.get("DockerRootDir") or ""),
        image_present=_has_image(api, image),
        containers=[str(entry.get("Id", "")) for entry in listed],
        ports=sorted(
            {
                int(port["PublicPort"])
                for entry in running
                for port in entry.get("Ports") or []
                if isinstance(port, dict) and port.get("PublicPort")
            }
        ),
        generation=next((labels.get(LABEL + ".generation") for labels in active), None),
    )


def judge(engine: Engine, home: str, managed: bool, toolkit: bool, policy: str, gpus: bool) -> List[Finding]:
    """What is wrong with the engine; what docker_nvidia is about to install (managed, toolkit) is no error."""
    findings: List[Finding] = []
    install = "install Docker, or let the role docker_nvidia do it (docker_nvidia_docker_source: docker-ce)"
    if not engine.reachable:
        if engine.problem or engine.installed:
            make = warning if managed else error
            what, seen = "the Docker daemon does not answer", engine.problem or "there is no %s" % socket_path()
            remedy = "systemctl status docker, journalctl -u docker, and start it; run as root (become)"
            findings.append(make("docker", what, seen, remedy))
        elif not managed:
            findings.append(error("docker", "there is no Docker Engine", "no %s" % socket_path(), install))
        return findings
    if engine.name == "Podman":
        remedy = "remove podman-docker, or let the role docker_nvidia do it"
        seen = "version %s" % engine.version
        make = warning if managed else error
        findings.append(make("docker", "the Docker socket is Podman's, which has no GPU requests", seen, remedy))
    elif numbers(engine.version) < MINIMUM:
        seen = "version %s, %d.%02d is needed" % (engine.version, *MINIMUM)
        make = warning if managed else error
        findings.append(make("docker_version", "the Docker Engine is too old", seen, "update it; " + install))
    if gpus and not toolkit and not engine.cdi and not any("nvidia" in name for name in engine.runtimes):
        findings.append(
            error(
                "docker_gpu",
                "Docker has neither the NVIDIA runtime nor a CDI specification of the GPUs",
                "runtimes %s" % ", ".join(engine.runtimes),
                "install the NVIDIA Container Toolkit, then nvidia-ctk runtime configure --runtime=docker and restart"
                " docker; or let the role docker_nvidia do it",
            )
        )
    cdi = policy == "cdi" or (policy != "runtime" and (engine.cdi or numbers(engine.version) >= CDI_DEFAULT))
    if gpus and engine.cgroup_driver == "systemd" and not cdi:
        findings.append(
            warning(
                "docker_cgroups",
                "containers may lose their GPUs at the next 'systemctl daemon-reload'",
                "cgroup driver systemd, GPUs by the runtime's hook",
                "use CDI (docker_nvidia_device_policy: cdi), or the cgroup driver cgroupfs",
            )
        )
    if engine.selinux:
        findings.append(
            warning(
                "selinux",
                "Docker separates containers by SELinux, and they cannot read files without its label",
                home,
                "semanage fcontext -a -t container_file_t '%s(/.*)?' and restorecon -R %s" % (home, home),
            )
        )
    return findings
