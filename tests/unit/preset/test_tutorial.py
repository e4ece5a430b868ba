# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The preset inventory/tutorial against what the tutorial says, field by field."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _checkpoint, _engine, _model_config, _releases
from ansible_collections.trtllm.serving.plugins.module_utils._options import effective_options, to_argv
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import merge_options
from ansible_collections.trtllm.serving.tests.unit.config import _render
from ansible_collections.trtllm.serving.tests.unit.preset import _inventory, _tutorial

INVENTORY = "inventory/tutorial"
RELEASE = "0.12.0"
INTERFACE = json.loads((Path(_render.__file__).parent / "data" / f"interface-{RELEASE}.json").read_text("utf-8"))
DOCUMENT = (_inventory.ROOT / "docs" / "tutorial.md").read_text("utf-8")


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The variables of the one host."""
    (found,) = _inventory.values(tmp_path_factory.mktemp("values"), INVENTORY, **_inventory.MADE).values()
    return found


@pytest.fixture(scope="module")
def configs(preset: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The five config.pbtxt as Triton reads them, parameters as plain strings."""
    made = {}
    for model in _render.MODELS:
        template = _render.environment().get_template(f"{RELEASE}/{model}.config.pbtxt.j2")
        text = template.render({**preset, **preset["__triton_serve_paths"]})
        made[model] = _model_config.parse(text, model)
        made[model]["parameters"] = {
            key: value.get("string_value", "") for key, value in made[model].get("parameters", {}).items()
        }
    return made


def fields() -> list[tuple[str, str, str | None]]:
    """Every field of the table: model, field, and the parameter's name where it is one."""
    found: list[tuple[str, str, str | None]] = []
    for model, wanted in _tutorial.CONFIGS.items():
        for field, value in wanted.items():
            found += [(model, field, key) for key in value] if field == "parameters" else [(model, field, None)]
    return found


@pytest.mark.parametrize(("model", "field", "parameter"), fields())
def test_field_is_the_tutorials(
    preset: dict[str, Any], configs: dict[str, dict[str, Any]], model: str, field: str, parameter: str | None
) -> None:
    wanted, found = _tutorial.CONFIGS[model][field], configs[model][field]
    if parameter is not None:
        wanted, found = wanted[parameter], found[parameter]
    # The same things, where our container has them.
    if parameter == "gpt_model_path":
        wanted = preset["__triton_serve_paths"]["triton_serve_engine_dir"]
    if parameter == "tokenizer_dir":
        wanted = preset["__triton_serve_paths"]["triton_serve_tokenizer_dir"]
    if field == "dynamic_batching":
        # Upstream's template has a queue policy, which the tutorial's block drops: with 0, which is Triton's default.
        assert found.pop("default_queue_policy") == {}
    assert found == wanted


@pytest.mark.parametrize("model", sorted(_tutorial.CONFIGS))
def test_what_the_tutorial_does_not_edit_is_upstreams(configs: dict[str, dict[str, Any]], model: str) -> None:
    """A parameter is upstream's constant, or what its code takes where the placeholder stays unfilled."""
    # Placeholders that the tutorial leaves unfilled, and what upstream's code then takes.
    unfilled = {
        ("preprocessing", "add_special_tokens"): "true",
        ("preprocessing", "visual_model_path"): "",
        ("tensorrt_llm_bls", "accumulate_tokens"): "false",
    }
    edited = _tutorial.CONFIGS[model].get("parameters", {})
    for key, value in configs[model]["parameters"].items():
        if key in edited or key == "gpt_model_path":
            continue
        recorded = INTERFACE[model]["parameters"][key]
        if key == "tensorrt_llm_model_name":
            recorded = "tensorrt_llm"
        assert value == unfilled.get((model, key), recorded), key


# --- the tools ---


@cache
def tool_options(tool: Any) -> dict[str, str]:
    """The role's variable of each typed option."""
    return {name: f"mixtral_engine_{name}" for name in tool.TYPED}


def options(tool: Any, preset: dict[str, Any], free: str) -> dict[str, Any]:
    """What the module makes of the role's variables."""
    typed = {name: preset[variable] for name, variable in tool_options(tool).items() if variable in preset}
    merged, problems = merge_options(tool.TOOL, RELEASE, {**typed, "options": preset[free]}, tool.TYPED, tool.RESERVED)
    assert not problems
    return merged


def test_the_checkpoint_is_the_tutorials(preset: dict[str, Any]) -> None:
    ours = options(_checkpoint, preset, "mixtral_engine_convert_options")
    assert effective_options("convert_checkpoint", RELEASE, ours) == effective_options(
        "convert_checkpoint", RELEASE, _tutorial.CONVERT
    )
    argv = to_argv("convert_checkpoint", RELEASE, ours)
    assert [argv[argv.index(flag) + 1] for flag in ("--dtype", "--tp_size")] == ["float16", "8"]
    assert _checkpoint.topology(ours)["world_size"] == _tutorial.WORLD_SIZE


def test_the_engine_is_the_tutorials(preset: dict[str, Any]) -> None:
    ours = effective_options("trtllm_build", RELEASE, options(_engine, preset, "mixtral_engine_build_options"))
    theirs = effective_options("trtllm_build", RELEASE, _tutorial.BUILD)
    # Without a length the tool takes that of the model, which config.json of Mixtral-8x7B-v0.1 says.
    assert (theirs.pop("max_seq_len"), ours.pop("max_seq_len")) == (None, 32768)
    assert ours == theirs
    assert ours["gemm_plugin"] == "float16"


