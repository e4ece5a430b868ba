# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work of engine_artifact: an engine with its tokenizer on this host, and in the store that other hosts ask.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils import _distribution, _engine
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import (
    give_to,
    hand_over,
    make_parents,
    need_space,
    need_writable,
    read_manifest,
    refresh_times,
    remove_stale_partials,
    remove_tree,
    short_key,
    verify,
)
from ansible_collections.trtllm.serving.plugins.module_utils._distribution import (
    Description,
    DistributionError,
    Known,
    Missing,
    tokenizer_path,
)
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_fetch import Fetch, Stopped, put_in_place
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_store import SharedStore
from ansible_collections.trtllm.serving.plugins.module_utils._lock import HostLock
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation, Cancelled


class NeedsClient(Exception):
    """The registry's client is not in this interpreter."""


class Work:
    """One run of the module."""

    def __init__(
        self,
        params: Mapping[str, Any],
        check_mode: bool,
        cancellation: Cancellation,
        tell: Callable[[str, int, int], None] | None = None,
        warn: Callable[[str], None] = lambda text: None,
        hide: Callable[[list[str]], None] = lambda secrets: None,
    ) -> None:
        self.params, self.check_mode, self.cancellation = params, check_mode, cancellation
        self.tell, self.warn, self.hide = tell, warn, hide
        self.home = Path(params["home"])
        self.signature = str(params.get("signature") or "")
        self.full = params.get("verify") == "full"
        self._store: Any = None
        self.stages: list[dict[str, Any]] = []
        self.began = time.monotonic()

    def run(self) -> dict[str, Any]:
        return self.published() if self.params["state"] == "published" else self.present()

    # --- the store ---

    def store(self) -> Any:
        """The store; its client is loaded only when it is asked for something."""
        if self._store is None:
            if self.params["distribution"] == "shared":
                self._store = SharedStore(Path(self.params["shared_path"]), self.cancellation.check)
            else:
                from ansible_collections.trtllm.serving.plugins.module_utils import _oci

                why = _oci.client_missing()
                if why:
                    raise NeedsClient(why)
                self._store = _oci.RegistryStore(self.params["registry"], self.cancellation.check)
                self.hide(self._store.secrets)
        return self._store

    def store_name(self) -> str:
        if self.params["distribution"] == "shared":
            return str(self.params["shared_path"])
        return str((self.params.get("registry") or {}).get("repository") or "")

    # --- present ---

    def present(self) -> dict[str, Any]:
        if self.check_mode and self.params.get("awaited"):
            return self.unknown("the builder has not made it yet")
        key, tokenizer = str(self.params.get("key") or ""), str(self.params.get("tokenizer") or "")
        known = _distribution.read_known(self.home, self.signature) if self.signature else None
        if not key and known is not None:
            key, tokenizer = known.key, known.tokenizer
        reason = "it was not here yet"
        if key and tokenizer:
            engine = self.engine_path(key)
            problems = _distribution.local_problems(
                self.home, engine, key, tokenizer, full=self.full, tick=self.cancellation.check
            )
            if not problems:
                if not self.check_mode:
                    for path in (engine, tokenizer_path(self.home, tokenizer)):
                        refresh_times(verify(path))
                    self.remember(Known(key, tokenizer))
                return {**self.outcome(key, tokenizer), "changed": False, "origin": "", "found": True}
            if read_manifest(engine) is not None or engine.exists():
                reason = problems[0]
        made = self.look(key)
        if made is None:
            if self.params.get("optional"):
                return {**self.nothing(), "changed": False, "found": False, "origin": ""}
            what = f"engine {short_key(key)}" if key else "an engine for this kind of host"
            raise Missing(f"{self.store_name()} has no {what}: " + self.why_missing())
        problems = _distribution.fits(made, str(self.params["release"]), self.params.get("gpu"))
        if problems:
            raise DistributionError("; ".join(problems))
        need_writable(self.engine_path(made.key))
        if self.check_mode:
            expected = {"key": made.key, "tokenizer": made.tokenizer_key}
            why = f"engine {short_key(made.key)} comes from {self.store_name()}: {reason}"
            return {**self.unknown(why), "expected": expected}
        result = self.fetch(made)
        self.remember(Known(made.key, made.tokenizer_key))
        return {
            **self.outcome(made.key, made.tokenizer_key),
            **result,
            "changed": True,
            "found": True,
            "reason": reason,
        }

    def why_missing(self) -> str:
        said = str(self.params.get("publish_error") or "")
        if said:
            return f"its builder could not publish it ({said}); mend that, and run again"
        return "run again with the host that built it in the run, so that it is published anew"

    def look(self, key: str) -> Description | None:
        store = self.store()
        found: Description | None = store.find(key) if key else None
        # By what it is for, when nobody could say which one it is.
        if found is None and not key:
            found = store.resolve(self.signature)
        return found

    def fetch(self, made: Description) -> dict[str, Any]:
        final = self.engine_path(made.key)
        place = final.with_name(final.name + ".download")
        started = time.monotonic()
        with HostLock(self.home, f"fetching engine {short_key(made.key)}") as lock:
            self.cancellation.on_stop(lock.mark_stopping)
            try:
                finals = {"engine": final, "tokenizer": tokenizer_path(self.home, made.tokenizer_key)}
                needed = [folder for folder, path in finals.items() if not self.whole(made, folder, path)]
                store = self.store()
                fetching = Fetch(
                    made,
                    getattr(store, "sources", [store]),
                    place,
                    workers=getattr(store, "workers", 4),
                    retries=getattr(store, "retries", 0),
                    tick=self.cancellation.check,
                    tell=self.progress,
                    folders=needed,
                )
                owner = make_parents(place, self.home)
                remove_stale_partials(final.parent)
                missing = fetching.prepare(self.home, {folder: finals[folder] for folder in needed})
                need_space(missing, place)
                try:
                    fetching.run()
                except Cancelled as exc:
                    raise DistributionError(f"{exc}; what has come is kept in {place}, run again to go on") from exc
                except Stopped as exc:
                    raise DistributionError("fetching was stopped; run again to go on") from exc
                finally:
                    give_to(place, owner)
                for folder in sorted(needed, reverse=True):
                    manifest = _distribution.final_manifest(made, folder, place / folder)
                    put_in_place(place / folder, finals[folder], manifest, self.home)
                remove_tree(place)
            finally:
                self.cancellation.on_stop(None)
        problems = _engine.check_content(final, str(self.params["release"]))
        if problems:
            raise DistributionError(problems[0])
        seconds = round(time.monotonic() - started, 3)
        self.stages.append({"name": "fetch", "offset_s": round(started - self.began, 3), "seconds": seconds})
        return {
            "origin": ", ".join(sorted(fetching.from_source)) or self.store_name(),
            "bytes": fetching.fetched,
            "duration_s": seconds,
        }

    def whole(self, made: Description, folder: str, path: Path) -> bool:
        kind, key, _inputs, _files = _distribution.manifest_of(made)[folder]
        return verify(path, kind=kind, key=key, full=self.full, tick=self.cancellation.check).ok

    def progress(self, done: int, total: int) -> None:
        if self.tell is not None:
            self.tell("fetching the engine", done, total)

    # --- published ---

    def published(self) -> dict[str, Any]:
        """The engine that this host has made, with its tokenizer, where other hosts can get it."""
        given = str(self.params.get("engine_dir") or "")
        if self.check_mode and (not given or not os.path.isdir(given) or not self.params.get("weights_dir")):
            return self.unknown("the engine is not built yet")
        engine, weights = Path(given), Path(str(self.params.get("weights_dir") or ""))
        problems = _engine.check_engine_dir(engine, str(self.params["release"]), full=self.full)
        if problems:
            raise DistributionError(problems[0])
        files, tokenizer = _distribution.tokenizer_of(weights, self.home, self.cancellation.check)
        made = _distribution.describe(engine, files)
        final = tokenizer_path(self.home, tokenizer)
        new = not verify(final, kind=_distribution.TOKENIZER, key=tokenizer, full=self.full).ok
        result: dict[str, Any] = {"changed": new, "found": True, "origin": "", "published": None, "publish_error": ""}
        if self.check_mode:
            if new:
                return self.unknown(f"the tokenizer comes to {final}")
            return {**self.outcome(made.key, tokenizer), **result}
        if new:
            with HostLock(self.home, f"copying the tokenizer {short_key(tokenizer)}"):
                _distribution.make_tokenizer(weights, self.home, files, self.cancellation.check)
        started = time.monotonic()
        try:
            sent = self.store().publish(made, {"engine": engine, "tokenizer": final}, self.signature)
            result.update(published=True, changed=new or sent)
        except DistributionError as exc:
            # The engine is good and serves here; those that cannot get it will say so, with this as the cause.
            result.update(published=False, publish_error=str(exc))
            self.warn(f"engine {short_key(made.key)} is not published: {exc}")
        self.remember(Known(made.key, tokenizer))
        seconds = round(time.monotonic() - started, 3)
        self.stages.append({"name": "publish", "offset_s": round(started - self.began, 3), "seconds": seconds})
        return {**self.outcome(made.key, tokenizer), **result, "duration_s": seconds}

    # --- results ---

    def engine_path(self, key: str) -> Path:
        return Path(self.params.get("engines_dir") or self.home / "engines") / short_key(key)

    def remember(self, known: Known) -> None:
        """Kept to save the question, so a failure to write it is not an error."""
        path = _distribution.known_path(self.home, self.signature)
        if not self.signature or self.check_mode or _distribution.read_known(self.home, self.signature) == known:
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        with contextlib.suppress(OSError):
            make_parents(path.parent, self.home)
            temporary.write_text(_distribution.known_text(known), encoding="ascii")
            hand_over(temporary, self.home)
            os.replace(temporary, path)

    def nothing(self) -> dict[str, Any]:
        return {
            "key": None,
            "path": None,
            "world_size": None,
            "ranks": [],
            "tokenizer": {"key": None, "path": None},
            "signature": self.signature,
            "needs_client": False,
            "stages": self.stages,
        }

    def unknown(self, why: str) -> dict[str, Any]:
        """In check mode: something comes that is not there to be looked at."""
        return {**self.nothing(), "changed": True, "found": False, "origin": "", "msg": why, "reason": why}

    def outcome(self, key: str, tokenizer: str) -> dict[str, Any]:
        path = self.engine_path(key)
        engine = _engine.summarize(path)
        world = int(engine["world_size"] or 1)
        return {
            **self.nothing(),
            "key": key,
            "path": str(path),
            "world_size": world,
            "ranks": _engine.ranks_of(world),
            "engine": engine,
            "tokenizer": {"key": tokenizer, "path": str(tokenizer_path(self.home, tokenizer))},
        }
