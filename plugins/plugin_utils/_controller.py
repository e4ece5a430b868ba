# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ansible-playbook process this run is: leases of hosts end with it.

Private to the collection.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from typing import Any

from ansible_collections.trtllm.serving.plugins.module_utils._process import machine_id, pid_namespace, pid_starttime


def controller() -> dict[str, Any]:
    """The process of this run. Actions run in workers, whose parent is ansible-playbook itself."""
    pid = os.getppid()
    started = pid_starttime(pid)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "uid %d" % os.getuid()
    host = machine_id()
    return {
        "run_id": "%s:%d:%s" % (host, pid, started),
        "machine_id": host,
        "pid": pid,
        "starttime": started,
        "namespace": pid_namespace(),
        "who": "%s@%s" % (user, socket.gethostname()),
        # A host compares its clock with this one.
        "now": time.time(),
    }
