# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server under supervisord and one in a container have in common: a home, its generations, and the switch.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

from ansible_collections.trtllm.serving.plugins.module_utils import _server_state as state
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import hand_over, read_manifest, remove_tree
from ansible_collections.trtllm.serving.plugins.module_utils._generation import UNPROVEN, link_target, unproven
from ansible_collections.trtllm.serving.plugins.module_utils._lock import LOCK_NAME, utc_now

POLL_S = 0.05
# What this collection makes below trtllm_home; nothing else there is ever removed.
OWN = (
    "current", "previous", "generations", "engines", "checkpoints", "weights", "src", "venv", "venvs", "run", "logs",
    "ledger.jsonl",
)  # fmt: skip


class ServerError(Exception):
    """One line that says what is wrong and what to do."""


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def no_token(url: str, model: str, prompt: str, timeout: float) -> str:
    """Why a model gave no token just now; empty when it did. Standard library only: it is asked on every run."""
    body = json.dumps({"text_input": prompt, "max_tokens": 1, "bad_words": "", "stop_words": ""}).encode("utf-8")
    # No proxy of the environment: the server is asked directly.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open("%s/v2/models/%s/generate" % (url, model), data=body, timeout=timeout) as answer:
            reply = json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        return "%s answers HTTP %d: %s" % (url, exc.code, exc.read(500).decode("utf-8", "replace").strip())
    except (OSError, ValueError) as exc:
        return "%s gives no answer: %s" % (url, exc)
    return "" if isinstance(reply, dict) and "text_output" in reply else "%s answers %s" % (url, str(reply)[:500])


