# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _options
from ansible_collections.trtllm.serving.plugins.module_utils._releases import UnknownRelease

CONVERT = "convert_checkpoint"
BUILD = "trtllm_build"


@pytest.mark.parametrize(
    ("tool", "release", "options", "problem"),
    [
        (
            BUILD,
            "1.1.0",
            {"gemm_plugn": "auto"},
            "'gemm_plugn' is unknown to release 1.1.0: did you mean 'gemm_plugin'?",
        ),
        (BUILD, "1.1.0", {"zzz": 1}, "'zzz' is unknown to release 1.1.0: the 67 known ones begin checkpoint_dir, "),
        (BUILD, "1.1.0", {"--gemm_plugin": 1}, "'--gemm_plugin' is spelled 'gemm_plugin' here"),
        (BUILD, "1.1.0", {"gemm-plugin": 1}, "'gemm-plugin' is spelled 'gemm_plugin' here"),
        (BUILD, "1.1.0", {"max_decoder_seq_len": 3}, "'max_decoder_seq_len' is spelled 'max_seq_len' here"),
        (CONVERT, "1.1.0", {"sq": 0.5}, "'sq' is unknown to release 1.1.0"),
        (CONVERT, "1.1.0", {"-sq": 0.5}, "'-sq' is spelled 'smoothquant' here"),
        (BUILD, "1.1.0", {"dtype": "x"}, "'dtype' is unknown to release 1.1.0: it is an option of convert_checkpoint"),
        (
            CONVERT,
            "1.1.0",
            {"gemm_plugin": "x"},
            "'gemm_plugin' is unknown to release 1.1.0: it is an option of trtllm_build",
        ),
        (
            CONVERT,
            "1.1.0",
            {"moe_tp_mode": 1},
            (
                "'moe_tp_mode' is not in release 1.1.0: it was last in 0.10.0;"
                " use moe_tp_size and moe_ep_size, whose product is tp_size"
            ),
        ),
        (
            BUILD,
            "0.12.0",
            {"max_output_len": 128},
            "'max_output_len' is not in release 0.12.0: it was last in 0.11.0; use max_seq_len (input plus output)",
        ),
        (
            BUILD,
            "0.12.0",
            {"use_custom_all_reduce": "enable"},
            (
                "'use_custom_all_reduce' is not in release 0.12.0: it was last in 0.11.0;"
                " leave it out, the library chooses the algorithm"
            ),
        ),
        (
            BUILD,
            "0.12.0",
            {"kv_cache_type": "paged"},
            "'kv_cache_type' is not in release 0.12.0: it is in 0.13.0 and newer; use paged_kv_cache",
        ),
        (
            BUILD,
            "1.1.0",
            {"tp_size": 8},
            "'tp_size' is not in release 1.1.0: it is only in 0.12.0; use tp_size of convert_checkpoint",
        ),
        (
            BUILD,
            "1.1.0",
            {"auto_parallel": 8},
            (
                "'auto_parallel' is not in release 1.1.0: it is in 0.12.0 to 1.0.3;"
                " use tp_size and pp_size of convert_checkpoint"
            ),
        ),
        (CONVERT, "0.12.0", {"cp_size": 1}, "'cp_size' is not in release 0.12.0: it is in 0.16.0 and newer"),
        (CONVERT, "1.1.0", {"world_size": 8}, "'world_size' is unknown to release 1.1.0: use tp_size and pp_size"),
        ("launch", "0.12.0", {"no_mpi": True}, "'no_mpi' is not in release 0.12.0: it is in 0.19.0 and newer"),
        (BUILD, "1.1.0", {"max_batch_size": True}, "'max_batch_size': true is not allowed, give an integer"),
        (BUILD, "1.1.0", {"max_batch_size": 8.0}, "'max_batch_size': 8.0 is not allowed, give an integer"),
        (BUILD, "1.1.0", {"max_batch_size": "eight"}, "'max_batch_size': 'eight' is not allowed, give an integer"),
        (BUILD, "1.1.0", {"max_batch_size": [8]}, "'max_batch_size': [8] is not allowed, give an integer"),
        (CONVERT, "1.1.0", {"rotary_base": "x"}, "'rotary_base': 'x' is not allowed, give a number"),
        (CONVERT, "1.1.0", {"rotary_base": "nan"}, "'rotary_base': 'nan' is not allowed, give a number"),
        (CONVERT, "1.1.0", {"rotary_base": False}, "'rotary_base': false is not allowed, give a number"),
        (
            CONVERT,
            "1.1.0",
            {"load_model_on_cpu": "yes"},
            "'load_model_on_cpu': 'yes' is not allowed, give true or false",
        ),
        (CONVERT, "1.1.0", {"load_model_on_cpu": 1}, "'load_model_on_cpu': 1 is not allowed, give true or false"),
        (CONVERT, "1.1.0", {"model_dir": True}, "'model_dir': true is not allowed, give a string"),
        (CONVERT, "1.1.0", {"model_dir": {}}, "'model_dir': {} is not allowed, give a string"),
        (
            CONVERT,
            "1.1.0",
            {"model_dir": "a\0b"},
            "'model_dir': 'a\\x00b' is not allowed, give a string without NUL bytes",
        ),
        (
            CONVERT,
            "0.12.0",
            {"dtype": "auto"},
            "'dtype': 'auto' is not allowed, give one of float32, bfloat16, float16",
        ),
        (
            CONVERT,
            "1.1.0",
            {"embedding_sharding_dim": 2},
            "'embedding_sharding_dim': 2 is not allowed, give one of 0, 1",
        ),
        (
            BUILD,
            "1.1.0",
            {"kv_cache_type": "x"},
            "'kv_cache_type': 'x' is not allowed, give one of continuous, paged, disabled",
        ),
        (
            BUILD,
            "1.1.0",
            {"context_fmha": True},
            "'context_fmha': true is not allowed, give one of enable, disable (use enable)",
        ),
        (
            BUILD,
            "1.1.0",
            {"context_fmha": False},
            "'context_fmha': false is not allowed, give one of enable, disable (use disable)",
        ),
        (
            BUILD,
            "0.19.0",
            {"gemm_plugin": "nvfp4"},
            "'gemm_plugin': 'nvfp4' is not allowed, give one of auto, float16, ",
        ),
        (BUILD, "1.1.0", {"lora_dir": []}, "'lora_dir': [] is not allowed, give at least one value"),
        (BUILD, "1.1.0", {"lora_dir": ["a", {}]}, "'lora_dir': ['a', {}] is not allowed, give a list, each a string"),
        (
            BUILD,
            "1.1.0",
            {"log_level": "loud"},
            "'log_level': 'loud' is not allowed, give one of internal_error, error, ",
        ),
        (
            CONVERT,
            "1.1.0",
            {"model_dir": ["x" * 200]},
            "'model_dir': ['" + "x" * 75 + "... is not allowed, give a string",
        ),
    ],
)
def test_problems(tool: str, release: str, options: dict[str, Any], problem: str) -> None:
    found = _options.check_options(tool, release, options)
    assert len(found) == 1
    assert found[0].startswith(f"{tool} option {problem}")
    assert "\n" not in found[0]
    for function in (_options.to_argv, _options.effective_options):
        with pytest.raises(_options.OptionError) as caught:
            function(tool, release, options)
        assert caught.value.problems == found


