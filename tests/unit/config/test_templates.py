# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.trtllm.serving.plugins.module_utils import _model_config
from ansible_collections.trtllm.serving.plugins.module_utils._pbtxt import parameter
from ansible_collections.trtllm.serving.tests.unit.config import _render
from ansible_collections.trtllm.serving.tests.unit.config._render import CASES, HOSTILE, LINES, MODELS, TUTORIAL

DATA = Path(__file__).parent / "data"

# Placeholder of the recorded interface: the role's variable.
VARIABLES = {
    "triton_max_batch_size": "triton_serve_max_batch_size",
    "logits_datatype": "triton_serve_logits_datatype",
    "encoder_input_features_data_type": "triton_serve_encoder_input_features_data_type",
    "prompt_embedding_table_data_type": "triton_serve_prompt_embedding_table_data_type",
    "preprocessing_instance_count": "triton_serve_preprocessing_instance_count",
    "postprocessing_instance_count": "triton_serve_postprocessing_instance_count",
    "bls_instance_count": "triton_serve_bls_instance_count",
    "engine_dir": "triton_serve_engine_dir",
    "batching_strategy": "triton_serve_gpt_model_type",
    "triton_backend": "triton_serve_backend",
}

# Parameters that stay out unless asked for: the backends take their own defaults where one is absent.
OPTIONAL = {
    "tensorrt_llm": {
        *("cross_kv_cache_fraction", "cuda_graph_cache_size", "cuda_graph_mode", "eagle_choices"),
        *("enable_context_fmha_fp32_acc", "encoder_model_path", "gpu_weights_percent", "iter_stats_max_iterations"),
        *("kv_cache_onboard_blocks", "lookahead_ngram_size", "lookahead_verification_set_size"),
        *("lookahead_window_size", "lora_cache_gpu_memory_fraction", "lora_cache_host_memory_bytes"),
        *("lora_cache_max_adapter_size", "lora_cache_optimal_adapter_size", "medusa_choices", "multi_block_mode"),
        *("num_nodes", "participant_ids", "request_stats_max_iterations", "sink_token_length"),
        *("speculative_decoding_fast_logits", "decoding_mode", "normalize_log_probs", "max_tokens_in_paged_kv_cache"),
        *("max_attention_window_size", "kv_cache_free_gpu_mem_fraction", "kv_cache_host_memory_bytes"),
        *("enable_kv_cache_reuse", "enable_chunked_context", "gpu_device_ids", "stats_check_period_ms"),
    },
    "tensorrt_llm_bls": {"multimodal_encoders_name", "tensorrt_llm_draft_model_name"},
    "preprocessing": {"max_num_images"},
    "postprocessing": set(),
    "ensemble": set(),
}
# Parameters whose "not used" is the empty string: upstream's code reads them without asking whether they exist.
EMPTY = {
    *("visual_model_path", "multimodal_model_path", "hf_model_path", "lora_prefetch_dir"),
    *("guided_decoding_backend", "xgrammar_tokenizer_info_path"),
}


def interface(line: str, model: str) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((DATA / f"interface-{line}.json").read_text("utf-8"))
    found: dict[str, Any] = recorded[model]
    return found


def parsed(line: str, model: str, **changes: Any) -> dict[str, Any]:
    return _model_config.parse(_render.render(line, model, **changes), f"{line}/{model}")


def tensors(items: list[dict[str, Any]]) -> dict[str, str]:
    """Tensors in the recorded interface's notation; a name must not come twice."""
    found: dict[str, str] = {}
    for item in items:
        text = f"{item.pop('data_type')} [{','.join(map(str, item.pop('dims')))}]"
        text += " optional" if item.pop("optional", False) else ""
        text += " ragged" if item.pop("allow_ragged_batch", False) else ""
        text += " reshape []" if item.pop("reshape", None) == {} else ""
        name = item.pop("name")
        assert name not in found
        assert not item, f"{name} has more than the notation tells: {item}"
        found[name] = text
    return found


