# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a GPU's PCI id, architecture and name tell where the driver does not.

Private to the collection.
"""

from __future__ import annotations

import re
from typing import Tuple

# PCI device ids, first and last of a range, and the compute capability of the chips in it.
_CHIPS: Tuple[Tuple[int, int, str], ...] = (
    (0x15F7, 0x15F9, "6.0"),  # GP100
    (0x1B00, 0x1D7F, "6.1"),  # GP102 to GP108
    (0x1D81, 0x1DFF, "7.0"),  # GV100
    (0x1E02, 0x1FFF, "7.5"),  # TU102, TU104, TU106, TU117
    (0x2080, 0x20FF, "8.0"),  # GA100
    (0x2182, 0x21FF, "7.5"),  # TU116
    (0x2200, 0x22FF, "8.6"),  # GA102
    (0x2300, 0x23FF, "9.0"),  # GH100
    (0x2414, 0x25FF, "8.6"),  # GA103 to GA107
    (0x2680, 0x28FF, "8.9"),  # AD102 to AD107
    (0x2900, 0x29FF, "10.0"),  # GB100
    (0x2B80, 0x2DFF, "12.0"),  # GB202 to GB206
    (0x2E00, 0x2EFF, "12.1"),  # GB10
    (0x2F00, 0x2FFF, "12.0"),  # GB205
    (0x3180, 0x31FF, "10.3"),  # GB110
)
_ARCHITECTURES = {
    "pascal": "6.0",
    "volta": "7.0",
    "turing": "7.5",
    "ampere": "8.6",
    "ada lovelace": "8.9",
    "hopper": "9.0",
    "blackwell": "10.0",
}
_NAMES: Tuple[Tuple[str, str], ...] = (
    (r"\bP100\b", "6.0"),
    (r"\b(?:V100S?|TITAN V)\b", "7.0"),
    (r"\b(?:T4G?|T40|RTX (?:[68]000|5000|4000)$)\b", "7.5"),
    (r"\b(?:A100X?|A800|A30X?)\b", "8.0"),
    (r"\b(?:A2|A10G?|A16|A40)\b|\bRTX A\d000", "8.6"),
    (r"\b(?:L4|L20|L40[SG]?|L2)\b|\bRTX \d000 Ada", "8.9"),
    (r"\b(?:H100|H200|H800|H20|GH200)\b", "9.0"),
    (r"\b(?:B100|B200|GB200)\b", "10.0"),
    (r"\b(?:B300|GB300)\b", "10.3"),
    (r"\bRTX (?:PRO|50\d0)\b", "12.0"),
)
# Those that NVIDIA lets run newer CUDA than their driver's, by the compatibility package inside the image.
_DATA_CENTRE = re.compile(
    r"^Tesla |\b(?:P100|V100S?|T4G?|A2|A10G?|A16|A30X?|A40|A100X?|A800|L2|L4|L20|L40[SG]?|H20|H100|H200|H800|GH200"
    r"|B100|B200|B300|GB200|GB300)(?:\b|-)"
)


def compute_capability(pci_device_id: str, architecture: str, name: str) -> str:
    """By the PCI id as nvidia-smi writes it (233010DE), else by architecture and name; empty when unknown."""
    found = re.fullmatch(r"(?:0x)?([0-9A-Fa-f]{4})10[Dd][Ee]", pci_device_id)
    if found is not None:
        device = int(found.group(1), 16)
        for first, last, capability in _CHIPS:
            if first <= device <= last:
                return capability
    for pattern, capability in _NAMES:
        if re.search(pattern, name):
            return capability
    return _ARCHITECTURES.get(architecture.lower(), "")


def data_centre(name: str) -> bool:
    return "GeForce" not in name and _DATA_CENTRE.search(name) is not None
