# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Triton server's log says about a start that fails: of each model, of the server, and of known causes.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible_collections.trtllm.serving.plugins.module_utils._tool_errors import find_error

_REASON_LIMIT = 400

# The first thing that a starting server says; what is older is of an earlier start.
_START = re.compile(r"pinned_memory_manager\.cc")
_PARSE = re.compile(r"Error parsing text-format inference\.ModelConfig: (?P<reason>.+)$")
_POLL_FAILED = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.+)$")
# Other ways to say that one model failed; all in lines of severity E.
_FAILED = (
    re.compile(r"failed to load (?:model )?'(?P<model>[^']+)'(?: version \d+)?: (?P<reason>.+)$"),
    re.compile(r"(?P<reason>ensemble '(?P<model>[^']+)' .+)$"),
    re.compile(r"(?P<reason>(?:in )?ensemble (?P<model>[^\s',]+)(?: contains|,) .+)$"),
)
_SERVER = (
    re.compile(r"error while loading shared libraries: .+"),
    re.compile(r"Socket '[^']+' already in use.*"),
    re.compile(r"failed to (?:start|bind|listen)[^\"]*"),
    re.compile(r"(?:Address|address) already in use.*"),
    re.compile(r"[Ff]ailed to create model repository manager.*|failed to stat .*model repository.*", re.I),
    re.compile(r"error: creating server: .+"),
    re.compile(r"unrecognized option .+|tritonserver: invalid option.+"),
)
# With one of these the server will never listen, although its process may stay alive.
HOPELESS = re.compile(r"error while loading shared libraries: .+")


def tidy(reason: str) -> str:
    """One line, without the stack below it and the log's quotes."""
    text = re.split(r"\\n|\n", reason, maxsplit=1)[0].strip()
    return text.rstrip('"').strip()[:_REASON_LIMIT]


def this_start(lines: Sequence[str]) -> list[str]:
    starts = [index for index, line in enumerate(lines) if _START.search(line)]
    return list(lines[starts[-1] :]) if starts else list(lines)


@dataclass
class LogReasons:
    """What a server's log says about failures: of each model, and of the server itself."""

    models: dict[str, str] = field(default_factory=dict)
    server: str = ""


def read_reasons(lines: Sequence[str], one_start: bool = False) -> LogReasons:
    """one_start: the lines are of one start already, in which several ranks begin."""
    found = LogReasons()
    parse_error = ""
    latest = list(lines) if one_start else this_start(lines)
    for line in latest:
        match = _PARSE.search(line)
        if match:
            parse_error = tidy(match["reason"])
            continue
        match = _POLL_FAILED.search(line)
        if match:
            reason = tidy(match["reason"])
            if parse_error and "failed to read text proto" in reason:
                # The parser names line and column, the server only the file: the two lines belong together.
                reason = f"config.pbtxt:{parse_error}"
            parse_error = ""
            found.models[match["model"]] = reason
            continue
        if line.startswith("E"):
            match = next(filter(None, (pattern.search(line) for pattern in _FAILED)), None)
            if match:
                found.models.setdefault(match["model"], tidy(match["reason"]))
    for pattern in _SERVER:
        for line in reversed(lines if pattern is _SERVER[0] else latest):
            match = pattern.search(line)
            if match:
                found.server = tidy(match[0])
                return found
    return found


# What is known about causes, besides what tools and server share.
_CAUSES = (
    (
        re.compile(r"not enough slots available|All nodes which are allocated for this job are already filled"),
        "mpirun counts fewer cores than there are ranks: set triton_serve_mpirun_arguments to [--oversubscribe]",
    ),
    (
        re.compile(r"generated on an incompatible device|expecting compute [\d.]+ got compute"),
        "the engine was built for another GPU: build it on this host",
    ),
)


def cause_of(lines: Sequence[str]) -> str:
    """The line of a log whose cause is known, with what to do about it; empty when there is none."""
    for pattern, hint in _CAUSES:
        for line in reversed(lines):
            if pattern.search(line):
                return f"{tidy(line)} ({hint})"
    found = find_error(lines)
    return f"{tidy(found.line)} ({found.hint})" if found.hint else ""