def test_all_problems_come_at_once() -> None:
    found = _options.check_options(
        BUILD, "1.1.0", {"nope": 1, "max_batch_size": "x", "gemm_plugin": "auto", "tp_size": 2}
    )
    assert [problem.split("'")[1] for problem in found] == ["nope", "tp_size", "max_batch_size"]


def test_unknown_tool_and_release() -> None:
    with pytest.raises(ValueError, match="tool 'quantize' is not one of convert_checkpoint, trtllm_build, launch"):
        _options.check_options("quantize", "1.1.0", {})
    with pytest.raises(UnknownRelease):
        _options.check_options(BUILD, "0.9.0", {})


def test_the_tutorials_options_are_fine_with_both_lines() -> None:
    convert = {"model_dir": "./Mixtral-8x7B-v0.1", "output_dir": "./out", "dtype": "float16", "tp_size": 8}
    build = {"checkpoint_dir": "./out", "output_dir": "./trt_engines/mixtral/tp8", "gemm_plugin": "float16"}
    for release in ("0.12.0", "1.1.0"):
        assert _options.to_argv(CONVERT, release, convert) == [
            *("--model_dir", "./Mixtral-8x7B-v0.1", "--tp_size", "8", "--dtype", "float16", "--output_dir", "./out"),
        ]
        assert _options.to_argv(BUILD, release, build) == [
            *("--checkpoint_dir", "./out", "--output_dir", "./trt_engines/mixtral/tp8", "--gemm_plugin", "float16"),
        ]


def test_argv_of_every_kind() -> None:
    options = {
        "lora_dir": ["a", "b c"],
        "max_batch_size": "16",
        "fast_build": True,
        "dry_run": False,
        "max_seq_len": None,
        "visualize_network": "-dir",
        "kv_cache_type": "paged",
    }
    assert _options.to_argv(BUILD, "1.1.0", options) == [
        *("--max_batch_size", "16", "--lora_dir", "a", "b c", "--visualize_network=-dir"),
        *("--kv_cache_type", "paged", "--fast_build"),
    ]


def test_effective_options_are_typed_and_complete() -> None:
    found = _options.effective_options(BUILD, "1.1.0", {"max_batch_size": "8", "lora_dir": "one", "max_seq_len": None})
    assert len(found) == 67
    assert (found["max_batch_size"], found["lora_dir"], found["max_seq_len"]) == (8, ["one"], None)
    assert (found["max_input_len"], found["gemm_plugin"], found["fast_build"]) == (1024, "disable", False)
    assert _options.effective_options(CONVERT, "1.1.0", {"rotary_base": 5})["rotary_base"] == 5.0
    assert _options.effective_options("launch", "1.1.0", {"http_port": 8000})["http_port"] == "8000"


