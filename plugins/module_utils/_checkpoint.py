# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TensorRT-LLM checkpoints: their identity, what they must hold, and making one with convert_checkpoint.

Private to the collection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils import _releases, _tool_module, _weights
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
from ansible_collections.trtllm.serving.plugins.module_utils._options import (
    check_topology,
    effective_options,
    moe_sizes,
    to_argv,
)
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Runner

TOOL = "convert_checkpoint"
KIND = "checkpoint"
TYPED = ("dtype", "tp_size", "pp_size", "moe_tp_size", "moe_ep_size", "workers")

# Options that change how fast or how loudly a checkpoint is made, not what it is; and paths.
NOT_IN_KEY = ("model_dir", "output_dir", "workers", "log_level", "load_model_on_cpu", "load_by_shard")
PATHS_IN_KEY = ("quant_ckpt_path", "meta_ckpt_dir", "calib_dataset")
RESERVED = {
    "model_dir": "the module sets it from model_dir",
    "output_dir": "the module sets it below checkpoints_dir",
    "save_config_only": "it makes no checkpoint",
    "world_size": "no release has it; give tp_size and pp_size",
}
_QUANTIZED = ("use_weight_only", "use_fp8", "use_fp8_rowwise", "use_nvfp4", "use_qserve", "smoothquant")
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def read_config(path: PathLike) -> dict[str, Any]:
    """config.json of a checkpoint or engine directory; empty when it cannot be read."""
    try:
        value = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def topology(effective: Mapping[str, Any]) -> dict[str, int]:
    """The mapping that the effective options ask for, written as upstream writes it."""
    tp, pp, cp = (int(effective.get(name) or 1) for name in ("tp_size", "pp_size", "cp_size"))
    moe_tp, moe_ep = moe_sizes(tp, effective.get("moe_tp_size"), effective.get("moe_ep_size"))
    return {
        "world_size": tp * pp * cp,
        "tp_size": tp,
        "pp_size": pp,
        "moe_tp_size": moe_tp,
        "moe_ep_size": moe_ep,
    }


def ranks_of(world_size: int) -> list[str]:
    return [f"rank{rank}.safetensors" for rank in range(world_size)]


