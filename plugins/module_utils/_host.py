# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host must have before anything on it is touched: each finding with its remedy, all of them at once.

Private to the collection.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible_collections.trtllm.serving.plugins.module_utils._artifact import existing_parent, free_bytes, owner_name
from ansible_collections.trtllm.serving.plugins.module_utils._host_findings import Finding, conclude, from_lines
from ansible_collections.trtllm.serving.plugins.module_utils._server import Server
from ansible_collections.trtllm.serving.plugins.module_utils._server_state import SLOTS

# Triton's Python backend in the wheel has a process for each of these; 3.13 has no numpy below 2, which it needs.
PYTHONS = ("3.12", "3.11", "3.10")
GLIBC = (2, 34)

_ASK_PYTHON = r"""
import ctypes, importlib.util, json, os, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
name = "libpython%s.so.1.0" % version
directory = sysconfig.get_config_var("LIBDIR") or ""
library = None
for candidate in (os.path.join(directory, name), name):
    try:
        ctypes.CDLL(candidate)
        library = candidate
        break
    except OSError:
        pass
print(json.dumps({
    "version": version, "library": library, "executable": getattr(sys, "_base_executable", sys.executable),
    "venv": all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")),
    "bits": 64 if sys.maxsize > 2**32 else 32,
}))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter that Triton's Python backend can use."""

    executable: str
    version: str
    # Directory to add to LD_LIBRARY_PATH; empty when the loader finds libpython by itself.
    library_dir: str


