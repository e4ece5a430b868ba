#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes roles/*/README.md from argument_specs, defaults and docs/examples; with --check it only compares.

Needs PyYAML: run it by the development environment's Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "trtllm.serving"


def code(text: str) -> str:
    """Ansible's semantic markup as Markdown."""
    text = re.sub(r"\b[OVC]\(([^()]*(?:\([^()]*\)[^()]*)*)\)", r"`\1`", text)
    return re.sub(r"\b[BI]\(([^()]*)\)", r"*\1*", text)


def sentences(text: str | list[str]) -> str:
    parts = [text] if isinstance(text, str) else text
    return " ".join(code(part) if part.endswith((".", "!", "?")) else code(part) + "." for part in parts)


def cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def literal(value: Any) -> str:
    """A default as it would be written in YAML, on one line."""
    if value is None:
        return "*null*"
    if isinstance(value, str):
        shown = value if value else '""'
    else:
        dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        shown = dumped.removesuffix("...\n").strip()
    fence = "``" if "`" in shown else "`"
    return fence + shown + fence


def kind(option: dict[str, Any]) -> str:
    elements = option.get("elements")
    return "%s of %s" % (option["type"], elements) if elements else str(option["type"])


def row(name: str, option: dict[str, Any], default: Any) -> str:
    text = sentences(option["description"])
    if "choices" in option:
        text += " One of %s." % ", ".join("`%s`" % choice for choice in option["choices"])
    shown = "**required**" if option.get("required") else literal(default)
    return "| `%s` | %s | %s | %s |" % (name, kind(option), cell(shown), cell(text))


def readme(role: Path, example: str) -> str:
    specs: dict[str, Any] = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text("utf-8"))["argument_specs"]
    # The specs cannot hold an expression as the default of a number.
    defaults: dict[str, Any] = yaml.safe_load((role / "defaults" / "main.yml").read_text("utf-8"))
    main = specs["main"]
    description = main["description"]
    lines = [
        "<!-- Written by `make docs` from meta/argument_specs.yml: change that file, and run it again. -->",
        "",
        "# %s.%s" % (NAMESPACE, role.name),
        "",
        code(main["short_description"]) + ".",
        "",
        *("- " + code(part) for part in ([description] if isinstance(description, str) else description)),
        "",
        "## Example",
        "",
        "```yaml",
        example.strip(),
        "```",
        "",
        "## Entry points",
        "",
        "| `tasks_from` | What it does |",
        "| --- | --- |",
        "| *none* (`main`) | %s. |" % cell(code(main["short_description"])),
    ]
    for name, spec in specs.items():
        if name != "main":
            what = "%s. %s" % (code(spec["short_description"]), sentences(spec["description"]))
            lines.append("| `%s` | %s |" % (name, cell(what)))
    lines += [
        "",
        "## Variables",
        "",
        "| Variable | Type | Default | Description |",
        "| --- | --- | --- | --- |",
        *(row(name, option, defaults.get(name)) for name, option in main["options"].items()),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a README is not up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the collection")
    options = parser.parse_args()
    stale = []
    for role in sorted(path for path in (options.root / "roles").iterdir() if path.is_dir()):
        example = (options.root / "docs" / "examples" / (role.name + ".yml")).read_text("utf-8")
        wanted = readme(role, example)
        path = role / "README.md"
        if path.is_file() and path.read_text("utf-8") == wanted:
            continue
        stale.append(path)
        if not options.check:
            path.write_text(wanted, "utf-8")
    said = "not up to date, run `make docs`:" if options.check else "written:"
    for path in stale:
        print(said, path.relative_to(options.root))
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
