#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts Triton with the reference backend: upstream's options for the release, one process in the foreground.

Upstream starts one tritonserver a rank under mpirun. Here one server computes every rank, so it is started by itself
and told the world size in the variable that mpirun would set. It replaces this process (exec), so that its end and
its signals are the caller's to see. It listens on 127.0.0.1 only. --force and --oversubscribe change nothing here:
there is no mpirun, and Triton itself refuses a port that is in use.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tensorrtllm_reference import cli

_UPSTREAM_SERVER = "/opt/tritonserver/bin/tritonserver"
_REFUSED = (
    ("multi_model", "several models in one server need upstream's orchestrator"),
    ("disable_spawn_processes", "there are no worker processes"),
    ("multimodal_gpu0_cuda_mem_pool_bytes", "there is no GPU"),
    ("trtllm_llmapi_launch", "the LLM API is not part of the reference backend"),
)


def find_server(given: str) -> Path:
    """The server that was named or, for upstream's default where that does not exist, the one in this environment."""
    path = Path(given)
    if given == _UPSTREAM_SERVER and not path.exists():
        path = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    if not os.access(path, os.X_OK):
        raise cli.ToolError(f"no tritonserver at {path}: install nvidia-pytriton, or name one with --tritonserver")
    return path


def command(values: Mapping[str, Any], root: Path = ROOT) -> list[str]:
    """The server's command line."""
    repository = Path(values["model_repo"])
    if not repository.is_dir():
        raise cli.ToolError(f"--model_repo {repository} is not a directory")
    result = [
        str(find_server(values["tritonserver"])),
        f"--model-repository={repository}",
        f"--backend-directory={root / 'backends'}",
        *(f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")),
        *(f"--{name}-port={values[f'{name}_port']}" for name in ("grpc", "http", "metrics")),
        "--disable-auto-complete-config",
        "--backend-config=python,shm-region-prefix-name=prefix0_",
    ]
    if values.get("log"):
        result += ["--log-verbose=3", f"--log-file={values['log_file']}"]
    if values.get("exit_timeout") is not None:
        result.append(f"--exit-timeout-secs={values['exit_timeout']}")
    return result


def environment(values: Mapping[str, Any], inherited: Mapping[str, str], server: Path) -> dict[str, str]:
    """What the server and its Python stubs need: this environment's python3 first, and their libraries."""
    result = dict(inherited)
    libraries = [str(server.parents[3] / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    result["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), inherited.get("PATH", os.defpath)])
    result["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *filter(None, [inherited.get("LD_LIBRARY_PATH")])])
    result["OMPI_COMM_WORLD_SIZE"] = str(values["world_size"])
    result["OMPI_COMM_WORLD_RANK"] = "0"
    return result


def parse(argv: Optional[Sequence[str]]) -> dict[str, Any]:
    values = vars(cli.build_parser("launch_triton_server.py", cli.load_release().launch).parse_args(argv))
    if not isinstance(values["model_repo"], str):
        values["model_repo"] = str(ROOT / "all_models" / "inflight_batcher_llm")
    if values["world_size"] < 1:
        raise cli.ToolError(f"--world_size is {values['world_size']}; it must be at least 1", "ValueError")
    if values.get("no_mpi") and values["world_size"] != 1:
        raise cli.ToolError("World size must be 1 when using no-mpi", "AssertionError")
    for name, reason in _REFUSED:
        if values.get(name):
            raise cli.ToolError(f"--{name} is not supported by the reference backend: {reason}", "ValueError")
    return values


def main(argv: Optional[Sequence[str]] = None) -> None:
    values = parse(argv)
    argv_out = command(values)
    print(" ".join(argv_out), flush=True)
    os.execve(argv_out[0], argv_out, environment(values, os.environ, Path(argv_out[0])))


if __name__ == "__main__":
    cli.run(main)
