# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server is meant: the option watch of the modules that follow one, and the port of the one in service.

Private to the collection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.trtllm.serving.plugins.module_utils import _containers
from ansible_collections.trtllm.serving.plugins.module_utils._container_watch import ContainerWatch
from ansible_collections.trtllm.serving.plugins.module_utils._readiness import Watch
from ansible_collections.trtllm.serving.plugins.module_utils._server_state import active_ports
from ansible_collections.trtllm.serving.plugins.module_utils._triton_http import check_url

WATCH_SPEC: dict[str, Any] = {
    "container": {"type": "str"},
    "pid_file": {"type": "path"},
    "log_file": {"type": "path"},
    "since": {"type": "float"},
}


def in_service(home: str, url: str) -> str:
    """The URL with the port of the server that is in service below this home; as it is where that cannot be told."""
    try:
        launch = json.loads((Path(home) / "current" / "launch.json").read_text(encoding="utf-8"))
        port = active_ports(Path(home), launch).get("http")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return url
    parts = urlsplit(check_url(url))
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    return url if not port else parts._replace(netloc=f"{host}:{port}").geturl()


def watch_of(given: Mapping[str, Any], check_mode: bool) -> Watch:
    if not given.get("container"):
        return Watch(given.get("pid_file"), given.get("log_file"), given.get("since"))
    try:
        return ContainerWatch(_containers.connect(), given["container"])
    except _containers.ContainerError:
        if check_mode:
            return Watch()
        raise
