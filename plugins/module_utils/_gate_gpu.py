# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a server sees its GPUs where it runs: inside its container.

Private to the collection.
"""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._gate import GateFailed
from ansible_collections.trtllm.serving.plugins.module_utils._gpu import gpu_lost

_SMI_TIMEOUT_S = 30.0
_LISTED = re.compile(r"(?m)^GPU \d+: (?P<name>.+?) \(UUID: ")


def names(output: str) -> list[str]:
    """The GPUs of nvidia-smi -L."""
    return [match["name"].strip() for match in _LISTED.finditer(output)]


def in_container(client: Any, container: str) -> tuple[int, str]:
    """nvidia-smi -L inside: exit status and output. 124 when it gave no answer in time."""
    api = client.api
    timeout, api.timeout = api.timeout, _SMI_TIMEOUT_S
    try:
        run = api.exec_create(container, ["nvidia-smi", "-L"])["Id"]
        output = api.exec_start(run).decode("utf-8", "replace")
        code = api.exec_inspect(run).get("ExitCode")
    except _containers.sdk("requests.exceptions").ReadTimeout:
        return 124, ""
    except _containers.failures() as exc:
        raise GateFailed(_containers.explain(exc, f"nvidia-smi in container {container}")) from exc
    finally:
        api.timeout = timeout
    return (1 if code is None else int(code)), output


def judge(rc: int, output: str, *, container: str, count: int = 0, name: str = "") -> dict[str, Any]:
    """The GPUs that are seen. GateFailed when they are too few, or not those that the engine was built for."""
    found = names(output)
    gpu = {"count": len(found), "names": sorted(set(found))}
    lost = gpu_lost(rc, output, max(1, count))
    if lost:
        raise GateFailed(f"GPU of container {container}: {lost}", gpu=gpu)
    strange = sorted({each for each in found if name and each != name})
    if strange:
        raise GateFailed(
            f"GPU of container {container}: it sees {', '.join(strange)}, and the engine was built for {name}: build"
            " the engine on this host, or give the server other GPUs",
            gpu=gpu,
        )
    return gpu


def look(connect: Any, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What the suboptions of gpu ask for; None when no GPU is required."""
    if not wanted.get("required"):
        return None
    container = str(wanted.get("container") or "")
    if not container:
        raise GateFailed("gpu.required without gpu.container: name the container that must see the GPUs")
    gpus = _containers.parse_gpus("all" if wanted.get("gpus") is None else wanted["gpus"])
    count = int(wanted.get("count") or 0) if gpus == "all" else gpus if isinstance(gpus, int) else len(gpus)
    if gpus == 0:
        return None
    rc, output = in_container(connect(), container)
    return judge(rc, output, container=container, count=count, name=str(wanted.get("name") or ""))
