# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is asked of a hub, judged and explained without one."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.filter.weights import hub_problems
from ansible_collections.trtllm.serving.plugins.module_utils import _hub

COMMIT = "41bd4c9e7e4fb318ca40e721131d4933966c2cc1"
NAME = "mistralai/Mixtral-8x7B-Instruct-v0.1"
HUB = _hub.complete({"repository": NAME, "python": "/opt/trtllm/venv/bin/python"})
TOKEN = "hf_NobodyMaySeeThis"


def listing(*names: str) -> list[dict[str, Any]]:
    return [{"path": name, "size": 10, "sha256": "0" * 64, "blob_id": None} for name in names]


# --- what can be asked ---


def test_what_is_given_is_enough() -> None:
    assert _hub.problems_of(HUB) == []
    assert HUB["endpoint"] == "https://huggingface.co" and HUB["workers"] == 8
    assert _hub.complete({"repository": NAME, "endpoint": "https://mirror/hub/"})["endpoint"] == "https://mirror/hub"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"repository": ""}, "hub.repository '' is no repository: write OWNER/NAME"),
        ({"repository": "a/b/c"}, "is no repository"),
        ({"repository": "a/--b"}, "is no repository"),
        ({"endpoint": "huggingface.co"}, "hub.endpoint is no address"),
        ({"endpoint": "https://h?x=1"}, "hub.endpoint is no address"),
        ({"endpoint": "https://u:p@h"}, "hub.endpoint has a password"),
        ({"endpoint": "http://mirror", "token": TOKEN}, "would see the token in clear"),
        ({"endpoint": "http://mirror", "token_file": "/t"}, "would see the token in clear"),
        ({"token": TOKEN, "token_file": "/t"}, "are both given"),
        ({"token": TOKEN + "\n"}, "hub.token is no token"),
        ({"token_file": "~/token"}, "is not absolute"),
        ({"retries": -1}, "hub.retries -1 is not possible: give 0 or more"),
        ({"timeout": 0}, "hub.timeout 0 is not possible"),
    ],
)
def test_what_cannot_be_asked(more: dict[str, Any], message: str) -> None:
    problems = _hub.problems_of({**HUB, **more})
    assert len(problems) == 1 and message in problems[0] and "\n" not in problems[0]
    assert TOKEN not in problems[0]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8", "http://localhost", "http://[::1]:9"])
def test_loopback_may_see_a_token(endpoint: str) -> None:
    assert _hub.problems_of({**HUB, "endpoint": endpoint, "token": TOKEN}) == []


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("", "is empty: pin a commit"),
        ("main", "is a branch or a tag, which may become something else"),
        ("v0.1", "is a branch or a tag"),
        (COMMIT[:10], "is not a whole commit: give all 40 digits"),
        (COMMIT.upper(), "is not a whole commit"),
    ],
)
def test_only_a_commit_is_a_revision(revision: str, words: str) -> None:
    assert not _hub.is_commit(revision) and _hub.is_commit(COMMIT)
    assert words in _hub.revision_problem(revision, "revision", "HOW")
    problems = hub_problems("huggingface", HUB, revision)
    assert len(problems) == 1 and words in problems[0]
    assert f"'git ls-remote https://huggingface.co/{NAME}' lists what there is" in problems[0]


def test_filter_speaks_of_variables() -> None:
    assert hub_problems("huggingface", HUB, COMMIT, "docker", {"checkpoint": 0.3, "image_gib": 20}) == []
    assert hub_problems("directory", {}, "", "docker") == [] and hub_problems("tiny", {}, "") == []
    (problem,) = hub_problems("tiny", {}, "", "docker")
    assert "mixtral_engine_weights_source 'tiny'" in problem and "huggingface or directory" in problem
    found = hub_problems("huggingface", {**HUB, "repository": "x", "token": "a b", "workers": 0}, COMMIT)
    for start in (
        "mixtral_engine_weights_repository 'x'",
        "mixtral_engine_hub_token is",
        "mixtral_engine_hub_workers 0",
    ):
        assert [problem for problem in found if problem.startswith(start)], found
    for space, words in (
        ({"checkpoints": 1}, "has 'checkpoints', which means nothing"),
        ({"engine": "big"}, "mixtral_engine_space.engine 'big' is not possible"),
        ({"image_path": "docker"}, "is not an absolute path"),
        ([1], "is not a dictionary"),
    ):
        (problem,) = hub_problems("huggingface", HUB, COMMIT, "docker", space)
        assert words in problem


# --- the token ---


