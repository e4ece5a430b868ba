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
  models:
    description: Directory with the models' Python files, C(MODEL/1/model.py), as upstream's C(inflight_batcher_llm).
    type: path
    required: true
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
notes:
  - Needs the Python packages protobuf and tritonclient, with which each C(config.pbtxt) is parsed as
    inference.ModelConfig before anything is written.
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
    - Whether this very generation is the one in service, with every file as it was made, and nothing put back since
      the server was started.
  returned: always
  type: bool
serving:
  description: Whether it is in place, and the server gave a token when it was asked as C(launch.probe) says.
  returned: always
  type: bool
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
  description: Whether each config.pbtxt was parsed; false only in check mode on a host without the packages for it.
  returned: always
  type: bool
"""

import json
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import MANIFEST, ArtifactError, read_manifest
from ansible_collections.trtllm.serving.plugins.module_utils._engine import check_engine_dir, summarize
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
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, LockError
from ansible_collections.trtllm.serving.plugins.module_utils._model_config import (
    ConfigError,
    Unavailable,
    check_repository,
    parse,
)
from ansible_collections.trtllm.serving.plugins.module_utils._server import no_token


def parse_configs(configs: Dict[str, str], check_mode: bool) -> bool:
    """Whether the configs could be parsed; only check mode may go on when the host cannot parse them yet."""
    try:
        problems = check_repository(configs)
    except Unavailable:
        if check_mode:
            return False
        raise
    if problems:
        raise GenerationError("; ".join(problems))
    return True


def check_engine(engine: str, release: str) -> str:
    """The key of an engine that is whole and of the release."""
    problems = check_engine_dir(engine, release)
    if problems:
        raise GenerationError("; ".join(problems))
    manifest = read_manifest(engine)
    if manifest is None:
        raise AssertionError("%s was just found whole" % engine)
    return manifest.key


def check_batch(engine: str, config: str) -> None:
    """Triton must not batch more requests than the engine takes."""
    largest = summarize(engine)["max_batch_size"]
    batch = parse(config).get("max_batch_size", 0)
    if isinstance(largest, int) and batch > largest:
        raise GenerationError(
            "max_batch_size %d of the models is above the engine's %d: lower triton_serve_max_batch_size, "
            "or build with a larger mixtral_engine_max_batch_size" % (batch, largest)
        )


def wanted(params: Dict[str, Any], check_mode: bool) -> Tuple[Plan, bool]:
    """The generation, and whether its identity is known: in check mode, what it is made of may not be there yet."""
    files: Dict[str, str] = {"model_repo/%s/config.pbtxt" % name: str(text) for name, text in params["configs"].items()}
    files.update({name: str(text) for name, text in params["files"].items()})
    files["launch.json"] = json.dumps(params["launch"], indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    pending = params["engine_key"] if check_mode else None
    known = not check_mode or ((pending or Path(params["engine"]).is_dir()) and Path(params["models"]).is_dir())
    engine_key = None
    if known:
        engine_key = pending or check_engine(params["engine"], params["release"])
        check_tokenizer(Path(params["tokenizer"]))
        files.update(model_files(Path(params["models"]), sorted(params["configs"])))
    identity = {"engine": engine_key, "image_digest": params["image_digest"], "release": params["release"]}
    return plan(Path(params["home"]), files, identity), bool(known)


def why_silent(probe: Optional[Dict[str, Any]]) -> str:
    """Why the server gave no token just now; empty when it did, or when there is no question to ask.

    Health endpoints stay green when a model's process has crashed, so the question is whether a token comes.
    """
    if not probe:
        return ""
    return no_token(str(probe["url"]), str(probe["model"]), str(probe["prompt"]), float(probe["timeout"]))


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="path", required=True),
            release=dict(type="str", required=True),
            configs=dict(type="dict", required=True),
            models=dict(type="path", required=True),
            engine=dict(type="path", required=True),
            engine_key=dict(type="str", no_log=False),
            tokenizer=dict(type="path", required=True),
            image_digest=dict(type="str", default=""),
            files=dict(type="dict", default={}),
            launch=dict(type="dict", required=True),
        ),
        supports_check_mode=True,
    )
    params = module.params
    try:
        generation, known = wanted(params, module.check_mode)
        # A generation that is there was parsed before it was made.
        parsed = generation.made or parse_configs(params["configs"], module.check_mode)
        if parsed and not generation.made and "tensorrt_llm" in params["configs"] and Path(params["engine"]).is_dir():
            check_batch(params["engine"], params["configs"]["tensorrt_llm"])
        in_place = generation.in_place and not generation.stale(Path(params["models"]).parent.parent / MANIFEST)
        silence = why_silent(params["launch"].get("probe")) if in_place else ""
        result: Dict[str, Any] = {
            "changed": not generation.made or bool(generation.drift),
            "id": generation.id if known else None,
            "path": str(generation.path) if known else None,
            "current": generation.current,
            "previous": generation.previous,
            "in_place": in_place,
            "serving": in_place and not silence,
            "silence": silence,
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
    except (GenerationError, ArtifactError, LockError, ConfigError, Unavailable) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
