# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from pathlib import Path

import pytest

# Packages whose wheels differ by interpreter or by machine, and how many wheels must therefore be pinned.
WHEELS = {
    "nvidia-pytriton": 2, "numpy": 6, "safetensors": 2, "tokenizers": 2, "gguf": 1, "tqdm": 1, "pyyaml": 6,
    "requests": 1, "urllib3": 1, "certifi": 1, "idna": 1, "charset-normalizer": 6, "protobuf": 2, "tritonclient": 1,
    "supervisor": 1,
}


@pytest.fixture
def pins(reference: Path) -> dict[str, tuple[str, list[str]]]:
    text = (reference / "requirements.txt").read_text().replace("\\\n", " ")
    result: dict[str, tuple[str, list[str]]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"([a-z0-9-]+)==([0-9.]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        assert found, line
        result[found.group(1)] = (found.group(2), found.group(3).split())
    return result


def test_every_package_is_pinned_for_every_interpreter_and_machine(pins: dict[str, tuple[str, list[str]]]) -> None:
    assert {name: len(set(hashes)) for name, (_version, hashes) in pins.items()} == WHEELS


def test_versions_that_triton_dictates(pins: dict[str, tuple[str, list[str]]]) -> None:
    assert pins["nvidia-pytriton"][0] == "0.7.0"
    assert int(pins["numpy"][0].split(".")[0]) == 1
