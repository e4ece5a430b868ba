#!/usr/bin/env python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generates a tiny Mixtral with a tokenizer, the same one for the same options."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tensorrtllm_reference import cli, tiny

if __name__ == "__main__":
    cli.run(tiny.main)
