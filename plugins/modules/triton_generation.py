#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assemble what a Triton server is started from, as one immutable generation."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: triton_generation
short_description: Assemble a Triton model repository and its launch command as an immutable generation
version_added: 0.1.0
description:
  - Writes the model repository, the launch description and the supervisor's files to C(HOME/generations/ID).
  - The identity is a hash of the contents, the engine's key, the image digest and the launch description. It depends
    neither on the time nor on the host's name nor on where C(home) is.
  - A generation that is there is compared file by file. A file that was changed by hand is reported, and put back.
  - Nothing that is being served is switched; see M(trtllm.serving.triton_server).
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  home:
    description: Absolute path below which everything is kept.
    type: path
    required: true
  release:
    description: TensorRT-LLM release that the engine must be of.
    type: str
    required: true
  configs:
    description: The text of each model's C(config.pbtxt), by model.
    type: dict
    required: true
  runtime:
    description: What the server runs in, V(embedded) (under supervisord) or V(docker).
    type: str
    choices: [embedded, docker]
    default: embedded
  container:
    description: Name of the server's container; for O(runtime=docker).
    type: str
    default: trtllm-triton
  image:
    description:
      - Id of the image that O(models) lies in; empty where it lies on the host. The files are copied out once, without
        the image being started. In check mode it may be empty because the image is not there yet.
    type: str
    default: ""
  models:
    description:
      - Directory with the models' Python files, C(MODEL/1/model.py), as upstream's C(inflight_batcher_llm), on the host
        or in O(image).
    type: path
    required: true
  models_in_image:
    description: Whether O(models) lies in O(image).
    type: bool
    default: false
  gpu:
    description:
      - GPU of this host, with C(name) and C(compute_capability). An engine that was built for another one is refused;
        nothing is compared where either is not known.
    type: dict
  engine:
    description: Directory of the finished engine. In check mode it need not be there yet.
    type: path
    required: true
  engine_key:
    description:
      - Identity that the engine gets when it is built or repaired before this task. In check mode the directory is not
        looked at then.
    type: str
  tokenizer:
    description: Directory of the tokenizer.
    type: path
    required: true
  image_digest:
    description: Identity of the software that serves.
    type: str
    default: ""
  files:
    description: Further files of the generation, text by relative path.
    type: dict
    default: {}
  launch:
    description:
      - How the server is started, written to C(launch.json).
      - A generation that is in place is asked for one token, with C(url), C(model), C(prompt) and C(timeout) (seconds)
        of its C(probe).
    type: dict
    required: true
  run:
    description: Identity of this run, as M(trtllm.serving.host_preflight) returned it with the host's lease.
    type: str
    default: ""
  release_lease:
    description: Whether the host's lease is given back when the server already serves this generation.
    type: bool
    default: false
requirements:
  - docker and requests, for O(runtime=docker)
notes:
  - Needs the Python packages protobuf and tritonclient, with which each C(config.pbtxt) is parsed as
    inference.ModelConfig before anything is written. With O(runtime=docker) a host may lack them, which is a warning.
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Assemble the generation
  trtllm.serving.triton_generation:
    home: /opt/trtllm
    release: 1.1.0
    configs:
      ensemble: "{{ lookup('ansible.builtin.template', 'ensemble.config.pbtxt.j2') }}"
    models: /opt/trtllm/src/reference/all_models/inflight_batcher_llm
    engine: /opt/trtllm/engines/0123456789abcdef
    tokenizer: /opt/trtllm/weights/mixtral@1
    launch:
      argv: [/opt/tritonserver/bin/tritonserver, --model-repository=/opt/trtllm/current/model_repo]
"""

RETURN = r"""
id:
  description: First 16 digits of the generation's identity; null in check mode when the engine is not built yet.
  returned: always
  type: str
path:
  description: Directory of the generation.
  returned: always
  type: str
current:
  description: Generation in service before this task; null when there is none.
  returned: always
  type: str
previous:
  description: Generation that served before that one; null when there is none.
  returned: always
  type: str
in_place:
  description:
    - Whether this very generation is the one in service and has passed its gate, with every file as it was made, and
      nothing put back since the server was started.
  returned: always
  type: bool
