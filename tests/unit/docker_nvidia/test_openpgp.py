# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fingerprints of keys that gnupg made, and of files that are no keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils._openpgp import (
    OpenPgpError,
    armor,
    dearmor,
    fingerprints,
    judge,
)

DATA = Path(__file__).parent / "data"
MODULE = "ansible_collections.trtllm.serving.plugins.modules.repository_key"


def key(name: str) -> bytes:
    return (DATA / name).read_bytes()


def printed(name: str) -> str:
    """The fingerprint as gnupg printed it."""
    return (DATA / ("key-%s.fingerprint" % name)).read_text().strip()


@pytest.mark.parametrize("name", ["rsa", "other", "ed25519"])
def test_fingerprint_is_gnupgs(name: str) -> None:
    assert fingerprints(key("key-%s.asc" % name)) == [printed(name)]


def test_every_key_of_a_file_counts() -> None:
    both = [printed("rsa"), printed("other")]
    assert fingerprints(key("keys-two.asc")) == both
    assert fingerprints(key("key-rsa.asc") + key("key-other.asc")) == both


def test_binary_and_armored_are_the_same() -> None:
    assert dearmor(key("key-rsa.asc")) == key("key-rsa.gpg") == dearmor(key("key-rsa.gpg"))
    assert armor(key("key-rsa.gpg")) == key("key-rsa.asc")
    assert armor(key("key-rsa.asc")) == key("key-rsa.asc")


@pytest.mark.parametrize("pin", ["{0}", "0x{0}", "{1}", "  {1}  "], ids=["plain", "0x", "spaced", "padded"])
def test_a_pin_is_compared_however_it_is_written(pin: str) -> None:
    spaced = " ".join(printed("rsa")[place : place + 4] for place in range(0, 40, 4)).lower()
    assert judge(key("key-rsa.asc"), [pin.format(printed("rsa"), spaced)], "u") == [printed("rsa")]


def test_a_wrong_key_is_refused_with_both_fingerprints() -> None:
    with pytest.raises(OpenPgpError) as caught:
        judge(key("key-other.asc"), [printed("rsa")], "http://mirror/gpg")
    for named in ("http://mirror/gpg", printed("rsa"), printed("other"), "nothing was kept"):
        assert named in str(caught.value)


def test_a_foreign_key_beside_the_right_one_is_refused() -> None:
    with pytest.raises(OpenPgpError, match=printed("other")):
        judge(key("keys-two.asc"), [printed("rsa")], "u")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "no key at all"),
        (b"<html>login</html>", "no OpenPGP data at byte 0"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQENB", "without end"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n????\n-----END PGP PUBLIC KEY BLOCK-----", "damaged armor"),
        (bytes([0x95, 0, 1, 4]), "a secret key"),
        (bytes([0xC5, 1, 4]), "a secret key"),
        (bytes([0xCB, 1, 4]), "a packet of kind 11"),
        (bytes([0xC6, 1, 3]), "a key of version 3"),
        (bytes([0xC6, 0xFF, 0, 0]), "cut off"),
        (bytes([0xC6, 0xE1, 4]), "unknown length"),
        (bytes([0x9B, 4]), "unknown length"),
    ],
)
def test_what_is_no_public_key(data: bytes, named: str) -> None:
    with pytest.raises(OpenPgpError) as caught:
        judge(data, ["A" * 40], "u")
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_is_cut_off() -> None:
    data = key("key-rsa.gpg")
    for size in (1, 2, 3, 100, len(data) - 1):
        with pytest.raises(OpenPgpError):
            fingerprints(data[:size])


@pytest.mark.parametrize("pin", ["", "ABCD", "G" * 40, "A" * 39])
def test_a_pin_that_is_no_fingerprint(pin: str) -> None:
    with pytest.raises(OpenPgpError, match="is no fingerprint"):
        judge(key("key-rsa.asc"), [pin], "u")


# --- the module ---


def run(check: bool = False, **args: Any) -> dict[str, Any]:
    given = {"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check, "_ansible_remote_tmp": "/tmp"}}
    done = subprocess.run(
        [sys.executable, "-m", MODULE], input=json.dumps(given), capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("form", "file"), [("armored", "key-rsa.asc"), ("binary", "key-rsa.gpg")])
def test_a_key_is_kept_once(tmp_path: Path, form: str, file: str) -> None:
    dest = tmp_path / "keyrings" / "docker.gpg"
    args = {"url": (DATA / "key-rsa.asc").as_uri(), "dest": str(dest), "fingerprints": [printed("rsa")], "format": form}
    predicted = run(check=True, **args)
    assert predicted["changed"] and not dest.parent.exists()
    done = run(**args)
    assert done["changed"] and done["fingerprints"] == [printed("rsa")]
    assert dest.read_bytes() == key(file) and dest.stat().st_mode & 0o777 == 0o644
    # Nothing is downloaded any more.
    again = run(**{**args, "url": "file:///nowhere"})
    assert not again.get("failed") and not again["changed"]


def test_a_wrong_key_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    args = {
        "url": (DATA / "key-other.asc").as_uri(),
        "dest": str(tmp_path / "x" / "k"),
        "fingerprints": [printed("rsa")],
    }
    failed = run(**args)
    assert failed["failed"] and printed("rsa") in failed["msg"] and printed("other") in failed["msg"]
    assert list(tmp_path.iterdir()) == []


def test_an_old_key_is_replaced_by_the_one_that_is_wanted_now(tmp_path: Path) -> None:
    dest = tmp_path / "k"
    dest.write_bytes(key("key-other.asc"))
    args = {"url": (DATA / "key-rsa.asc").as_uri(), "dest": str(dest), "fingerprints": [printed("rsa")]}
    assert run(**args)["changed"] and dest.read_bytes() == key("key-rsa.asc")


def test_an_url_that_does_not_answer(tmp_path: Path) -> None:
    failed = run(url=(tmp_path / "no").as_uri(), dest=str(tmp_path / "k"), fingerprints=["A" * 40])
    assert failed["failed"] and "cannot be downloaded" in failed["msg"] and "docker_nvidia_mirror" in failed["msg"]
    assert list(tmp_path.iterdir()) == []
