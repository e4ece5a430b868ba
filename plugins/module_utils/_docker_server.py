# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server in a container: one a slot, made of its generation, kept up by Docker's restart policy.

Private to the collection.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils import _server_state as state
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import ArtifactError, hand_over
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError
from ansible_collections.trtllm.serving.plugins.module_utils._docker_spec import (
    GENERATION_LABEL,
    HEALTH,
    ROLE,
    SLOT_LABEL,
    differences,
    exit_words,
    image_ids,
    payload,
    read_launch,
    wanted_gpus,
)
from ansible_collections.trtllm.serving.plugins.module_utils._gpu import gpu_lost
from ansible_collections.trtllm.serving.plugins.module_utils._server_base import BaseServer, ServerError, wait_until

ALIVE = ("running", "restarting", "paused")
_SMI_TIMEOUT_S = 30.0
_KEPT_LINES = 2000


class DockerServer(BaseServer):
    """The server in the container of this name; in slot b, the name ends with -b."""

    def __init__(self, home: Path, name: str, connect: Callable[..., Any] = _containers.connect) -> None:
        super().__init__(home)
        self.name = name
        self._connect = connect
        self._client: Optional[Any] = None
        # The container that is being worked on, for messages.
        self._at = ""

    @property
    def client(self) -> Any:
        if self._client is None:
            try:
                self._client = self._connect()
            except ContainerError as exc:
                raise ServerError(str(exc)) from exc
        return self._client

    def name_in(self, slot: Optional[str] = None) -> str:
        """The name of the container in a slot."""
        return self.name + state.suffix(slot or self.slot)

    def _call(self, what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ContainerError as exc:
            raise ServerError(str(exc)) from exc
        except _containers.failures() as exc:
            raise ServerError(_containers.explain(exc, "container %s %s" % (self._at or self.name, what))) from exc

    # --- what is ---

    def inspect(self, reference: str = "") -> Optional[Dict[str, Any]]:
        """The engine's account of the container; None when there is none."""
        not_found = _containers.sdk("docker.errors").NotFound
        try:
            found: Dict[str, Any] = self.client.api.inspect_container(reference or self.name_in())
        except not_found:
            return None
        except _containers.failures() as exc:
            what = "container %s cannot be looked at" % (reference or self.name_in())
            raise ServerError(_containers.explain(exc, what)) from exc
        return found

    def _labels(self, found: Dict[str, Any]) -> Dict[str, str]:
        return dict((found.get("Config") or {}).get("Labels") or {})

    def _is_ours(self, found: Dict[str, Any]) -> bool:
        labels = self._labels(found)
        return labels.get(_containers.HOME_LABEL) == str(self.home) and labels.get(_containers.ROLE_LABEL) == ROLE

    def containers(self, slot: Optional[str] = None) -> List[Dict[str, Any]]:
        """Every server's container of this home, or of one slot of it, under whatever name it was made."""
        found = [self.inspect(each.id) for each in self._call("", _containers.ours, self.client, self.home, ROLE)]
        there = [each for each in found if each is not None]
        return [each for each in there if slot in (None, self._slot_of(each))]

    def _slot_of(self, found: Dict[str, Any]) -> str:
        return self._labels(found).get(SLOT_LABEL, "a")

    def alive(self, slot: Optional[str] = None) -> bool:
        return bool(self.containers(slot))

    def running(self, slot: Optional[str] = None) -> Optional[str]:
        found = self.inspect(self.name_in(slot))
        if found is None or not self._is_ours(found) or (found.get("State") or {}).get("Status") != "running":
            return None
        return self._labels(found).get(GENERATION_LABEL)

    def trouble(self, generation: str) -> str:
        """Why the container does not serve this generation as it should, in one line; empty when it does."""
        slot = self.slot
        name = self.name_in(slot)
        found = self.inspect(name)
        if found is None:
            return "container %s is not there" % name
        if not self._is_ours(found):
            return "container %s was not made for %s" % (name, self.home)
        status = found.get("State") or {}
        if status.get("Status") != "running":
            return "container %s does not run (%s): it %s" % (name, status.get("Status"), exit_words(status))
        if self._labels(found).get(GENERATION_LABEL) != generation:
            return "container %s runs another generation" % name
        launch = read_launch(self.home, generation)
        wanted = self._call("cannot be described", payload, self.client, self.home, generation, launch, slot)
        differing = differences(wanted, found, str(launch["image"]))
        if differing:
            return "container %s has another %s" % (name, ", ".join(differing))
        gpus = wanted_gpus(launch, slot)
        lost = self.lost_gpu(found["Id"], gpus) if gpus else ""
        return "GPU lost in container %s: %s" % (name, lost) if lost else ""

    def lost_gpu(self, container: str, wanted: int) -> str:
        """What nvidia-smi inside says about GPUs that are gone; empty when all are there."""
        api = self.client.api
        timeout, api.timeout = api.timeout, _SMI_TIMEOUT_S
        try:
            run = api.exec_create(container, ["nvidia-smi", "-L"])["Id"]
            output = api.exec_start(run).decode("utf-8", "replace")
            code = api.exec_inspect(run).get("ExitCode")
        except _containers.sdk("requests.exceptions").ReadTimeout:
            return gpu_lost(124, "", wanted)
        except _containers.failures() as exc:
            raise ServerError(_containers.explain(exc, "nvidia-smi in container %s" % self.name_in())) from exc
        finally:
            api.timeout = timeout
        return gpu_lost(1 if code is None else int(code), output, wanted)

    # --- what is done ---

    def stop(self, timeout: float, slot: Optional[str] = None) -> bool:
        """Ends and removes every server's container of this home or slot, its requests first; whether there was any."""
        found = self.containers(slot)
        # The active one last: until then the host has a server.
        for each in sorted(found, key=lambda each: self._slot_of(each) == self.slot):
            self._at = str(each.get("Name") or each["Id"]).lstrip("/")
            self._end(each, timeout)
            self._keep_log(each)
            self._call("cannot be removed", self.client.api.remove_container, each["Id"], v=True, force=True)
        for each_slot in (slot,) if slot else state.SLOTS:
            state.remove_record(self.home, state.server_record(each_slot))
        return bool(found)

    def _end(self, found: Dict[str, Any], timeout: float) -> None:
        container, api = found["Id"], self.client.api
        if (found.get("State") or {}).get("Status") not in ALIVE:
            return
        # Otherwise Docker would start again what ends by itself.
        self._call("cannot be updated", api.update_container, container, restart_policy={"Name": "no"})
        status, words = (found.get("State") or {}).get("Status"), (found.get("Config") or {}).get("Cmd") or []
        if status == "paused":
            self._call("cannot be unpaused", api.unpause, container)
        if status == "running" and ":" in words and self._end_leader(container, timeout):
            # The other ranks have nothing to finish.
            timeout = 1
        self._call("does not stop", api.stop, container, timeout=max(1, int(timeout)))

    def _end_leader(self, container: str, timeout: float) -> bool:
        """Under mpirun rank 0 is asked first: mpirun itself would not leave it the time to finish. Whether it ended."""
        api = self.client.api
        try:
            run = api.exec_create(container, [*HEALTH, "--stop"])["Id"]
            api.exec_start(run, detach=True)
            ended = wait_until(lambda: not self._exec_runs(run), timeout)
            return ended and api.exec_inspect(run).get("ExitCode") == 0
        except _containers.failures():
            # Whatever the reason, the engine's own way of stopping is next.
            return False

    def _exec_runs(self, run: str) -> bool:
        return bool(self.client.api.exec_inspect(run).get("Running"))

    def _keep_log(self, container: Dict[str, Any]) -> None:
        """The last lines of a container that is about to be removed, in home/logs/triton-before.log."""
        name = "triton%s-before.log" % state.suffix(self._slot_of(container))
        folder = self.home / "logs"
        try:
            lines = self.client.api.logs(container["Id"], tail=_KEPT_LINES, stdout=True, stderr=True)
            folder.mkdir(mode=0o750, exist_ok=True)
            partial = folder / (".%s.partial" % name)
            partial.write_bytes(lines)
            partial.chmod(0o640)
            with contextlib.suppress(ArtifactError):
                hand_over(partial, self.home)
            partial.rename(folder / name)
        except _containers.failures():
            # It only helps to understand; a full disk must not keep a server from being replaced.
            pass

    def prepare(self, generation: str, slot: Optional[str] = None) -> None:
        slot = slot or self.slot
        self._at = name = self.name_in(slot)
        launch = read_launch(self.home, generation)
        self._call("has no image", self.client.api.inspect_image, str(launch["image"]))
        self._call("cannot be described", payload, self.client, self.home, generation, launch, slot)
        found = self.inspect(name)
        if found is not None and not self._is_ours(found):
            raise ServerError(
                "container %s exists and was not made for %s: remove it, or choose another triton_serve_container_name"
                % (name, self.home)
            )

    def start(self, generation: str, slot: Optional[str] = None) -> None:
        slot = slot or self.slot
        self.prepare(generation, slot)
        launch = read_launch(self.home, generation)
        self.record_start(generation, slot)
        name = self.name_in(slot)
        found = self.inspect(name)
        if found is not None:
            self._call("cannot be removed", self.client.api.remove_container, found["Id"], v=True, force=True)
        wanted = self._call("cannot be described", payload, self.client, self.home, generation, launch, slot)
        api = self.client.api
        container = self._call("cannot be made", api.create_container_from_config, wanted, name)["Id"]
        try:
            self._call("cannot be started", api.start, container)
        except ServerError:
            # What never ran is not left to be started by hand, with limits that this host refuses.
            self._call("cannot be removed", api.remove_container, container, v=True, force=True)
            raise

    def clear(self, images: bool = False) -> List[str]:
        removed = []
        for image in self.leftovers() if images else []:
            try:
                self.client.api.remove_image(image, force=True)
            except _containers.failures() as exc:
                raise ServerError(_containers.explain(exc, "image %s cannot be removed" % image)) from exc
            removed.append(image)
        return removed

    def leftovers(self) -> List[str]:
        """The images of this home's generations that the engine still has."""
        not_found = _containers.sdk("docker.errors").NotFound
        found = []
        for image in image_ids(self.home):
            try:
                self.client.api.inspect_image(image)
            except not_found:
                continue
            except _containers.failures() as exc:
                raise ServerError(_containers.explain(exc, "image %s cannot be looked at" % image)) from exc
            found.append(image)
        return found
