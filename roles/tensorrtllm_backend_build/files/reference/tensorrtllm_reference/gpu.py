# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of a container, which an engine is built on and bound to, as upstream's is.

Nothing is computed on them. They are looked at in a container only: elsewhere this backend is meant to run on a host
whatever GPU it has, and whether that works or not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NamedTuple, Optional

CONTAINER_MARK = "/.dockerenv"
_TIMEOUT = 60


class CudaError(Exception):
    """What CUDA would have said."""


class Gpu(NamedTuple):
    name: str
    compute_capability: str

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "compute_capability": self.compute_capability}


def find() -> Optional[list[Gpu]]:
    """The GPUs of this container, none where there is no nvidia-smi; None outside a container."""
    if not os.path.exists(CONTAINER_MARK):
        return None
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    command = [smi, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_TIMEOUT,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CudaError(f"CUDA runtime error in ::cudaGetDeviceCount(&count): unknown error ({exc})") from exc
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode != 0:
        raise CudaError(
            "CUDA runtime error in ::cudaGetDeviceCount(&count): no CUDA-capable device is detected "
            f"(nvidia-smi: {' '.join(said.split()) or f'exit code {done.returncode}'})"
        )
    found = []
    for line in said.splitlines():
        name, _comma, capability = line.rpartition(",")
        if name.strip():
            found.append(Gpu(name.strip(), capability.strip()))
    return found


def check(path: object, built_on: Optional[dict[str, str]], gpus: Optional[list[Gpu]], ordinal: int = 0) -> None:
    """CudaError when an engine that was built on a GPU meets another one, or none; gpus None is not looked at."""
    if gpus is None or (not gpus and built_on is None):
        return
    if not gpus:
        raise CudaError(
            "CUDA runtime error in ::cudaGetDeviceCount(&count): no CUDA-capable device is detected "
            f"({path} was built on {(built_on or {}).get('name')})"
        )
    if ordinal >= len(gpus):
        raise CudaError(
            f"CUDA runtime error in cudaSetDevice({ordinal}): invalid device ordinal (there are {len(gpus)} GPUs)"
        )
    here = gpus[ordinal]
    if built_on is None or built_on == here.to_dict():
        return
    raise CudaError(
        "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an "
        f"incompatible device, expecting compute {here.compute_capability} got compute "
        f"{built_on.get('compute_capability')}, please rebuild.) {path} was built on {built_on.get('name')}, and this "
        f"is {here.name}"
    )
