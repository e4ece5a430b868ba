# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate looks into a container: its GPUs, by an nvidia-smi that says what a test wants it to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._gate import GateFailed
from ansible_collections.trtllm.serving.plugins.module_utils._gate_gpu import look

NAME = "NVIDIA H100 80GB HBM3"


def smi(count: int, name: str = NAME, rc: int = 0) -> str:
    lines = ["GPU %d: %s (UUID: GPU-%08d)" % (number, name, number) for number in range(count)]
    return "#!/bin/sh\n" + "".join("echo '%s'\n" % line for line in lines) + "exit %d\n" % rc


@pytest.fixture
def serve(
    docker_client: Any, testbed_image: Callable[[str], str], labels: dict[str, str]
) -> Iterator[Callable[..., str]]:
    """Starts a container whose nvidia-smi is this script; its name."""
    started: list[Any] = []

    def start(script: str) -> str:
        place = 'printf %s "$SMI" > /usr/local/bin/nvidia-smi && chmod 755 /usr/local/bin/nvidia-smi'
        started.append(
            docker_client.containers.run(
                testbed_image("base"), ["sh", "-c", place + " && exec sleep 600"], detach=True, labels=labels,
                environment={"SMI": script}, network_mode="none", init=True,
            )
        )  # fmt: skip
        container = started[-1]
        ready = container.exec_run(
            [
                "sh",
                "-c",
                "for i in $(seq 100); do test -x /usr/local/bin/nvidia-smi && exit 0; sleep 0.05; done; exit 1",
            ]
        )
        assert ready.exit_code == 0
        return str(container.name)

    yield start
    for container in started:
        container.remove(force=True, v=True)


def test_gpus_that_are_there(serve: Callable[..., str]) -> None:
    wanted = {"required": True, "container": serve(smi(2)), "gpus": "all", "count": 2, "name": NAME}
    assert look(_containers.connect, wanted) == {"count": 2, "names": [NAME]}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (smi(1), "the container sees 1 of 2 GPUs"),
        (smi(2, "NVIDIA L40S"), "it sees NVIDIA L40S, and the engine was built for " + NAME),
        ("#!/bin/sh\necho 'Failed to initialize NVML: Unknown Error'\nexit 255\n", "it has lost its GPUs"),
    ],
)
def test_gpus_that_are_not(serve: Callable[..., str], script: str, said: str) -> None:
    container = serve(script)
    with pytest.raises(GateFailed) as caught:
        look(_containers.connect, {"required": True, "container": container, "count": 2, "name": NAME})
    assert said in str(caught.value) and container in str(caught.value) and "\n" not in str(caught.value)


def test_container_that_is_not_there(docker_client: Any) -> None:
    with pytest.raises(GateFailed, match="nvidia-smi in container trtllm-no-such-container"):
        look(_containers.connect, {"required": True, "container": "trtllm-no-such-container"})
