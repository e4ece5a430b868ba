# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _options, _releases
from ansible_collections.trtllm.serving.plugins.module_utils._releases import _table

ROOT = Path(__file__).resolve().parents[3]
ALL = _releases.all_releases()
TOOLS = ("convert_checkpoint", "trtllm_build", "launch")


def names(release: str, tool: str) -> set[str]:
    return {_releases.dest(option) for option in _releases.get(release).table(tool)["options"]}


def test_the_range() -> None:
    assert ALL[0] == "0.12.0"
    assert ALL[-1] == "1.2.1"
    assert _releases.DEFAULT_RELEASE in ALL
    assert sorted(ALL, key=_releases._order) == ALL
    assert {"0.17.0.post1", "0.18.2", "0.20.0", "1.0.0", "1.0.3"} <= set(ALL)


@pytest.mark.parametrize("version", ALL)
def test_every_row_is_whole(version: str) -> None:
    release = _releases.get(version)
    assert release.version == version
    assert re.fullmatch(r"v\d+\.\d+\.\d+|r\d\d\.\d\d", release.backend_tag)
    if release.backend_tag.startswith("v"):
        assert release.backend_tag == "v" + version
    assert re.fullmatch(r"[0-9a-f]{40}", release.backend_commit)
    assert re.fullmatch(r"[0-9a-f]{40}", release.tensorrt_llm_commit)
    assert list(release.ngc_tags) == sorted(release.ngc_tags, reverse=True)
    assert all(re.fullmatch(r"\d\d\.\d\d", tag) for tag in release.ngc_tags)
    assert re.fullmatch(r"1[23]\.\d+\.\d+", release.cuda)
    assert re.fullmatch(r"10\.\d+(\.\d+)+", release.tensorrt)
    assert re.fullmatch(r"5\d\d\.\d+\.\d+", release.driver)
    assert "engine" in release.flavours
    assert release.provenance


def test_rows_are_in_step_with_time() -> None:
    rows = [_releases.get(version) for version in ALL]
    for column in ("cuda", "tensorrt", "driver"):
        values = [_releases._order(getattr(row, column)) for row in rows]
        assert values == sorted(values), column
    tags = [tag for row in rows for tag in reversed(row.ngc_tags)]
    assert tags == sorted(set(tags))
    commits = [row.backend_commit for row in rows]
    assert len(set(commits)) == len(commits)


def test_images_of_the_default_release() -> None:
    assert _releases.get("1.1.0").images[-1] == "nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3"


@pytest.mark.parametrize(
    ("version", "converter", "templates", "launcher"),
    [
        ("0.12.0", "examples/llama", "all_models", "scripts"),
        ("0.19.0", "examples/llama", "all_models", "scripts"),
        (
            "0.20.0",
            "examples/models/core/llama",
            "tensorrt_llm/triton_backend/all_models",
            "tensorrt_llm/triton_backend/scripts",
        ),
        (
            "1.1.0",
            "examples/models/core/llama",
            "tensorrt_llm/triton_backend/all_models",
            "tensorrt_llm/triton_backend/scripts",
        ),
    ],
)
def test_paths_moved_at_0_20(version: str, converter: str, templates: str, launcher: str) -> None:
    release = _releases.get(version)
    assert release.converter == f"{converter}/convert_checkpoint.py"
    assert release.templates == f"{templates}/inflight_batcher_llm"
    assert release.launcher == f"{launcher}/launch_triton_server.py"


def test_dockerfiles() -> None:
    assert _releases.get("0.19.0").dockerfile == "dockerfile/Dockerfile.trt_llm_backend"
    assert [v for v in ALL if _releases.get(v).dockerfile is None] == ["0.20.0", "0.21.0", "1.0.0"]
    assert _releases.get("1.1.0").dockerfile == "dockerfile/Dockerfile.triton.trt_llm_backend"


def test_a_config_line_is_one_with_templates() -> None:
    lines = {v: _releases.get(v).config_line for v in ALL if _releases.get(v).config_line}
    shipped = {path.name for path in (ROOT / "roles" / "triton_serve" / "templates").iterdir() if path.is_dir()}
    assert lines == {v: v for v in shipped}
    assert _releases.DEFAULT_RELEASE in lines


def test_flavours() -> None:
    for version in ALL:
        llmapi = _releases._order(version) >= (1, 0, 0)
        assert _releases.get(version).flavours == (("engine", "llmapi") if llmapi else ("engine",))


