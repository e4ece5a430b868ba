# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Triton response sender that may be used from several threads."""

from __future__ import annotations

import threading
from typing import Any, Optional


class Sender:
    """Wraps the response sender of one request.

    Triton frees the request with its final response, and asking the freed request whether it is cancelled crashes the
    whole server. So both happen under one lock, and after the final response nothing reaches Triton any more.
    """

    def __init__(self, sender: Any, final_flag: int) -> None:
        self._sender = sender
        self._final_flag = final_flag
        self._lock = threading.Lock()
        self.closed = False

    def send(self, response: Optional[Any] = None, *, final: bool) -> None:
        """Send a response, or with none only the end of the stream."""
        with self._lock:
            if self.closed:
                return
            self.closed = final
            arguments = () if response is None else (response,)
            self._sender.send(*arguments, flags=self._final_flag if final else 0)

    def is_cancelled(self) -> bool:
        """Whether the client gave the request up; also true once the request is answered."""
        with self._lock:
            return self.closed or bool(self._sender.is_cancelled())
