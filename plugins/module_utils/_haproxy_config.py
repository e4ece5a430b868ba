# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's program and its configuration file: what is there, whose it is, and whether HAProxy would take it.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from ansible_collections.trtllm.serving.plugins.module_utils._haproxy import HaproxyError

# http-check send, exact matches of a header's words and sha2() are older; the exporter comes with each since.
MINIMUM = (2, 4)
SBIN = "/usr/sbin:/sbin:/usr/local/sbin"
SECTION = re.compile(r"(?m)^(listen|frontend|backend)\b")


@dataclass(frozen=True)
class Program:
    path: str
    version: str
    features: frozenset[str]

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])


def run(argv: list[str], timeout: float = 60) -> tuple[int, str]:
    """Return code and what was said."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=timeout, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except OSError as exc:
        return 127, f"{argv[0]}: {exc.strerror or exc}"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} did not end within {timeout:g} s"
    return done.returncode, done.stdout.decode("utf-8", "replace")


def program(executable: str) -> Program | None:
    """The program, if there is one."""
    path = shutil.which(executable, path=os.environ.get("PATH", os.defpath) + ":" + SBIN)
    if not path:
        return None
    code, said = run([path, "-vv"])
    found = re.search(r"HA-?Proxy version (\S+)", said)
    if code or not found:
        raise HaproxyError(f"{path} -vv does not tell HAProxy's version: name the program in triton_lb_executable")
    features = set(re.findall(r"(?<![\w-])\+([A-Z0-9_]+)", said))
    if "prometheus-exporter" in said:
        features.add("PROMEX")
    return Program(path, found.group(1), frozenset(features))


def shortcomings(found: Program, config: str) -> list[str]:
    """Why this HAProxy cannot have that configuration."""
    problems = []
    if found.numbers < MINIMUM:
        problems.append(
            f"HAProxy {found.version} at {found.path} is older than {'.'.join(map(str, MINIMUM))}: install a newer one "
            "(on EL 8 from another repository) and name it in triton_lb_executable"
        )
        return problems
    if "OPENSSL" not in found.features and (" ssl crt " in config or "sha2(" in config):
        problems.append(f"HAProxy {found.version} is built without OpenSSL: TLS and tokens need another build")
    if "PROMEX" not in found.features and "prometheus-exporter" in config:
        problems.append(f"HAProxy {found.version} has no Prometheus exporter: set triton_lb_metrics_port to 0")
    return problems


def read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise HaproxyError(f"{path} cannot be read ({exc.strerror or exc}): become root") from exc


def whose(path: str, text: str | None, marker: str) -> str:
    """absent, ours, pristine (as its package brought it, or without any service) or foreign."""
    if text is None:
        return "absent"
    if text.startswith(marker):
        return "ours"
    if not SECTION.search(text) or _packaged(path, text):
        return "pristine"
    return "foreign"


def _packaged(path: str, text: str) -> bool:
    if shutil.which("dpkg-query"):
        code, said = run(["dpkg-query", "-W", "-f", "${Conffiles}\n", "haproxy"])
        digest = hashlib.md5(text.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
        return code == 0 and f" {path} {digest}" in said
    if shutil.which("rpm"):
        code, said = run(["rpm", "-Vf", path])
        return code in (0, 1) and "not owned" not in said and not re.search(r"(?m)^..5.*\s%s$" % re.escape(path), said)
    return False


def judge(found: Program, path: str) -> str:
    """What HAProxy has against a configuration; nothing when it takes it. Its own words name the file and the line."""
    code, said = run([found.path, "-c", "-q", "-f", path])
    if code == 0:
        return ""
    alerts = [
        re.sub(r"^\[(?:ALERT|WARNING)\]\s*(?:\d+/\d+ )?\(\d+\)\s*:\s*(?:config\s*:\s*)?", "", line).strip()
        for line in said.splitlines() if line.startswith("[ALERT]")
    ]  # fmt: skip
    useful = [line for line in alerts if not line.startswith(("Error(s) found", "Fatal errors"))]
    return "; ".join(useful[:3] or alerts[:1]) or (said.strip().splitlines() or ["exit code %d" % code])[-1]


def token_digests(tokens: list[str], file_text: str | None) -> str:
    """A digest a line, as HAProxy's hex writes it."""
    lines = [line.strip() for line in (file_text or "").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    for token in [*tokens, *found]:
        if len(token.split()) != 1:
            raise HaproxyError("a bearer token has spaces or is empty: give one word, best of 32 random bytes or more")
    digests = {hashlib.sha256(token.encode("utf-8")).hexdigest().upper() for token in [*tokens, *found]}
    return "".join(digest + "\n" for digest in sorted(digests))
