#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Convert a Mixtral into a TensorRT-LLM checkpoint."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: convert_checkpoint
short_description: Convert a Mixtral into a TensorRT-LLM checkpoint
version_added: 0.1.0
description:
  - Runs TensorRT-LLM's C(convert_checkpoint.py) once for each set of inputs, and keeps what it makes.
  - The checkpoint's directory is named by a key, the hash of the weights' identity, the release and every option with
    its effective value. Options that only make the conversion faster or slower, and paths, are not part of it.
  - A checkpoint with that key that is whole is used as it is. Otherwise it is made in a sibling directory, checked,
    flushed to disk and renamed into place, so that it is there whole or not at all. What an interrupted run left
    behind is removed.
  - Options, the split over ranks and the model directory are checked before anything runs.
  - When the task is stopped, times out or loses its controller, the tool and everything that it started is ended and
    its output removed.
extends_documentation_fragment:
  - trtllm.serving.attributes
  - trtllm.serving.tool
attributes:
  check_mode:
    support: full
    details:
      - Writes nothing. Weights whose hashes are not known yet are read, which takes as long as reading them from disk.
      - When O(model_dir) is empty or does not exist yet, the result is changed with RV(key) and RV(path) null.
  diff_mode:
    support: full
    details: Names the inputs that differ from those of the checkpoint made last in O(checkpoints_dir).
  idempotent:
    support: full
options:
  model_dir:
    description:
      - Directory of the model in Hugging Face's layout (C(config.json) and safetensors).
      - May be left out or empty only in check mode, where the weights are not there yet.
    type: path
  checkpoints_dir:
    description:
      - Directory below which checkpoints are kept, each in a directory named by the first 16 digits of its key.
      - The default is C(checkpoints) below O(home).
    type: path
  weights:
    description:
      - The identity of the weights, as RV(trtllm.serving.mixtral_weights#module:identity) returns it.
      - Without it the weights are identified here, by their hashes.
    type: dict
    suboptions:
      name:
        description: Name of the model.
        type: str
        required: true
      revision:
        description: Revision of the model.
        type: str
        required: true
      files:
        description: For each file its C(size) in bytes and its C(sha256).
        type: dict
        required: true
  dtype:
    description: Data type of the checkpoint, such as V(auto), V(float16), V(bfloat16) or V(float32).
    type: str
  tp_size:
    description: Tensor parallelism, the number of ranks that each layer is split over. The tool's default is 1.
    type: int
  pp_size:
    description: Pipeline parallelism, the number of stages that the layers are split into. The tool's default is 1.
    type: int
  moe_tp_size:
    description: Ranks that each expert is split over; O(moe_tp_size) times O(moe_ep_size) must be O(tp_size).
    type: int
  moe_ep_size:
    description: Groups that the experts are spread over; must divide the number of experts.
    type: int
  workers:
    description: Ranks that are converted at the same time. More is faster and needs more memory.
    type: int
  gpus:
    description: GPUs that will serve the model; more ranks than that are refused. V(0) when it is not known.
    type: int
    default: 0
notes:
  - Needs Python 3.9 or newer on the host. With O(container) it needs the package C(docker) too, such as in the
    environment that the role P(trtllm.serving.tensorrtllm_backend_build#role) makes; in check mode it does not.
seealso:
  - module: trtllm.serving.mixtral_weights
  - module: trtllm.serving.trtllm_build
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Convert for eight GPUs
  trtllm.serving.convert_checkpoint:
    release: 1.1.0
    executable: [python3, /app/examples/models/core/llama/convert_checkpoint.py]
    model_dir: /opt/trtllm/weights/mixtral-8x7b-instruct@41bd4c9e7e4fb318ca40e721131d4933966c2cc1
    home: /opt/trtllm
    dtype: bfloat16
    tp_size: 8
    workers: 2
    gpus: 8
  register: checkpoint

- name: Convert with experts spread over the GPUs, and int8 weights
  trtllm.serving.convert_checkpoint:
    release: 1.1.0
    executable: [python3, /app/examples/models/core/llama/convert_checkpoint.py]
    model_dir: /data/mixtral
    weights: "{{ weights.identity }}"
    home: /opt/trtllm
    tp_size: 4
    moe_tp_size: 1
    moe_ep_size: 4
    options:
      use_weight_only: true
      weight_only_precision: int8

- name: Convert in a container
  trtllm.serving.convert_checkpoint:
    release: 0.12.0
    executable: [python3, /app/tensorrt_llm/examples/llama/convert_checkpoint.py]
    model_dir: /opt/trtllm/weights/mixtral-8x7b-instruct@41bd4c9e7e4fb318ca40e721131d4933966c2cc1
    home: /opt/trtllm
    tp_size: 8
    container:
      image: triton_trt_llm:v0.12.0
      shm_size: 2g
      ulimits: {memlock: -1, stack: 67108864}
  vars:
    ansible_python_interpreter: /opt/trtllm/venv/bin/python
"""

RETURN = r"""
key:
  description: The checkpoint's key, 64 hexadecimal digits. Null in check mode when the weights are not there yet.
  returned: success
  type: str
path:
  description: Directory of the checkpoint; in check mode where it would be.
  returned: success
  type: str
world_size:
  description: Number of ranks.
  returned: success
  type: int
ranks:
  description: Names of the files with the ranks' weights.
  returned: success
  type: list
  elements: str
reason:
  description: Why it is (or would be) converted.
  returned: changed
  type: str
command:
  description: The tool's command line, its output directory being RV(path).
  returned: when the weights are known
  type: list
  elements: str
log_file:
  description: Path of the tool's output; empty when it did not run.
  returned: when the weights are known
  type: str
duration_s:
  description: Seconds that the tool ran.
  returned: when the weights are known
  type: float
problems:
  description: Each problem on its own, when several are reported in C(msg).
  returned: failure
  type: list
  elements: str
error:
  description: The tool's own error line.
  returned: when the tool failed
  type: str
hint:
  description: Cause and remedy where the cause is known, else empty.
  returned: when the tool failed
  type: str
rc:
  description: The tool's exit code.
  returned: when the tool failed
  type: int
tail:
  description: The last lines of the tool's output.
  returned: when the tool failed
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._checkpoint import convert
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import argument_spec, run_module


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(
            model_dir={"type": "path"},
            checkpoints_dir={"type": "path"},
            weights={
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "revision": {"type": "str", "required": True},
                    "files": {"type": "dict", "required": True},
                },
            },
            dtype={"type": "str"},
            tp_size={"type": "int"},
            pp_size={"type": "int"},
            moe_tp_size={"type": "int"},
            moe_ep_size={"type": "int"},
            workers={"type": "int"},
            gpus={"type": "int", "default": 0},
        ),
        supports_check_mode=True,
    )
    run_module(module, convert)


if __name__ == "__main__":
    main()
