# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What everything that starts a container here has in common: the connection, GPUs, limits, mounts, failures.

The Docker SDK is imported only when it is used, so that a module runs (and can predict) where it is not installed.
Private to the collection.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pwd
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

LABEL = "trtllm.serving"
HOME_LABEL = f"{LABEL}.home"
ROLE_LABEL = f"{LABEL}.role"

CDI_KIND = "nvidia.com/gpu"
POLICIES = ("auto", "cdi", "runtime")

Gpus = Union[str, int, Sequence[Union[str, int]], None]

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*$", re.I)
_KIND = re.compile(r"""^\s*["']?kind["']?\s*:\s*["']?([^\s"',]+)""", re.M)

# (what the engine says, what it means and what to do); the first that matches wins.
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"PermissionError|permission denied while trying to connect",
        "this user may not use the Docker socket: run as root (become), or put the user into the group docker",
    ),
    (
        r"connection refused|connection aborted|cannot connect|timed out|remote end closed|connection reset"
        r"|broken pipe|max retries",
        "the Docker daemon does not answer: see 'systemctl status docker' and 'journalctl -u docker', and run again",
    ),
    (
        r"no such image|image not found|pull access denied|manifest unknown",
        "the image is not on this host: run tensorrtllm_backend_build again, or load it",
    ),
    (
        r"could not select device driver",
        "the engine has no driver for NVIDIA GPUs: install the NVIDIA Container Toolkit (role docker_nvidia), or ask"
        " for gpus none",
    ),
    (
        r"unresolvable CDI devices|CDI device injection failed|failed to inject CDI|no such CDI",
        "the engine does not know that GPU: write the specification again with 'nvidia-ctk cdi generate', or choose"
        " device policy runtime",
    ),
    (
        r"nvidia-container-cli|nvml error|libnvidia-ml",
        "the NVIDIA driver does not answer the container runtime: see that nvidia-smi works on the host",
    ),
    (
        r"rlimit",
        "this host may not grant such a limit to a container: lower memlock, nofile or stack in the ulimits",
    ),
    (
        r"bind source path does not exist",
        "a directory to be mounted is not there: see that the stages before have run on this host",
    ),
    (
        r"port is already allocated|address already in use",
        "another process holds that port: stop it, or choose another port",
    ),
    (
        r"no space left on device|disk quota exceeded",
        "the disk of the engine is full: free some, or move its data-root to a larger file system",
    ),
    (
        r"executable file not found|exec format error|no such file or directory|permission denied"
        r"|OCI runtime create failed",
        "the container cannot start that: compare the command and the image's release and architecture",
    ),
)
_COMPILED = tuple((re.compile(pattern, re.I), remedy) for pattern, remedy in _KNOWN)


class ContainerError(Exception):
    """One line that says what is wrong with a container or its engine, and what to do."""


# --- the engine -------------------------------------------------------------------------------------------------


def available() -> bool:
    """Whether the Docker SDK for Python can be imported by this interpreter."""
    try:
        return importlib.util.find_spec("docker.client") is not None
    except (ImportError, ValueError):
        return False


def sdk(name: str = "docker") -> Any:
    """The Docker SDK or one of its modules, imported now."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ContainerError(
            f"the Python package docker cannot be imported ({exc}): set ansible_python_interpreter to the Python of"
            " <trtllm_home>/venv, which tensorrtllm_backend_build makes, or install docker and requests"
        ) from exc


def connect(timeout: float = 60) -> Any:
    """A docker.DockerClient of the engine that DOCKER_HOST names, by default the host's own, once it has answered."""
    docker = sdk()
    try:
        client = docker.from_env(timeout=timeout)
        client.ping()
    except failures() as exc:
        raise ContainerError(explain(exc, "the Docker daemon cannot be used")) from exc
    return client


def failures() -> tuple[type[BaseException], ...]:
    """What the SDK raises when the engine refuses or is gone."""
    errors, requests = sdk("docker.errors"), sdk("requests.exceptions")
    urllib3 = sdk("urllib3.exceptions")
    return (errors.DockerException, errors.APIError, requests.RequestException, urllib3.HTTPError, OSError)


def explain(exc: BaseException, what: str) -> str:
    """One line of what the engine said, and the remedy where the cause is known."""
    said = getattr(exc, "explanation", None) or str(exc) or type(exc).__name__
    said = " ".join(str(said).split())[:400]
    for pattern, remedy in _COMPILED:
        if pattern.search(said):
            return f"{what}: {said}; {remedy}"
    return f"{what}: {said}"


