# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running nvidia-smi, which may hang, and what it means when it gives no answer.

Private to the collection.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from typing import List, Optional, Sequence, Tuple

# A log of 16 GPUs has about half a MiB.
LONGEST_LOG = 16 * 1024 * 1024
# Where the driver's container and its .run installer put it, beside the PATH of a non-interactive shell.
PLACES = ("/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/run/nvidia/driver/usr/bin")

RECREATE = "remove the container and start it anew"
# What nvidia-smi prints instead of an answer: pattern, meaning, remedy on the host, remedy in a container.
_FAILURES: Tuple[Tuple[str, str, str, str], ...] = (
    (
        r"Driver/library version mismatch",
        "the loaded kernel module is of another version than the driver's libraries, as after an update of the driver",
        "stop what uses the GPUs and reload the modules, or reboot",
        "reboot the host, or reload its NVIDIA modules, then " + RECREATE,
    ),
    (
        r"couldn't communicate with the NVIDIA driver",
        "the NVIDIA kernel module is not loaded",
        "modprobe nvidia, and rebuild the module for this kernel when that fails (dkms autoinstall), then reboot",
        "load the NVIDIA module on the host (modprobe nvidia), then " + RECREATE,
    ),
    (
        r"couldn't find libnvidia-ml|NVML Shared Library Not Found|ERROR_LIBRARY_NOT_FOUND",
        "the driver's library libnvidia-ml.so is missing",
        "reinstall the driver's packages",
        "the container was started without its GPUs: configure Docker's runtime with nvidia-ctk, or CDI, and "
        + RECREATE,
    ),
    (
        r"[Gg][Pp][Uu] is lost|fallen off the bus",
        "a GPU has fallen off the bus",
        "reboot the host; look for Xid 79 in dmesg, and when it comes back have the GPU replaced",
        "reboot the host; look for Xid 79 in dmesg, and when it comes back have the GPU replaced",
    ),
    (
        r"Unable to determine the device handle",
        "a GPU does not answer",
        "look for Xid in dmesg, then reset that GPU (nvidia-smi --gpu-reset) or reboot",
        "look for Xid in dmesg of the host, reset that GPU there or reboot, then " + RECREATE,
    ),
    (
        r"Failed to initialize NVML: (?:Unknown Error|GPU access blocked|Insufficient Permissions)",
        "NVML may not open the GPUs' devices",
        "make /dev/nvidia* readable (nvidia-modprobe), or run as root",
        "it has lost its GPUs, as 'systemctl daemon-reload' does where systemd manages cgroups: "
        + RECREATE
        + ", and use CDI (docker_nvidia_device_policy: cdi)",
    ),
    (
        r"No devices were found",
        "the driver finds no GPU that it can use",
        "look for NVRM in dmesg (a GPU that failed to start, an unsupported one), then reboot",
        "its device files are not there or not allowed: " + RECREATE + "; look for NVRM in the host's dmesg",
    ),
    (
        r"executable file not found|nvidia-smi: (?:command )?not found|No such file or directory",
        "nvidia-smi is not there",
        "install the NVIDIA driver",
        "the container was started without its GPUs: configure Docker's runtime with nvidia-ctk, or CDI, and "
        + RECREATE,
    ),
    (
        r"Failed to initialize NVML",
        "NVML cannot be used",
        "look for NVRM in dmesg, then reload the NVIDIA modules or reboot",
        "look at nvidia-smi on the host, then " + RECREATE,
    ),
)


def one_line(text: str, longest: int = 200) -> str:
    """The text on one line, printable, and not endless."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= longest else words[: longest - 3] + "..."


def known_failure(output: str) -> Optional[Tuple[str, str, str, str]]:
    """What an output of nvidia-smi that is no answer means: its line, meaning, remedy on the host, in a container."""
    for pattern, meaning, host, container in _FAILURES:
        found = re.search(pattern, output)
        if found is not None:
            start = output.rfind("\n", 0, found.start()) + 1
            line = output[start : (output.find("\n", found.end()) + 1 or len(output) + 1) - 1]
            return one_line(line), meaning, host, container
    return None


class SmiError(Exception):
    """nvidia-smi gave no answer; one line with the remedy."""

    def __init__(self, message: str, remedy: str, missing: bool = False, mismatch: bool = False) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.missing = missing
        self.mismatch = mismatch


def find_smi(named: str = "nvidia-smi") -> Optional[str]:
    return shutil.which(named) or shutil.which(named, path=os.pathsep.join(PLACES))


def ask(argv: Sequence[str], timeout: float, longest: int = LONGEST_LOG) -> Tuple[int, str]:
    """Exit status, and stdout and stderr together, of a command that may hang in the kernel or talk without end.

    124 stands for one that gave no answer in time, 125 for one that was cut off. A process that cannot even be killed
    is left behind, not waited for.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as exc:
        return 127, "%s: %s" % (argv[0], exc.strerror or exc)
    if process.stdout is None:
        raise AssertionError("the process was started with a pipe")
    deadline = time.monotonic() + timeout
    parts: List[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while size <= longest:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not selector.select(remaining):
                break
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                break
            parts.append(part)
            size += len(part)
    text = b"".join(parts)[:longest].decode("utf-8", "replace")
    try:
        rc = process.wait(max(0.1, min(5.0, deadline - time.monotonic())) if size <= longest else 0.1)
    except subprocess.TimeoutExpired:
        rc = 124 if size <= longest else 125
        try:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(1.0)
        except (OSError, subprocess.TimeoutExpired):
            pass
    process.stdout.close()
    return rc, text
