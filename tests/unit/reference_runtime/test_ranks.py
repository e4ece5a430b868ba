# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks above 0, and the GPU that an engine is bound to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorrtllm_reference import build, gpu, ranks
from tensorrtllm_reference.cli import ToolError
from tensorrtllm_reference.engine_file import EngineFile
from tensorrtllm_reference.errors import EngineError
from tensorrtllm_reference.gpu import Gpu

WORLD = {"OMPI_COMM_WORLD_SIZE": "2"}
A100 = Gpu("NVIDIA A100-SXM4-40GB", "8.0")
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")


@pytest.fixture(name="smi")
def _smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An nvidia-smi of a container; without a call there is none."""
    mark = tmp_path / ".dockerenv"
    mark.touch()
    monkeypatch.setattr(gpu, "CONTAINER_MARK", str(mark))
    folder = tmp_path / "smi"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def answer(*gpus: Gpu, code: int = 0, text: str = "") -> None:
        lines = text or "".join("%s, %s\n" % each for each in gpus)
        path = folder / "nvidia-smi"
        path.write_text("#!/bin/sh\nprintf '%%s' '%s'\nexit %d\n" % (lines, code))
        path.chmod(0o755)

    return answer


def test_gpus_are_read(smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.find() == []
    smi(A100, A100)
    assert gpu.find() == [A100, A100]
    smi(code=255, text="Failed to initialize NVML: Unknown Error\n")
    with pytest.raises(gpu.CudaError, match="no CUDA-capable device is detected .*Failed to initialize NVML"):
        gpu.find()
    monkeypatch.setattr(gpu, "CONTAINER_MARK", "/nonexistent")
    assert gpu.find() is None, "outside a container a GPU is no matter of this backend"


def engine_of(checkpoint: Path, target: Path) -> Path:
    build.main(["--checkpoint_dir", str(checkpoint), "--output_dir", str(target), "--max_batch_size", "4",
                "--max_seq_len", "64", "--gemm_plugin", "auto"])  # fmt: skip
    return target


@pytest.fixture(name="checkpoint")
def _checkpoint(make_engine: Callable[..., Path]) -> Path:
    return make_engine(2).parent / "checkpoint"


def test_an_engine_is_bound_to_its_gpu(smi: Callable[..., None], checkpoint: Path, tmp_path: Path) -> None:
    smi(A100, A100)
    engine = engine_of(checkpoint, tmp_path / "engine")
    assert EngineFile(engine / "rank1.engine").gpu == A100.to_dict()
    ranks.check(engine, "1.1.0", 1, WORLD)
    smi(H100, H100)
    with pytest.raises(EngineError, match=r"incompatible device, expecting compute 9\.0 got compute 8\.0.* A100"):
        ranks.check(engine, "1.1.0", 1, WORLD)
    smi(A100)
    with pytest.raises(EngineError, match=r"cudaSetDevice\(1\): invalid device ordinal"):
        ranks.check(engine, "1.1.0", 1, WORLD)
    os.unlink(tmp_path / "smi" / "nvidia-smi")
    with pytest.raises(EngineError, match="no CUDA-capable device is detected"):
        ranks.check(engine, "1.1.0", 0, WORLD)


def test_without_a_gpu_nothing_is_bound(smi: Callable[..., None], checkpoint: Path, tmp_path: Path) -> None:
    engine = engine_of(checkpoint, tmp_path / "engine")
    assert EngineFile(engine / "rank0.engine").gpu is None
    ranks.check(engine, "1.1.0", 1, WORLD)
    smi(H100, H100)
    ranks.check(engine, "1.1.0", 1, WORLD)


def test_nothing_is_built_on_a_lost_gpu(smi: Callable[..., None], checkpoint: Path, tmp_path: Path) -> None:
    smi(code=15, text="Unable to determine the device handle for GPU0000:0F:00.0: GPU is lost.\n")
    with pytest.raises(ToolError, match="no CUDA-capable device is detected .*GPU is lost"):
        engine_of(checkpoint, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_a_worker_looks_at_its_own_part(make_engine: Callable[..., Path], tmp_path: Path) -> None:
    engine = Path(shutil.copytree(make_engine(2), tmp_path / "engine"))
    ranks.check(engine, "1.1.0", 1, WORLD)
    with pytest.raises(EngineError, match=r"MPI size \(4\) does not match TP size x PP size \(2\)"):
        ranks.check(engine, "1.1.0", 1, {"OMPI_COMM_WORLD_SIZE": "4"})
    with pytest.raises(EngineError, match="was built by TensorRT-LLM 1.1.0, and this runtime is 0.12.0"):
        ranks.check(engine, "0.12.0", 1, WORLD)
    (engine / "rank1.engine").unlink()
    with pytest.raises(EngineError, match=r"rank1\.engine is missing"):
        ranks.check(engine, "1.1.0", 1, WORLD)


@pytest.mark.parametrize(("value", "rank"), [(None, 0), ("0", 0), ("3", 3), ("x", 0)])
def test_rank(value: str | None, rank: int) -> None:
    assert ranks.rank_of({} if value is None else {ranks.RANK: value}) == rank


# A worker's server: a process whose child, the stub, serves the rank.
SERVER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import sys; sys.path.insert(0, {reference!r})
from pathlib import Path
from tensorrtllm_reference import ranks
print("serving", flush=True)
ranks.serve(Path({engine!r}), "1.1.0", 1)
'''])
child.wait()
"""
# mpirun: starts a leader and a worker, and tells when the worker has ended.
MPIRUN = """
import os, subprocess, sys
leader = subprocess.Popen(["sleep", "60"], env={{**os.environ, "OMPI_COMM_WORLD_RANK": "0"}})
worker = subprocess.Popen([sys.executable, "-c", {server!r}], env={{**os.environ, "OMPI_COMM_WORLD_RANK": "1"}})
print(leader.pid, worker.pid, flush=True)
leader.wait()
print("worker ended", worker.wait(), flush=True)
"""


def test_a_worker_serves_as_long_as_its_leader(make_engine: Callable[..., Path]) -> None:
    reference = str(Path(ranks.__file__).parents[1])
    server = SERVER.format(reference=reference, engine=str(make_engine(2)))
    job = subprocess.Popen(
        [sys.executable, "-c", MPIRUN.format(server=server)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, **WORLD}, start_new_session=True,
    )  # fmt: skip
    try:
        assert job.stdout is not None
        leader, worker = (int(word) for word in job.stdout.readline().split())
        assert job.stdout.readline() == "serving\n"
        deadline = time.monotonic() + 10
        while ranks.find_leader(worker) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        found = ranks.find_leader(worker)
        assert found is not None and found[0] == leader and ranks.alive(found)
        os.kill(leader, 15)
        assert job.stdout.readline() == "worker ended -15\n"
        assert not ranks.alive(found)
    finally:
        os.killpg(job.pid, 9)
        job.communicate()
