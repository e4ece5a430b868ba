# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of an invented run: two pools, batches, a host that fails its gate and goes back, one that is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STARTED = 1764000000.0
OLD, NEW = "16e27fbda35d9ef2", "28badbcdcfb8cef4"
CAUSE = "smoke prompt 'capital': the answer is 'Lyon <b>&amp;</b>', not 'Paris': compare the engine with the one before"
UNREACHABLE = "Failed to connect to the host via ssh: No route to host"
SPENT = "pool embed: embed001 has failed, triton_pool_max_failures allows 0: no further host of it is touched"


class Story:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def add(self, at: float, host: str | None, pool: str, stage: str, event: str, **detail: Any) -> None:
        entry = {"time": round(STARTED + at, 3), "host": host, "pool": pool, "stage": stage, "event": event, **detail}
        self.events.append({name: value for name, value in entry.items() if value is not None})

    def step(
        self, at: float, host: str, pool: str, stage: str, seconds: float, *,
        outcome: str = "ok", parts: tuple[tuple[str, float], ...] = (), **detail: Any,
    ) -> float:  # fmt: skip
        self.add(at, host, pool, stage, "start")
        within = at + seconds - sum(part[1] for part in parts)
        for number, (name, took) in enumerate(parts):
            said = outcome if number == len(parts) - 1 else "ok"
            self.add(within, host, pool, name, "start", within=stage)
            self.add(within + took, host, pool, name, "end", within=stage, outcome=said)
            within += took
        self.add(at + seconds, host, pool, stage, "end", outcome=outcome, changed=True, **detail)
        return at + seconds

    def prepared(self, host: str, pool: str, number: int, builder: bool) -> float:
        at = self.step(4 + 0.1 * number, host, pool, "image", 6 + number % 5)
        if builder:
            at = self.step(at, host, pool, "weights", 14)
            at = self.step(at, host, pool, "convert", 11)
            at = self.step(at, host, pool, "build", 23)
            at = self.step(at, host, pool, "publish", 5)
        else:
            at = self.step(76, host, pool, "fetch", 7 + number % 4)
        return self.step(at, host, pool, "generation", 1.2)

    def rolled(self, at: float, host: str, pool: str, bake: float = 5.0) -> float:
        at = self.step(at, host, pool, "begin", 0.6)
        at = self.step(at, host, pool, "drain", 4.2)
        at = self.step(at, host, pool, "switch", 7.4, parts=(("stop", 3.1), ("switch", 0.1), ("start", 3.6)))
        at = self.step(at, host, pool, "gate", 14.0, parts=(("load", 11.2), ("gpu", 0.4), ("smoke", 2.0)))
        at = self.step(at, host, pool, "undrain", 1.4)
        at = self.step(at, host, pool, "bake", bake, parts=(("bake", bake - 0.3),))
        at = self.step(at, host, pool, "settle", 0.9)
        self.ends(at, host, pool, "done", to=NEW, left=f"serves {NEW}")
        return at

    def goes_back(self, at: float, host: str, pool: str) -> float:
        at = self.step(at, host, pool, "begin", 0.6)
        at = self.step(at, host, pool, "drain", 4.2)
        at = self.step(at, host, pool, "switch", 7.4, parts=(("stop", 3.1), ("switch", 0.1), ("start", 3.6)))
        at = self.step(
            at, host, pool, "gate", 13.0, outcome="failed", parts=(("load", 11.2), ("smoke", 1.2)), cause=CAUSE
        )
        at = self.step(at, host, pool, "restore", 12.0)
        at = self.step(at, host, pool, "undrain", 1.4)
        self.ends(at, host, pool, "failed", cause=CAUSE, to=NEW, left=f"serves {OLD}")
        return at

    def ends(self, at: float, host: str, pool: str, outcome: str, **detail: Any) -> None:
        said = {"cause": "", "left": "", "from": OLD, "to": OLD, **detail}
        self.add(at, host, pool, "outcome", "note", outcome=outcome, **said)


def fleet(chat: int = 4, embed: int = 2, *, trouble: bool = True) -> list[dict[str, Any]]:
    """A whole run."""
    story = Story()
    sizes = {"chat": chat, "embed": embed}
    pools = {pool: [f"{pool}{n:03d}" for n in range(1, size + 1)] for pool, size in sizes.items()}
    end = 0.0
    for pool, hosts in pools.items():
        for number, host in enumerate(hosts):
            end = max(end, story.prepared(host, pool, number, number == 0))
    at = end + 2
    for pool, hosts in pools.items():
        width = max(1, (len(hosts) - 1) // 8)
        batches = [hosts[:1], *[hosts[first : first + width] for first in range(1, len(hosts), width)]]
        gone = {hosts[-1]: UNREACHABLE} if trouble and pool == "chat" else {}
        batches = [[host for host in batch if host not in gone] for batch in batches]
        story.add(
            at, None, pool, "plan", "note", batches=[batch for batch in batches if batch],
            causes=gone, unchanged=[], blocked={}, stopped="",
        )  # fmt: skip
        stopped = False
        for number, batch in enumerate(each for each in batches if each):
            if stopped:
                for host in batch:
                    story.ends(at, host, pool, "skipped", cause=SPENT, left=f"serves {OLD}")
                continue
            ends = []
            for place, host in enumerate(batch):
                if trouble and pool == "embed" and number == 0:
                    ends.append(story.goes_back(at, host, pool))
                    stopped = True
                else:
                    ends.append(story.rolled(at + 0.3 * place, host, pool))
            at = max(ends) + 1
        if stopped:
            story.add(at, None, pool, "guard", "note", cause=SPENT)
    return sorted(story.events, key=lambda event: event["time"])


def write(directory: Path, events: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (directory / "events.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    # To look at the page: story.py CHAT EMBED > page.html
    from ansible_collections.trtllm.serving.plugins.plugin_utils import _report, _report_page

    run = {"id": "20251124-160000-0a1b2c", "started": STARTED}
    found = _report.build(fleet(int(sys.argv[1]), int(sys.argv[2])), run)
    sys.stdout.write(_report_page.page(found, found.ended))