def labels(home: str | os.PathLike[str], role: str, **more: str) -> dict[str, str]:
    """The labels by which a container of ours is found again: role is tool, server or probe."""
    own = {HOME_LABEL: str(home), ROLE_LABEL: role}
    return {**own, **{f"{LABEL}.{name}": str(value) for name, value in more.items()}}


def ours(client: Any, home: str | os.PathLike[str], role: str, **more: str) -> list[Any]:
    """Every container, running or not, with these labels."""
    wanted = [f"{name}={value}" for name, value in labels(home, role, **more).items()]
    try:
        return list(client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True))
    except failures() as exc:
        raise ContainerError(explain(exc, "the containers of this host cannot be listed")) from exc


def state(container: Any) -> Mapping[str, Any]:
    """The container's State as the engine tells it now. Raises one of failures()."""
    container.reload()
    found = container.attrs.get("State")
    return found if isinstance(found, Mapping) else {}


def remove(container: Any, patience_s: float = 30) -> None:
    """Removes a container, running or not, with its volumes. ContainerError when it is still there after a while."""
    until = time.monotonic() + patience_s
    while True:
        try:
            container.remove(force=True, v=True)
            return
        except sdk("docker.errors").NotFound:
            return
        except failures() as exc:
            # Another removal may be under way, or the kernel not done with a mount.
            if getattr(exc, "status_code", None) not in (409, 500) or time.monotonic() > until:
                raise ContainerError(explain(exc, f"container {container.name} cannot be removed")) from exc
        time.sleep(0.2)


def security_options(client: Any) -> list[str]:
    """What every container of ours gets. Where the engine labels containers for SELinux, ours read unlabelled paths."""
    try:
        named = client.info().get("SecurityOptions") or []
    except failures() as exc:
        raise ContainerError(explain(exc, "the Docker daemon does not tell about itself")) from exc
    selinux = any("name=selinux" in str(option) for option in named)
    return ["no-new-privileges:true", *(["label=disable"] if selinux else [])]


# --- GPUs -------------------------------------------------------------------------------------------------------


def cdi_ready(client: Any) -> bool:
    """Whether the engine injects CDI devices and there is a specification of the NVIDIA GPUs."""
    try:
        info = client.info()
    except failures() as exc:
        raise ContainerError(explain(exc, "the Docker daemon does not tell about itself")) from exc
    found = info.get("DiscoveredDevices") or []
    if any(str(device.get("ID", "")).startswith(f"{CDI_KIND}=") for device in found):
        return True
    # An engine in which CDI is off or unknown names no directories.
    return any(_has_cdi_spec(Path(folder)) for folder in info.get("CDISpecDirs") or [])


def _has_cdi_spec(folder: Path) -> bool:
    try:
        names = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".yaml", ".yml"))
    except OSError:
        return False
    for path in names:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        try:
            value = json.loads(text) if path.suffix == ".json" else None
        except ValueError:
            continue
        kind = value.get("kind") if isinstance(value, dict) else None
        match = None if kind is not None else _KIND.search(text)
        if kind == CDI_KIND or (match is not None and match.group(1) == CDI_KIND):
            return True
    return False


def parse_gpus(gpus: Gpus) -> str | int | list[str]:
    """``all``, a number of GPUs (0 is none), or a list of indices and uuids."""
    if gpus is None or gpus is False:
        return 0
    if isinstance(gpus, int):
        if gpus < 0:
            return "all"
        return int(gpus)
    if isinstance(gpus, str):
        text = gpus.strip()
        if text.lower() in ("", "none", "0", "false"):
            return 0
        if text.lower() == "all":
            return "all"
        if text.isdigit():
            return int(text)
        text = text[len("device=") :] if text.startswith("device=") else text
        items: Sequence[Any] = text.split(",")
    else:
        items = gpus
    names = [str(item).strip() for item in items if str(item).strip()]
    if not names:
        return 0
    if names == ["all"]:
        return "all"
    if names == ["none"]:
        return 0
    bad = [name for name in names if not re.match(r"^(\d+(:\d+)?|(GPU|MIG)-[0-9A-Za-z/-]+)$", name)]
    if bad:
        raise ContainerError(f"gpus {bad[0]!r} names no GPU: give all, none, a number, or a list of indices or uuids")
    return names


