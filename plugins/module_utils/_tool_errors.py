# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the line in a tool's output that says why it failed, and what is known about its cause.

Private to the collection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

LINE_LIMIT = 500


@dataclass(frozen=True)
class Finding:
    """The tool's own error line, and a hint where the cause is known (else empty)."""

    line: str
    hint: str


# (pattern, hint): the cause in a few words, and the remedy. The first that matches wins, so the narrow ones lead.
# Those marked True name a cause wherever they stand; the others only explain the error line itself, since the same
# words occur in harmless warnings.
_KNOWN: tuple[tuple[str, bool, str], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
        r"|Cuda Runtime \(out of memory\)|\[resizingAllocator\]|Requested amount of GPU memory",
        True,
        "the GPU's memory is too small for this: when converting set load_model_on_cpu and workers 1; when building"
        " lower max_batch_size, max_num_tokens or max_seq_len; and see that nothing else uses the GPU",
    ),
    (
        r"Bus error|No space left on device.*/dev/shm|/dev/shm.*No space left on device|shared memory .*too small"
        r"|shared memory segment /dev/shm",
        True,
        "shared memory is too small: raise shm_size",
    ),
    (
        r"No space left on device|Errno 28\b|Disk quota exceeded",
        True,
        "the disk is full: free some, or choose a directory on a larger file system",
    ),
    (
        r"^Killed\b|oom-kill|Out of memory: Kill|MemoryError|Cannot allocate memory|signal 9 \(Killed\)",
        True,
        "the host's memory ran out: lower workers, or use a host with more memory",
    ),
    (
        r"load_by_shard",
        False,
        "load_by_shard does not work with mixture-of-experts models: leave it out",
    ),
    (
        r"HeaderTooLarge|git-lfs|version https://git-lfs",
        True,
        "a weights file is a git-lfs pointer, not weights: fetch the real files (git lfs pull)",
    ),
    (
        r"HeaderTooSmall|InvalidHeader|MetadataIncompleteBuffer|SafetensorError|incomplete metadata",
        True,
        "a weights file is truncated or damaged: download it again",
    ),
    (
        r"serialization version|Serialization assertion|Version tag does not match|plan file is not compatible"
        r"|stdVersionRead == kSERIALIZATION_VERSION|magicTagRead",
        True,
        "the engine was built by another TensorRT: build and serve in the same image",
    ),
    (
        r"MPI size|mpiSize ==|mpi_size|World size .*(match|does not)|kLEADER|mpi world size",
        True,
        "the number of ranks differs from tp_size x pp_size: start as many as config.json of the engine says",
    ),
    (
        r"getPluginCreator could not find|[Gg]emmPlugin|plugin creator|Cannot find plugin|not found in plugin registry",
        False,
        "checkpoint, engine and runtime are not of one TensorRT-LLM: use the same release for all",
    ),
    (
        r"KeyError: '?builder_config'?|'builder_config' not found|key 'builder_config'",
        True,
        "the engine is of an older TensorRT-LLM: build it again with the release that serves it",
    ),
    (
        r"unrecognized arguments?|invalid choice|expected (one|at least one) argument|arguments are required",
        False,
        "the tool is of another release than the one given: compare with what its --help lists",
    ),
    (
        r"No module named '?tensorrt_llm",
        True,
        "the executable runs outside TensorRT-LLM's environment: name the Python that has it, or its container",
    ),
    (
        r"No module named ",
        False,
        "a Python package is missing where the executable runs: install it there, or name the right interpreter",
    ),
    (
        r"error 802|system not yet initialized",
        True,
        "NVSwitch is not ready: start nvidia-fabricmanager in the driver's version",
    ),
    (
        r"CUDA driver version is insufficient|forward compatibility was attempted",
        False,
        "the driver is older than this release needs: upgrade it, or take an older release",
    ),
    (
        r"no CUDA-capable device|Found no NVIDIA driver|could not select device driver|NVIDIA_VISIBLE_DEVICES"
        r"|CUDA_ERROR_NO_DEVICE|libcuda\.so\.1: cannot open",
        False,
        "no GPU is visible to the tool: check nvidia-smi there and the container's GPU access",
    ),
    (
        r"GatedRepo|401 Client Error|Access to model .* is restricted|Invalid user token",
        True,
        "the weights need a licence to be accepted and a token that may read them",
    ),
    (
        r"NCCL (error|WARN)|ncclSystemError|ncclUnhandledCudaError",
        True,
        "the GPUs could not talk to each other: check shm_size, memlock and nvidia-smi topo -m",
    ),
    (
        r"Permission denied|Errno 13\b",
        False,
        "the tool may not read or write that path: check its owner and mode",
    ),
    (
        r"Read-only file system",
        False,
        "that path is read-only: choose another directory",
    ),
    (
        r"moe_tp_size|moe_ep_size",
        False,
        "moe_tp_size x moe_ep_size must be tp_size, and moe_ep_size must divide the number of experts",
    ),
)
_COMPILED = tuple((re.compile(pattern), anywhere, hint) for pattern, anywhere, hint in _KNOWN)