serving:
  description:
    - Whether it is in place, and the server gave a token when it was asked as C(launch.probe) says.
    - A container must also run, be as this generation would make it now, and see its GPUs.
  returned: always
  type: bool
ungated:
  description:
    - Whether a server of this very generation runs as it was made, and the run that started it broke off before its
      gate.
  returned: always
  type: bool
unfinished:
  description: Whether a rollout of this host was begun and not finished.
  returned: always
  type: bool
released:
  description: Whether the host's lease was given back.
  returned: always
  type: bool
reason:
  description: Why a generation that is in place does not serve, in one line; empty when it does, or is a new one.
  returned: always
  type: str
silence:
  description: Why no token came.
  returned: always
  type: str
repaired:
  description: Files that were not as they were made, and were put back (would be, in check mode).
  returned: always
  type: list
  elements: str
parsed:
  description: Whether each config.pbtxt was parsed; false where a host has not the packages for it.
  returned: always
  type: bool
"""

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import MANIFEST, ArtifactError
from ansible_collections.trtllm.serving.plugins.module_utils._generation import (
    GenerationError,
    Plan,
    check_tokenizer,
    differences,
    make,
    model_files,
    plan,
    repair,
)
from ansible_collections.trtllm.serving.plugins.module_utils._generation_checks import (
    check_batch,
    check_engine,
    check_runtime,
    check_world_size,
    parse_configs,
)
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, LockError
from ansible_collections.trtllm.serving.plugins.module_utils._model_config import ConfigError, Unavailable
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import ServerError, no_token
from ansible_collections.trtllm.serving.plugins.module_utils._server_state import active_url, read_rollout
from ansible_collections.trtllm.serving.plugins.module_utils._staging import fence, give_back, runs, stage

UNGATED = "its gate was never passed"
FAILURES = (
    GenerationError, ArtifactError, LockError, ConfigError, Unavailable, ServerError, _containers.ContainerError,
)  # fmt: skip


def models_dir(params: Dict[str, Any], check_mode: bool) -> Optional[Path]:
    """The models on this host; None in check mode where they would be copied out of an image first."""
    models = str(params["models"])
    if not params["models_in_image"]:
        return Path(models) if not check_mode or Path(models).is_dir() else None
    home, image = Path(params["home"]), str(params["image"])
    # Only with a container; what runs without one does not wait for it.
    from ansible_collections.trtllm.serving.plugins.module_utils import _model_sources

    there = _model_sources.kept(home, image, models)
    if there is not None or check_mode:
        return there
    if not image:
        raise GenerationError("there is no image to take the models from: run tensorrtllm_backend_build first")
    with HostLock(home, "copying the models out of image %s" % image):
        return _model_sources.fetch(home, image, models, _containers.connect)


def wanted(params: Dict[str, Any], check_mode: bool) -> Tuple[Plan, bool]:
    """The generation, and whether its identity is known: in check mode, what it is made of may not be there yet."""
    files: Dict[str, str] = {"model_repo/%s/config.pbtxt" % name: str(text) for name, text in params["configs"].items()}
    files.update({name: str(text) for name, text in params["files"].items()})
    files["launch.json"] = json.dumps(params["launch"], indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    pending = params["engine_key"] if check_mode else None
    models = models_dir(params, check_mode)
    known = not check_mode or ((pending or Path(params["engine"]).is_dir()) and models is not None)
    engine_key = None
    if known and models is not None:
        engine_key = pending or check_engine(params["engine"], params["release"], params["gpu"])
        if not pending:
            check_world_size(params["engine"], params["launch"].get("world_size"))
        check_tokenizer(Path(params["tokenizer"]))
        files.update(model_files(models, sorted(params["configs"])))
    identity = {"engine": engine_key, "image_digest": params["image_digest"], "release": params["release"]}
    return plan(Path(params["home"]), files, identity), bool(known)


def why_silent(home: Path, launch: Dict[str, Any]) -> str:
    """Why the server gave no token just now; empty when it did, or when there is no question to ask.

    Health endpoints stay green when a model's process has crashed, so the question is whether a token comes.
    """
    probe = launch.get("probe")
    if not probe:
        return ""
    return no_token(str(active_url(home, launch)), str(probe["model"]), str(probe["prompt"]), float(probe["timeout"]))


def trouble(params: Dict[str, Any], generation: Plan, check_mode: bool) -> str:
    """Why the server of a generation that is in place does not serve it, in one line; empty when it does."""
    launch = params["launch"]
    if params["runtime"] == "docker":
        from ansible_collections.trtllm.serving.plugins.module_utils._docker_server import DockerServer

        server = DockerServer(Path(params["home"]), params["container"])
        try:
            found = server.trouble(generation.id)
        except ServerError as exc:
            if not check_mode:
                raise
            found = str(exc)
        if found:
            return found
    return why_silent(Path(params["home"]), launch)


def changes_of(generation: Plan) -> List[str]:
    """What of a generation that is current is no longer as it was made."""
    return list(generation.drift) if generation.made and generation.current == generation.id else []


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="path", required=True),
            release=dict(type="str", required=True),
            configs=dict(type="dict", required=True),
            runtime=dict(type="str", default="embedded", choices=["embedded", "docker"]),
            container=dict(type="str", default="trtllm-triton"),
            image=dict(type="str", default=""),
            models=dict(type="path", required=True),
            models_in_image=dict(type="bool", default=False),
            gpu=dict(type="dict"),
            engine=dict(type="path", required=True),
            engine_key=dict(type="str", no_log=False),
            tokenizer=dict(type="path", required=True),
            image_digest=dict(type="str", default=""),
            files=dict(type="dict", default={}),
            launch=dict(type="dict", required=True),
            run=dict(type="str", default=""),
            release_lease=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    params = module.params
    home = Path(params["home"])
    try:
        if not module.check_mode:
            fence(home, params["run"])
        check_runtime(home, params["runtime"])
        generation, known = wanted(params, module.check_mode)
        # A generation that is there was parsed before it was made.
        may_lack = module.check_mode or params["runtime"] == "docker"
        parsed = generation.made or parse_configs(params["configs"], may_lack)
        if not parsed and not module.check_mode:
            module.warn(
                "config.pbtxt is not parsed before it is served: the packages protobuf and tritonclient are not in %s"
                % sys.executable
            )
        if parsed and not generation.made and "tensorrt_llm" in params["configs"] and Path(params["engine"]).is_dir():
            check_batch(params["engine"], params["configs"]["tensorrt_llm"])
        others = [] if params["models_in_image"] else [Path(params["models"]).parent.parent / MANIFEST]
        current = generation.in_place and not generation.outdated(*others)
        # What a run that broke off has started goes on to its gate, however far it has loaded.
        ungated = current and generation.ungated and runs(home, params, generation.id)
        in_place = current and not generation.ungated
        silence = trouble(params, generation, module.check_mode) if in_place else ""
        edited = changes_of(generation)
        reason = silence or ("changed by hand: " + ", ".join(edited) if edited else "")
        if not reason and generation.in_place and not in_place:
            reason = UNGATED if current else "the server was started before a part of it was put back"
        result: Dict[str, Any] = {
            "changed": not generation.made or bool(generation.drift),
            "id": generation.id if known else None,
            "path": str(generation.path) if known else None,
            "current": generation.current,
            "previous": generation.previous,
            "in_place": in_place,
            "serving": in_place and not silence,
            "ungated": ungated,
            "unfinished": bool(read_rollout(home)),
            "released": False,
            "silence": silence,
            "reason": reason,
            "repaired": list(generation.drift),
            "parsed": parsed,
            "diff": differences(generation, known),
        }
        if result["changed"] and not module.check_mode:
            with HostLock(params["home"], "assembling generation %s" % generation.id):
                if generation.made:
                    repair(generation)
                else:
                    make(generation)
        if known and not module.check_mode:
            stage(home, generation.id, params["run"])
            if params["release_lease"] and result["serving"] and not result["unfinished"]:
                result["released"] = give_back(home, params["run"])
    except FAILURES as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