@pytest.mark.parametrize("version", ["0.7.1", "0.9.0", "0.11.0", "0.11"])
def test_older_releases_are_refused(version: str) -> None:
    with pytest.raises(_releases.UnknownRelease) as caught:
        _releases.get(version)
    assert str(caught.value).startswith(
        f"release '{version}' is not supported: it is older than 0.12.0; supported are 0.12.0 to 1.2.1;"
        " use 1.1.0 (default)"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["main", "", "1.2.5", "0.17.1", "2.0.0", "9.9.9", "1.3", "latest", "1.1.0 x"])
def test_unknown_releases_are_refused(version: str) -> None:
    with pytest.raises(_releases.UnknownRelease, match=r"is not supported: supported are 0.12.0 to 1.2.1; use 1.1.0"):
        _releases.get(version)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("v1.1.0", "1.1.0"),
        ("25.12", "1.1.0"),
        ("26.02", "1.1.0"),
        ("r26.07", "1.2.1"),
        ("nvcr.io/nvidia/tritonserver:24.08-trtllm-python-py3", "0.12.0"),
    ],
)
def test_tags_are_refused_with_their_version(name: str, version: str) -> None:
    with pytest.raises(_releases.UnknownRelease, match=f"is a tag, not a TensorRT-LLM version; use {version}$"):
        _releases.get(name)


def test_the_long_name_of_1_0_3() -> None:
    assert _releases.get("1.0.3.2510") is _releases.get("1.0.3")


@pytest.mark.parametrize("version", ["1.3.0", "1.3.0rc5", "1.4.2"])
def test_newer_releases_are_llmapi_only(version: str) -> None:
    release = _releases.get(version)
    assert release.flavours == ("llmapi",)
    assert (release.ngc_tags, release.converter, release.config_line) == ((), "", None)
    assert _releases.check_flavour(version, "llmapi") == []
    assert _releases.check_flavour(version, "engine") == [
        (
            f"release '{version}' has no engines: flavour engine needs TensorRT-LLM 0.12.0 to 1.2.1;"
            " use release 1.1.0 (default), or flavour llmapi"
        )
    ]


def test_flavour_problems() -> None:
    assert _releases.check_flavour("1.1.0", "engine") == _releases.check_flavour("1.1.0", "llmapi") == []
    assert _releases.check_flavour("0.21.0", "llmapi") == [
        (
            "release '0.21.0' has no LLM API model: flavour llmapi needs TensorRT-LLM 1.0.0 or newer;"
            " use release 1.1.0 (default), or flavour engine"
        )
    ]
    assert _releases.check_flavour("1.1.0", "vllm") == ["flavour 'vllm' is not one of engine, llmapi"]
    assert "is not supported" in _releases.check_flavour("0.9.0", "engine")[0]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("version", ALL)
def test_tables_are_well_formed(version: str, tool: str) -> None:
    options = _releases.get(version).table(tool)["options"]
    assert len(options) > 10
    assert json.loads(json.dumps(options)) == options
    flags = [flag for option in options for flag in option["flags"]]
    assert len(flags) == len(set(flags))
    for option in options:
        assert set(option) <= {"flags", "dest", "type", "action", "nargs", "const", "choices", "default"}
        if "action" in option:
            assert option["action"] == "store_true"
            assert option["default"] is False
        else:
            assert re.fullmatch(r"str|int|float|enum:[a-z|]+", option["type"])
            assert option.get("nargs") in (None, "+", "?")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("version", ALL)
def test_defaults_are_values_that_the_table_allows(version: str, tool: str) -> None:
    given = {
        _releases.dest(option): option["default"]
        for option in _releases.get(version).table(tool)["options"]
        if option["default"] is not None
    }
    assert _options.check_options(tool, version, given) == []
    assert _options.effective_options(tool, version, {}) == {
        **dict.fromkeys(names(version, tool)),
        **given,
    }


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("version", ALL)
def test_argparse_understands_the_command_line(version: str, tool: str) -> None:
    """An independent parser made from the table reads back what to_argv wrote."""
    parser = argparse.ArgumentParser(prog=tool, allow_abbrev=False)
    samples: dict[str, object] = {}
    for option in _releases.get(version).table(tool)["options"]:
        name, kind = _releases.dest(option), str(option.get("type", ""))
        if option.get("action"):
            parser.add_argument(*option["flags"], dest=name, action="store_true")
            samples[name] = True
            continue
        python = {"int": int, "float": float}.get(kind, str)
        choices = option.get("choices") or (kind[5:].split("|") if kind.startswith("enum:") else None)
        parser.add_argument(*option["flags"], dest=name, type=python, choices=choices, nargs=option.get("nargs"))
        value = choices[-1] if choices else {"int": -7, "float": -0.5}.get(kind, "-a value --with='odd' \n\"text\"")
        samples[name] = [value] if option.get("nargs") == "+" else value
    # A word of a list cannot be kept from looking like an option.
    for name, value in samples.items():
        if isinstance(value, list) and str(value[0]).startswith("-"):
            samples[name] = ["one", "two words"]
    argv = _options.to_argv(tool, version, dict(reversed(list(samples.items()))))
    assert vars(parser.parse_args(argv)) == samples
    assert argv == _options.to_argv(tool, version, samples)


