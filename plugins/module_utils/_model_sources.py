# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models' Python files of an image, copied to the host once for each image.

They are read out of a container that is made and never started. Private to the collection.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import key_of, making, short_key, verify
from ansible_collections.trtllm.serving.plugins.module_utils._containers import ContainerError

KIND = "models"
# Python files and a few placeholders; more is not a directory of models.
_LARGEST = 64 * 1024 * 1024


def place(home: Path, image: str, models: str) -> Path:
    """Where the models of an image are kept on the host."""
    return home / "src" / ("models-" + short_key(key_of({"image": image, "path": models})))


def kept(home: Path, image: str, models: str) -> Optional[Path]:
    """The models of an image when they are on the host, each file as it was."""
    path = place(home, image, models)
    return path if image and verify(path, kind=KIND, extra=True).ok else None


def _read(client: Any, image: str, models: str) -> bytes:
    api = client.api
    failures = _containers.failures()
    try:
        labels = {_containers.ROLE_LABEL: "probe"}
        container = api.create_container(image, command=["true"], labels=labels, network_disabled=True)["Id"]
    except failures as exc:
        raise ContainerError(_containers.explain(exc, "image %s cannot be read" % image)) from exc
    try:
        chunks, _status = api.get_archive(container, models)
        data = bytearray()
        for chunk in chunks:
            data += chunk
            if len(data) > _LARGEST:
                raise ContainerError("%s in image %s is no directory of models: it is too large" % (models, image))
    except failures as exc:
        raise ContainerError(
            _containers.explain(exc, "image %s has no models at %s (set triton_serve_models_dir)" % (image, models))
        ) from exc
    finally:
        try:
            api.remove_container(container, v=True, force=True)
        except failures:
            pass
    return bytes(data)


def _files(archive: bytes) -> Dict[str, bytes]:
    """MODEL/1/... of an archive of the models' directory."""
    found: Dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            parts = posixpath.normpath(member.name).split("/")[1:]
            if ".." in member.name.split("/") or len(parts) < 2 or parts[1] != "1" or "__pycache__" in parts:
                continue
            if member.isdir() and len(parts) == 2:
                # Triton wants the version's directory, also where nothing is in it.
                found.setdefault("/".join([*parts, ".gitkeep"]), b"")
            elif member.isfile():
                stream = tar.extractfile(member)
                found["/".join(parts)] = stream.read() if stream is not None else b""
    return found


def fetch(home: Path, image: str, models: str, connect: Callable[[], Any]) -> Path:
    """The models of an image on this host, copied out when they are not there. The caller holds the host's lock."""
    there = kept(home, image, models)
    if there is not None:
        return there
    files = _files(_read(connect(), image, models))
    if not files:
        raise ContainerError("image %s has no models at %s: set triton_serve_models_dir" % (image, models))
    path = place(home, image, models)
    with making(path, KIND, {"image": image, "path": models}, home=home) as made:
        for name, data in sorted(files.items()):
            target = made.path / name
            target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o640)
    return path