def test_a_value_given_in_another_form_is_the_same() -> None:
    """Identity of an engine must not depend on whether templating left a number or a string."""
    forms = [{"max_batch_size": 8}, {"max_batch_size": "8"}, {"max_batch_size": "+8"}, {"max_batch_size": "08"}]
    assert len({str(_options.effective_options(BUILD, "1.1.0", form)) for form in forms}) == 1
    assert _options.effective_options(BUILD, "1.1.0", {"max_batch_size": 2048}) == _options.effective_options(
        BUILD, "1.1.0", {}
    )


@pytest.mark.parametrize(
    ("arguments", "known", "problems"),
    [
        ((8, 1), {"heads": 32, "kv_heads": 8, "experts": 8, "layers": 32, "gpus": 8}, []),
        ((8, 1, 4, 2), {"experts": 8}, []),
        ((8, 1, -1, 8), {"experts": 8}, []),
        ((8, 1, 2, -1), {"experts": 8}, []),
        ((8, 1, None, None), {}, []),
        ((16, 1), {"heads": 32, "kv_heads": 8}, []),
        ((3, 1), {"heads": 32}, ["tp_size 3 does not divide num_attention_heads 32; use one of 1, 2, 4, 8, 16, 32"]),
        (
            (12, 1),
            {"heads": 12, "kv_heads": 8},
            ["tp_size 12 neither divides num_key_value_heads 8 nor is a multiple of it; use one of 1, 2, 4"],
        ),
        (
            (8, 1, 2, 2),
            {},
            ["moe_tp_size 2 x moe_ep_size 2 = 4 is not tp_size 8; use one of 8 x 1, 4 x 2, 2 x 4, 1 x 8"],
        ),
        (
            (8, 1, 1, 4),
            {"experts": 4},
            ["moe_tp_size 1 x moe_ep_size 4 = 4 is not tp_size 8; use one of 8 x 1, 4 x 2, 2 x 4"],
        ),
        (
            (8, 1, -1, 3),
            {},
            ["moe_tp_size 2 x moe_ep_size 3 = 6 is not tp_size 8; use one of 8 x 1, 4 x 2, 2 x 4, 1 x 8"],
        ),
        ((8, 1, 1, 8), {"experts": 4}, ["moe_ep_size 8 does not divide the 4 experts; use one of 1, 2, 4"]),
        ((8, 3), {"layers": 32}, ["pp_size 3 does not divide num_hidden_layers 32; use one of 1, 2, 4, 8, 16, 32"]),
        ((16, 1), {"gpus": 8}, ["tp_size 16 x pp_size 1 needs 16 GPUs, the host has 8"]),
        ((4, 4), {"gpus": 8}, ["tp_size 4 x pp_size 4 needs 16 GPUs, the host has 8"]),
        ((8, 1), {"gpus": 0}, ["tp_size 8 x pp_size 1 needs 8 GPUs, the host has 0"]),
        ((3, 1), {"heads": 1}, ["tp_size 3 does not divide num_attention_heads 1; use 1"]),
        ((0, 1), {}, ["tp_size 0 is not a number of ranks; give a whole number from 1"]),
        (
            (True, -1),
            {},
            [
                "tp_size true is not a number of ranks; give a whole number from 1",
                "pp_size -1 is not a number of ranks; give a whole number from 1",
            ],
        ),
        (
            (8, 1, 0, "x"),
            {},
            [
                "moe_tp_size 0 is not a number of ranks; give a whole number from 1",
                "moe_ep_size 'x' is not a number of ranks; give a whole number from 1",
            ],
        ),
        (
            (3, 5),
            {"heads": 32, "layers": 32, "gpus": 8},
            [
                "tp_size 3 does not divide num_attention_heads 32; use one of 1, 2, 4, 8, 16, 32",
                "pp_size 5 does not divide num_hidden_layers 32; use one of 1, 2, 4, 8, 16, 32",
                "tp_size 3 x pp_size 5 needs 15 GPUs, the host has 8",
            ],
        ),
    ],
)
def test_topology(arguments: tuple[Any, ...], known: dict[str, int], problems: list[str]) -> None:
    assert _options.check_topology(*arguments, **known) == problems


@pytest.mark.parametrize(
    ("given", "want"),
    [((8,), (8, 1)), ((8, -1, 2), (4, 2)), ((8, 2), (2, 4)), ((8, 2, 4), (2, 4)), ((8, None, 8), (1, 8))],
)
def test_moe_sizes_are_completed_as_upstream_does(given: tuple[Any, ...], want: tuple[int, int]) -> None:
    assert _options.moe_sizes(*given) == want