def switch_link(home: Path, name: str, generation: Optional[str]) -> None:
    """Points home/name at a generation in one step; removes the link for None."""
    link = home / name
    if generation is None:
        if link.is_symlink():
            link.unlink()
        return
    partial = home / (".%s.partial" % name)
    if partial.is_symlink() or partial.exists():
        partial.unlink()
    partial.symlink_to(os.path.join("generations", generation))
    os.rename(str(partial), str(link))
    fd = os.open(str(home), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class BaseServer:
    """Switching between generations. What starts and stops is a subclass's. The caller holds the host's lock.

    Where a slot is asked for, None is the active one; to stop and to be alive, it is every one.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run = home / "run"
        self.stages: List[Dict[str, Any]] = []
        self._begun = time.monotonic()

    # --- what a runtime brings ---

    def running(self, slot: Optional[str] = None) -> Optional[str]:
        """The generation that the living server was started from."""
        raise NotImplementedError

    def alive(self, slot: Optional[str] = None) -> bool:
        """Whether there is anything to stop, whatever it was started from."""
        raise NotImplementedError

    def stop(self, timeout: float, slot: Optional[str] = None) -> bool:
        """Ends the server; whether there was anything to end."""
        raise NotImplementedError

    def start(self, generation: str, slot: Optional[str] = None) -> None:
        """Starts the server of a generation, and returns once its process exists."""
        raise NotImplementedError

    def prepare(self, generation: str, slot: Optional[str] = None) -> None:
        """Whether a generation could be started, as far as that can be seen before the old server is stopped."""

    def clear(self, images: bool = False) -> List[str]:
        """Removes what the server leaves outside the home; what that was."""
        return []

    def leftovers(self) -> List[str]:
        """What clear would remove."""
        return []

    # --- what is ---

    @property
    def slot(self) -> str:
        """The active slot."""
        return state.active_slot(self.home)

    @property
    def started_file(self) -> Path:
        return self.run / state.server_record(self.slot)

    def started(self, slot: Optional[str] = None) -> Dict[str, Any]:
        return state.read_record(self.home, state.server_record(slot or self.slot))

    def launch(self, generation: Optional[str]) -> Dict[str, Any]:
        """How a generation is started; empty where that is not known."""
        try:
            text = (self.home / "generations" / str(generation) / "launch.json").read_text(encoding="utf-8")
            value = json.loads(text)
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def links(self) -> Dict[str, Optional[str]]:
        return {name: link_target(self.home, name) for name in ("current", "previous")}

    def before(self) -> Dict[str, Optional[str]]:
        """What current and previous named when a generation last passed its gate."""
        found: Dict[str, Optional[str]] = unproven(self.home).get("before") or self.links()
        return found

    def switching(self) -> bool:
        """Whether a switch was begun, and neither settled nor taken back."""
        return (self.home / UNPROVEN).exists()

    def surged(self) -> Optional[str]:
        """The generation whose server runs beside the active one; None when there is none."""
        return self.running(state.other(self.slot))

    def known(self, generation: str) -> bool:
        """Whether a generation's name can be resolved; previous always must be."""
        if generation == "previous":
            return True
        name = "current" if generation == "current" else os.path.join("generations", generation)
        return read_manifest(self.home / name) is not None

    def resolve(self, generation: str) -> str:
        """The id meant by a generation's name; it must be a finished one."""
        wanted = generation
        if generation in ("current", "previous"):
            found = link_target(self.home, generation)
            if found is None:
                raise ServerError("%s has no %s generation: deploy first (site.yml)" % (self.home, generation))
            wanted = found
        if read_manifest(self.home / "generations" / wanted) is None:
            raise ServerError(
                "generation %s is not complete below %s/generations: deploy again (site.yml)" % (wanted, self.home)
            )
        return wanted

    # --- what is done ---

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Notes when a part of the work began and how long it took, also when it fails."""
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begun
            self.stages.append({"name": name, "offset_s": round(begun - self._begun, 3), "seconds": round(seconds, 3)})

    def record_start(self, generation: str, slot: str) -> None:
        """Says what the server that is about to be started is started from, and when."""
        for name in ("run", "logs"):
            (self.home / name).mkdir(mode=0o750, exist_ok=True)
            hand_over(self.home / name, self.home)
        state.write_record(
            self.home, state.server_record(slot), {"generation": generation, "started": utc_now(), "slot": slot}
        )

    def ledger(self, stage: str, generation: Optional[str], outcome: str, seconds: float, **more: Any) -> None:
        """One line for each thing that happened to what this host serves."""
        entry = {
            "time": utc_now(), "host": socket.gethostname(), "stage": stage, "generation": generation,
            "outcome": outcome, "seconds": round(seconds, 3),
        }  # fmt: skip
        entry.update({name: value for name, value in more.items() if value})
        fd = os.open(str(self.home / "ledger.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n")

    def switch(
        self,
        generation: str,
        before: Mapping[str, Optional[str]],
        timeout: float,
        rollback: bool = False,
        slot: Optional[str] = None,
    ) -> None:
        """Stop, point current and previous, start. The generation has its gate before it."""
        self._mark_unproven(
            {"generation": generation, "before": {name: before[name] for name in ("current", "previous")}}
        )
        # The slot no longer depends on what current names.
        state.point_slot(self.home, self.slot)
        with self.stage("stop"):
            self.stop(timeout)
        if slot:
            state.point_slot(self.home, slot)
        switch_link(self.home, "previous", previous_after(before, generation, rollback))
        switch_link(self.home, "current", generation)
        with self.stage("start"):
            self.start(generation)

    def restore(self, before: Mapping[str, Optional[str]], timeout: float) -> Optional[str]:
        """Back to what passed its gate last; what runs then."""
        target = before["current"]
        if target is None:
            with self.stage("stop"):
                self.stop(timeout)
        elif self.running() != target or self.links()["current"] != target:
            self.resolve(target)
            with self.stage("stop"):
                self.stop(timeout)
        state.point_slot(self.home, self.slot)
        switch_link(self.home, "previous", before["previous"])
        switch_link(self.home, "current", target)
        if target is not None and self.running() != target:
            with self.stage("start"):
                self.start(target)
        self.settle()
        return target

    def surge(self, generation: str, timeout: float) -> bool:
        """Starts a generation beside the active server; whether it did not run there already."""
        slot = state.other(self.slot)
        if self.running(slot) == generation and state.read_surge(self.home).get("generation") == generation:
            return False
        self.prepare(generation, slot)
        with self.stage("surge"):
            self.stop(timeout, slot)
            state.begin_surge(self.home, generation, slot)
            self.start(generation, slot)
        return True

    def promote(
        self, generation: str, before: Mapping[str, Optional[str]], timeout: float, rollback: bool = False
    ) -> None:
        """Makes the server beside the active one the host's, and ends the old one. It has its gate behind it."""
        old = self.slot
        slot = state.other(old)
        with self.stage("promote"):
            # Cut off before current is changed nothing has happened, and after that everything.
            state.point_slot(self.home, slot, None if self.links()["current"] == generation else generation)
            switch_link(self.home, "previous", previous_after(before, generation, rollback))
            switch_link(self.home, "current", generation)
            state.point_slot(self.home, slot)
            state.end_surge(self.home)
            # What current named before need not have passed its gate; this one has.
            self.settle()
        with self.stage("stop"):
            self.stop(timeout, old)

    def drop(self, timeout: float) -> bool:
        """Ends what runs beside the active server; whether there was anything to end."""
        slot = state.other(self.slot)
        found = False
        if self.alive(slot):
            with self.stage("stop"):
                found = self.stop(timeout, slot)
        state.end_surge(self.home)
        return found

    def settle(self) -> None:
        """The current generation has passed its gate, or had done so before."""
        with contextlib.suppress(FileNotFoundError):
            (self.home / UNPROVEN).unlink()

    def _mark_unproven(self, record: Mapping[str, Any]) -> None:
        state.write_record(self.home, os.path.basename(UNPROVEN), record)

    def own(self) -> List[str]:
        """What the collection made below home; nothing in a directory that it never deployed to."""
        if not (self.home / LOCK_NAME).is_file():
            return []
        return [name for name in OWN if os.path.lexists(str(self.home / name))]

    def remove(self) -> List[str]:
        """Removes all that the collection made below home."""
        removed = self.own()
        for name in removed:
            remove_tree(self.home / name)
        return removed


def previous_after(before: Mapping[str, Optional[str]], generation: str, rollback: bool = False) -> Optional[str]:
    """What previous names once this generation is current: what served before it, or what it was already.

    After a rollback it is the current one: a repeated rollback goes no further back, and never forward.
    """
    if rollback:
        return generation
    return before["current"] if before["current"] not in (None, generation) else before["previous"]
