# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime's errors: each one line that says what was wrong, the value seen, and what to do."""

from __future__ import annotations


class EngineError(Exception):
    """An engine, or a combination of engine and configuration, that cannot be served: the model does not load."""


class RequestError(Exception):
    """A request that cannot be answered; every other request goes on."""