def resolved(recorded: dict[str, str], values: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, text in recorded.items():
        head, rest = text.split(" ", 1)
        found[name] = f"{values[VARIABLES[head]] if head in VARIABLES else head} {rest}"
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("line", LINES)
def test_interface_equals_upstreams(line: str, model: str, case: str) -> None:
    values = _render.variables(**CASES[case])
    want = interface(line, model)
    got = parsed(line, model, **CASES[case])

    assert got.pop("name") == model
    assert got.pop("max_batch_size") == values["triton_serve_max_batch_size"]
    assert got.pop("platform", None) == want["platform"]
    backend = want["backend"]
    assert got.pop("backend", None) == (values[VARIABLES[backend]] if backend in VARIABLES else backend)
    assert tensors(got.pop("input")) == resolved(want["inputs"], values)
    assert tensors(got.pop("output")) == resolved(want["outputs"], values)

    groups = []
    for text in want["instances"]:
        count, kind = text.split()
        groups.append({"count": values[VARIABLES[count]] if count in VARIABLES else int(count), "kind": kind})
    assert got.pop("instance_group", []) == groups

    if want["decoupled"]:
        name = "triton_serve_bls_decoupled" if model == "tensorrt_llm_bls" else "triton_serve_decoupled"
        assert got.pop("model_transaction_policy").get("decoupled", False) is values[name]

    batching = {None: None, "empty": {}}.get(want["dynamic_batching"])
    if want["dynamic_batching"] == "full":
        size, delay = values["triton_serve_max_batch_size"], values["triton_serve_max_queue_delay_microseconds"]
        batching = {"preferred_batch_size": values["triton_serve_preferred_batch_size"] or [size]}
        batching["default_queue_policy"] = {}
        if delay:
            batching["max_queue_delay_microseconds"] = delay
    assert got.pop("dynamic_batching", None) == batching

    steps = got.pop("ensemble_scheduling", {}).get("step", [])
    assert steps == [
        {"model_name": s["model"], "model_version": s["version"], "input_map": s["in"], "output_map": s["out"]}
        for s in want["steps"]
    ]

    parameters = {key: item.get("string_value", "") for key, item in got.pop("parameters", {}).items()}
    extra = values.get(f"triton_serve_{model}_parameters", {})
    assert {key: parameters.pop(key) for key in extra} == extra
    assert set(want["parameters"]) - OPTIONAL[model] <= set(parameters) <= set(want["parameters"])
    for key, value in parameters.items():
        recorded = want["parameters"][key]
        if not recorded.startswith("${"):
            assert value == recorded
        elif key in EMPTY:
            assert value == ""
        elif key == "tensorrt_llm_model_name":
            assert value == "tensorrt_llm"
        else:
            placeholder = recorded.strip("${}")
            assert value == parameter(values[VARIABLES.get(placeholder, f"triton_serve_{placeholder}")])

    assert not got, f"fields that upstream does not have: {got}"


@pytest.mark.parametrize("line", LINES)
def test_no_optional_parameter_is_stale(line: str) -> None:
    """Every name in OPTIONAL is one of upstream's in some line, so that the list cannot hide a typing error."""
    known = {name for each in LINES for name in interface(each, "tensorrt_llm")["parameters"]}
    assert OPTIONAL["tensorrt_llm"] <= known
    assert parsed(line, "tensorrt_llm")["parameters"].keys().isdisjoint(OPTIONAL["tensorrt_llm"])


@pytest.mark.parametrize("line", LINES)
def test_tutorials_values_arrive(line: str) -> None:
    llm = parsed(line, "tensorrt_llm", **TUTORIAL)
    assert llm["max_batch_size"] == 1
    assert llm["model_transaction_policy"] == {"decoupled": True}
    assert llm["dynamic_batching"]["preferred_batch_size"] == [1]
    assert llm["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    assert llm["parameters"]["batch_scheduler_policy"] == {"string_value": "max_utilization"}
    assert llm["parameters"]["gpt_model_type"] == {"string_value": "inflight_fused_batching"}
    assert parsed(line, "tensorrt_llm_bls", **TUTORIAL)["model_transaction_policy"] == {"decoupled": True}
    assert parsed(line, "preprocessing", **TUTORIAL)["parameters"]["skip_special_tokens"] == {"string_value": "True"}
    assert parsed(line, "postprocessing", **TUTORIAL)["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]


@pytest.mark.parametrize("line", LINES)
def test_bls_answers_the_infer_call_by_default(line: str) -> None:
    assert parsed(line, "tensorrt_llm_bls")["model_transaction_policy"] == {}
    assert parsed(line, "tensorrt_llm")["model_transaction_policy"] == {"decoupled": True}


def test_parameters_of_0_19_are_always_there() -> None:
    found = parsed("1.1.0", "tensorrt_llm")["parameters"]
    assert found["tokenizer_dir"] == {"string_value": "/srv/tokenizer"}
    assert found["guided_decoding_backend"] == found["xgrammar_tokenizer_info_path"] == found["lora_prefetch_dir"] == {}


@pytest.mark.parametrize(
    ("changes", "parameter_name", "value"),
    [
        ({"triton_serve_kv_cache_free_gpu_mem_fraction": 0.85}, "kv_cache_free_gpu_mem_fraction", "0.85"),
        ({"triton_serve_enable_kv_cache_reuse": False}, "enable_kv_cache_reuse", "false"),
        ({"triton_serve_gpu_device_ids": [0, 1]}, "gpu_device_ids", "0,1"),
        ({"triton_serve_tensorrt_llm_parameters": {"max_beam_width": 4}}, "max_beam_width", "4"),
        ({"triton_serve_tensorrt_llm_parameters": {"cuda_graph_mode": True}}, "cuda_graph_mode", "true"),
        ({"triton_serve_tensorrt_llm_parameters": {"max_beam_width": None}}, "max_beam_width", None),
    ],
)
@pytest.mark.parametrize("line", LINES)
def test_a_parameter_is_set_changed_or_left_out(
    line: str, changes: dict[str, Any], parameter_name: str, value: str | None
) -> None:
    found = parsed(line, "tensorrt_llm", **changes)["parameters"]
    assert found.get(parameter_name) == (None if value is None else {"string_value": value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"triton_serve_max_batch_size": 0}, "trtllm.serving.pbtxt_int: 0 is not a whole number from 1"),
        ({"triton_serve_max_batch_size": "8 }"}, "trtllm.serving.pbtxt_int: '8 }' is not a whole number from 1"),
        ({"triton_serve_max_queue_size": True}, "trtllm.serving.pbtxt_int: True is not a whole number from 0"),
        ({"triton_serve_decoupled": "yes"}, "trtllm.serving.pbtxt_bool: 'yes' is not true or false"),
        ({"triton_serve_logits_datatype": "FP32"}, "trtllm.serving.pbtxt_data_type: 'FP32' is not one of TYPE_BOOL, "),
        ({"triton_serve_engine_dir": {}}, "trtllm.serving.pbtxt: {} is not a string, number, boolean or list"),
        ({"triton_serve_engine_dir": "/a/\udcff"}, "trtllm.serving.pbtxt: character U+DCFF is not text in UTF-8"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        _render.render("1.1.0", "tensorrt_llm", **changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_undefined_variable_is_named() -> None:
    values = _render.variables()
    del values["triton_serve_engine_dir"]
    template = _render.environment().get_template("1.1.0/tensorrt_llm.config.pbtxt.j2")
    with pytest.raises(jinja2.UndefinedError, match="triton_serve_engine_dir"):
        template.render(values)


def test_ansible_renders_the_same(tmp_path: Path) -> None:
    """Ansible itself, the way the role does it, against the environment that the other tests use."""
    # Braces in variables would be templates; the other tests have them.
    changes = {key: value for key, value in HOSTILE.items() if "{" not in str(value)}
    own = yaml.safe_load((_render.ROLE / "vars" / "main.yml").read_text("utf-8"))
    names = ("__triton_serve_models", "__triton_serve_cut", "__triton_serve_newline", "__triton_serve_configs")
    copy = {"content": "{{ __triton_serve_configs | to_json }}", "dest": "{{ out }}/{{ item }}.json", "mode": "0640"}
    role = tmp_path / "roles" / "render"
    (role / "tasks").mkdir(parents=True)
    (role / "vars").mkdir()
    (role / "templates").symlink_to(_render.ROLE / "templates")
    told = {**{name: own[name] for name in names}, "__triton_serve_line": "{{ item }}", "__triton_serve_paths": {}}
    (role / "vars" / "main.yml").write_text(yaml.safe_dump(told), "utf-8")
    tasks = [{"name": "Render", "ansible.builtin.copy": copy, "loop": list(LINES)}]
    (role / "tasks" / "main.yml").write_text(yaml.safe_dump(tasks), "utf-8")
    play = {"hosts": "localhost", "gather_facts": False, "roles": ["render"]}
    play["vars"] = _render.variables(**changes, out=str(tmp_path))
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play], allow_unicode=True), "utf-8")
    (tmp_path / "ansible.cfg").write_text("[defaults]\n", "utf-8")
    package = next(Path(place) for place in sys.path if (Path(place) / "ansible_collections" / "trtllm").is_dir())

    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local"]
        + ["-e", json.dumps({"ansible_python_interpreter": sys.executable}), "play.yml"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_COLLECTIONS_PATH": str(package),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for line in LINES:
        rendered = json.loads((tmp_path / f"{line}.json").read_text("utf-8"))
        assert rendered == {model: _render.render(line, model, **changes) for model in _render.MODELS}
