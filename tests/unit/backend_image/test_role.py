# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role hands on all that its modules take, and judges it before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible_collections.trtllm.serving.plugins.modules import backend_image, host_environment

ROLE = Path(__file__).resolve().parents[3] / "roles" / "tensorrtllm_backend_build"


def tasks(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load((ROLE / "tasks" / name).read_text("utf-8")))


def options(module: Any) -> set[str]:
    return set(yaml.safe_load(module.DOCUMENTATION)["options"])


def test_every_option_of_the_image_is_given() -> None:
    given = next(task["trtllm.serving.backend_image"] for task in tasks("image.yml") if task["name"] == "Image")
    # The action plugin gives the file for the progress.
    assert set(given) == options(backend_image) - {"docker", "progress"}


def test_both_calls_for_the_environment_are_the_same_but_for_what_is_missing() -> None:
    name = "trtllm.serving.host_environment"
    first, second = (
        next(task[name] for task in tasks(file) if name in task) for file in ("image.yml", "distribution.yml")
    )
    assert set(first) == options(host_environment)
    assert {**first, "report_missing": 1} == {**second, "report_missing": 1}
    assert first["report_missing"] is True and "report_missing" not in second


def test_the_hot_path_is_two_calls() -> None:
    """Whatever else there is has a condition that a finished host does not meet."""
    without = [task["name"] for task in tasks("image.yml") if "when" not in task]
    assert without == ["Home and Python environment", "Image"]


def test_what_is_judged_exists() -> None:
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text("utf-8"))
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text("utf-8"))
    for name, value in variables["__tensorrtllm_backend_build_options"].items():
        assert value == "{{ tensorrtllm_backend_build_%s }}" % name and "tensorrtllm_backend_build_" + name in defaults
