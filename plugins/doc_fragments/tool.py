# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameters and results of the modules that run one of TensorRT-LLM's tools."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  release:
    description:
      - The TensorRT-LLM version whose tool runs, such as V(1.1.0).
      - Options are checked against the table of this release before anything runs.
    type: str
    required: true
  executable:
    description:
      - The tool, as a list of words before its options.
      - It must be the tool of O(release).
    type: list
    elements: str
    required: true
  options:
    description:
      - Any further option of the tool, by its name without dashes (C(load_model_on_cpu), not C(--load-model-on-cpu)).
      - A flag is V(true) or V(false), an option with several values a list. V(null) leaves the tool's own default.
      - An option that the release does not have, a value of the wrong type or outside the choices is refused with
        what to use instead.
    type: dict
    default: {}
  home:
    description:
      - The directory whose lock keeps two runs on one host apart. It must exist.
      - When another task holds the lock, the module fails at once and names the holder.
    type: path
    required: true
  log_dir:
    description: Where the tool's output is kept, one file a run. The default is C(logs) below O(home).
    type: path
  timeout:
    description:
      - Seconds after which the tool and everything that it started is ended. No limit by default.
      - What it had made so far is removed.
    type: float
  environment:
    description:
      - Variables for the tool, added to the task's own.
      - Values of variables whose name says that they are secret (token, secret, password, key) are kept out of
        the log and of the result.
    type: dict
    default: {}
  verify:
    description:
      - How what is already there is compared with its manifest.
      - V(fast) takes size and modification time, and reads only files whose time alone differs. V(full) reads all.
    type: str
    choices: [fast, full]
    default: fast
"""
