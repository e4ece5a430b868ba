# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command line tools share: the release's option tables, strict parsers, log lines and exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .tensors import WeightsError

Table = dict[str, Any]

_LEVELS = {"internal_error": 0, "error": 1, "warning": 2, "info": 3, "verbose": 4, "debug": 4, "trace": 5}


class ToolError(Exception):
    """A refusal with a name of its own in the log, as upstream's exceptions have."""

    def __init__(self, message: str, kind: str = "RuntimeError") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Release:
    """The release whose command lines are spoken."""

    release: str
    convert_checkpoint: Table
    trtllm_build: Table
    launch: Table


def load_release() -> Release:
    """The release that the installer recorded beside the package or, in a checkout, the collection's own tables."""
    root = Path(__file__).resolve().parents[1]
    recorded = root / "release.json"
    if recorded.exists():
        try:
            data = json.loads(recorded.read_text(encoding="utf-8"))
            return Release(data["release"], data["convert_checkpoint"], data["trtllm_build"], data["launch"])
        except (ValueError, KeyError, TypeError) as exc:
            raise ToolError(f"{recorded} is damaged ({exc!r}): install this tree again") from exc
    # In an image the tree may lie less deep than in a checkout.
    package = Path(os.path.normpath(root / "../../../..")) / "plugins" / "module_utils" / "_releases"
    if not (package / "__init__.py").exists():
        raise ToolError(f"{recorded} is missing: install this tree with the role tensorrtllm_backend_build")
    name = "_trtllm_serving_releases"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(
            name, package / "__init__.py", submodule_search_locations=[str(package)]
        )
        if spec is None or spec.loader is None:
            raise ToolError(f"{package} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    try:
        found = module.get(os.environ.get("TRTLLM_REFERENCE_RELEASE", module.DEFAULT_RELEASE))
    except ValueError as exc:
        raise ToolError(str(exc), "ValueError") from exc
    return Release(found.version, found.convert_checkpoint, found.trtllm_build, found.launch)


def option_dest(option: dict[str, Any]) -> str:
    """The name of an option's value, by argparse's own rule."""
    if option.get("dest"):
        return str(option["dest"])
    flags: list[str] = option["flags"]
    chosen = next((flag for flag in flags if flag.startswith("--")), flags[0])
    return chosen.lstrip("-").replace("-", "_")


def defaults(table: Table) -> dict[str, Any]:
    return {option_dest(option): option.get("default") for option in table["options"]}


def _enum(values: list[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in values:
            raise argparse.ArgumentTypeError(f"invalid value: {text!r} (choose from {', '.join(values)})")
        return text.lower()

    return parse


def build_parser(prog: str, table: Table) -> argparse.ArgumentParser:
    """A parser that takes exactly the options of the table; abbreviations are taken as upstream takes them."""
    if not table["options"]:
        raise ToolError(f"the release has no {prog}: it serves without engines")
    parser = argparse.ArgumentParser(prog=prog, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    types: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}
    for option in table["options"]:
        keywords: dict[str, Any] = {"default": option.get("default"), "help": " "}
        if option.get("dest"):
            keywords["dest"] = option["dest"]
        if option.get("action"):
            keywords["action"] = option["action"]
        else:
            kind = option.get("type") or "str"
            if kind.startswith("enum:"):
                values = kind[len("enum:") :].strip("<>").split("|")
                keywords["type"] = _enum(values)
                keywords["metavar"] = "{" + ",".join(values) + "}"
            else:
                keywords["type"] = types[kind]
            for key in ("choices", "nargs", "const"):
                if option.get(key) is not None:
                    keywords[key] = option[key]
        parser.add_argument(*option["flags"], **keywords)
    return parser


class Log:
    """Lines in the style of upstream's logger, on standard output."""

    def __init__(self, level: str = "info") -> None:
        self.set_level(level)

    def set_level(self, level: str) -> None:
        if level not in _LEVELS:
            raise ToolError(f"Unsupported log severity: {level} (choose from {', '.join(_LEVELS)})", "AttributeError")
        self._level = _LEVELS[level]

    def _write(self, level: int, letter: str, message: str) -> None:
        if level <= self._level:
            print(time.strftime("[%m/%d/%Y-%H:%M:%S]"), "[TRT-LLM]", f"[{letter}]", message, flush=True)

    def error(self, message: str) -> None:
        self._write(1, "E", message)

    def warning(self, message: str) -> None:
        self._write(2, "W", message)

    def info(self, message: str) -> None:
        self._write(3, "I", message)


def clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))


def refuse_same_directory(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    """Both have a config.json: writing one into the other's directory would destroy it."""
    if os.path.realpath(source) == os.path.realpath(target):
        raise ToolError(f"--output_dir {target} is the input directory too: choose another one", "ValueError")


def refuse(options: Sequence[tuple[str, Any, str]]) -> None:
    """Fail when there is an option (name, value, reason) that this backend cannot honour."""
    if options:
        listed = "; ".join(f"--{name} {value}: {reason}".replace(" True:", ":") for name, value, reason in options)
        raise ToolError(
            f"the CPU reference backend cannot honour {listed}. Leave the option out, or run the tool of a GPU image",
            "NotImplementedError",
        )


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a tool: exit code 0, 1 with the error as the last line of standard error, or argparse's 2."""
    try:
        main(argv)
    except ToolError as exc:
        fail(exc.kind, str(exc))
    except WeightsError as exc:
        fail("RuntimeError", str(exc))
    except (ValueError, NotImplementedError, AssertionError, OSError, MemoryError) as exc:
        fail(type(exc).__name__, str(exc))
    except KeyboardInterrupt:
        fail("KeyboardInterrupt", "interrupted", 130)
    sys.stdout.flush()
    sys.exit(0)


def fail(kind: str, message: str, code: int = 1) -> NoReturn:
    sys.stdout.flush()
    print(f"{kind}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
