# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _model_config
from ansible_collections.trtllm.serving.tests.unit.config import _render

GOOD = """
name: "m"
backend: "python"
max_batch_size: 8
input { name: "a" data_type: TYPE_INT32 dims: [ -1, 2 ] reshape: { shape: [ ] } optional: true }
instance_group [ { count: 2 kind: KIND_CPU } ]
parameters { key: "p" value: { string_value: "v" } }
"""


def test_parse_gives_plain_types() -> None:
    assert _model_config.parse(GOOD) == {
        "name": "m",
        "backend": "python",
        "max_batch_size": 8,
        "input": [{"name": "a", "data_type": "TYPE_INT32", "dims": [-1, 2], "reshape": {}, "optional": True}],
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "parameters": {"p": {"string_value": "v"}},
    }


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        (
            'name: "m"\nmax_batchsize: 1\n',
            "2:1",
            'Message type "inference.ModelConfig" has no field named "max_batchsize"',
        ),
        ("max_batch_size: ${triton_max_batch_size}\n", "1:17", "placeholder ${triton_max_batch_size} is not filled"),
        ('name: "${name}"\n', "1:8", "placeholder ${name} is not filled"),
        ("max_batch_size: x\n", "1:17", "Couldn't parse integer: x"),
        ("\n  input { data_type: TYPE_X }\n", "2:22", 'Enum type "inference.DataType" has no value named TYPE_X'),
        ('name: "m\n', "1:7", "String missing ending quote"),
        ("input { ", "1:7", 'Expected "}"'),
    ],
)
def test_bad_text_is_placed_and_explained(text: str, place: str, problem: str) -> None:
    with pytest.raises(_model_config.ConfigError) as caught:
        _model_config.parse(text, "x/config.pbtxt")
    assert str(caught.value).startswith(f"x/config.pbtxt:{place}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def texts() -> dict[str, str]:
    return {model: _render.render("1.1.0", model) for model in _render.MODELS}


def test_a_good_repository_has_no_problems() -> None:
    assert _model_config.check_repository(texts()) == []


def test_names_must_be_those_of_the_directories() -> None:
    changed = texts()
    changed["preprocessing"] = changed["preprocessing"].replace('name: "preprocessing"', 'name: "other"', 1)
    assert _model_config.check_repository(changed) == [
        "preprocessing/config.pbtxt: name 'other' is not its directory's name 'preprocessing'; make them equal"
    ]


def test_steps_must_be_models() -> None:
    changed = texts()
    del changed["postprocessing"]
    assert _model_config.check_repository(changed) == [
        (
            "ensemble/config.pbtxt: step 'postprocessing' is not a model here;"
            " there are ensemble, preprocessing, tensorrt_llm, tensorrt_llm_bls"
        )
    ]


def test_every_bad_file_is_reported_at_once() -> None:
    changed = texts()
    changed["ensemble"] += "garbage"
    changed["tensorrt_llm"] += 'parameters { key: "k" value: { string_value: "${k}" } }'
    problems = _model_config.check_repository(changed)
    assert [problem.split(":")[0] for problem in problems] == ["ensemble/config.pbtxt", "tensorrt_llm/config.pbtxt"]


@pytest.fixture
def fresh_schema() -> Iterator[None]:
    _model_config._schema.cache_clear()
    yield
    _model_config._schema.cache_clear()


@pytest.mark.usefixtures("fresh_schema")
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("google.protobuf", "install the Python package protobuf"),
        ("tritonclient", "install the Python package tritonclient"),
    ],
)
def test_missing_packages_are_a_failure_of_their_own(
    monkeypatch: pytest.MonkeyPatch, missing: str, message: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("tritonclient")]:
        monkeypatch.delitem(sys.modules, name)
    if missing == "tritonclient":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(_model_config.Unavailable, match=message):
        _model_config.parse(GOOD)


def test_grpc_is_not_needed(tmp_path: Path) -> None:
    """In a process of its own, where importing grpc fails, as on hosts without grpcio."""
    (tmp_path / "grpc.py").write_text("raise ImportError('no grpcio')\n", "utf-8")
    package = _model_config.__name__.rsplit(".", 1)[0]
    program = (
        f"import sys; sys.path[:0] = {[str(tmp_path), *sys.path]!r}\n"
        f"from {package} import _model_config\n"
        "print(_model_config.parse('max_batch_size: 3'), 'grpc' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "{'max_batch_size': 3} False\n"
