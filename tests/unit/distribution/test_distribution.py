# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptions, settings and credentials, without a network."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.filter.distribution import distribution_problems
from ansible_collections.trtllm.serving.plugins.module_utils import _oci_words
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import key_of
from ansible_collections.trtllm.serving.plugins.module_utils._distribution import (
    Damaged,
    Description,
    DistributionError,
    Piece,
    fits,
    tokenizer_key,
)
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_store import SharedStore

INPUTS = {"tensorrt_llm": "1.1.0", "gpu": {"name": "H100", "compute_capability": "9.0"}}
FILES = {"rank0.engine": {"size": 10, "sha256": "a" * 64}}
TOKENIZER = {"tokenizer.json": {"size": 3, "sha256": "b" * 64}}


def description(**changed: Any) -> dict[str, Any]:
    made = Description(key_of(INPUTS), INPUTS, FILES, {}, tokenizer_key(TOKENIZER), TOKENIZER).as_dict()
    return {**made, **changed}


def parse(value: Any, pieces: list[Piece] | None = None) -> Description:
    return Description.parse(json.dumps(value).encode(), "place", pieces)


def test_a_description_comes_back() -> None:
    made = parse(description())
    assert made.as_dict() == description()
    assert [piece.file for piece in made.pieces] == ["engine/rank0.engine", "tokenizer/tokenizer.json"]
    assert made.total_bytes == 13


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "0" * 64},
        {"inputs": {}},
        {"files": {"../rank0.engine": FILES["rank0.engine"]}},
        {"files": {"/etc/passwd": FILES["rank0.engine"]}},
        {"files": {".hidden": FILES["rank0.engine"]}},
        {"files": {"rank0.engine": {"size": 10, "sha256": "short"}}},
        {"tokenizer": {"key": "0" * 64, "files": TOKENIZER}},
        {"engine": None},
    ],
)
def test_what_contradicts_itself_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(Damaged, match="^place .*published anew$"):
        parse(description(**changed))


def test_another_form_is_refused() -> None:
    with pytest.raises(DistributionError, match="of form 2, not 1: use one collection everywhere"):
        parse(description(version=2))


@pytest.mark.parametrize(
    "pieces",
    [
        [("engine/rank0.engine", 0, 5), ("tokenizer/tokenizer.json", 0, 3)],
        [("engine/rank0.engine", 0, 5), ("engine/rank0.engine", 6, 4), ("tokenizer/tokenizer.json", 0, 3)],
        [("engine/rank0.engine", 0, 10), ("engine/rank0.engine", 0, 10), ("tokenizer/tokenizer.json", 0, 3)],
        [("engine/rank0.engine", 0, 10), ("engine/other", 0, 1), ("tokenizer/tokenizer.json", 0, 3)],
        [("engine/rank0.engine", 0, 10)],
    ],
)
def test_pieces_must_make_every_file(pieces: list[tuple[str, int, int]]) -> None:
    with pytest.raises(Damaged):
        parse(description(), [Piece(name, offset, size, "c" * 64) for name, offset, size in pieces])


def test_fits() -> None:
    made = parse(description())
    assert fits(made, "1.1.0", {"name": "H100", "compute_capability": "9.0"}) == []
    assert fits(made, "1.1.0", None) == []
    assert "was built for GPU name H100, this host has A100" in fits(made, "1.1.0", {"name": "A100"})[0]


@pytest.mark.parametrize(
    ("distribution", "given", "said"),
    [
        ("shared", {}, "mixtral_engine_shared_path '' is not an absolute path"),
        ("registry", {"repository": ""}, "mixtral_engine_registry: '' is no repository"),
        ("registry", {"repository": "host:5000"}, "names no repository"),
        ("registry", {"repository": "host/Big"}, "in small letters"),
        ("registry", {"mirrors": ["host/x:tag"]}, "mixtral_engine_registry_mirrors:"),
        ("registry", {"auth_file": "/a", "username": "u", "password_file": "/p"}, "are both given"),
        ("registry", {"username": "u"}, "belong together"),
        ("registry", {"ca_file": "ca.pem"}, "is not absolute"),
        ("registry", {"workers": 0}, "mixtral_engine_registry_workers 0 is not possible: give 1 or more"),
        ("registry", {"plain_http": True, "auth_file": "/a"}, "would see the password in clear"),
    ],
)
def test_problems(distribution: str, given: dict[str, Any], said: str) -> None:
    problems = distribution_problems(distribution, "", {"repository": "registry.example.net/trtllm/engines", **given})
    assert len(problems) == 1 and said in problems[0]


def test_no_problems() -> None:
    assert distribution_problems("local") == []
    assert distribution_problems("shared", "/mnt/engines") == []
    registry = {
        "repository": "127.0.0.1:5000/e",
        "mirrors": ["http://m:1", "m/x"],
        "plain_http": True,
        "auth_file": "/a",
    }
    assert distribution_problems("registry", "", registry) == []


def test_addresses() -> None:
    assert _oci_words.parse_address("h:5000/a/b").origin == "https://h:5000"
    assert _oci_words.parse_address("http://m", repository="a/b") == _oci_words.Address("m", "a/b", True)
    assert not _oci_words.parse_address("https://m", True, "a").plain_http


def test_credentials_by_host(tmp_path: Path) -> None:
    pair = base64.b64encode(b"ann:word").decode()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {"https://r:5": {"auth": pair}}, "credHelpers": {"other": "prog"}}))
    path.chmod(0o600)
    asked = []

    def helper(program: str, host: str) -> str:
        asked.append((program, host))
        return pair

    of = _oci_words.credentials({"repository": "r:5/x", "auth_file": str(path)}, helper)
    assert (of("r:5"), of("third"), of("other")) == (pair, "", pair)
    assert asked == [("prog", "other")]
    assert _oci_words.secrets_of([pair, ""]) == [pair, "word"]
    path.write_text(json.dumps({"auths": {"r:5": {"auth": "bm8tY29sb24="}}}))
    of = _oci_words.credentials({"repository": "r:5/x", "auth_file": str(path)}, helper)
    with pytest.raises(DistributionError, match="no user and password for r:5"):
        of("r:5")


def test_a_password_is_for_the_registry_alone(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("word\n")
    path.chmod(0o600)
    given = {"repository": "r/x", "username": "ann", "password_file": str(path)}
    of = _oci_words.credentials(given, lambda program, host: None)
    assert base64.b64decode(of("r")) == b"ann:word" and of("mirror") == ""
    path.chmod(0o644)
    with pytest.raises(DistributionError, match="has mode 0644"):
        _oci_words.credentials(given, lambda program, host: None)


def test_shared_path_that_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(DistributionError, match="is not a directory on this host: mount it"):
        SharedStore(tmp_path / "none").find("0" * 64)
