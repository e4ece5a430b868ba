#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait until a Triton server and its models are ready."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: triton_ready
short_description: Wait until a Triton server and its models are ready
version_added: 0.1.0
description:
  - Follows a server through its start, from a refused connection over live to every model ready, and returns the
    timeline.
  - Asks over one keep-alive session, at an interval that grows to a twentieth of a second, so that readiness is noticed
    within about that. No question waits longer than two seconds.
  - Fails at once when the watched process ends, when a model has failed to load and nothing loads any more, or when
    what answers is no Triton; else when O(timeout) is over. Each model that is not ready is named, with the reason
    from the repository index, or from the server's log where Triton gives it only there (as for a C(config.pbtxt)
    that cannot be parsed).
  - Health endpoints stay ready when a model's Python process has crashed. Use M(trtllm.serving.triton_generate) to see
    whether the model answers.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: Looks once, without waiting, and does not fail when the server is not ready; RV(ready) tells.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Changes nothing.
options:
  url:
    description: Where the server's HTTP interface is, without a path. Proxies of the environment are not used.
    type: str
    default: http://127.0.0.1:8000
  models:
    description: The models that must be ready. With an empty list only the server itself must be.
    type: list
    elements: str
    default: [preprocessing, tensorrt_llm, postprocessing, ensemble, tensorrt_llm_bls]
  timeout:
    description: Seconds to wait.
    type: float
    default: 600
  watch:
    description:
      - The server's process or container on this host, so that its end is noticed at once and its log can be read.
    type: dict
    suboptions:
      container:
        description:
          - Name of the server's container. Its end counts also when Docker starts it again at once; the other
            suboptions are not used then.
        type: str
      pid_file:
        description: File with the server's process id. It may appear after the task has started.
        type: path
      log_file:
        description: File with the server's output.
        type: path
      since:
        description:
          - Seconds since 1970. A pid file that is older is of an earlier start, and ignored.
        type: float
requirements:
  - requests
  - docker, with O(watch.container)
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Wait for the five models
  trtllm.serving.triton_ready:
    url: http://127.0.0.1:8000
    timeout: 900
    watch:
      pid_file: /opt/trtllm/run/triton.pid
      log_file: /opt/trtllm/logs/triton.log

- name: Wait for the five models of a container
  trtllm.serving.triton_ready:
    url: http://127.0.0.1:8000
    watch:
      container: trtllm-triton
  vars:
    ansible_python_interpreter: /opt/trtllm/venv/bin/python

- name: Wait for the one model of the LLM API
  trtllm.serving.triton_ready:
    models: [tensorrt_llm]
"""

RETURN = r"""
ready:
  description: Whether the server and every model are ready. Can be false only in check mode and on failure.
  returned: always
  type: bool
ready_s:
  description: Seconds from the start of the task until all was ready.
  returned: success, except in check mode
  type: float
timeline:
  description: Each change of state with the time since the start of the task.
  returned: always
  type: list
  elements: dict
  contains:
    state:
      description: >-
        V(refused) (nothing listens), V(unresponsive) (no answer in time), V(not_live), V(live), V(model_ready) or
        V(ready).
      type: str
    at_s:
      description: Seconds since the start of the task.
      type: float
    model:
      description: The model of a V(model_ready).
      type: str
  sample:
    - {state: refused, at_s: 0.004}
    - {state: live, at_s: 2.312}
    - {state: model_ready, model: ensemble, at_s: 2.318}
    - {state: ready, at_s: 2.321}
unready:
  description: For each model that is not ready the reason, as far as index or log give one.
  returned: always
  type: dict
waited_s:
  description: Seconds that were waited.
  returned: failure
  type: float
tail:
  description: The last lines of the server's log, or of its container's.
  returned: failure, when there is a log
  type: list
  elements: str
"""

import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._gate_watch import WATCH_SPEC, watch_of
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import MODELS, Follower, NotReady
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Cancelled
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
            "models": {"type": "list", "elements": "str", "default": list(MODELS)},
            "timeout": {"type": "float", "default": 600},
            "watch": {
                "type": "dict",
                "options": WATCH_SPEC,
            },
        },
        supports_check_mode=True,
    )
    if REQUESTS_ERROR:
        module.fail_json(msg=missing_required_lib("requests"), exception=REQUESTS_ERROR)
    params = module.params
    with Cancellation() as cancellation:
        try:
            client = TritonClient(params["url"], requests)
            follower = Follower(
                client,
                params["models"],
                timeout=params["timeout"],
                watch=watch_of(params["watch"] or {}, module.check_mode),
                check=cancellation.check,
            )
            result = follower.look() if module.check_mode else follower.follow()
        except NotReady as exc:
            module.fail_json(msg=str(exc), ready=False, **exc.details)
        except (TritonError, _containers.ContainerError, Cancelled) as exc:
            module.fail_json(msg=str(exc), ready=False)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
