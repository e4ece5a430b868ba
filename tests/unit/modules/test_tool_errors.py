# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._tool_errors import failure_message, find_error, tail_of

TRACEBACK = [
    "[TensorRT-LLM] TensorRT-LLM version: 1.1.0",
    "Traceback (most recent call last):",
    '  File "convert_checkpoint.py", line 5, in <module>',
    "    main()",
    "FileNotFoundError: first",
    "",
    "During handling of the above exception, another exception occurred:",
    "",
    "Traceback (most recent call last):",
    '  File "convert_checkpoint.py", line 9, in <module>',
    "ValueError: second: the one that counts",
    "Exception ignored in: <function f>",
]


@pytest.mark.parametrize(
    ("lines", "rc", "line", "hint"),
    [
        (["usage: trtllm-build [-h]", "trtllm-build: error: unrecognized arguments: --max_output_len"], 2,
         "trtllm-build: error: unrecognized arguments: --max_output_len", "another release"),
        (["usage: x", "convert_checkpoint.py: error: argument --tp_size: invalid int value: 'a'"], 2,
         "convert_checkpoint.py: error: argument --tp_size: invalid int value: 'a'", ""),
        (["[TRT-LLM] [E] old news", "usage: x", "trtllm-build: error: argument --x: expected one argument"], 2,
         "trtllm-build: error: argument --x: expected one argument", "another release"),
        (TRACEBACK, 1, "ValueError: second: the one that counts", ""),
        (["[1,3]<stderr>:Traceback (most recent call last):", "[1,3]<stderr>:  x", "[1,3]<stderr>:KeyError: 'q'"], 1,
         "KeyError: 'q'", ""),
        (["Traceback (most recent call last):", "  x", "torch.OutOfMemoryError: CUDA out of memory. Tried to"], 1,
         "torch.OutOfMemoryError: CUDA out of memory. Tried to", "max_batch_size"),
        (["[TRT] [E] [resizingAllocator.cpp::allocate::61] Error Code 1: Cuda Runtime (out of memory)",
          "Traceback (most recent call last):", "  x", "AssertionError: Engine building failed, please check"], 1,
         "[TRT] [E] [resizingAllocator.cpp::allocate::61] Error Code 1: Cuda Runtime (out of memory)", "GPU's memory"),
        (["loading", "Killed"], 137, "Killed", "host's memory"),
        (["loading"], -9, "Killed", "host's memory"),
        (["OSError: [Errno 28] No space left on device"], 1, "OSError: [Errno 28] No space left on device", "disk"),
        (["OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'"], 1,
         "OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'", "shm_size"),
        (["NCCL WARN Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888)"], 1,
         "NCCL WARN Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888)", "shm_size"),
        (["[TensorRT-LLM][ERROR] 6: The engine plan file is not compatible with this version of TensorRT"], 1,
         "[TensorRT-LLM][ERROR] 6: The engine plan file is not compatible with this version of TensorRT", "same image"),
        (["RuntimeError: MPI size (1) does not match TP size x PP size (4)"], 1,
         "RuntimeError: MPI size (1) does not match TP size x PP size (4)", "number of ranks"),
        (["safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"], 1,
         "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "git-lfs"),
        (["safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer"], 1,
         "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer", "truncated"),
        (["ModuleNotFoundError: No module named 'tensorrt_llm'"], 1,
         "ModuleNotFoundError: No module named 'tensorrt_llm'", "outside TensorRT-LLM's environment"),
        (["W: CUDA driver version is insufficient for CUDA runtime version", "RuntimeError: something else"], 1,
         "RuntimeError: something else", ""),
        (["[11/22/2026-10:00:00] [TRT-LLM] [E] Failed to build", "cleaning up"], 1,
         "[11/22/2026-10:00:00] [TRT-LLM] [E] Failed to build", ""),
        (["one", "it failed badly", "bye"], 1, "it failed badly", ""),
        (["only this"], 1, "only this", ""),
        ([], 1, "", ""),
    ],
)  # fmt: skip
def test_find_error(lines: list[str], rc: int, line: str, hint: str) -> None:
    found = find_error(lines, rc)
    assert found.line == line
    assert hint in found.hint if hint else found.hint == ""


def test_message_is_one_line() -> None:
    text = failure_message("trtllm_build", find_error(["Killed"], -9), -9, "/logs/x.log")
    assert text.startswith("trtllm_build was ended by signal 9: Killed (the host's memory ran out")
    assert text.endswith("log: /logs/x.log") and "\n" not in text


def test_tail_reads_the_end_only(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(100000)))
    lines = tail_of(tmp_path / "log", limit=1000)
    assert lines[-1] == "line 99999" and lines[0].startswith("line ") and len(lines) < 100
    assert tail_of(tmp_path / "nowhere") == []