def checkpoint_inputs(weights: Mapping[str, Any], release: str, effective: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a checkpoint. Equal inputs make equal checkpoints, wherever and however fast."""
    options = _tool_module.key_options(effective, NOT_IN_KEY, PATHS_IN_KEY)
    # "-1" and the number that it stands for are the same request.
    sizes = topology(effective)
    for name in ("moe_tp_size", "moe_ep_size"):
        if name in options:
            options[name] = sizes[name]
    return {"weights": dict(weights), "converter": release, "options": options}


def check_content(path: PathLike, wanted: Mapping[str, int] | None = None) -> list[str]:
    """Whether config.json and every rank's weights are there and whole; reads headers only."""
    root = Path(path)
    config = read_config(root)
    mapping = config.get("mapping")
    if not isinstance(mapping, dict) or not isinstance(mapping.get("world_size"), int):
        return [f"{root / 'config.json'} is missing or has no mapping.world_size"]
    problems = [
        f"{root / 'config.json'} has {name} {mapping[name]}, not {value} as asked"
        for name, value in sorted((wanted or {}).items())
        if name in mapping and mapping[name] != value
    ]
    for name in ranks_of(mapping["world_size"]):
        if not (root / name).is_file():
            problems.append(f"{root / name} is missing: rank {name[4:-12]} of {mapping['world_size']}")
            continue
        try:
            _weights.read_safetensors_header(root / name)
        except _weights.WeightsError as exc:
            problems.append(str(exc).replace("download it again", "convert again"))
    return problems


def check_checkpoint_dir(
    path: PathLike, *, release: str | None = None, world_size: int | None = None, full: bool = False
) -> list[str]:
    """Why a directory is not a usable checkpoint, one line each; none when it is. Fast unless full."""
    checked = verify(path, full=full, kind=KIND)
    if checked.manifest is None:
        return [f"{checked.problems[0]}: convert again"]
    problems = list(checked.problems)
    made_by = checked.manifest.inputs.get("converter")
    if release is not None and made_by != release:
        problems.append(f"{path} was converted by release {made_by}, not {release}: convert again with that release")
    # A file that the manifest check found missing is not told twice.
    known = [problem.split(" ", 1)[0] for problem in problems]
    problems += [problem for problem in check_content(path) if problem.split(" ", 1)[0] not in known]
    found = (read_config(path).get("mapping") or {}).get("world_size")
    if world_size is not None and found != world_size:
        problems.append(f"{path} is for {found} ranks, not {world_size}: convert again with that tp_size x pp_size")
    return problems


def bytes_needed(weight_bytes: int, source_dtype: Any, effective: Mapping[str, Any]) -> int:
    """About how large the checkpoint gets."""
    if any(effective.get(name) for name in _QUANTIZED):
        return weight_bytes // 2
    source = _DTYPE_BYTES.get(str(source_dtype), 2)
    target = _DTYPE_BYTES.get(str(effective.get("dtype")), source)
    return int(weight_bytes * target / source * 1.02)


def convert(
    params: Mapping[str, Any], check_mode: bool, cancellation: Cancellation, runner: Runner | None = None
) -> dict[str, Any]:
    """The module's work; returns its result. Raises one of _tool_module.REPORTED."""
    _tool_module.refuse(_tool_module.release_problems(params["release"]))
    release = _releases.get(params["release"]).version
    options, problems = _tool_module.merge_options(TOOL, release, params, TYPED, RESERVED)
    _tool_module.refuse(problems)
    effective = effective_options(TOOL, release, options)
    sizes = topology(effective)
    split = (sizes["tp_size"], sizes["pp_size"], effective.get("moe_tp_size"), effective.get("moe_ep_size"))
    _tool_module.refuse(check_topology(*split, gpus=params.get("gpus") or None))
    container = _tool_module.container_of(params)

    model_dir = Path(params["model_dir"]) if params.get("model_dir") else None
    world: dict[str, Any] = {"world_size": sizes["world_size"], "ranks": ranks_of(sizes["world_size"])}
    if check_mode and (model_dir is None or not model_dir.exists()):
        return {
            "changed": True,
            "key": None,
            "path": None,
            **world,
            "msg": f"{model_dir or 'model_dir'} does not exist yet: the key will be known once the weights are there",
        }
    if model_dir is None:
        raise _tool_module.ToolError("model_dir is empty: give the path that mixtral_weights returned")
    seen = _weights.inspect(model_dir, tokenizer=False)
    _tool_module.refuse(seen.problems)
    model = {name: seen.summary[name] for name in ("heads", "kv_heads", "experts", "layers")}
    _tool_module.refuse(check_topology(*split, **model))

    full = params.get("verify") == "full"
    if params.get("weights"):
        weights = {name: params["weights"].get(name) for name in ("name", "revision", "files")}
        _tool_module.refuse(_weights.identity_problems(weights, model_dir))
    else:
        weights = _weights.identify(model_dir, params["home"], full=full, write=not check_mode, tick=cancellation.check)
    inputs = checkpoint_inputs(weights, release, effective)
    key = key_of(inputs)
    final = Path(params["checkpoints_dir"]) / short_key(key)

    def command(output: Path) -> list[str]:
        given = {**options, "model_dir": str(model_dir), "output_dir": str(output)}
        return [*map(str, params["executable"]), *to_argv(TOOL, release, given)]

    job = _tool_module.Job(
        tool=TOOL,
        kind=KIND,
        final=final,
        key=key,
        inputs=inputs,
        command=command,
        check=lambda path: check_content(path, sizes),
        home=Path(params["home"]),
        log_dir=Path(params["log_dir"]),
        before=_tool_module.stamp(final),
        environment=_tool_module.environment_of(params),
        timeout=params.get("timeout"),
        container=container,
        reads=[str(model_dir), *_tool_module.existing_paths(options)],
        doing="converting",
        ranks=sizes["world_size"],
    )
    result: dict[str, Any] = {"key": key, "path": str(final), **world}
    checked = verify(final, full=full, kind=KIND, key=key, tick=cancellation.check)
    if checked.ok and not job.check(final):
        if not check_mode:
            refresh_times(checked)
        return {**result, **_tool_module.finish(job, None)}
    reason = [] if checked.manifest is None and not final.exists() else checked.problems or job.check(final)
    result["reason"] = reason[0] if reason else "there is no checkpoint of these inputs yet"
    result["diff"] = _tool_module.difference(final, KIND, inputs)
    need_writable(final)
    need_space(bytes_needed(seen.weight_bytes, seen.summary["dtype"], effective), final)
    if check_mode:
        return {**result, **_tool_module.finish(job, None), "changed": True}
    return {**result, **_tool_module.finish(job, _tool_module.make(job, cancellation, runner))}


def checkpoint_key(path: PathLike) -> str | None:
    manifest = read_manifest(path)
    return manifest.key if manifest is not None and manifest.kind == KIND else None
