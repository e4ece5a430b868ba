#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the collection's CPU backend with the real Triton."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: reference_backend
short_description: Install the CPU reference backend and the real Triton server
version_added: 0.1.0
description:
  - Installs the tree of the reference backend below C(HOME/src), and a virtual environment with Triton below
    C(HOME/venvs), to which C(HOME/venv) points.
  - Both are known by what they are made of. A file that was changed by hand, or a package of another version, is
    reported, and put back.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    description: The tree is read on the controller, and sent only when the host does not have it.
    support: full
options:
  home:
    description: Absolute path below which everything is kept.
    type: path
    required: true
  release:
    description: TensorRT-LLM release whose interface the backend has.
    type: str
    required: true
  src:
    description: Directory of the tree on the controller.
    type: path
    required: true
  requirements:
    description: Text of a requirements file, every line pinned and with a hash.
    type: str
    required: true
  python:
    description: Python 3.10 to 3.12 for the virtual environment; left out, one is looked for.
    type: str
    default: ""
  wheelhouse:
    description: Directory on the host with wheels, instead of a package index.
    type: str
    default: ""
  timeout:
    description: Seconds that each step of the installation may take.
    type: int
    default: 900
  digest:
    description: Hash of the tree, filled in on the controller.
    type: str
  tables:
    description: The release's option tables as JSON, filled in on the controller.
    type: str
  archive:
    description: The tree as a tar archive on the host, filled in on the controller when it is needed.
    type: path
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Reference backend
  trtllm.serving.reference_backend:
    home: /opt/trtllm
    release: 1.1.0
    src: "{{ role_path }}/files/reference"
    requirements: "{{ lookup('ansible.builtin.file', 'reference/requirements.txt') }}"
"""

RETURN = r"""
root:
  description: Directory of the tree.
  returned: always
  type: str
digest:
  description: Identity of the software, in place of an image's digest.
  returned: always
  type: str
python:
  description: Interpreter of the virtual environment.
  returned: always
  type: str
python_ready:
  description: Whether that interpreter is there; false only in check mode on a new host.
  returned: always
  type: bool
convert_checkpoint:
  description: Command of the converter.
  returned: always
  type: list
  elements: str
trtllm_build:
  description: Command of the builder.
  returned: always
  type: list
  elements: str
tritonserver:
  description: The server's executable.
  returned: always
  type: str
library_path:
  description: What the server needs in LD_LIBRARY_PATH.
  returned: always
  type: str
repaired:
  description: Parts that were not as they were made.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError
from ansible_collections.trtllm.serving.plugins.module_utils._environment import InstallError
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, LockError
from ansible_collections.trtllm.serving.plugins.module_utils._reference import (
    Backend,
    library_path,
    make_tree,
    make_venv,
    python_of,
    stamped_python,
    survey,
)
from ansible_collections.trtllm.serving.plugins.module_utils._releases import UnknownRelease, get
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, NativeRunner, RunnerError


def describe(backend: Backend, converter: str) -> Dict[str, Any]:
    return {
        "root": str(backend.root),
        "digest": backend.digest,
        "python": str(backend.python),
        "python_ready": backend.python.exists(),
        "convert_checkpoint": [str(backend.python), str(backend.root / converter)],
        "trtllm_build": [str(backend.python), str(backend.root / "bin" / "trtllm-build")],
        "tritonserver": str(backend.home / "venv" / "triton" / "bin" / "tritonserver"),
        "library_path": library_path(backend.home),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="path", required=True),
            release=dict(type="str", required=True),
            src=dict(type="path", required=True),
            requirements=dict(type="str", required=True),
            python=dict(type="str", default=""),
            wheelhouse=dict(type="str", default=""),
            timeout=dict(type="int", default=900),
            digest=dict(type="str"),
            tables=dict(type="str"),
            archive=dict(type="path"),
        ),
        supports_check_mode=True,
    )
    params = module.params
    home = Path(params["home"])
    try:
        release = get(params["release"])
        python = stamped_python(home, params["python"]) or python_of(home, params["python"])
        backend = survey(
            home, release.version, str(params["digest"]), params["requirements"], str(params["tables"]), python
        )
        result = describe(backend, release.converter)
        result["repaired"] = list(backend.problems)
        result["changed"] = backend.changed
        parts = ((backend.needs_venv, backend.venv), (backend.needs_tree, backend.root))
        missing = [str(path) for needed, path in parts if needed]
        result["diff"] = {
            "before": "".join("%s\n" % line for line in backend.problems),
            "after": "".join("%s\n" % line for line in missing),
        }
        if backend.changed and not module.check_mode:
            if backend.needs_tree and not params["archive"]:
                module.exit_json(need_archive=True, **result)
            with HostLock(home, "installing the reference backend"), Cancellation() as cancellation:
                if backend.needs_venv:
                    python = python_of(home, params["python"])
                    log = home / "logs" / "reference_backend.log"
                    make_venv(
                        backend, python, params["requirements"], params["wheelhouse"], NativeRunner(cancellation),
                        log, params["timeout"],
                    )  # fmt: skip
                if backend.needs_tree:
                    make_tree(backend, Path(params["archive"]), {"digest": backend.digest, "release": release.version})
            result["python_ready"] = backend.python.exists()
    except (InstallError, ArtifactError, LockError, RunnerError, UnknownRelease, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
