# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container of a server, as the engine is asked for it, and what differs from that in one that is there.

Private to the collection.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.trtllm.serving.plugins.module_utils import _containers, _server_state
from ansible_collections.trtllm.serving.plugins.module_utils._launch import INSIDE
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import ServerError

LAUNCH = "launch.json"
ROLE = "server"
GENERATION_LABEL = _containers.LABEL + ".generation"
# Only a container in slot b has it.
SLOT_LABEL = _containers.LABEL + ".slot"
HEALTH = ["python3", "-I", INSIDE + "/current/bin/health.py", INSIDE + "/current/" + LAUNCH]
_SECOND = 1000000000
# What the script may need besides waiting for its answer.
_HEALTH_MARGIN_S = 15


def read_launch(home: Path, generation: str) -> Dict[str, Any]:
    """How a generation is started. ServerError for one that was not made for a container."""
    path = home / "generations" / generation / LAUNCH
    try:
        launch = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ServerError("%s cannot be read (%s): deploy again (site.yml)" % (path, exc)) from exc
    if runtime_of(launch) != "docker":
        raise ServerError(
            "generation %s was made for a server without a container: tear it down (teardown.yml) before %s serves"
            " with Docker" % (generation, home)
        )
    return dict(launch)


def runtime_of(launch: Any) -> str:
    return str(launch.get("runtime", "embedded")) if isinstance(launch, Mapping) else "embedded"


def slot_gpus(launch: Mapping[str, Any], slot: str) -> Any:
    """The GPUs of a slot: in slot a what was asked for, of which the first serve; in slot b as many that come next."""
    given = launch.get("gpus")
    gpus = _containers.parse_gpus(given)
    if slot == "a" or gpus == 0:
        return given
    world = max(1, int(launch.get("world_size", 1)))
    if not isinstance(gpus, list):
        # Of a number only the first are used in slot a, however many it is.
        return [str(index) for index in range(world, 2 * world)]
    if len(gpus) < 2 * world:
        raise ServerError(
            "a second server beside the old one needs %d GPUs (twice %d ranks), and triton_serve_gpus has %d: add some,"
            " or deploy in place (triton_pool_strategy: in_place)" % (2 * world, world, len(gpus))
        )
    return gpus[world : 2 * world]


def wanted_gpus(launch: Mapping[str, Any], slot: str = "a") -> int:
    """How many GPUs the container must see; 0 when it is given none."""
    gpus = _containers.parse_gpus(slot_gpus(launch, slot))
    if isinstance(gpus, int):
        return gpus
    return len(gpus) if isinstance(gpus, list) else max(1, int(launch.get("world_size", 1)))


def _mounts(home: Path, generation: str, launch: Mapping[str, Any]) -> List[Any]:
    found = [_containers.mount(home / "generations" / generation, INSIDE + "/current")]
    for entry in launch.get("mounts", []):
        source = Path(entry["source"])
        found.append(_containers.mount(source if source.is_absolute() else home / source, entry["target"]))
    return found


def _health(probe: Mapping[str, Any]) -> Dict[str, Any]:
    timeout = float(probe["timeout"]) + _HEALTH_MARGIN_S
    return {
        "Test": ["CMD", *HEALTH],
        "Interval": int(float(probe["interval"]) * _SECOND),
        "Timeout": int(timeout * _SECOND),
        "StartPeriod": int(float(probe["startup_timeout"]) * _SECOND),
        "Retries": int(probe["failures"]),
    }


