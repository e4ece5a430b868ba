#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide whether a Triton server may get requests."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: triton_gate
short_description: Decide whether a Triton server may get requests
version_added: 0.1.0
description:
  - With O(state=gate), waits as M(trtllm.serving.triton_ready) does until the server and each model are ready, asks
    the prompts in their order over one keep-alive session, and looks whether the server's container sees its GPUs. The
    first thing that is not as it should be is the failure, in one line.
  - With O(state=bake), watches a server that gets requests. The share of failed requests comes from the server's own
    counters (C(nv_inference_request_success) and C(nv_inference_request_failure)), of each model by itself; requests
    that the client gave up do not count. A server that dies, restarts, or loses a model in that time has failed, and
    so has one whose counters cannot be read. At the end the prompts are asked again.
  - Triton counts a failed request of an ensemble twice, and not at all what a decoupled model in Python answers with an
    error of its own; so the ratio errs on the safe side for the ensemble, and the prompts at the end cover the rest.
  - With O(state=smoke), only asks the prompts.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: partial
    details: Looks once whether the server is ready, without waiting and without failing. No prompt is sent.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Changes nothing on the host.
options:
  state:
    description: What to decide.
    type: str
    choices: [gate, smoke, bake]
    default: gate
  url:
    description: Where the server's HTTP interface is, without a path. Proxies of the environment are not used.
    type: str
    default: http://127.0.0.1:8000
  home:
    description:
      - Directory of the deployment on this host. With O(state=smoke) the server that is in service there is asked, also
        where a surge has left it on the ports of the second place; of O(url) only the host counts then.
    type: path
  metrics_url:
    description: Where the server's metrics are, without C(/metrics). Needed with O(state=bake).
    type: str
    default: http://127.0.0.1:8002
  models:
    description:
      - The models that must be ready, and whose requests count in a bake. The requests that a bake reports are those of
        V(ensemble) and V(tensorrt_llm_bls), or of all models when neither is among them.
    type: list
    elements: str
    default: [preprocessing, tensorrt_llm, postprocessing, ensemble, tensorrt_llm_bls]
  timeout:
    description: Seconds until every model must be ready.
    type: float
    default: 600
  watch:
    description:
      - The server's process or container on this host, so that its end is noticed at once and its log can be read.
    type: dict
    suboptions:
      container:
        description: Name of the server's container; the other suboptions are not used then.
        type: str
      pid_file:
        description: File with the server's process id. It may appear after the task has started.
        type: path
      log_file:
        description: File with the server's output.
        type: path
      since:
        description: Seconds since 1970. A pid file that is older is of an earlier start, and ignored.
        type: float
  prompts:
    description:
      - What the server is asked. Without O(prompts[].expect) and O(prompts[].pattern) an answer only has to be
        well-formed and to hold some text.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name in results and messages; by default its place in the list.
        type: str
      prompt:
        description: The prompt.
        type: str
        required: true
      model:
        description: The model to ask, V(ensemble) or V(tensorrt_llm_bls) for engines, V(tensorrt_llm) for the LLM API.
        type: str
        default: ensemble
      max_tokens:
        description: Length of the answer in tokens at most.
        type: int
        default: 16
      expect:
        description: The exact answer, except for white space around it.
        type: str
      pattern:
        description: A regular expression (Python's) that must match somewhere in the answer.
        type: str
      max_latency_s:
        description: Seconds that the whole answer may take; 0 is no limit.
        type: float
        default: 0
      stream:
        description: Whether to have the answer sent in pieces. The model must be deployed decoupled.
        type: bool
        default: false
      parameters:
        description: Further fields of the request, such as V(temperature); they may replace those that the module sets.
        type: dict
        default: {}
      allow_empty:
        description: Whether an answer without any visible text is good enough.
        type: bool
        default: false
      timeout:
        description: Seconds after which the question is given up.
        type: float
        default: 120
  gpu:
    description: What the server's container must see of GPUs.
    type: dict
    suboptions:
      required:
        description: Whether to look at all.
        type: bool
        default: false
      container:
        description: Name of the container; needed with O(gpu.required).
        type: str
      gpus:
        description:
          - The GPUs that it was given, V(all), V(none), a number, or a list of indices and UUIDs. With V(none) nothing
            is looked at.
        type: raw
        default: all
      count:
        description: How many of V(all) GPUs it must see at least; at least one in any case.
        type: int
        default: 1
      name:
        description: Name of the GPUs that the engine was built for; each that is seen must have it. Empty takes any.
        type: str
        default: ""
  bake:
    description: How the server is watched with O(state=bake).
    type: dict
    suboptions:
      seconds:
        description: How long. With 0 nothing is looked at but the prompts.
        type: float
        default: 60
      max_error_ratio:
        description:
          - Share of failed requests, of any one model, up to which the server passes. A bake that is lost even if
            nothing more fails is ended early.
        type: float
        default: 0.01
      interval:
        description: Seconds between two looks at the counters.
        type: float
        default: 5
      min_requests:
        description: Requests that must be seen in that time, so that the ratio means something; 0 takes any number.
        type: int
        default: 0
  progress:
    description: File for the module's progress; the action plugin of the same name fills it in.
    type: path
requirements:
  - requests
  - docker, with O(watch.container) or O(gpu.required)
seealso:
  - module: trtllm.serving.triton_ready
  - module: trtllm.serving.triton_generate
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: The new server knows what the old one knew, and is fast
  trtllm.serving.triton_gate:
    url: http://127.0.0.1:8000
    timeout: 900
    watch:
      container: trtllm-triton
    prompts:
      - name: capital
        prompt: What is the capital of France?
        pattern: (?i)paris
        max_latency_s: 5
      - name: greedy
        prompt: "1, 2, 3, 4,"
        expect: 5, 6, 7, 8
        parameters: {temperature: 0.0, top_k: 1}
      - name: stream
        prompt: Tell me a story.
        model: tensorrt_llm_bls
        stream: true
    gpu:
      required: true
      container: trtllm-triton
      count: 8
      name: NVIDIA H100 80GB HBM3
  vars:
    ansible_python_interpreter: /opt/trtllm/venv/bin/python

- name: Five minutes of real requests, of which at most one of a hundred may fail
  trtllm.serving.triton_gate:
    state: bake
    metrics_url: http://127.0.0.1:8002
    watch:
      container: trtllm-triton
    bake:
      seconds: 300
      max_error_ratio: 0.01
      min_requests: 100
"""

RETURN = r"""
ready:
  description: Whether the server and every model are ready.
  returned: with O(state=gate)
  type: bool
ready_s:
  description: Seconds from the start of the task until all was ready.
  returned: with O(state=gate), when it became ready
  type: float
timeline:
  description: Each change of state, as of M(trtllm.serving.triton_ready).
  returned: with O(state=gate)
  type: list
  elements: dict
unready:
  description: For each model that is not ready the reason, as far as index or log give one.
  returned: when the server did not become ready
  type: dict
answers:
  description: The prompts that were asked, up to the first that failed.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the prompt.
      type: str
    ok:
      description: Whether the answer was as it should be.
      type: bool
    model:
      description: The model that was asked.
      type: str
    text:
      description: The answer.
      type: str
    latency_s:
      description: Seconds from the question to the end of the answer.
      type: float
    ttft_s:
      description: Seconds to the first piece of a stream; null without a stream.
      type: float
    tokens:
      description: Tokens of the answer; null when the server does not tell.
      type: int
text:
  description: The last answer.
  returned: when an answer came
  type: str
gpu:
  description: What the container sees.
  returned: with O(state=gate)
  type: dict
  contains:
    count:
      description: Number of GPUs.
      type: int
    names:
      description: Their names, each once.
      type: list
      elements: str
bake:
  description: What the server's counters say.
  returned: with O(state=bake)
  type: dict
  contains:
    seconds:
      description: How long the server was watched.
      type: float
    requests:
      description: Requests that clients sent in that time.
      type: int
    failures:
      description: Failed requests of the model with the highest share of them.
      type: int
    ratio:
      description: That share.
      type: float
    model:
      description: That model.
      type: str
    models:
      description: The same of each model.
      type: dict
stages:
  description: The parts of the task, V(load), V(smoke), V(gpu) or V(bake), as far as it came.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The part.
      type: str
    offset_s:
      description: Seconds from the start of the task.
      type: float
    seconds:
      description: How long it took.
      type: float
tail:
  description: The last lines of the server's log, or of its container's.
  returned: failure, when there is a log
  type: list
  elements: str
"""

import functools
import traceback
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.trtllm.serving.plugins.module_utils import _containers, _gate, _gate_gpu
from ansible_collections.trtllm.serving.plugins.module_utils._gate_watch import WATCH_SPEC, in_service, watch_of
from ansible_collections.trtllm.serving.plugins.module_utils._progress import Progress
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import MODELS, Follower, NotReady
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Cancelled
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import TritonClient, TritonError

REQUESTS_ERROR = ""
try:
    import requests
except ImportError:
    REQUESTS_ERROR = traceback.format_exc()

SPEC: Dict[str, Any] = {
    "state": {"type": "str", "choices": ["gate", "smoke", "bake"], "default": "gate"},
    "url": {"type": "str", "default": "http://127.0.0.1:8000"},
    "home": {"type": "path"},
    "metrics_url": {"type": "str", "default": "http://127.0.0.1:8002"},
    "models": {"type": "list", "elements": "str", "default": list(MODELS)},
    "timeout": {"type": "float", "default": 600},
    "watch": {"type": "dict", "options": WATCH_SPEC},
    "prompts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str"},
            "prompt": {"type": "str", "required": True},
            "model": {"type": "str", "default": "ensemble"},
            "max_tokens": {"type": "int", "default": 16, "no_log": False},
            "expect": {"type": "str"},
            "pattern": {"type": "str"},
            "max_latency_s": {"type": "float", "default": 0},
            "stream": {"type": "bool", "default": False},
            "parameters": {"type": "dict", "default": {}},
            "allow_empty": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 120},
        },
    },
    "gpu": {
        "type": "dict",
        "options": {
            "required": {"type": "bool", "default": False},
            "container": {"type": "str"},
            "gpus": {"type": "raw", "default": "all"},
            "count": {"type": "int", "default": 1},
            "name": {"type": "str", "default": ""},
        },
    },
    "bake": {
        "type": "dict",
        "options": {
            "seconds": {"type": "float", "default": 60},
            "max_error_ratio": {"type": "float", "default": 0.01},
            "interval": {"type": "float", "default": 5},
            "min_requests": {"type": "int", "default": 0},
        },
    },
    "progress": {"type": "path"},
}


def decide(module: AnsibleModule, cancellation: Cancellation, progress: Progress) -> Dict[str, Any]:
    params = module.params

    def loading(ready: int, models: int) -> None:
        progress.update("waiting for the models", ready, models, "models")

    def baking(seconds: float, of: float) -> None:
        progress.update("watching the errors", text=f"{seconds:.0f} of {of:g} s")

    url = params["url"]
    if params["home"] and params["state"] == "smoke":
        url = in_service(params["home"], url)
    client = TritonClient(url, requests)
    watch = watch_of(params["watch"] or {}, module.check_mode)
    if module.check_mode:
        return {**Follower(client, params["models"], watch=watch).look(), "answers": [], "stages": []}
    if params["state"] == "smoke":
        _gate.check_prompts(params["prompts"])
        return {"answers": _gate.ask_prompts(client, params["prompts"], cancellation.check), "stages": []}
    if params["state"] == "bake":
        bake = params["bake"] or {name: option["default"] for name, option in SPEC["bake"]["options"].items()}
        return _gate.Bake(
            client,
            TritonClient(params["metrics_url"], requests),
            params["models"],
            watch=watch,
            prompts=params["prompts"],
            check=cancellation.check,
            progress=baking,
            **bake,
        ).run()
    return _gate.pass_gate(
        client,
        params["models"],
        params["prompts"],
        timeout=params["timeout"],
        watch=watch,
        look_gpu=functools.partial(_gate_gpu.look, _containers.connect, params["gpu"] or {}),
        check=cancellation.check,
        progress=loading,
    )


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    if REQUESTS_ERROR:
        module.fail_json(msg=missing_required_lib("requests"), exception=REQUESTS_ERROR)
    with Cancellation() as cancellation, Progress(module.params["progress"]) as progress:
        try:
            result = decide(module, cancellation, progress)
        except (_gate.GateFailed, NotReady) as exc:
            module.fail_json(msg=str(exc), **exc.details)
        except (TritonError, _containers.ContainerError, Cancelled) as exc:
            module.fail_json(msg=str(exc), answers=[], stages=[])
    texts = [answer["text"] for answer in result["answers"] if "text" in answer]
    module.exit_json(changed=False, **result, **({"text": texts[-1]} if texts else {}))


if __name__ == "__main__":
    main()
