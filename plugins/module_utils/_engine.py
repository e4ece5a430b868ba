# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TensorRT-LLM engines: their identity, what they must hold, and making one with trtllm-build.

Private to the collection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _checkpoint, _releases, _tool_module
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    PathLike,
    key_of,
    need_space,
    need_writable,
    read_manifest,
    refresh_times,
    short_key,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._options import effective_options, to_argv
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Runner

TOOL = "trtllm_build"
KIND = "engine"
TYPED = (
    "max_batch_size",
    "max_input_len",
    "max_seq_len",
    "max_num_tokens",
    "max_beam_width",
    "gemm_plugin",
    "gpt_attention_plugin",
    "moe_plugin",
    "context_fmha",
    "use_paged_context_fmha",
    "workers",
)
NOT_IN_KEY = (
    "checkpoint_dir",
    "output_dir",
    "workers",
    "log_level",
    "input_timing_cache",
    "output_timing_cache",
    "monitor_memory",
    "visualize_network",
)
# Files that the tool writes where it is told; given an absolute path, it needs the directory.
WRITTEN = ("output_timing_cache",)
PATHS_IN_KEY = ("model_config", "build_config", "model_cls_file", "lora_dir")
RESERVED = {
    "checkpoint_dir": "the module sets it from checkpoint_dir",
    "output_dir": "the module sets it below engines_dir",
    "dry_run": "it makes no engine",
    "tp_size": "the checkpoint decides it; convert with another tp_size",
    "pp_size": "the checkpoint decides it; convert with another pp_size",
    "cp_size": "the checkpoint decides it; convert with another cp_size",
}
_SUMMARY = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width")
GPU_FIELDS = ("name", "compute_capability", "memory_mib", "count")


def ranks_of(world_size: int) -> list[str]:
    return [f"rank{rank}.engine" for rank in range(world_size)]


def _mapping(config: Mapping[str, Any]) -> dict[str, Any]:
    pretrained = config.get("pretrained_config")
    mapping = pretrained.get("mapping") if isinstance(pretrained, Mapping) else None
    return dict(mapping) if isinstance(mapping, Mapping) else {}


def summarize(path: PathLike) -> dict[str, Any]:
    """What of an engine's config.json decides how it is served; a value is null when it does not say."""
    config = _checkpoint.read_config(path)
    build = config.get("build_config") or {}
    mapping = _mapping(config)
    plugins = build.get("plugin_config") or {}
    return {
        "version": config.get("version"),
        "dtype": (config.get("pretrained_config") or {}).get("dtype"),
        **{name: mapping.get(name) for name in ("world_size", "tp_size", "pp_size", "moe_tp_size", "moe_ep_size")},
        **{name: build.get(name) for name in _SUMMARY},
        "gemm_plugin": plugins.get("gemm_plugin"),
    }


def check_content(path: PathLike, release: str | None = None) -> list[str]:
    """Whether config.json and every rank's engine are there, and of the release."""
    root = Path(path)
    config = _checkpoint.read_config(root)
    world = _mapping(config).get("world_size")
    if not isinstance(world, int) or world < 1:
        return [f"{root / 'config.json'} is missing or has no pretrained_config.mapping.world_size"]
    problems = []
    if release is not None and config.get("version") != release:
        problems.append(f"{root} was built by TensorRT-LLM {config.get('version')}, not {release}: build it again")
    for rank, name in enumerate(ranks_of(world)):
        target = root / name
        if not target.is_file():
            problems.append(f"{target} is missing: rank {rank} of {world}; build the engine again")
        elif target.stat().st_size == 0:
            problems.append(f"{target} is empty: build the engine again")
    return problems


def check_engine_dir(
    path: PathLike,
    release: str | None = None,
    *,
    key: str | None = None,
    world_size: int | None = None,
    gpu: Mapping[str, Any] | None = None,
    full: bool = False,
) -> list[str]:
    """Why a directory cannot be served, one line each; none when it can. Milliseconds unless full."""
    checked = verify(path, full=full, kind=KIND, key=key)
    if checked.manifest is None:
        return [f"{checked.problems[0]}: build the engine again"]
    problems = [f"{problem}: build the engine again" for problem in checked.problems]
    known = [problem.split(" ", 1)[0] for problem in problems]
    problems += [problem for problem in check_content(path, release) if problem.split(" ", 1)[0] not in known]
    made_by = checked.manifest.inputs.get("tensorrt_llm")
    told = _checkpoint.read_config(path).get("version")
    if release is not None and made_by != release and told == release:
        problems.append(f"{path} was built for release {made_by}, not {release}: build the engine again")
    found = _mapping(_checkpoint.read_config(path)).get("world_size")
    if world_size is not None and found is not None and found != world_size:
        problems.append(f"{path} is for {found} ranks, not {world_size}: convert and build with that tp_size x pp_size")
    if gpu is not None:
        made_for = checked.manifest.inputs.get("gpu") or {}
        for name in ("name", "compute_capability"):
            if gpu.get(name) != made_for.get(name):
                problems.append(
                    f"{path} was built for GPU {name} {made_for.get(name)}, not {gpu.get(name)}: build it here"
                )
    return problems


def engine_inputs(
    checkpoint_key: str,
    release: str,
    tensorrt: str,
    effective: Mapping[str, Any],
    gpu: Mapping[str, Any] | None,
    image_digest: str | None,
) -> dict[str, Any]:
    """What decides an engine: tactics are chosen on the very GPU by the very TensorRT."""
    return {
        "checkpoint": checkpoint_key,
        "tensorrt_llm": release,
        "tensorrt": tensorrt,
        "image": image_digest or "",
        "gpu": {name: (gpu or {}).get(name) for name in GPU_FIELDS},
        "options": _tool_module.key_options(effective, NOT_IN_KEY, PATHS_IN_KEY),
    }


