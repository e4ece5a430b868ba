# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pages under docs/ lead where they say, and name variables and playbooks that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.tests.unit.preset import _inventory

ROOT = _inventory.ROOT
PAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _hash, fragment = target.partition("#")
        found = (ROOT / page.parent / name).resolve() if name else ROOT / page
        assert found.exists(), "%s: %s leads nowhere" % (page, target)
        if fragment and found.suffix == ".md":
            headings = re.findall(r"(?m)^#+ (.+)$", found.read_text("utf-8"))
            assert fragment in map(anchor, headings), "%s: %s has no such heading" % (page, target)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_variables_and_playbooks_exist(page: Path) -> None:
    text = (ROOT / page).read_text("utf-8")
    for role in (*_inventory.ROLES, *_inventory.FLEET_ROLES):
        # What a role registers, and how a family of variables begins, are no variables of its defaults.
        tasks = "".join(path.read_text("utf-8") for path in sorted((ROOT / "roles" / role).rglob("*.yml")))
        for name in set(re.findall(r"\b%s_\w+\b" % role, text)):
            known = name in _inventory.defaults(role) or re.search(r"\b%s" % re.escape(name), tasks)
            assert known, "%s: there is no variable %s" % (page, name)
    for name in set(re.findall(r"\bplaybooks/\w+\.yml\b", text)):
        assert (ROOT / name).is_file(), "%s: there is no %s" % (page, name)


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in PAGES:
        if page.name != "README.md":
            assert "(%s)" % page.relative_to("docs") in text, "docs/README.md does not lead to %s" % page
