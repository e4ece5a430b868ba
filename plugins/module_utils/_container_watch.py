# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server's container, watched while it starts: that it is dead or starts over and over, and what it said last.

Private to the collection.
"""

from __future__ import annotations

import re
import time
from typing import Any, Callable, Dict, List, Optional

from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._docker_spec import exit_words
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import Watch

# How often the engine is asked at most; the server itself is asked more often.
_LOOK_S = 0.2
_TAIL = 1000


class ContainerWatch(Watch):
    """The container of this name. A start of its own by the restart policy counts as death: it had died before."""

    # The log is that of one start of the container, with the ranks of the server side by side in it.
    one_start = True

    def __init__(self, client: Any, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.client = client
        self.name = name
        self.log_name = "docker logs %s" % name
        self._clock = clock
        self._next = 0.0
        self._last = ""
        self._first: Optional[Dict[str, Any]] = None
        self._started = ""

    def death(self) -> str:
        if not self._last and self._clock() >= self._next:
            self._next = self._clock() + _LOOK_S
            self._last = self._look()
        return self._last

    def _look(self) -> str:
        try:
            found = self.client.api.inspect_container(self.name)
        except _containers.sdk("docker.errors").NotFound:
            return "container %s does not exist" % self.name
        except _containers.failures() as exc:
            return _containers.explain(exc, "container %s cannot be looked at" % self.name)
        state = found.get("State") or {}
        count = int(found.get("RestartCount") or 0)
        if self._first is None:
            self._first = {"id": found.get("Id"), "count": count, "started": state.get("StartedAt")}
            self._started = str(state.get("StartedAt") or "")
        if found.get("Id") != self._first["id"]:
            return "container %s was replaced" % self.name
        status = state.get("Status")
        if status == "restarting":
            return "container %s %s, and is being started again for the %s time" % (
                self.name, exit_words(state), _nth(count),
            )  # fmt: skip
        if count != self._first["count"] or state.get("StartedAt") != self._first["started"]:
            return "container %s has ended, and was started again %d times" % (self.name, max(1, count))
        if status != "running":
            said = " ".join(str(state.get("Error") or "").split())
            return "container %s %s%s" % (self.name, exit_words(state), ": " + said if said else "")
        return ""

    def lines(self) -> List[str]:
        """What the container said since its first start that was seen, oldest first."""
        try:
            data = self.client.api.logs(self.name, tail=_TAIL, stdout=True, stderr=True)
        except _containers.failures():
            return []
        return [line for line in re.split(r"[\r\n]+", data.decode("utf-8", "replace")) if line.strip()]


def _nth(count: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(count, "%dth" % count)
