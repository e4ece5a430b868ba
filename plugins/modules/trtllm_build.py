#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a TensorRT-LLM engine from a checkpoint."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: trtllm_build
short_description: Build a TensorRT-LLM engine from a checkpoint
version_added: 0.1.0
description:
  - Runs C(trtllm-build) once for each set of inputs, and keeps the engine that it makes.
  - The engine's directory is named by a key, the hash of the checkpoint's key, every build option with its effective
    value, the versions of TensorRT-LLM and TensorRT, the image's digest and the GPU. Options that only make the build
    faster or slower, and paths, are not part of it.
  - An engine with that key that is whole is used as it is. Otherwise it is built in a sibling directory, checked,
    flushed to disk and renamed into place, so that it is there whole or not at all. What an interrupted run left
    behind is removed.
  - Options and the checkpoint (manifest, ranks, release) are checked before anything runs.
  - When the task is stopped, times out or loses its controller, the tool and everything that it started is ended and
    its output removed.
extends_documentation_fragment:
  - trtllm.serving.attributes
  - trtllm.serving.tool
attributes:
  check_mode:
    support: full
    details: >-
      Writes nothing. When the checkpoint does not exist yet, the result is changed with RV(key) and RV(path) null.
  diff_mode:
    support: full
    details: Names the inputs that differ from those of the engine made last in O(engines_dir).
  idempotent:
    support: full
options:
  checkpoint_dir:
    description:
      - Directory of a checkpoint that M(trtllm.serving.convert_checkpoint) made with the same O(release).
      - May be left out or empty only in check mode, where the conversion has not happened.
    type: path
  engines_dir:
    description:
      - Directory below which engines are kept, each in a directory named by the first 16 digits of its key.
      - The default is C(engines) below O(home).
    type: path
  gpu:
    description:
      - The GPUs that the engine is for, which must be those of the host that builds it.
      - Leave it out where there are none.
    type: dict
    suboptions:
      name:
        description: Name of the GPU, such as V(NVIDIA A100-SXM4-80GB).
        type: str
      compute_capability:
        description: Compute capability, such as V(8.0).
        type: str
      memory_mib:
        description: Memory of one GPU in MiB.
        type: int
      count:
        description: Number of GPUs of the host. A checkpoint for more ranks than that is refused.
        type: int
  image_digest:
    description: Digest of the container image that the tool runs in and the engine will be served in.
    type: str
  max_batch_size:
    description: Requests that can run at the same time. The tool's default depends on the release.
    type: int
  max_input_len:
    description: Longest prompt in tokens.
    type: int
  max_seq_len:
    description: Longest prompt and answer together in tokens; by default what the model can.
    type: int
  max_num_tokens:
    description: Tokens of all running requests that one step may process.
    type: int
  max_beam_width:
    description: Widest beam search.
    type: int
  gemm_plugin:
    description: Data type of the matrix multiplication plugin, V(auto) or V(disable).
    type: str
  gpt_attention_plugin:
    description: Data type of the attention plugin, V(auto) or V(disable).
    type: str
  moe_plugin:
    description: Data type of the mixture-of-experts plugin, V(auto) or V(disable).
    type: str
  context_fmha:
    description: Fused attention in the context phase, V(enable) or V(disable).
    type: str
  use_paged_context_fmha:
    description: Fused attention over the paged cache, V(enable) or V(disable).
    type: str
  workers:
    description: Ranks that are built at the same time.
    type: int
notes:
  - Needs Python 3.9 or newer on the host. With O(container) it needs the package C(docker) too, such as in the
    environment that the role P(trtllm.serving.tensorrtllm_backend_build#role) makes; in check mode it does not.
seealso:
  - module: trtllm.serving.convert_checkpoint
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Build the engine
  trtllm.serving.trtllm_build:
    release: 1.1.0
    executable: [trtllm-build]
    checkpoint_dir: "{{ checkpoint.path }}"
    home: /opt/trtllm
    gpu: {name: NVIDIA A100-SXM4-80GB, compute_capability: "8.0", memory_mib: 81920, count: 8}
    gemm_plugin: auto
    max_batch_size: 64
    max_input_len: 8192
    max_seq_len: 16384
    workers: 8
    timeout: 7200
  register: engine

- name: Use an option that has no parameter of its own
  trtllm.serving.trtllm_build:
    release: 1.1.0
    executable: [trtllm-build]
    checkpoint_dir: "{{ checkpoint.path }}"
    home: /opt/trtllm
    options:
      kv_cache_type: paged
      reduce_fusion: enable
"""

RETURN = r"""
key:
  description: The engine's key, 64 hexadecimal digits. Null in check mode when the checkpoint is not there yet.
  returned: success
  type: str
path:
  description: Directory of the engine; in check mode where it would be.
  returned: success
  type: str
world_size:
  description: Number of ranks, which is how many must be started to serve it.
  returned: success
  type: int
ranks:
  description: Names of the ranks' engine files.
  returned: success
  type: list
  elements: str
engine:
  description: What the engine was built with; a value is null when its C(config.json) does not say.
  returned: success, except in check mode when it would be built
  type: dict
  contains:
    version: {description: Version of TensorRT-LLM., type: str}
    dtype: {description: Data type of the weights., type: str}
    world_size: {description: Number of ranks., type: int}
    tp_size: {description: Tensor parallelism., type: int}
    pp_size: {description: Pipeline parallelism., type: int}
    moe_tp_size: {description: Ranks that an expert is split over., type: int}
    moe_ep_size: {description: Groups that experts are spread over., type: int}
    max_batch_size: {description: Requests at the same time., type: int}
    max_input_len: {description: Longest prompt in tokens., type: int}
    max_seq_len: {description: Longest prompt and answer in tokens., type: int}
    max_num_tokens: {description: Tokens in one step., type: int}
    max_beam_width: {description: Widest beam search., type: int}
    gemm_plugin: {description: Data type of the matrix multiplication plugin., type: str}
reason:
  description: Why it is (or would be) built.
  returned: changed
  type: str
command:
  description: The tool's command line, its output directory being RV(path).
  returned: when the checkpoint is known
  type: list
  elements: str
log_file:
  description: Path of the tool's output; empty when it did not run.
  returned: when the checkpoint is known
  type: str
duration_s:
  description: Seconds that the tool ran.
  returned: when the checkpoint is known
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
from ansible_collections.trtllm.serving.plugins.module_utils._engine import build
from ansible_collections.trtllm.serving.plugins.module_utils._tool_module import argument_spec, run_module


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(
            checkpoint_dir={"type": "path"},
            engines_dir={"type": "path"},
            gpu={
                "type": "dict",
                "options": {
                    "name": {"type": "str"},
                    "compute_capability": {"type": "str"},
                    "memory_mib": {"type": "int"},
                    "count": {"type": "int"},
                },
            },
            image_digest={"type": "str"},
            max_batch_size={"type": "int"},
            max_input_len={"type": "int"},
            max_seq_len={"type": "int"},
            max_num_tokens={"type": "int", "no_log": False},
            max_beam_width={"type": "int"},
            gemm_plugin={"type": "str"},
            gpt_attention_plugin={"type": "str"},
            moe_plugin={"type": "str"},
            context_fmha={"type": "str"},
            use_paged_context_fmha={"type": "str"},
            workers={"type": "int"},
        ),
        supports_check_mode=True,
    )
    run_module(module, build)


if __name__ == "__main__":
    main()
