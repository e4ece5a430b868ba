#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the directory and the Python environment that the collection uses on a host with Docker."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_environment
short_description: Make the collection's home and Python environment on a host with Docker
version_added: 0.1.0
description:
  - Makes O(home), gives it to O(user), and makes a virtual environment with the packages that the collection's modules
    need (docker, requests, huggingface_hub) below C(HOME/venvs), to which C(HOME/venv) points.
  - The environment is known by its requirements, the Python version and the machine type. It counts as made only with
    its stamp, which is written last; the link is switched in one step.
  - What only the distribution can give (a user, packages, programs) is named in RV(missing), for other tasks.
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
  user:
    description: User that owns O(home) and what containers write there; left out, whoever runs the module.
    type: str
    default: ""
  requirements:
    description: Text of a requirements file, every line pinned and with a hash.
    type: str
    required: true
  python:
    description: Python 3.9 to 3.13 for the virtual environment; left out, one is looked for.
    type: str
    default: ""
  wheelhouse:
    description: Directory on the host with wheels, instead of a package index.
    type: str
    default: ""
  programs:
    description: Programs that must be on the host's PATH too, such as V(git).
    type: list
    elements: str
    default: []
  report_missing:
    description:
      - Whether something that only the distribution can give is returned in RV(missing) and RV(packages), with nothing
        done, instead of being a failure. In check mode it always is.
    type: bool
    default: false
  timeout:
    description: Seconds that each step of the installation may take.
    type: int
    default: 900
notes:
  - Needs Python 3.9 or newer on the host, and no package.
seealso:
  - module: trtllm.serving.backend_image
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Python environment of the collection
  trtllm.serving.host_environment:
    home: /opt/trtllm
    user: trtllm
    requirements: "{{ lookup('ansible.builtin.file', 'host/requirements.txt') }}"
  register: environment

- name: Ask Docker with it
  trtllm.serving.backend_image:
    home: /opt/trtllm
    release: 1.1.0
  vars:
    ansible_python_interpreter: "{{ environment.python }}"
"""

RETURN = r"""
python:
  description: Interpreter of the virtual environment, by its link.
  returned: success
  type: str
python_ready:
  description: Whether that interpreter is there; false in check mode on a new host, or when something is missing.
  returned: success
  type: bool
interpreter:
  description: The interpreter that ran this module.
  returned: success
  type: str
missing:
  description: What is missing, of V(user), V(packages).
  returned: success
  type: list
  elements: str
packages:
  description: The distribution's packages to install.
  returned: success
  type: list
  elements: str
family:
  description: V(debian), V(redhat), or empty for another distribution.
  returned: success
  type: str
system_python:
  description: The interpreter that the package manager's bindings are for.
  returned: success
  type: str
venv:
  description: Directory of the virtual environment.
  returned: success
  type: str
log_file:
  description: Output of the installation; empty when there was none.
  returned: success
  type: str
"""

import os
import pwd
import shutil
import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    ArtifactError,
    describe_os_error,
    hand_over,
    owner_of,
)
from ansible_collections.trtllm.serving.plugins.module_utils._environment import (
    HostEnvironment,
    InstallError,
    distribution,
    make_host,
    survey_host,
)
from ansible_collections.trtllm.serving.plugins.module_utils._host import check_home
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock, LockError
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, NativeRunner, RunnerError

# Oracle Linux 8 and its kin have the bindings of dnf for this one alone.
PLATFORM_PYTHON = "/usr/libexec/platform-python"


def owner_wanted(user: str) -> tuple[int, int] | None:
    """uid and gid that the home shall have; None when the user does not exist yet."""
    if not user:
        return (os.geteuid(), os.getegid())
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    return (entry.pw_uid, entry.pw_gid)


def make_home(home: Path, owner: tuple[int, int]) -> None:
    """The home, its logs, and all in it of one owner."""
    try:
        home.mkdir(mode=0o750, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(str(home), *owner)
        (home / "logs").mkdir(mode=0o750, exist_ok=True)
        # The environments stay root's, since root runs what is in them.
        for entry in home.iterdir():
            if entry.name not in ("venv", "venvs"):
                hand_over(entry, home)
    except OSError as exc:
        raise describe_os_error(exc, home) from exc


def missing_parts(user: str, found: HostEnvironment, programs: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Which parts only the distribution can give, its packages, and what is wrong, each in one line."""
    packages = list(found.packages)
    problems = [found.problem] if found.problem else []
    for program in programs:
        if shutil.which(program) is None:
            packages.append(program)
            problems.append("%s is not on this host: install the package %s" % (program, program))
    missing = ["packages"] if packages else []
    if owner_wanted(user) is None:
        missing.insert(0, "user")
        problems.append("user '%s' does not exist: make it, or name another (trtllm_user)" % user)
    return missing, packages, problems


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="path", required=True),
            user=dict(type="str", default=""),
            requirements=dict(type="str", required=True),
            python=dict(type="str", default=""),
            wheelhouse=dict(type="str", default=""),
            programs=dict(type="list", elements="str", default=[]),
            report_missing=dict(type="bool", default=False),
            timeout=dict(type="int", default=900),
        ),
        supports_check_mode=True,
    )
    params = module.params
    home = Path(params["home"])
    log = home / "logs" / "host_environment.log"
    result: dict[str, Any] = {"python": str(home / "venv" / "bin" / "python"), "interpreter": sys.executable}
    result["family"] = distribution()
    result["system_python"] = PLATFORM_PYTHON if os.path.exists(PLATFORM_PYTHON) else sys.executable
    try:
        found = survey_host(home, params["requirements"], params["python"])
        missing, packages, problems = missing_parts(params["user"], found, params["programs"])
        if problems and (not missing or not (params["report_missing"] or module.check_mode)):
            module.fail_json(msg="; ".join(problems))
        owner = owner_wanted(params["user"])
        new_home = owner is None or owner_of(home) != owner
        wrong = check_home(str(home))
        if wrong:
            module.fail_json(msg="; ".join(wrong))
        after = [*packages, *([str(found.venv)] if found.needed else [])]
        result.update(
            changed=found.needed or new_home or bool(missing and module.check_mode),
            missing=missing,
            packages=packages,
            venv=str(found.venv),
            log_file="",
            diff={"before": "", "after": "".join("%s\n" % line for line in ([str(home)] if new_home else []) + after)},
        )
        if missing and not module.check_mode:
            # Nothing is done until it is there.
            result["changed"] = False
        elif result["changed"] and not module.check_mode and owner is not None:
            if new_home:
                make_home(home, owner)
            with HostLock(home, "making the collection's Python environment"), Cancellation() as cancellation:
                if found.needed:
                    make_host(
                        found, params["requirements"], params["python"], params["wheelhouse"],
                        NativeRunner(cancellation), log, params["timeout"],
                    )  # fmt: skip
                    result["log_file"] = str(log)
                    hand_over(log.parent, home)
                hand_over(home / ".lock", home)
        result["python_ready"] = not missing and os.path.exists(result["python"])
    except (InstallError, ArtifactError, LockError, RunnerError, OSError) as exc:
        module.fail_json(msg=" ".join(str(exc).split()))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
