# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a role declares, what it defaults to and what its README says are one thing."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
# Variables that several roles take their defaults from.
COMMON = {"trtllm_home", "trtllm_release", "trtllm_flavour"}
TYPES = {"str", "int", "float", "bool", "list", "dict", "path", "raw"}
# An expression as the default of any other type is refused by ansible-doc's schema.
TEXTUAL = {"str", "path", "raw"}
LONGEST = 80


@cache
def specs(role: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text("utf-8"))
    return dict(loaded["argument_specs"])


@cache
def defaults(role: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text("utf-8")))


def strict(value: Any) -> Any:
    """YAML's 1, 1.0 and true are different values."""
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [strict(each) for each in value]
    return (type(value).__name__, value)


@pytest.mark.parametrize("role", ROLES)
def test_specs_and_defaults_have_the_same_variables(role: str) -> None:
    for entry, spec in specs(role).items():
        assert list(spec["options"]) == list(defaults(role)), "%s: %s" % (role, entry)


@pytest.mark.parametrize("role", ROLES)
def test_specs_and_defaults_have_the_same_values(role: str) -> None:
    for name, option in specs(role)["main"]["options"].items():
        value = defaults(role)[name]
        if isinstance(value, str) and "{{" in value and option["type"] not in TEXTUAL:
            assert "default" not in option, "%s: no expression as the default of %s" % (name, option["type"])
            continue
        assert ("default" in option) == (value is not None), "%s: default is %r" % (name, value)
        assert strict(option.get("default")) == strict(value), name


@pytest.mark.parametrize("role", ROLES)
def test_default_is_one_of_the_choices(role: str) -> None:
    for name, option in specs(role)["main"]["options"].items():
        value = option.get("default")
        if "choices" in option and value is not None and "{{" not in str(value):
            assert value in option["choices"], name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_described(role: str) -> None:
    seen: dict[str, str] = {}
    for name, option in specs(role)["main"]["options"].items():
        assert option.get("type") in TYPES, name
        assert (option["type"] == "list") == ("elements" in option), name
        text = option.get("description") or ""
        text = text if isinstance(text, str) else " ".join(text)
        assert len(text.split()) >= 3, "%s: %r says nothing" % (name, text)
        assert text not in seen, "%s and %s have one description" % (name, seen.get(text))
        seen[text] = name
        assert name == role or name.startswith(role + "_"), "%s: variables of %s begin with its name" % (name, role)


@pytest.mark.parametrize("role", ROLES)
def test_every_default_has_a_comment(role: str) -> None:
    """A comment stands above its variable, or above a group of variables without an empty line between."""
    covered = False
    for number, line in enumerate((ROOT / "roles" / role / "defaults" / "main.yml").read_text("utf-8").splitlines(), 1):
        if not line.strip():
            covered = False
        elif line.startswith("#"):
            covered = True
        elif re.match(r"\w+:", line):
            assert covered, "defaults/main.yml:%d: %s has no comment" % (number, line)


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_used(role: str) -> None:
    used = "".join(
        path.read_text("utf-8")
        for folder in ("tasks", "vars", "templates", "handlers", "defaults")
        for path in sorted((ROOT / "roles" / role / folder).rglob("*"))
        if path.is_file()
    )
    for name, option in specs(role)["main"]["options"].items():
        if len(option.get("choices", "??")) == 1:
            continue  # the specs alone say all there is to say
        # A default that other defaults use is written once more there.
        found = re.findall(r"(?<![\w.])%s\b(?!:)" % re.escape(name), re.sub(r"(?m)#.*$", "", used))
        assert found, "%s is declared, and nothing reads it" % name


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_has_tasks(role: str) -> None:
    for entry, spec in specs(role).items():
        assert (ROOT / "roles" / role / "tasks" / (entry + ".yml")).is_file(), entry
        assert spec["short_description"] and spec["description"], entry


def test_task_files_are_short() -> None:
    for path in sorted((ROOT / "roles").glob("*/tasks/**/*.yml")):
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= LONGEST, "%s has %d lines, %d are allowed: split it" % (path.relative_to(ROOT), lines, LONGEST)


def test_readmes_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-B", str(ROOT / "scripts" / "role_readme.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_readme_has_every_variable(role: str) -> None:
    text = (ROOT / "roles" / role / "README.md").read_text("utf-8")
    for name in specs(role)["main"]["options"]:
        assert len(re.findall(r"(?m)^\| `%s` \|" % name, text)) == 1, name


@pytest.mark.parametrize("role", ROLES)
def test_example_sets_variables_that_exist(role: str) -> None:
    known = COMMON.union(*(defaults(each) for each in ROLES))
    for play in yaml.safe_load((ROOT / "docs" / "examples" / (role + ".yml")).read_text("utf-8")):
        used = set(play.get("vars", {})).union(*(each.get("vars", {}) for each in play["roles"]))
        assert used <= known, sorted(used - known)
        assert "trtllm.serving." + role in [each["role"] for each in play["roles"]]
