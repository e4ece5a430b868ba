# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorrtllm_reference.engine_file import EngineFile, EngineFileError, EngineTensor, write_engine
from tensorrtllm_reference.mapping import Mapping
from tensorrtllm_reference.tensors import from_float32, to_float32


def _values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _write(path: Path, tensors: list[EngineTensor]) -> Path:
    write_engine(path, tensors, release="1.1.0", mapping=Mapping(4, 2, tp_size=2, pp_size=2))
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return _write(tmp_path / "rank2.engine", [EngineTensor("a", "float32", _values(40, 50))])


def test_everything_written_is_read_back(tmp_path: Path) -> None:
    values = _values(3, 5)
    path = _write(
        tmp_path / "rank2.engine",
        [EngineTensor(dtype, dtype, from_float32(values, dtype)) for dtype in ("float32", "float16", "bfloat16")],
    )
    engine = EngineFile(path)
    assert engine.names == ["float32", "float16", "bfloat16"]
    assert (engine.release, engine.rank, engine.mapping.to_dict()) == ("1.1.0", 2, Mapping(
        4, 2, tp_size=2, pp_size=2).to_dict())
    for dtype in engine.names:
        assert engine.dtype(dtype) == dtype
        assert engine.shape(dtype) == (3, 5)
        np.testing.assert_array_equal(engine.float32(dtype), to_float32(from_float32(values, dtype), dtype))
    assert engine.size == path.stat().st_size


def test_equal_experts_and_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    stack = _values(4, 64, 64)
    stack[2] = stack[0]
    path = _write(
        tmp_path / "e",
        [
            EngineTensor("fc", "float32", stack, per_expert=True),
            EngineTensor("embedding", "float32", _values(64, 64, seed=9)),
            EngineTensor("head", "float32", _values(64, 64, seed=9)),
        ],
    )
    engine = EngineFile(path)
    ids = engine.blob_ids("fc")
    assert ids[0] == ids[2] and len(set(ids)) == 3
    assert engine.blob_ids("embedding") == engine.blob_ids("head")
    np.testing.assert_array_equal(engine.tensor("fc"), stack)
    for expert, view in enumerate(engine.experts("fc")):
        np.testing.assert_array_equal(view, stack[expert])
    assert np.shares_memory(engine.experts("fc")[0], engine.experts("fc")[2])
    assert 4 * 64 * 64 * 4 < path.stat().st_size < 4 * 64 * 64 * 4 + 4096


def test_a_single_different_byte_is_a_different_tensor(tmp_path: Path) -> None:
    stack = np.zeros((3, 300, 300), np.float32)
    stack[1, 123, 45] = 1e-30
    stack[2, 299, 299] = 1e-30
    engine = EngineFile(_write(tmp_path / "e", [EngineTensor("fc", "float32", stack, per_expert=True)]))
    assert len(set(engine.blob_ids("fc"))) == 3
    np.testing.assert_array_equal(engine.tensor("fc"), stack)


def test_views_are_aligned_and_read_only(tmp_path: Path) -> None:
    tensors = [EngineTensor(f"t{size}", "float16", _values(size).astype(np.float16)) for size in (1, 3, 33)]
    engine = EngineFile(_write(tmp_path / "e", tensors))
    for name in engine.names:
        view = engine.tensor(name)
        assert view.ctypes.data % 64 == 0
        with pytest.raises(ValueError):
            view[0] = 1


@pytest.mark.parametrize("size", [0, 3, 20, 100, 5000])
def test_truncated(engine: Path, size: int) -> None:
    engine.write_bytes(engine.read_bytes()[:size])
    with pytest.raises(EngineFileError) as error:
        EngineFile(engine)
    assert str(error.value).startswith(f"{engine} is truncated: {size} bytes")
    assert "build the engine again" in str(error.value)


def test_trailing_bytes(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes() + b"x")
    with pytest.raises(EngineFileError, match="trailing bytes: .* expected"):
        EngineFile(engine)


def test_foreign_file(engine: Path) -> None:
    engine.write_bytes(b"ftrt" + engine.read_bytes()[4:])
    with pytest.raises(EngineFileError, match="not an engine of the CPU reference backend"):
        EngineFile(engine)


def test_damaged_header(engine: Path) -> None:
    data = bytearray(engine.read_bytes())
    data[80] ^= 1
    engine.write_bytes(data)
    with pytest.raises(EngineFileError, match="is damaged: its header"):
        EngineFile(engine)


def test_another_format(engine: Path) -> None:
    data = bytearray(engine.read_bytes())
    data[8] = 9
    engine.write_bytes(data)
    with pytest.raises(EngineFileError, match="format 9, and this runtime reads format 1"):
        EngineFile(engine)


def test_missing_file_and_missing_tensor(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineFileError, match="none.engine is missing"):
        EngineFile(tmp_path / "none.engine")
    with pytest.raises(EngineFileError, match="rank2.engine has no tensor b"):
        EngineFile(engine).tensor("b")


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        _write(tmp_path / "e", [EngineTensor("a", "float32", _values(2)), EngineTensor("a", "float32", _values(2))])
    with pytest.raises(ValueError, match="not float16"):
        _write(tmp_path / "e", [EngineTensor("a", "float16", _values(2))])
