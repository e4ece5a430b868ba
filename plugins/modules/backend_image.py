#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the image with Triton and TensorRT-LLM on a host: pulled, built or loaded."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backend_image
short_description: Have the image with Triton and TensorRT-LLM on a host
version_added: 0.1.0
description:
  - Pulls the image from a registry, builds it from a checkout of tensorrtllm_backend, or loads it from an archive.
  - Then asks the image, once, for its version of TensorRT-LLM and where its tools are. An image of another version than
    O(release) is refused, and so is one without Triton. The answer is kept by the image's id in C(HOME/images).
  - What the image lacks and upstream mounts (the models' files and the converter of images before 25.01) comes from a
    checkout of the same version, which is then made too.
  - What is there already is not pulled, built or loaded again, and then nothing is asked of any network.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details:
      - When the image is not there yet, the result is changed with an empty RV(image_id).
      - An image that is there and was never asked is asked in a short container, and the answer is not kept.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: With O(pull=always) the registry is asked each time, and the result is changed only by another image.
options:
  home:
    description: Directory below which everything is kept. It must exist, except in check mode.
    type: path
    required: true
  release:
    description: TensorRT-LLM release that the image must hold.
    type: str
    required: true
  flavour:
    description: What the image is used for. V(engine) needs the converter and C(trtllm-build), V(llmapi) does not.
    type: str
    choices: [engine, llmapi]
    default: engine
  method:
    description: How the image comes to the host.
    type: str
    choices: [pull, build, load]
    default: pull
  image:
    description:
      - V(REGISTRY/PATH:TAG) to pull, by default the newest image of the release on NGC.
      - The name of what is built, by default V(triton_trt_llm:RELEASE).
      - Which image of an archive to use, when it has several.
    type: str
    default: ""
  digest:
    description: V(sha256:...) of the image to pull; without it the tag is trusted.
    type: str
    default: ""
  pull:
    description: When an image without O(digest) is asked for in its registry.
    type: str
    choices: [missing, always]
    default: missing
  retries:
    description: How often a pull that was cut off is tried again. Layers that were received whole are kept.
    type: int
    default: 3
  registry_mirror:
    description: Registry host, with or without a path, that takes the place of the image's own.
    type: str
    default: ""
  registry_auth_file:
    description: File on the host with C(auths), as C(docker login) writes it into C(config.json). Only read.
    type: path
  registry_username_file:
    description: File on the host with the user's name alone, in place of O(registry_auth_file).
    type: path
  registry_password_file:
    description: File on the host with the password or token alone.
    type: path
  archive:
    description: Archive on the host, as C(docker save) writes it. Not needed any more once it is loaded.
    type: path
  sha256:
    description: Hash of O(archive), checked before anything is loaded.
    type: str
    default: ""
  repository:
    description: Repository of tensorrtllm_backend. Credentials belong into a git credential helper of the host.
    type: str
    default: https://github.com/triton-inference-server/tensorrtllm_backend.git
  version:
    description:
      - Tag, or commit of 40 digits, to check out; by default that of the release. Branches are refused.
    type: str
    default: ""
  commit:
    description: Commit that O(version) must be. For upstream's own repository the release knows it.
    type: str
    default: ""
  repository_mirrors:
    description: For each beginning of a URL what takes its place, for the repository, its submodules and large files.
    type: dict
    default: {}
  dockerfile:
    description: Path in the checkout, or an absolute one on the host; by default the release's.
    type: str
    default: ""
  build_args:
    description: Arguments of the build. They are kept in the image's history, so that no secret belongs there.
    type: dict
    default: {}
  proxies:
    description: C(http_proxy), C(https_proxy) and C(no_proxy) for the checkout and the build.
    type: dict
    default: {}
  buildkit:
    description: V(auto) uses the legacy builder, with a warning, where the docker client has no BuildKit.
    type: str
    choices: [auto, always, never]
    default: auto
  image_version:
    description: What the image says of its TensorRT-LLM, where that is rightly not O(release).
    type: str
    default: ""
  gpus:
    description:
      - V(all), a number, or a list of indices or uuids that a container of the image must see; V(none) asks for none.
      - It is proven again when the image or the host's driver is another one.
    type: raw
    default: none
  device_policy:
    description: How a container gets GPUs; V(auto) takes CDI where the engine offers it.
    type: str
    choices: [auto, cdi, runtime]
    default: auto
  docker:
    description: The docker client, for the build.
    type: str
    default: docker
  timeout:
    description: Seconds that each step (a pull, the checkout's commands, the build, loading) may take.
    type: float
    default: 14400
  progress:
    description:
      - File on the host in which the module tells how far it is, while it runs. The action plugin of the module gives
        one and reads it now and then.
    type: path
notes:
  - Needs Python 3.9 or newer with the package docker on the host, as M(trtllm.serving.host_environment) provides it.
  - A build, and images without the models' files, need git, and git-lfs for the build.
seealso:
  - module: trtllm.serving.host_environment
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: NGC's image of the release, by digest, through a mirror
  trtllm.serving.backend_image:
    home: /opt/trtllm
    release: 1.1.0
    digest: "sha256:{{ '0' * 64 }}"
    registry_mirror: mirror.example.com:5000/ngc
    registry_auth_file: /root/.trtllm/registry.json
    gpus: all
  register: backend

- name: Build it as upstream describes
  trtllm.serving.backend_image:
    home: /opt/trtllm
    release: 0.12.0
    method: build
    timeout: 21600

- name: Load it where there is no network
  trtllm.serving.backend_image:
    home: /opt/trtllm
    release: 1.1.0
    method: load
    archive: /srv/images/tritonserver-25.12.tar
    sha256: "{{ '0' * 64 }}"
"""

RETURN = r"""
image:
  description: The image as it was asked for.
  returned: success
  type: str
image_id:
  description: What containers are started from; empty in check mode when the image is not there yet.
  returned: success
  type: str
digest:
  description: Identity of the image in the keys of what is made with it; the same as RV(image_id).
  returned: success
  type: str
release:
  description: Release of the matrix.
  returned: success
  type: str
version:
  description: What the image says of its TensorRT-LLM.
  returned: success
  type: str
convert_checkpoint:
  description: Command of the converter inside the container; empty with the flavour llmapi.
  returned: success
  type: list
  elements: str
trtllm_build:
  description: Command of the builder inside the container.
  returned: success
  type: list
  elements: str
tritonserver:
  description: The server inside the container.
  returned: success
  type: str
launcher:
  description: Upstream's launcher inside the container; empty when it has none.
  returned: success
  type: str
mpirun:
  description: The launcher of ranks inside the container; empty when it has none.
  returned: success
  type: str
models_dir:
  description: Directory of the models' files, inside the image unless RV(models_on_host).
  returned: success
  type: str
models_on_host:
  description: Whether RV(models_dir) is in the checkout on the host.
  returned: success
  type: bool
source_dir:
  description: Checkout on the host that RV(models_dir) or RV(convert_checkpoint) is in; empty when the image has both.
  returned: success
  type: str
volumes:
  description: What must be mounted for the commands to be found.
  returned: success
  type: list
  elements: str
backends_dir:
  description: Triton's backends when they are not where Triton looks.
  returned: success
  type: str
python:
  description: Interpreter of the collection's environment on the host.
  returned: success
  type: str
python_ready:
  description: Whether that interpreter is there.
  returned: success
  type: bool
root:
  description: Empty; the reference backend has its tree here.
  returned: success
  type: str
library_path:
  description: Empty; the reference backend needs libraries of the host.
  returned: success
  type: str
repaired:
  description: Always false; an image cannot be edited.
  returned: success
  type: bool
gpus:
  description: The GPUs that a container of the image has listed.
  returned: success
  type: list
  elements: str
actions:
  description: What was done or would be, with the reason for a build.
  returned: success
  type: list
  elements: str
log_files:
  description: Logs of this run.
  returned: success
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trtllm.serving.plugins.module_utils import _progress
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._image import provide
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import ImageError
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LockError
from ansible_collections.trtllm.serving.plugins.module_utils._releases import UnknownRelease
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, RunnerError
from ansible_collections.trtllm.serving.plugins.module_utils._source import REPOSITORY, SourceError


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            home=dict(type="path", required=True),
            release=dict(type="str", required=True),
            flavour=dict(type="str", choices=["engine", "llmapi"], default="engine"),
            method=dict(type="str", choices=["pull", "build", "load"], default="pull"),
            image=dict(type="str", default=""),
            digest=dict(type="str", default=""),
            pull=dict(type="str", choices=["missing", "always"], default="missing"),
            retries=dict(type="int", default=3),
            registry_mirror=dict(type="str", default=""),
            registry_auth_file=dict(type="path", no_log=False),
            registry_username_file=dict(type="path"),
            registry_password_file=dict(type="path", no_log=False),
            archive=dict(type="path"),
            sha256=dict(type="str", default=""),
            repository=dict(type="str", default=REPOSITORY),
            version=dict(type="str", default=""),
            commit=dict(type="str", default=""),
            repository_mirrors=dict(type="dict", default={}),
            dockerfile=dict(type="str", default=""),
            build_args=dict(type="dict", default={}),
            proxies=dict(type="dict", default={}),
            buildkit=dict(type="str", choices=["auto", "always", "never"], default="auto"),
            image_version=dict(type="str", default=""),
            gpus=dict(type="raw", default="none"),
            device_policy=dict(type="str", choices=["auto", "cdi", "runtime"], default="auto"),
            docker=dict(type="str", default="docker"),
            timeout=dict(type="float", default=14400),
            progress=dict(type="path"),
        ),
        required_if=[("method", "load", ("archive", "sha256"))],
        supports_check_mode=True,
    )
    # What is checked out becomes part of an image, which others than root run.
    os.umask(0o022)
    _progress.use(module.params["progress"])
    try:
        with Cancellation() as cancellation:
            result = provide(module.params, module.check_mode, cancellation)
    except (
        ImageError, SourceError, ContainerError, ArtifactError, LockError, RunnerError, UnknownRelease, OSError,
    ) as exc:  # fmt: skip
        module.fail_json(msg=" ".join(str(exc).split()))
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
