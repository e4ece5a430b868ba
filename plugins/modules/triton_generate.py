#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send one prompt to a served model and check the answer."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: triton_generate
short_description: Send one prompt to a served model and check the answer
version_added: 0.1.0
description:
  - Asks C(/v2/models/MODEL/generate), or with O(stream) C(generate_stream), once, without any retry.
  - Fails when there is no answer, when the answer or one of the events of a stream is an error (Triton may send errors
    with status 200), when the text is empty or not as expected, and when it came too late.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: none
    details: The prompt is not sent, and the task is reported as skipped.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Changes nothing on the host.
options:
  url:
    description: Where the server's HTTP interface is, without a path. Proxies of the environment are not used.
    type: str
    default: http://127.0.0.1:8000
  model:
    description: The model to ask, V(ensemble) or V(tensorrt_llm_bls) for engines, V(tensorrt_llm) for the LLM API.
    type: str
    default: ensemble
  prompt:
    description: The prompt.
    type: str
    required: true
  max_tokens:
    description: Length of the answer in tokens at most.
    type: int
    default: 16
  parameters:
    description: Further fields of the request, such as V(temperature); they may replace those that the module sets.
    type: dict
    default: {}
  expect:
    description: A regular expression (Python's) that must match somewhere in the answer.
    type: str
  expect_text:
    description: Text that the answer must contain.
    type: str
  allow_empty:
    description: Whether an answer without any visible text is good enough.
    type: bool
    default: false
  max_latency_s:
    description: Seconds that the whole answer may take; a slower one is a failure.
    type: float
  stream:
    description: Whether to have the answer sent in pieces. The model must be deployed decoupled.
    type: bool
    default: false
  timeout:
    description: Seconds after which the question is given up.
    type: float
    default: 120
requirements:
  - requests
seealso:
  - module: trtllm.serving.triton_ready
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: The model answers, and knows something
  trtllm.serving.triton_generate:
    prompt: What is the capital of France?
    max_tokens: 32
    expect: (?i)paris
    max_latency_s: 5

- name: Measure the time to the first token
  trtllm.serving.triton_generate:
    model: tensorrt_llm_bls
    prompt: What is machine learning?
    max_tokens: 64
    stream: true
    parameters: {temperature: 0.7, top_p: 0.9}
"""

RETURN = r"""
text:
  description: The answer; on failure what came of it.
  returned: when an answer came
  type: str
latency_s:
  description: Seconds from the question to the end of the answer.
  returned: when an answer came
  type: float
ttft_s:
  description: Seconds to the first piece of a stream; null without O(stream).
  returned: when an answer came
  type: float
tokens:
  description: Tokens of the answer, in a stream the events with text; null when the server does not tell.
  returned: when an answer came
  type: int
events:
  description: Number of pieces that the answer came in.
  returned: when an answer came
  type: int
model_version:
  description: Version of the model that answered.
  returned: when an answer came
  type: str
status:
  description: HTTP status of the answer.
  returned: when the server reported an error
  type: int
error:
  description: The server's own words.
  returned: when the server reported an error
  type: str
"""

import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.trtllm.serving.plugins.module_utils._smoke import SmokeError, ask
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient, TritonError

REQUESTS_ERROR = ""
try:
    import requests
except ImportError:
    REQUESTS_ERROR = traceback.format_exc()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8000"},
            "model": {"type": "str", "default": "ensemble"},
            "prompt": {"type": "str", "required": True},
            "max_tokens": {"type": "int", "default": 16, "no_log": False},
            "parameters": {"type": "dict", "default": {}},
            "expect": {"type": "str"},
            "expect_text": {"type": "str"},
            "allow_empty": {"type": "bool", "default": False},
            "max_latency_s": {"type": "float"},
            "stream": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 120},
        },
        supports_check_mode=False,
    )
    if REQUESTS_ERROR:
        module.fail_json(msg=missing_required_lib("requests"), exception=REQUESTS_ERROR)
    try:
        result = ask(TritonClient(module.params["url"], requests), module.params)
    except SmokeError as exc:
        module.fail_json(msg=str(exc), **exc.details)
    except TritonError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