@pytest.mark.parametrize(
    ("tool", "name", "first", "last"),
    [
        ("convert_checkpoint", "tp_size", "0.12.0", "1.2.1"),
        ("convert_checkpoint", "moe_ep_size", "0.12.0", "1.2.1"),
        ("convert_checkpoint", "use_fp8", "0.13.0", "1.2.1"),
        ("convert_checkpoint", "cp_size", "0.16.0", "1.2.1"),
        ("convert_checkpoint", "use_embedding_sharing", "0.12.0", "0.15.0"),
        ("convert_checkpoint", "use_nvfp4", "0.17.0", "1.2.1"),
        ("trtllm_build", "gemm_plugin", "0.12.0", "1.2.1"),
        ("trtllm_build", "tp_size", "0.12.0", "0.12.0"),
        ("trtllm_build", "kv_cache_type", "0.13.0", "1.2.1"),
        ("trtllm_build", "builder_opt", "0.12.0", "0.13.0"),
        ("trtllm_build", "enable_xqa", "0.12.0", "0.15.0"),
        ("trtllm_build", "auto_parallel", "0.12.0", "1.0.3"),
        ("trtllm_build", "fuse_fp4_quant", "1.1.0", "1.2.1"),
        ("launch", "disable_spawn_processes", "0.13.0", "1.2.1"),
        ("launch", "no_mpi", "0.19.0", "1.2.1"),
        ("launch", "exit_timeout", "1.1.0", "1.2.1"),
    ],
)
def test_where_options_are(tool: str, name: str, first: str, last: str) -> None:
    assert [v for v in ALL if name in names(v, tool)] == ALL[ALL.index(first) : ALL.index(last) + 1]


@pytest.mark.parametrize(
    ("tool", "version", "name", "default"),
    [
        ("convert_checkpoint", "0.14.0", "dtype", "float16"),
        ("convert_checkpoint", "0.15.0", "dtype", "auto"),
        ("convert_checkpoint", "1.1.0", "moe_renorm_mode", 1),
        ("trtllm_build", "0.12.0", "max_batch_size", 256),
        ("trtllm_build", "0.14.0", "max_batch_size", 2048),
        ("trtllm_build", "1.1.0", "max_batch_size", 2048),
        ("trtllm_build", "1.1.0", "max_input_len", 1024),
        ("trtllm_build", "1.1.0", "max_num_tokens", 8192),
        ("trtllm_build", "1.1.0", "max_seq_len", None),
        ("trtllm_build", "1.1.0", "kv_cache_type", None),
        ("trtllm_build", "0.12.0", "use_fused_mlp", False),
        ("trtllm_build", "0.13.0", "use_fused_mlp", "enable"),
        ("trtllm_build", "0.19.0", "tokens_per_block", 64),
        ("trtllm_build", "1.1.0", "tokens_per_block", 32),
        ("launch", "1.1.0", "tensorrt_llm_model_name", "tensorrt_llm"),
    ],
)
def test_defaults(tool: str, version: str, name: str, default: object) -> None:
    assert _options.effective_options(tool, version, {})[name] == default


@pytest.mark.parametrize("tool", TOOLS)
def test_retired_options_are_in_no_table(tool: str) -> None:
    assert not set(_releases.LAST_RELEASE[tool]) & {name for v in ALL for name in names(v, tool)}


@pytest.mark.parametrize("tool", TOOLS)
def test_advice_names_options_that_exist(tool: str) -> None:
    everything = {name for each in TOOLS for v in ALL for name in names(v, each)}
    words = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", " ".join(_releases.ADVICE[tool].values())))
    assert words - {"convert_checkpoint"} <= everything


def test_a_wrong_difference_is_an_error() -> None:
    base = _table.table({"flags": ["--a"], "type": "int", "default": 1})
    for wrong in ({"drop": ["b"]}, {"change": [{"flags": ["--b"], "type": "int", "default": 2}]}):
        with pytest.raises(ValueError, match="b is not in the table to revise"):
            _table.revise(base, **wrong)