def device_requests(client: Any, gpus: Gpus, policy: str = "auto") -> list[Any]:
    """The device requests that give a container these GPUs; none for no GPU."""
    if policy not in POLICIES:
        raise ContainerError(f"device policy {policy!r} is unknown: give one of {', '.join(POLICIES)}")
    wanted = parse_gpus(gpus)
    if wanted == 0:
        return []
    request = sdk("docker.types").DeviceRequest
    ready = policy != "runtime" and cdi_ready(client)
    if policy == "cdi" and not ready:
        raise ContainerError(
            f"device policy cdi: the engine offers no CDI device of kind {CDI_KIND}: take Docker 28.2 or newer (or"
            " features.cdi in daemon.json) and 'nvidia-ctk cdi generate', or choose device policy runtime"
        )
    if ready:
        if isinstance(wanted, int):
            wanted = [str(index) for index in range(wanted)]
        names = ["all"] if wanted == "all" else list(wanted)
        return [request(driver="cdi", device_ids=[f"{CDI_KIND}={name}" for name in names])]
    if isinstance(wanted, list):
        return [request(driver="nvidia", device_ids=wanted, capabilities=[["gpu"]])]
    return [request(driver="nvidia", count=-1 if wanted == "all" else wanted, capabilities=[["gpu"]])]


# --- limits, mounts, users --------------------------------------------------------------------------------------


def size_bytes(text: str | int) -> int:
    """``2g``, ``512m`` or a number, in bytes."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _SIZE.match(str(text))
    if match is None:
        raise ContainerError(f"{text!r} is no size: give bytes, or a number with k, m, g or t, such as 2g")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()])


def ulimits(mapping: Mapping[str, Any] | None) -> list[Any]:
    """Limits of a container: one number for both, or ``soft`` and ``hard``; -1 is no limit."""
    if not mapping:
        return []
    ulimit = sdk("docker.types").Ulimit
    found = []
    for name, value in mapping.items():
        pair = value if isinstance(value, Mapping) else {"soft": value, "hard": value}
        try:
            hard = int(pair.get("hard", pair.get("soft")))  # type: ignore[arg-type]
            soft = int(pair.get("soft", hard))
        except (TypeError, ValueError):
            raise ContainerError(
                f"ulimit {name} {value!r} is no number: give one, or soft and hard; -1 is no limit"
            ) from None
        found.append(ulimit(name=str(name), soft=soft, hard=hard))
    return found


def mount(source: str | os.PathLike[str], target: str | os.PathLike[str] | None = None, read_only: bool = True) -> Any:
    """A bind mount, at the same path by default. The engine refuses a source that does not exist."""
    return sdk("docker.types").Mount(
        target=str(target or source), source=str(source), type="bind", read_only=bool(read_only)
    )


def parse_volume(text: str) -> Any:
    """``source[:target[:ro|rw]]`` as a mount; read-only unless it says rw."""
    parts = str(text).split(":")
    if len(parts) > 1 and parts[-1] in ("ro", "rw"):
        mode = parts.pop()
    else:
        mode = "ro"
    if not 1 <= len(parts) <= 2 or not all(os.path.isabs(part) for part in parts):
        raise ContainerError(f"volume {text!r} is not source:target[:ro|rw] with absolute paths: correct it")
    return mount(parts[0], parts[-1], mode == "ro")


def with_link_targets(reads: Sequence[str]) -> Iterator[str]:
    """The paths, and what links right below them point to: a hub's cache is a directory of links."""
    for path in reads:
        yield path
        names = [path]
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                names += [entry.path for entry in entries if entry.is_symlink()]
        for name in names:
            for _hop in range(8):
                if not os.path.islink(name):
                    break
                name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))
                if os.path.exists(name):
                    yield name


def user_ids(name_or_ids: str) -> str:
    """``uid:gid`` of a user of this host; ids are returned as they are given."""
    text = str(name_or_ids).strip()
    if re.match(r"^\d+:\d+$", text):
        return text
    try:
        entry = pwd.getpwuid(int(text)) if text.isdigit() else pwd.getpwnam(text)
    except KeyError:
        raise ContainerError(
            f"user {text!r} does not exist on this host: create it, or give uid:gid in numbers"
        ) from None
    return f"{entry.pw_uid}:{entry.pw_gid}"