def test_token_file_modes(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    for mode in (0o600, 0o640, 0o400):
        path.chmod(mode)
        assert _hub.read_token({"token_file": str(path)}) == TOKEN
    for mode in (0o604, 0o644, 0o666, 0o602):
        path.chmod(mode)
        with pytest.raises(_hub.HubError, match=f"has mode {mode:04o}") as caught:
            _hub.read_token({"token_file": str(path)})
        assert TOKEN not in str(caught.value)
    with pytest.raises(_hub.HubError, match="is no regular file"):
        _hub.read_token({"token_file": "/dev/null"})
    with pytest.raises(_hub.HubError, match="cannot be read"):
        _hub.read_token({"token_file": str(tmp_path)})
    assert _hub.read_token({"token": TOKEN}) == TOKEN and _hub.read_token({}) == ""
    assert _hub.read_token({"token_file": str(tmp_path / "none")}, missing_ok=True) == ""


def test_token_goes_through_a_pipe_and_is_on_no_disk(tmp_path: Path) -> None:
    with _hub.token_pipe(tmp_path, TOKEN) as path:
        status = os.stat(path)
        assert stat.S_ISFIFO(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(Path(path).open().readline()))
        reader.start()
        reader.join(5)
        assert found == [TOKEN + "\n"]
    assert list(tmp_path.iterdir()) == []
    # A process that ends without having read it holds nobody up.
    with pytest.raises(ZeroDivisionError), _hub.token_pipe(tmp_path, TOKEN):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with _hub.token_pipe(tmp_path, "") as path:
        assert path == ""


def test_passwords_of_proxies() -> None:
    environment = {"HTTPS_PROXY": "http://me:p%40ss@proxy:3128", "NO_PROXY": "localhost", "http_proxy": "http://proxy"}
    assert _hub.proxy_secrets(environment) == ["p%40ss", "p@ss"] and _hub.proxy_secrets(None) == []


# --- what is fetched ---


def test_what_serving_needs_and_nothing_else() -> None:
    needed = [
        "config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json",
    ]  # fmt: skip
    other = [
        ".gitattributes", "README.md", "consolidated.00.pt", "consolidated.safetensors", "pytorch_model.bin",
        "tokenizer.model.v3.bin", "onnx/model.safetensors", "original/tokenizer.model", "mixtral.gguf", "evil.py",
    ]  # fmt: skip
    chosen = _hub.wanted(listing(*needed, *other), _hub.ALLOW, _hub.IGNORE)
    assert [entry["path"] for entry in chosen] == needed
    chosen = _hub.wanted(listing(*needed, *other), (*_hub.ALLOW, "onnx/*"), _hub.IGNORE)
    assert "onnx/model.safetensors" in [entry["path"] for entry in chosen]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], "has no config.json"),
        (
            ["config.json", "consolidated.00.pt"],
            r"no \*.safetensors that the patterns allow \(it has consolidated.00.pt",
        ),
        (["config.json", "model.safetensors", "tokenizer/../../x"], "no safe name"),
    ],
)
def test_what_is_no_model(names: list[str], message: str) -> None:
    with pytest.raises(_hub.HubError, match=message):
        _hub.wanted(listing(*names), (*_hub.ALLOW, "tokenizer/*"), _hub.IGNORE)


def test_mirror_that_does_not_say_all() -> None:
    assert _hub.measured(listing("a")) and not _hub.measured([{"path": "a", "size": None, "sha256": "0"}])
    assert not _hub.measured([{"path": "a", "size": 1, "sha256": None, "blob_id": None}])


# --- room ---


def test_room_is_added_up_for_each_file_system(tmp_path: Path) -> None:
    space = {"checkpoint": 0.5, "engine": 2, "image_gib": 1, "image_path": "/proc/docker", "reserve_gib": 1}
    gib = _hub.GIB
    needs = _hub.needs_of(10 * gib, 20 * gib, space, tmp_path / "w", tmp_path / "c", tmp_path / "e")
    assert [(need.what, need.size // gib) for need in needs] == [
        ("weights", 10), ("checkpoint", 10), ("engine", 40), ("image", 1), ("reserve", 1),
    ]  # fmt: skip
    assert _hub.space_problems(needs, lambda path: 61 * gib) == []
    (problem,) = _hub.space_problems(needs, lambda path: 61 * gib - 1)
    assert problem.startswith(f"61.0 GiB needed below {tmp_path} (weights 10.0 GiB, checkpoint 10.0 GiB, engine 40.0")
    assert "only 61.0 GiB free" in problem
    assert len(_hub.space_problems(needs, lambda path: 0)) == 2


# --- failures ---


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "gated", "unauthorized", "forbidden", "repository", "revision", "missing", "limit", "server", "cut", "timeout",
        "connect", "proxy", "tls", "hash", "mirror", "nohash", "space", "xet", "client", "unknown",
    ],
)  # fmt: skip
def test_every_failure_is_one_line_with_a_remedy(kind: str, token: bool) -> None:
    shown = _hub.explain({"kind": kind, "text": "SAID", "status": 499}, HUB, COMMIT, "/kept", token=token)
    assert shown.startswith(f"fetching {NAME}: ") and "\n" not in shown and len(shown) > 60
    assert "None" not in shown
    if kind in ("limit", "server", "cut", "timeout", "space", "unknown"):
        assert "goes on where it stopped (/kept)" in shown
