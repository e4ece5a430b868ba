# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the runner for containers needs no engine. Its behaviour is tested in tests/docker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _containers, _tool_module
from ansible_collections.trtllm.serving.plugins.module_utils._checkpoint import convert
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._engine import build
from ansible_collections.trtllm.serving.plugins.module_utils._runner_base import NotStarted
from ansible_collections.trtllm.serving.plugins.module_utils._runner_container import ContainerRunner, _Frames
from ansible_collections.trtllm.serving.plugins.module_utils._runner_settings import ContainerSettings

CONTAINER = {"image": "image:1", "gpus": "none"}


@pytest.mark.parametrize("step", [1, 5, 8, 9, 1000])
def test_framing_is_taken_off_wherever_it_is_cut(step: int) -> None:
    parts = [(1, b"one\n"), (2, b"two " * 20), (1, b""), (1, b"\x01\x00\x00\x00\x00\x00\x00\x02")]
    stream = b"".join(bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data for kind, data in parts)
    frames = _Frames()
    found = b"".join(
        piece for start in range(0, len(stream), step) for piece in frames.feed(stream[start : start + step])
    )
    assert found == b"".join(data for _kind, data in parts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"environment": {"API_KEY": "x"}}, "container.environment.API_KEY would be shown by 'docker inspect'"),
        ({"gpus": "first"}, "gpus 'first' names no GPU"),
        ({"shm_size": "big"}, "'big' is no size"),
        ({"memory": "big"}, "'big' is no size"),
    ],
)
def test_settings_are_judged_without_an_engine(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ContainerError, match=message):
        ContainerSettings.of({**CONTAINER, **given})


def test_settings_that_are_left_out() -> None:
    found = ContainerSettings.of({**CONTAINER, "memory": None, "user": None, "environment": {"N": 1}, "volumes": None})
    assert found == ContainerSettings("image:1", gpus="none", environment={"N": "1"})


def test_container_settings_are_judged_in_check_mode_and_not_in_the_key(site: Any, cancellation: Any) -> None:
    plain = convert(site.convert_args(), True, cancellation)
    assert convert(site.convert_args(container=CONTAINER), True, cancellation) == plain
    for secret in ({"environment": {"HF_TOKEN": "hf_x"}}, {"container": {**CONTAINER, "environment": {"TOKEN": "x"}}}):
        with pytest.raises(ContainerError, match="docker inspect"):
            convert(site.convert_args(**{"container": CONTAINER, **secret}), True, cancellation)


def test_what_is_there_needs_no_engine(site: Any, cancellation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convert(site.convert_args(), False, cancellation)["path"]
    engine = build(site.build_args(path), False, cancellation)

    def no_engine(timeout: float = 0) -> Any:
        raise ContainerError("there is no engine")

    monkeypatch.setattr(_containers, "connect", no_engine)
    assert not convert(site.convert_args(container=CONTAINER), False, cancellation)["changed"]
    found = build(site.build_args(path, container=CONTAINER), False, cancellation)
    assert not found["changed"] and found["key"] == engine["key"]
    with pytest.raises(_tool_module.ToolError, match="convert_checkpoint: there is no engine"):
        convert(site.convert_args(container=CONTAINER, tp_size=2), False, cancellation)
    assert site.partials() == []


def test_what_a_tool_may_see(site: Any, cancellation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def runner_for(job: Any, unused: Any) -> Any:
        seen.append((sorted(job.reads), list(job.writes)))
        raise NotStarted("seen")

    path = convert(site.convert_args(), False, cancellation)["path"]
    monkeypatch.setattr(_tool_module, "runner_for", runner_for)
    cache = tmp_path / "caches" / "in.cache"
    cache.parent.mkdir()
    cache.write_text("x")
    options = {
        "input_timing_cache": str(cache),
        "output_timing_cache": str(cache.parent / "out.cache"),
        "lora_dir": [str(site.model), "/no/such/directory", "name"],
    }
    with pytest.raises(NotStarted):
        build(site.build_args(path, options=options, container=CONTAINER), False, cancellation)
    assert seen == [(sorted([path, str(cache), str(site.model)]), [str(cache.parent)])]
    with pytest.raises(NotStarted):
        convert(site.convert_args(tp_size=2, container=CONTAINER), False, cancellation)
    assert seen[1] == ([str(site.model)], [])


def test_mounts(tmp_path: Path) -> None:
    pytest.importorskip("docker")
    for name in ("out", "cwd", "model", "caches"):
        (tmp_path / name).mkdir()
    (tmp_path / "caches" / "in").write_text("x")
    volumes = tuple(f"{tmp_path}/{name}:{tmp_path}/{name}:rw" for name in ("model", "caches"))
    runner = ContainerRunner(ContainerSettings("i", volumes=volumes), tmp_path, "tool")
    writable = [f"{tmp_path}/out", f"{tmp_path}/cwd"]
    found = runner._mounts(writable, [f"{tmp_path}/model", f"{tmp_path}/caches/in", "/usr"])
    assert [(entry["Target"], entry["ReadOnly"]) for entry in found] == [
        (f"{tmp_path}/out", False),
        (f"{tmp_path}/cwd", False),
        ("/usr", True),
        (f"{tmp_path}/model", False),
        (f"{tmp_path}/caches", False),
    ]


def test_users_directories_are_mounted_and_keep_their_owner(cancellation: Any, tmp_path: Path) -> None:
    job = _tool_module.Job(
        tool="trtllm_build",
        kind="engine",
        final=tmp_path / "engine",
        key="0123",
        inputs={},
        command=lambda path: [],
        check=lambda path: [],
        home=tmp_path,
        log_dir=tmp_path,
        before=None,
        container=ContainerSettings("image"),
        writes=["/caches"],
    )
    runner = _tool_module.runner_for(job, cancellation)
    assert isinstance(runner, ContainerRunner) and runner.settings.volumes == ("/caches:/caches:rw",)