def ask_python(executable: str) -> Optional[Dict[str, Any]]:
    try:
        done = subprocess.run(
            [executable, "-I", "-c", _ASK_PYTHON],
            capture_output=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        value = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return value if isinstance(value, dict) else None


def judge_python(executable: str, facts: Optional[Mapping[str, Any]]) -> Tuple[Optional[Python], str]:
    """The interpreter when it will do, else why not and what to do."""
    if facts is None:
        return None, (
            "%s does not run: install it, or name another Python (tensorrtllm_backend_build_python)" % executable
        )
    version = str(facts["version"])
    if version not in PYTHONS:
        return None, (
            "%s is Python %s, and Triton's Python backend with numpy below 2 needs one of %s: install python3.11"
            % (executable, version, ", ".join(reversed(PYTHONS)))
        )
    if not facts["venv"]:
        return None, "%s (Python %s) has no venv with ensurepip: apt-get install python%s-venv" % (
            executable,
            version,
            version,
        )
    library = facts["library"]
    if library is None:
        return None, "%s (Python %s) has no shared library libpython%s.so.1.0: apt-get install libpython%s" % (
            executable,
            version,
            version,
            version,
        )
    # A virtual environment is made from the interpreter behind it, which outlives it.
    return Python(str(facts["executable"]), version, os.path.dirname(str(library))), ""


def find_python(named: str = "") -> Tuple[Optional[Python], List[str]]:
    """The first interpreter that will do, and why the others will not."""
    candidates = [named] if named else [sys.executable, *("python" + version for version in PYTHONS), "python3"]
    why: List[str] = []
    seen = set()
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is None:
            if named:
                why.append("%s is not there: name a Python 3.10 to 3.12 (tensorrtllm_backend_build_python)" % named)
            continue
        facts = ask_python(path)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        found, problem = judge_python(path, facts)
        if found is not None:
            return found, why
        why.append(problem)
    if not why:
        why.append("no python3 on the PATH: apt-get install python3.11 python3.11-venv libpython3.11")
    return None, why


def check_home(home: str) -> List[str]:
    """Why a directory cannot be trtllm_home. Writes nothing."""
    try:
        return _check_home(home)
    except OSError as exc:
        return ["trtllm_home '%s' cannot be used: %s; choose another path" % (home[:200], exc.strerror or exc)]


def _check_home(home: str) -> List[str]:
    problems: List[str] = []
    path = Path(home)
    if not path.is_absolute() or os.path.normpath(home) != home or home == "/":
        return ["trtllm_home '%s' is not a plain absolute path: write it without '..', '.', '//' and a last '/'" % home]
    if os.path.expandvars(home) != home:
        return ["trtllm_home '%s' names an environment variable, which some tools replace: choose another path" % home]
    if any("\ud800" <= char <= "\udfff" for char in home):
        return [
            "trtllm_home %s is not UTF-8, which Triton's configuration must be: choose another path" % json.dumps(home)
        ]
    if any(ord(char) < 32 for char in home) or ":" in home:
        return [
            "trtllm_home %s has a control character or a colon, which no PATH can hold: choose another"
            % json.dumps(home)
        ]
    if path.is_symlink():
        return ["trtllm_home '%s' is a symbolic link to '%s': name the directory itself" % (home, os.readlink(home))]
    place = existing_parent(path)
    if not place.is_dir():
        return ["trtllm_home '%s': '%s' is not a directory: choose another path" % (home, place)]
    if os.statvfs(str(place)).f_flag & os.ST_RDONLY:
        problems.append("trtllm_home '%s' is on a read-only file system: remount it, or choose another path" % home)
    # Root hands what it makes over to the owner.
    elif place == path and os.geteuid() != 0 and path.stat().st_uid != os.geteuid():
        problems.append(
            "trtllm_home '%s' belongs to %s, not to %s who deploys: run as its owner, or chown it"
            % (home, owner_name(path.stat().st_uid), owner_name(os.geteuid()))
        )
    elif not os.access(str(place), os.W_OK | os.X_OK):
        problems.append(
            "trtllm_home '%s': '%s' cannot be written by %s: make it and give it to %s, or choose another path"
            % (home, place, owner_name(os.geteuid()), owner_name(os.geteuid()))
        )
    if place == path and path.stat().st_mode & 0o002:
        problems.append("trtllm_home '%s' can be written by everybody: chmod o-w it" % home)
    return problems


def check_space(home: str, needed_mib: int) -> List[str]:
    free = free_bytes(home) // (1024 * 1024)
    if free >= needed_mib:
        return []
    return [
        "%d MiB are free below '%s', %d MiB are needed: free some, or choose another trtllm_home"
        % (free, home, needed_mib)
    ]


def _port_inodes(port: int) -> List[str]:
    """Inodes of the sockets that listen on a TCP port."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found


def port_owner(port: int) -> Optional[int]:
    """The process that listens on a port, as far as this user may see it."""
    wanted = {"socket:[%s]" % inode for inode in _port_inodes(port)}
    if not wanted:
        return None
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            for fd in os.listdir("/proc/%s/fd" % entry):
                if os.readlink("/proc/%s/fd/%s" % (entry, fd)) in wanted:
                    return int(entry)
        except OSError:
            continue
    return None


def check_port(name: str, address: str, port: int, *own: Optional[int]) -> List[str]:
    """Whether a port can be listened on, or is already by one of our own servers."""
    try:
        family, kind, proto, _name, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        return ["address '%s' cannot be resolved: %s; set triton_serve_address to one of this host" % (address, exc)]
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
            probe.listen(1)
            return []
        except OSError as exc:
            if exc.errno == errno.EACCES:
                who = owner_name(os.geteuid())
                return ["port %d (%s) may not be opened by %s: choose one above 1023" % (port, name, who)]
            if exc.errno == errno.EADDRNOTAVAIL:
                return ["address '%s' is not one of this host: set triton_serve_address to one" % address]
            if exc.errno != errno.EADDRINUSE:
                return ["%s:%d (%s) cannot be listened on: %s" % (address, port, name, exc.strerror)]
    holder = port_owner(port)
    if holder is not None and holder in own:
        return []
    who = "another process"
    if holder is not None:
        who = "pid %d (%s)" % (holder, _name_of(holder))
    return [
        "port %d on %s is in use by %s: stop it, or set triton_serve_%s to a free port" % (port, address, who, name)
    ]


def _name_of(pid: int) -> str:
    try:
        return Path("/proc/%d/comm" % pid).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"


def os_name() -> str:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.system()
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', text, re.M)
    return found.group(1) if found else platform.system()


def check_platform() -> List[str]:
    problems = []
    if platform.machine() not in ("x86_64", "aarch64"):
        problems.append("machine type %s: Triton's wheel exists for x86_64 and aarch64 only" % platform.machine())
    kind, version = platform.libc_ver()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if kind == "glibc" and numbers and numbers < GLIBC:
        problems.append(
            "glibc %s: Triton's wheel needs %d.%d or newer, as in Debian 12 or Ubuntu 22.04" % (version, *GLIBC)
        )
    return problems


def survey(
    home: str, address: str, ports: Mapping[str, int], python: str, space_mib: int
) -> Tuple[Dict[str, Any], List[Finding]]:
    """The record of a host that serves without containers, and everything found on it."""
    server = Server(Path(home))
    # Of a surge that broke off there may be two.
    own = [server.server_pid(slot) for slot in SLOTS]
    findings = from_lines("platform", check_platform())
    free = 0
    home_problems = check_home(home)
    findings += from_lines("home", home_problems)
    venv = Path(home) / "venv" / "bin" / "python"
    links = server.links()
    if not home_problems:
        free = free_bytes(home)
        # What is already made needs no room again.
        needed = space_mib if links["current"] is None else min(space_mib, 256)
        findings += from_lines("space", check_space(home, needed))
    found: Optional[Python] = None
    # Not Path.exists, which raises where a directory may not be entered.
    if not os.path.exists(str(venv)):
        found, why = find_python(python)
        if found is None:
            findings += from_lines("python", why)
    busy: List[str] = []
    for name, port in ports.items():
        # A wrong address is wrong for every port, and told once.
        busy += [problem for problem in check_port(name, address, port, *own) if problem not in busy]
    findings += from_lines("ports", busy)
    record = {
        "os": os_name(),
        "machine": platform.machine(),
        "python": found.executable if found is not None else str(venv),
        "free_mib": free // (1024 * 1024),
        "current": links["current"],
        "previous": links["previous"],
        "running": server.running(),
        "gpu": None,
    }
    return record, findings


def examine(
    home: str, address: str, ports: Mapping[str, int], python: str, space_mib: int
) -> Tuple[Dict[str, Any], List[str]]:
    """The same, as problems of one line each."""
    record, findings = survey(home, address, ports, python, space_mib)
    problems, _warnings = conclude(record, findings, ())
    return record, problems
