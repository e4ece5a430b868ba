# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong with a method's settings is told before any host is contacted."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.filter.backend import backend_problems
from ansible_collections.trtllm.serving.plugins.module_utils._releases import all_releases, get

GOOD: dict[str, Any] = {"user": "trtllm", "gpus": "all"}
HASH = "0" * 64


@pytest.mark.parametrize(
    ("release", "method", "options"),
    [
        ("1.1.0", "pull", {}),
        ("1.1.0", "pull", {"digest": "sha256:" + HASH, "registry_mirror": "m:5000"}),
        ("0.12.0", "build", {}),
        ("0.12.0", "build", {"image": "triton_trt_llm", "gpus": "none"}),
        ("1.1.0", "build", {"version": "1" * 40, "repository": "/srv/git/backend.git"}),
        ("0.20.0", "build", {"dockerfile": "/srv/Dockerfile"}),
        ("1.1.0", "load", {"archive": "/srv/a.tar", "archive_sha256": HASH, "gpus": 8}),
        ("1.3.0", "pull", {"image": "nvcr.io/x:1"}),
        ("no release", "pull", {}),  # told with the flavour
        ("1.1.0", "reference", {"user": "root", "archive": "x"}),
    ],
)
def test_possible(release: str, method: str, options: dict[str, Any]) -> None:
    assert backend_problems(release, method, {**GOOD, **options}) == []


@pytest.mark.parametrize(
    ("release", "method", "options", "said"),
    [
        ("1.1.0", "pull", {"image": "nvcr.io/x"}, "neither tag nor digest"),
        ("1.1.0", "pull", {"digest": "sha256:1"}, "is not sha256: and 64"),
        ("0.18.1", "pull", {}, "has no image on NGC"),
        ("1.1.0", "pull", {"archive": "/a"}, "archive is given, and the method pull does not use it"),
        ("1.1.0", "pull", {"dockerfile": "x"}, "choose build, or drop it"),
        ("1.1.0", "load", {}, "needs tensorrtllm_backend_build_archive"),
        ("1.1.0", "load", {"archive": "a.tar", "archive_sha256": HASH}, "an absolute path"),
        ("1.1.0", "load", {"archive": "/a.tar", "archive_sha256": "12"}, "is not 64"),
        ("0.12.0", "build", {"version": "main"}, "version 'main' is no fixed version, it moves"),
        ("0.12.0", "build", {"commit": "9a78477"}, "commit '9a78477' is not 40"),
        ("0.12.0", "build", {"repository": "https://a:b@c/d"}, "has a password"),
        ("0.20.0", "build", {}, "cannot be built from its own tree"),
        ("1.3.0", "build", {"dockerfile": "x"}, "no known tag"),
        ("1.1.0", "build", {"repository": "/mine"}, "is upstream's branch r25.12"),
        ("1.1.0", "pull", {"registry_username_file": "/u"}, "belong together"),
        ("1.1.0", "pull", {"registry_auth_file": "/a", "registry_username_file": "/u", "registry_password_file": "/p"},
         "drop one"),
        ("1.1.0", "pull", {"gpus": "some"}, "names no GPU"),
        ("1.1.0", "pull", {"user": "root"}, "must not run as root"),
        ("1.1.0", "pull", {"user": "A B"}, "is no name of a user"),
    ],
)  # fmt: skip
def test_impossible(release: str, method: str, options: dict[str, Any], said: str) -> None:
    problems = backend_problems(release, method, {**GOOD, **options})
    assert len(problems) == 1 and said in problems[0] and "\n" not in problems[0], problems


@pytest.mark.parametrize("release", all_releases())
def test_places_in_an_image_and_in_a_checkout(release: str) -> None:
    found = get(release)
    for what in ("converter", "templates", "launcher", "llmapi"):
        paths = found.in_image(what)
        assert paths and len(set(paths)) == len(paths) and all(path.startswith("/") for path in paths)
        assert not found.in_source(what).startswith("/")
    # Upstream's READMEs name both.
    own = found.converter
    assert {"/app/" + own, "/app/tensorrt_llm/" + own} <= set(found.in_image("converter"))
    assert "/app/all_models/inflight_batcher_llm" in found.in_image("templates")
    assert found.in_source("converter") == "tensorrt_llm/" + own
