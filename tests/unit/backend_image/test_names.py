# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names of images and credentials of registries."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._image_reference import (
    ImageError,
    client_config,
    credentials,
    parse,
)

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "registry", "path", "tag"),
    [
        ("nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3", "nvcr.io", "nvidia/tritonserver",
         "25.12-trtllm-python-py3"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000", "a/b", "1"),
        ("localhost/a:1", "localhost", "a", "1"),
        ("triton_trt_llm:0.12.0", "", "triton_trt_llm", "0.12.0"),
        ("library/debian:12", "", "library/debian", "12"),
    ],
)  # fmt: skip
def test_parts(text: str, registry: str, path: str, tag: str) -> None:
    found = parse(text)
    assert (found.registry, found.path, found.tag, found.digest) == (registry, path, tag, "")
    assert str(found) == found.exact == found.tagged == text


def test_digest_within_and_beside() -> None:
    for found in (parse(f"nvcr.io/a@{DIGEST}"), parse("nvcr.io/a", DIGEST), parse("nvcr.io/a", DIGEST[7:])):
        assert found.exact == f"nvcr.io/a@{DIGEST}"
        assert found.tagged == "nvcr.io/a:sha256-" + "ab" * 6
    both = parse(f"nvcr.io/a:1@{DIGEST}")
    assert both.exact == f"nvcr.io/a@{DIGEST}" and both.tagged == "nvcr.io/a:1"


@pytest.mark.parametrize(
    ("text", "digest", "said"),
    [
        ("nvcr.io/a", "", "neither tag nor digest"),
        ("Nvcr/A:1", "", "is no image name"),
        ("a:b:c", "", "is no image name"),
        ("", "", "is no image name"),
        ("a/../b:1", "", "is no image name"),
        ("a:1", "sha256:12", "is not sha256: and 64"),
        (f"a@{DIGEST}", "sha256:" + "0" * 64, "another digest"),
    ],
)
def test_what_names_no_image(text: str, digest: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        parse(text, digest)


@pytest.mark.parametrize(
    ("text", "mirror", "wanted"),
    [
        ("nvcr.io/nvidia/tritonserver:1", "mirror:5000", "mirror:5000/nvidia/tritonserver:1"),
        ("nvcr.io/nvidia/tritonserver:1", "mirror.example.com/ngc/", "mirror.example.com/ngc/nvidia/tritonserver:1"),
        ("debian:12", "mirror:5000", "mirror:5000/library/debian:12"),
        ("debian:12", "", "debian:12"),
    ],
)
def test_mirror(text: str, mirror: str, wanted: str) -> None:
    assert str(parse(text).mirrored(mirror)) == wanted


def secret(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("registry", "key"),
    [
        ("nvcr.io", "nvcr.io"),
        ("nvcr.io", "https://nvcr.io"),
        ("nvcr.io", "https://nvcr.io/v1/"),
        ("docker.io", "https://index.docker.io/v1/"),
    ],
)
def test_auth_file(tmp_path: Path, registry: str, key: str) -> None:
    pair = base64.b64encode(b"$oauthtoken:key:with:colons").decode()
    path = secret(tmp_path / "auth", json.dumps({"auths": {key: {"auth": pair}}}))
    found = credentials(registry, path, "", "")
    assert found == {"username": "$oauthtoken", "password": "key:with:colons"}
    config = client_config(registry, found)["auths"]
    assert [base64.b64decode(entry["auth"]) for entry in config.values()] == [b"$oauthtoken:key:with:colons"]
    assert credentials("other.example.com", path, "", "") is None


def test_identity_token(tmp_path: Path) -> None:
    path = secret(tmp_path / "auth", json.dumps({"auths": {"r": {"identitytoken": "t"}}}))
    found = credentials("r", path, "", "")
    assert found == {"identitytoken": "t"} and client_config("r", found) == {"auths": {"r": {"identitytoken": "t"}}}


def test_user_and_password_files(tmp_path: Path) -> None:
    user, password = secret(tmp_path / "u", "me\n"), secret(tmp_path / "p", "word\n")
    assert credentials("r", "", user, password) == {"username": "me", "password": "word"}
    assert credentials("r", "", "", "") is None and client_config("r", None) == {}
    with pytest.raises(ImageError, match="belong together"):
        credentials("r", "", user, "")
    with pytest.raises(ImageError, match="drop one"):
        credentials("r", "/auth", user, password)
    with pytest.raises(ImageError, match="is empty"):
        credentials("r", "", user, secret(tmp_path / "p", "\n"))


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ('{"auths": {}}', 0o604, "can be read by everybody: chmod 600"),
        ("no json", 0o600, "has no auths"),
        ("[]", 0o600, "has no auths"),
        ('{"auths": {"r": {"auth": "%%"}}}', 0o600, "is not base64"),
        ('{"auths": {"r": {}}}', 0o600, "no user and password for r"),
    ],
)
def test_auth_files_that_will_not_do(tmp_path: Path, text: str, mode: int, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        credentials("r", secret(tmp_path / "auth", text, mode), "", "")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="cannot be read on the host"):
        credentials("r", str(tmp_path / "none"), "", "")