_RANK_PREFIX = re.compile(r"^\[\d+,\d+\]<std(?:out|err)>:\s?")
_ARGPARSE = re.compile(r"^\S+(?: \S+)?: error: \S")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Failure|Warning)?(?:: .*|)$")
_EXCEPTION_NAMED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Failure)\b(?:: .*)?$")
_TRTLLM_ERROR = re.compile(
    r"\[TensorRT-LLM\]\s*\[(?:E|ERROR)\]|\[TRT-LLM\]\s*\[(?:E|ERROR)\]|\[TRT\]\s*\[E\]|\]\[ERROR\]"
)
_ERROR_WORD = re.compile(r"\b(?:error|fatal|failed|cannot|assert\w*)\b", re.I)


def clean(line: str) -> str:
    """The line without what mpirun puts before it, and not longer than can be read."""
    return _RANK_PREFIX.sub("", line).strip()[:LINE_LIMIT]


def _last_exception(lines: Sequence[str]) -> str:
    """The exception line of the last traceback."""
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if starts:
        for line in lines[starts[-1] + 1 :]:
            if line and not line[0].isspace() and _EXCEPTION.match(line):
                return line
    for line in reversed(lines):
        if _EXCEPTION_NAMED.match(line):
            return line
    return ""


def hint_for(line: str) -> str:
    """What is known about the cause of one error line; empty when nothing is."""
    for pattern, _anywhere, hint in _COMPILED:
        if pattern.search(line):
            return hint
    return ""


def find_error(lines: Sequence[str], rc: int = 1) -> Finding:
    """The line to show out of a failed tool's last lines."""
    plain = [_RANK_PREFIX.sub("", line).rstrip()[:LINE_LIMIT] for line in lines if line.strip()]
    for line in reversed(plain):
        if _ARGPARSE.match(line):
            return Finding(line.strip(), hint_for(line))
    strong = ("", "")
    for pattern, anywhere, hint in _COMPILED:
        matches = [line for line in plain if anywhere and pattern.search(line) and not line.startswith("#")]
        if matches:
            strong = (matches[-1].strip(), hint)
            break
    line = _last_exception(plain)
    if not line:
        marked = [entry for entry in plain if _TRTLLM_ERROR.search(entry)]
        line = marked[-1] if marked else ""
    if line and (hint_for(line) or not strong[0]):
        return Finding(line.strip(), hint_for(line))
    if strong[0]:
        # A known cause explains more than the exception that followed from it.
        return Finding(strong[0], strong[1])
    if rc in (-9, 137):
        return Finding("Killed", hint_for("Killed"))
    for entry in reversed(plain):
        if _ERROR_WORD.search(entry):
            return Finding(entry.strip(), hint_for(entry))
    if plain:
        return Finding(plain[-1].strip(), hint_for(plain[-1]))
    return Finding("", "")


def exit_text(rc: int) -> str:
    if rc < 0:
        return f"was ended by signal {-rc}"
    return f"ended with exit code {rc}"


def failure_message(tool: str, finding: Finding, rc: int, log_file: str) -> str:
    """One line: what failed, the tool's own words, what to do, and where to read on."""
    said = f": {finding.line}" if finding.line else " without a word"
    hint = f" ({finding.hint})" if finding.hint else ""
    return f"{tool} {exit_text(rc)}{said}{hint}; log: {log_file}"


def tail_of(path: str | os.PathLike[str], limit: int = 262144) -> list[str]:
    """The last lines of a file, reading no more than its last ``limit`` bytes; empty when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit))
            data = stream.read(limit)
    except OSError:
        return []
    lines = re.split(r"[\r\n]+", data.decode("utf-8", errors="replace"))
    if size > limit:
        lines = lines[1:]
    return [line for line in lines if line.strip()]
