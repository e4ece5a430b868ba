# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role's config.pbtxt templates rendered as Ansible's template module does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml
from ansible.plugins.filter.core import FilterModule as CoreFilters
from ansible_collections.trtllm.serving.plugins.filter.pbtxt import FilterModule

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "triton_serve"
LINES = ("0.12.0", "1.1.0")
MODELS = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")

# What the role computes from the roles before it.
COMPUTED: dict[str, Any] = {
    "triton_serve_tokenizer_dir": "/srv/tokenizer",
    "triton_serve_engine_dir": "/srv/engine",
    "triton_serve_max_batch_size": 64,
}

# What the tutorial writes into the files by hand.
TUTORIAL: dict[str, Any] = {
    "triton_serve_max_batch_size": 1,
    "triton_serve_decoupled": True,
    "triton_serve_bls_decoupled": True,
    "triton_serve_preferred_batch_size": [1],
    "triton_serve_max_queue_delay_microseconds": 100,
    "triton_serve_preprocessing_instance_count": 1,
    "triton_serve_postprocessing_instance_count": 1,
    "triton_serve_bls_instance_count": 1,
    "triton_serve_gpt_model_type": "inflight_fused_batching",
    "triton_serve_engine_dir": "/tensorrtllm_backend/triton_model_repo/tensorrt_llm/1",
    "triton_serve_batch_scheduler_policy": "max_utilization",
    "triton_serve_tokenizer_dir": "/tensorrtllm_backend/tensorrt_llm/examples/mixtral/Mixtral-8x7B-Instruct-v0.1",
    "triton_serve_skip_special_tokens": "True",
    "triton_serve_preprocessing_parameters": {"skip_special_tokens": "True"},
}

HOSTILE_STRINGS = (
    "/srv/with space/and 'single' and \"double\" quotes",
    'C:\\back\\slash\\n\\"end\\',
    'new\nline\rreturn\ttab" } parameters { key: "x',
    "/srv/größe/日本語/\U0001f680/\u2028\u0085\x01\x7f",
    "# no comment %s %(x)d $HOME `id` {x} ;&|<>",
)
HOSTILE: dict[str, Any] = {
    "triton_serve_tokenizer_dir": HOSTILE_STRINGS[0],
    "triton_serve_engine_dir": HOSTILE_STRINGS[1],
    "triton_serve_batch_scheduler_policy": HOSTILE_STRINGS[2],
    "triton_serve_preprocessing_parameters": {'a "key"\n\\': HOSTILE_STRINGS[3]},
    "triton_serve_postprocessing_parameters": {"k": HOSTILE_STRINGS[3]},
    "triton_serve_tensorrt_llm_bls_parameters": {"k": HOSTILE_STRINGS[4]},
    "triton_serve_tensorrt_llm_parameters": {"k": HOSTILE_STRINGS[3], "l": HOSTILE_STRINGS[4]},
}
CASES = {"defaults": {}, "tutorial": TUTORIAL, "hostile": HOSTILE}


def defaults() -> dict[str, Any]:
    """The role's defaults, without those that are expressions."""
    merged = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text("utf-8"))
    return {key: value for key, value in merged.items() if "{{" not in str(value)}


def variables(**changes: Any) -> dict[str, Any]:
    return {**defaults(), **COMPUTED, **changes}


def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLE / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["combine"] = CoreFilters().filters()["combine"]
    made.filters.update({f"trtllm.serving.{name}": each for name, each in FilterModule().filters().items()})
    return made


def render(line: str, model: str, **changes: Any) -> str:
    return environment().get_template(f"{line}/{model}.config.pbtxt.j2").render(variables(**changes))