def payload(client: Any, home: Path, generation: str, launch: Mapping[str, Any], slot: str = "a") -> Dict[str, Any]:
    """What the engine is sent. ContainerError for a value that it could not take."""
    api = client.api
    # Inside, the server has the same ports in either slot; outside, those of its own.
    shift = _server_state.shift(launch, slot)
    ports = {"%d/tcp" % int(port): (str(launch["address"]), int(port) + shift) for port in launch["ports"].values()}
    more = {"slot": slot} if slot == "b" else {}
    env = {**launch.get("env", {}), **({"TRTLLM_SLOT": _server_state.suffix(slot)} if slot == "b" else {})}
    log = _containers.sdk("docker.types").LogConfig(
        type="json-file", config={name: str(value) for name, value in launch.get("log", {}).items()}
    )
    memory = launch.get("memory")
    host = api.create_host_config(
        mounts=_mounts(home, generation, launch),
        port_bindings=ports,
        restart_policy={"Name": str(launch["restart_policy"])},
        init=True,
        shm_size=_containers.size_bytes(launch["shm_size"]),
        ulimits=_containers.ulimits(launch.get("ulimits")),
        device_requests=_containers.device_requests(
            client, slot_gpus(launch, slot), launch.get("device_policy", "auto")
        ),
        cap_drop=list(launch.get("cap_drop", [])),
        cap_add=list(launch.get("cap_add", [])) or None,
        security_opt=list(launch.get("security_opt", [])),
        read_only=bool(launch.get("read_only")),
        tmpfs=dict(launch.get("tmpfs", {})),
        log_config=log,
        mem_limit=_containers.size_bytes(memory) if memory else None,
    )
    config = api.create_container_config(
        image=str(launch["image"]),
        command=[str(word) for word in launch["argv"]],
        user=_containers.user_ids(str(launch["user"])),
        environment={name: str(value) for name, value in env.items()},
        labels=_containers.labels(home, ROLE, generation=generation, **more),
        ports=[(int(port), "tcp") for port in launch["ports"].values()],
        working_dir=INSIDE,
        stop_timeout=int(launch["stop_timeout"]),
        host_config=host,
    )
    config["Healthcheck"] = _health(launch["probe"])
    return dict(config)


# --- what differs -----------------------------------------------------------------------------------------------

# By the words that a user knows: keys of the container's Config, and of its HostConfig.
_CONFIG = {
    "command": "Cmd", "user": "User", "working directory": "WorkingDir", "health check": "Healthcheck",
    "stop timeout": "StopTimeout",
}  # fmt: skip
_HOST = {
    "mounts": "Mounts", "published ports": "PortBindings", "restart policy": "RestartPolicy", "init": "Init",
    "shared memory": "ShmSize", "ulimits": "Ulimits", "GPUs": "DeviceRequests", "dropped capabilities": "CapDrop",
    "added capabilities": "CapAdd", "security options": "SecurityOpt", "read-only root": "ReadonlyRootfs",
    "tmpfs": "Tmpfs", "log": "LogConfig", "memory": "Memory",
}  # fmt: skip


def _plain(value: Any, key: str = "") -> Any:
    """A value without what an engine adds or leaves out: empty parts, defaults, the order of a set."""
    if isinstance(value, Mapping):
        parts = {name: _plain(part, name) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part not in (None, "", 0, False, [], {})}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        if key in ("CapDrop", "CapAdd"):
            items = [str(item).upper().replace("CAP_", "", 1) for item in items]
        ordered = key in ("Cmd", "Test")
        return items if ordered else sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if key == "HostIp":
        return value or "0.0.0.0"
    return value


def _same(wanted: Any, found: Any, key: str) -> bool:
    # An engine says nothing, null or zero for what was not asked for.
    return (_plain(wanted, key) or None) == (_plain(found, key) or None)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any], image: str) -> List[str]:
    """What of an inspected container is not as it would be made now, in a user's words."""
    config, host = found.get("Config") or {}, found.get("HostConfig") or {}
    result = [] if found.get("Image") == image else ["image"]
    result += [word for word, key in _CONFIG.items() if not _same(wanted.get(key), config.get(key), key)]
    if not set(wanted.get("Env") or []) <= set(config.get("Env") or []):
        result.append("environment")
    labels = config.get("Labels") or {}
    if any(labels.get(name) != value for name, value in (wanted.get("Labels") or {}).items()):
        result.append("labels")
    asked = wanted.get("HostConfig") or {}
    result += [word for word, key in _HOST.items() if not _same(asked.get(key), host.get(key), key)]
    return result


# --- how it ended -----------------------------------------------------------------------------------------------


def exit_words(state: Mapping[str, Any]) -> str:
    """What a container's exit code says."""
    code = state.get("ExitCode")
    if state.get("OOMKilled"):
        return "was killed because its memory ran out (exit code %s)" % code
    if isinstance(code, int) and code > 128:
        return "was ended by signal %d (exit code %d)" % (code - 128, code)
    return "ended with exit code %s" % code


def image_ids(home: Path) -> List[str]:
    """The images that the generations of a home are started from."""
    found = set()
    parent = home / "generations"
    names = os.listdir(str(parent)) if parent.is_dir() else []
    for name in names:
        try:
            launch: Optional[Any] = json.loads((parent / name / LAUNCH).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if runtime_of(launch) == "docker" and isinstance(launch, dict) and launch.get("image"):
            found.add(str(launch["image"]))
    return sorted(found)
