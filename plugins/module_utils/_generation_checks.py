# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is looked at before a generation is made: its configs, its engine, the host's GPU, and what serves now.

Private to the collection.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import read_manifest
from ansible_collections.trtllm.serving.plugins.module_utils._docker_spec import LAUNCH, runtime_of
from ansible_collections.trtllm.serving.plugins.module_utils._engine import check_engine_dir, summarize
from ansible_collections.trtllm.serving.plugins.module_utils._generation import GenerationError, link_target
from ansible_collections.trtllm.serving.plugins.module_utils._model_config import Unavailable, check_repository, parse


def parse_configs(configs: Dict[str, str], may_lack: bool) -> bool:
    """Whether the configs could be parsed; may_lack goes on when the host has not the packages for it."""
    try:
        problems = check_repository(configs)
    except Unavailable:
        if may_lack:
            return False
        raise
    if problems:
        raise GenerationError("; ".join(problems))
    return True


def check_engine(engine: str, release: str, gpu: Optional[Dict[str, Any]] = None) -> str:
    """The key of an engine that is whole, of the release, and for this host's GPU."""
    problems = check_engine_dir(engine, release)
    if problems:
        raise GenerationError("; ".join(problems))
    manifest = read_manifest(engine)
    if manifest is None:
        raise AssertionError("%s was just found whole" % engine)
    check_gpu(engine, manifest.inputs.get("gpu") or {}, gpu or {})
    return manifest.key


def check_gpu(engine: str, built_for: Dict[str, Any], here: Dict[str, Any]) -> None:
    """An engine's kernels were chosen on one model of GPU; on another one it does not load."""

    def words(gpu: Dict[str, Any]) -> str:
        return "%s (compute capability %s)" % (gpu.get("name"), gpu.get("compute_capability") or "unknown")

    for name in ("name", "compute_capability"):
        if built_for.get(name) and here.get(name) and built_for[name] != here[name]:
            raise GenerationError(
                "engine %s was built for %s, and this host has %s: build it on a host with that GPU, and name it with"
                " triton_serve_engine_dir" % (engine, words(built_for), words(here))
            )


def check_world_size(engine: str, world_size: Any) -> None:
    """There must be as many ranks as the engine has; a launch that does not say is not compared."""
    built_for = summarize(engine)["world_size"]
    if world_size is not None and isinstance(built_for, int) and int(world_size) != built_for:
        raise GenerationError(
            "engine %s is for %d ranks, and the server would start %d: set triton_serve_world_size to %d"
            % (engine, built_for, int(world_size), built_for)
        )


def check_batch(engine: str, config: str) -> None:
    """Triton must not batch more requests than the engine takes."""
    largest = summarize(engine)["max_batch_size"]
    batch = parse(config).get("max_batch_size", 0)
    if isinstance(largest, int) and batch > largest:
        raise GenerationError(
            "max_batch_size %d of the models is above the engine's %d: lower triton_serve_max_batch_size, "
            "or build with a larger mixtral_engine_max_batch_size" % (batch, largest)
        )


def check_runtime(home: Path, runtime: str) -> None:
    """What serves now must be of the same runtime: the ports are its, and the way back would lead to it."""
    current = link_target(home, "current")
    if current is None:
        return
    try:
        made_for = runtime_of(json.loads((home / "generations" / current / LAUNCH).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return
    if made_for != runtime:
        raise GenerationError(
            "%s serves generation %s with runtime %s, and %s is asked for: tear it down first (teardown.yml with"
            " triton_serve_purge), or choose another trtllm_home" % (home, current, made_for, runtime)
        )