def option_problems(effective: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> list[str]:
    """Options that the tool's parser accepts although they cannot work together or with the checkpoint."""
    problems = []
    for name in _SUMMARY:
        value = effective.get(name)
        if isinstance(value, int) and value < 1:
            problems.append(f"{name} {value} is not possible: give a whole number from 1")
    longest, total = effective.get("max_input_len"), effective.get("max_seq_len")
    if isinstance(longest, int) and isinstance(total, int) and longest > total:
        problems.append(f"max_input_len {longest} is above max_seq_len {total}: lower it, or raise max_seq_len")
    plugin, dtype = effective.get("gemm_plugin"), (config or {}).get("dtype")
    if plugin in ("float16", "bfloat16", "float32") and dtype and dtype != plugin:
        problems.append(f"gemm_plugin {plugin} does not suit a checkpoint in {dtype}: use auto or {dtype}")
    return problems


def build(
    params: Mapping[str, Any], check_mode: bool, cancellation: Cancellation, runner: Runner | None = None
) -> dict[str, Any]:
    """The module's work; returns its result. Raises one of _tool_module.REPORTED."""
    _tool_module.refuse(_tool_module.release_problems(params["release"]))
    matrix = _releases.get(params["release"])
    release = matrix.version
    options, problems = _tool_module.merge_options(TOOL, release, params, TYPED, RESERVED)
    _tool_module.refuse(problems)
    effective = effective_options(TOOL, release, options)
    _tool_module.refuse(option_problems(effective))
    container = _tool_module.container_of(params)
    written = [str(options[name]) for name in WRITTEN if os.path.isabs(str(options.get(name) or ""))]

    checkpoint = Path(params["checkpoint_dir"]) if params.get("checkpoint_dir") else None
    unknown = ""
    if checkpoint is None or not checkpoint.exists():
        unknown = "the checkpoint does not exist yet: the key will be known once it is converted"
    elif container is not None and not container.image:
        unknown = "the image is not there yet: the key will be known once it is"
    if check_mode and unknown:
        return {"changed": True, "key": None, "path": None, "world_size": None, "ranks": [], "msg": unknown}
    if checkpoint is None:
        raise _tool_module.ToolError("checkpoint_dir is empty: give the path that convert_checkpoint returned")
    full = params.get("verify") == "full"
    _tool_module.refuse(_checkpoint.check_checkpoint_dir(checkpoint, release=release, full=full))
    manifest = read_manifest(checkpoint)
    if manifest is None:
        raise AssertionError("%s was just found whole" % checkpoint)
    config = _checkpoint.read_config(checkpoint)
    _tool_module.refuse(option_problems(effective, config))
    world = int(config["mapping"]["world_size"])
    gpu = {name: (params.get("gpu") or {}).get(name) for name in GPU_FIELDS}
    if gpu["count"] and world > gpu["count"]:
        raise _tool_module.ToolError(
            f"{checkpoint} is for {world} ranks, the host has {gpu['count']} GPUs:"
            " convert with a smaller tp_size x pp_size"
        )

    inputs = engine_inputs(manifest.key, release, matrix.tensorrt, effective, gpu, params.get("image_digest"))
    key = key_of(inputs)
    final = Path(params["engines_dir"]) / short_key(key)

    def command(output: Path) -> list[str]:
        given = {**options, "checkpoint_dir": str(checkpoint), "output_dir": str(output)}
        return [*map(str, params["executable"]), *to_argv(TOOL, release, given)]

    def check(path: Path) -> list[str]:
        problems = check_content(path, release)
        found = _mapping(_checkpoint.read_config(path)).get("world_size")
        if not problems and found != world:
            problems.append(f"{path} is for {found} ranks, the checkpoint for {world}")
        return problems

    job = _tool_module.Job(
        tool=TOOL,
        kind=KIND,
        final=final,
        key=key,
        inputs=inputs,
        command=command,
        check=check,
        home=Path(params["home"]),
        log_dir=Path(params["log_dir"]),
        before=_tool_module.stamp(final),
        environment=_tool_module.environment_of(params),
        timeout=params.get("timeout"),
        container=container,
        reads=[str(checkpoint), *_tool_module.existing_paths(options, WRITTEN)],
        writes=sorted({os.path.dirname(path) for path in written}),
        doing="building the engine",
        ranks=world,
    )
    result: dict[str, Any] = {"key": key, "path": str(final), "world_size": world, "ranks": ranks_of(world)}
    checked = verify(final, full=full, kind=KIND, key=key, tick=cancellation.check)
    if checked.ok and not check(final):
        if not check_mode:
            refresh_times(checked)
        return {**result, **_tool_module.finish(job, None), "engine": summarize(final)}
    reason = [] if checked.manifest is None and not final.exists() else checked.problems or check(final)
    result["reason"] = reason[0] if reason else "there is no engine of these inputs yet"
    result["diff"] = _tool_module.difference(final, KIND, inputs)
    need_writable(final)
    need_space(manifest.total_bytes, final)
    if check_mode:
        return {**result, **_tool_module.finish(job, None), "changed": True}
    outcome = _tool_module.make(job, cancellation, runner)
    return {**result, **_tool_module.finish(job, outcome), "engine": summarize(final)}
