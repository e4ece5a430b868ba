# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of a server in a container: tritonserver itself, or one mpirun line with every rank.

Private to the collection.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

# Where everything is inside the container, whatever trtllm_home is on the host.
INSIDE = "/trtllm"
REPOSITORY = INSIDE + "/current/model_repo"
# What a rank above 0 loads, and never gets ready.
WORKER_MODEL = "tensorrt_llm"
# Open MPI 4, told to stop, waits this long, asks its ranks to end, waits this long again and kills them; and it does
# the same when a rank has died. Its own default of one second cuts off every running request.
MPI_PATIENCE_S = 5


def server_command(
    world_size: int,
    ports: Mapping[str, Any],
    exit_timeout: int,
    tritonserver: str = "tritonserver",
    mpirun: str = "mpirun",
    backends_dir: str = "",
    arguments: Sequence[str] = (),
    mpirun_arguments: Sequence[str] = (),
) -> List[str]:
    """The main process, rank by rank as upstream's launcher has it. It listens on all addresses of the container."""
    world = int(world_size)
    if world < 1:
        raise ValueError("world_size %d is not possible: give the ranks of the engine, 1 or more" % world)
    shared = ["--%s-port=%d" % (name, int(ports["%s_port" % name])) for name in ("grpc", "http", "metrics")]
    shared.append("--disable-auto-complete-config")
    if backends_dir:
        shared.append("--backend-directory=" + backends_dir)
    shared.append("--exit-timeout-secs=%d" % int(exit_timeout))

    def rank(number: int) -> List[str]:
        control = ["--model-control-mode=none"] if number == 0 else ["--model-control-mode=explicit"]
        if number:
            control.append("--load-model=" + WORKER_MODEL)
        return [
            tritonserver,
            "--model-repository=" + REPOSITORY,
            *control,
            *shared,
            "--backend-config=python,shm-region-prefix-name=prefix%d_" % number,
            *map(str, arguments),
        ]

    if world == 1:
        return rank(0)
    command = [mpirun, "--allow-run-as-root", *map(str, mpirun_arguments)]
    for number in range(world):
        command += [":"] if number else []
        command += ["-n", "1", *rank(number)]
    return command


def server_environment(world_size: int) -> Dict[str, str]:
    """What the main process needs whatever the image says: it has no home directory, and nothing to fetch."""
    env = {
        "HOME": "/tmp",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if int(world_size) > 1:
        env["OMPI_MCA_odls_base_sigkill_timeout"] = str(MPI_PATIENCE_S)
        env["PRTE_MCA_odls_base_sigkill_timeout"] = str(MPI_PATIENCE_S)
    return env