# --- the host, the image ---


def test_docker_and_its_toolkit_are_the_tutorials(preset: dict[str, Any]) -> None:
    assert preset["docker_nvidia_docker_source"] == "docker-ce"
    # dnf remove -y runc
    assert preset["docker_nvidia_remove_conflicts"] is True
    # The experimental packages are optional there, and not taken.
    assert preset["docker_nvidia_toolkit"] == "stable"
    # nvidia-ctk runtime configure --runtime=docker
    assert preset["docker_nvidia_device_policy"] == "runtime"


def test_the_image_is_the_tutorials(preset: dict[str, Any]) -> None:
    role = {
        name.partition("tensorrtllm_backend_build_")[2]: value
        for name, value in preset.items()
        if name.startswith("tensorrtllm_backend_build_")
    }
    assert role["method"] == "build"
    assert role["repository"] == _tutorial.REPOSITORY
    assert role["dockerfile"] == _tutorial.DOCKERFILE == _releases.get(RELEASE).dockerfile
    assert role["image"] == _tutorial.IMAGE + ":latest"
    assert role["build_args"] == {}
    # DOCKER_BUILDKIT=1
    assert role["buildkit"] == "always"
    # The tutorial names no tag. This is the last one before it was written, and the branch main no longer builds.
    assert role["release"] == RELEASE
    assert role["version"] == _releases.get(RELEASE).backend_tag


# --- the containers ---


@pytest.mark.parametrize("family", ["mixtral_engine_container_{}", "triton_serve_{}"])
def test_limits_are_the_tutorials(preset: dict[str, Any], family: str) -> None:
    assert preset[family.format("shm_size")] == _tutorial.SHM_SIZE
    assert preset[family.format("ulimits")] == _tutorial.ULIMITS


@pytest.mark.parametrize("role", ["mixtral_engine", "triton_serve"])
def test_containers_get_all_gpus(preset: dict[str, Any], role: str) -> None:
    assert preset[role + "_gpus"] == _tutorial.GPUS
    assert preset[role + "_device_policy"] == "runtime"


def test_the_server_is_the_tutorials(preset: dict[str, Any]) -> None:
    launch = preset["__triton_serve_docker_launch"]
    assert launch["runtime"] == "docker"
    assert launch["ports"] == _tutorial.PORTS
    assert launch["address"] == _tutorial.LISTENS
    assert (launch["shm_size"], launch["ulimits"], launch["gpus"]) == (
        _tutorial.SHM_SIZE,
        _tutorial.ULIMITS,
        _tutorial.GPUS,
    )


def test_the_ranks_are_those_of_the_launcher(preset: dict[str, Any]) -> None:
    """What launch_triton_server.py --world_size=8 makes, rank by rank, and what the role adds to each."""
    launch = preset["__triton_serve_docker_launch"]
    assert launch["world_size"] == _tutorial.WORLD_SIZE
    head, *words = launch["argv"]
    assert (head, words.pop(0)) == ("mpirun", "--allow-run-as-root")
    ranks = " ".join(words).split(" : ")
    assert len(ranks) == _tutorial.WORLD_SIZE
    added = {"--exit-timeout-secs=%s" % preset["triton_serve_exit_timeout"]}
    for number, text in enumerate(ranks):
        one, count, server, *flags = text.split()
        assert (one, count, server) == ("-n", "1", "/opt/tritonserver/bin/tritonserver")
        wanted = {"--%s-port=%d" % (name, port) for name, port in _tutorial.PORTS.items()}
        wanted |= {
            "--disable-auto-complete-config",
            "--backend-config=python,shm-region-prefix-name=prefix%d_" % number,
        }
        if number:
            wanted |= {"--model-control-mode=explicit", "--load-model=tensorrt_llm"}
        else:
            # Triton's own default.
            wanted.add("--model-control-mode=none")
        assert set(flags) == wanted | added | {"--model-repository=/trtllm/current/model_repo"}


# --- the question, the page ---


def test_the_question_is_the_tutorials(preset: dict[str, Any]) -> None:
    assert preset["triton_serve_smoke_model"] == "ensemble"
    assert preset["triton_serve_smoke_prompt"] == _tutorial.QUESTION["text_input"]
    assert preset["triton_serve_smoke_max_tokens"] == _tutorial.QUESTION["max_tokens"]
    (body,) = set(re.findall(r"curl -X POST localhost:8000/v2/models/ensemble/generate -d '(.*)'", DOCUMENT))
    assert json.loads(body) == _tutorial.QUESTION


def test_tokenizer_and_weights_are_the_tutorials(preset: dict[str, Any]) -> None:
    assert preset["mixtral_engine_weights_source"] == "huggingface"
    assert preset["mixtral_engine_weights_repository"] == _tutorial.WEIGHTS
    assert preset["triton_serve_tokenizer_dir"].endswith("/" + _tutorial.TOKENIZER)


# Whatever a test above lets pass although it is not the tutorial's.
EXCEPTIONS = (
    *("max_seq_len", "default_queue_policy", "placeholders", "gpt_model_path", "tokenizer_dir", "--exit-timeout-secs"),
    *("--model-control-mode=none", "tag v0.12.0", "experimental", "0.0.0.0"),
)


@pytest.mark.parametrize("word", EXCEPTIONS)
def test_every_deviation_is_told(word: str) -> None:
    assert word in DOCUMENT.partition("## Where the preset differs")[2]
