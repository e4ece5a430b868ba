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
      - Variables for the tool, added to the task's own; in a container they are all that it gets.
      - Values of variables whose name says that they are secret (token, secret, password, key) are kept out of
        the log and of the result.
    type: dict
    default: {}
  container:
    description:
      - Runs the tool in a container of its own, through the Docker Engine of this host. Without it the tool runs on
        the host itself.
      - The container sees what the tool reads (read-only) and writes, at the same absolute paths, and nothing else of
        O(home). It has no network, no capabilities, a read-only root file system and C(/tmp) in memory.
      - It is removed when the tool has ended, for whatever reason. What a run that was killed outright left running is
        removed by the next one.
      - None of these settings is part of the key.
    type: dict
    suboptions:
      image:
        description:
          - Id or name of an image that is on this host.
          - May be empty only in check mode, where the image is not there yet.
        type: str
        required: true
      user:
        description: C(uid:gid), or the name of a user of this host. The default is the owner of O(home).
        type: str
      gpus:
        description: V(all), V(none), a number of GPUs, or a list of indices and uuids.
        type: raw
        default: all
      device_policy:
        description:
          - How GPUs are given to the container, by V(cdi) or by NVIDIA's V(runtime).
          - V(auto) takes V(cdi) where the engine offers it and the GPUs' specification exists.
        type: str
        choices: [auto, cdi, runtime]
        default: auto
      volumes:
        description: Further mounts, each C(source:target) or C(source:target:rw); read-only unless it says V(rw).
        type: list
        elements: str
        default: []
      shm_size:
        description: Size of C(/dev/shm), such as V(2g).
        type: str
        default: 2g
      ulimits:
        description:
          - Limits of the container, each a number or a dictionary of C(soft) and C(hard). V(-1) is no limit.
          - TensorRT-LLM asks for C(memlock) V(-1) and C(stack) V(67108864).
        type: dict
        default: {}
      environment:
        description:
          - Variables for the tool. One whose name says that it holds a secret is refused, as C(docker inspect) shows
            it; put the secret into a file, mount that, and give a variable that ends in C(_FILE) or C(_PATH).
        type: dict
        default: {}
      memory:
        description: Limit of memory, such as V(200g). No limit by default.
        type: str
  verify:
    description:
      - How what is already there is compared with its manifest.
      - V(fast) takes size and modification time, and reads only files whose time alone differs. V(full) reads all.
    type: str
    choices: [fast, full]
    default: fast
  progress:
    description:
      - File on the host in which the module tells how far it is, while it runs. The action plugin of the module gives
        one and reads it now and then.
    type: path
"""
