# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a host: one finding a fact, each with what was seen and what to do.

Private to the collection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Sequence, Tuple

ERROR = "error"
WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """An error keeps the host from serving; a warning may cost something later."""

    id: str
    severity: str
    what: str
    seen: str
    remedy: str

    @property
    def text(self) -> str:
        seen = " (%s)" % self.seen if self.seen else ""
        return "%s%s: %s" % (self.what, seen, self.remedy)

    def as_dict(self) -> Dict[str, str]:
        return {
            "id": self.id,
            "severity": self.severity,
            "what": self.what,
            "seen": self.seen,
            "remedy": self.remedy,
        }


def error(name: str, what: str, seen: str, remedy: str) -> Finding:
    return Finding(name, ERROR, what, seen, remedy)


def warning(name: str, what: str, seen: str, remedy: str) -> Finding:
    return Finding(name, WARNING, what, seen, remedy)


def from_lines(name: str, lines: Sequence[str]) -> List[Finding]:
    """Errors that were written as one line, what was seen and the remedy behind the last colon."""
    findings = []
    for line in lines:
        what, _colon, remedy = line.rpartition(": ")
        findings.append(error(name, what, "", remedy) if what else error(name, "the host", "", line))
    return findings


def forgive(findings: Sequence[Finding], ignored: Sequence[str]) -> List[Finding]:
    """Errors whose id is ignored are warnings."""
    return [replace(finding, severity=WARNING) if finding.id in ignored else finding for finding in findings]


def conclude(
    record: Dict[str, Any], findings: Sequence[Finding], ignored: Sequence[str]
) -> Tuple[List[str], List[str]]:
    """Writes the findings into a host's record; the lines of the errors and of the warnings."""
    judged = forgive(findings, ignored)
    record["findings"] = [finding.as_dict() for finding in judged]
    record["problems"] = [finding.text for finding in judged if finding.severity == ERROR]
    return record["problems"], [finding.text for finding in judged if finding.severity == WARNING]
