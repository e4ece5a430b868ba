# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The release matrix: what depends on the version of TensorRT-LLM, and nowhere else.

Rows follow Triton's compatibility table (docs/introduction/compatibility.md of the server, August 2026) and the tags
and branches of tensorrtllm_backend.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import _v0_12_0, _v0_13_0, _v0_14_0, _v0_15_0, _v0_16_0, _v0_17_0, _v0_19_0, _v1_1_0
from ._retired import ADVICE, LAST_RELEASE
from ._table import Option, Table, dest

__all__ = [
    "ADVICE",
    "DEFAULT_RELEASE",
    "FLAVOURS",
    "LAST_RELEASE",
    "Option",
    "Release",
    "Table",
    "UnknownRelease",
    "all_releases",
    "check_flavour",
    "dest",
    "get",
]

DEFAULT_RELEASE = "1.1.0"
FLAVOURS = ("engine", "llmapi")
IMAGE_REPOSITORY = "nvcr.io/nvidia/tritonserver"

FIRST = "0.12.0"
LAST_ENGINE = "1.2.1"
FIRST_LLMAPI = "1.0.0"


class UnknownRelease(ValueError):
    """The release is none that this collection supports; the message says which are."""


@dataclass(frozen=True)
class Release:
    """One TensorRT-LLM release and what goes with it. Tables are shared: copy before changing."""

    version: str
    backend_tag: str  # tag, or where there is none branch, of tensorrtllm_backend
    backend_commit: str
    tensorrt_llm_commit: str
    ngc_tags: tuple[str, ...]  # YY.MM, newest first; empty when no image was published
    cuda: str
    tensorrt: str
    driver: str
    dockerfile: str | None  # None: cannot be built from the tag's tree
    converter: str  # path inside the TensorRT-LLM tree; empty when there are no engines
    templates: str
    launcher: str
    config_line: str | None
    flavours: tuple[str, ...]
    convert_checkpoint: Table
    trtllm_build: Table
    launch: Table
    provenance: str

    @property
    def images(self) -> tuple[str, ...]:
        """Image references on NGC, newest first."""
        return tuple(f"{IMAGE_REPOSITORY}:{tag}-trtllm-python-py3" for tag in self.ngc_tags)

    def in_image(self, what: str) -> tuple[str, ...]:
        """Absolute paths to look for the converter, templates, llmapi templates or launcher at, the likeliest first.

        Images differ in what is below /app: the backend's tree, TensorRT-LLM's, or both one in the other.
        """
        if what == "llmapi":
            inside: tuple[str, ...] = (self.templates.rpartition("/")[0] + "/llmapi", "all_models/llmapi")
        else:
            own = {"converter": self.converter, "templates": self.templates, "launcher": self.launcher}[what]
            inside = (own, *_ELSEWHERE[what]) if own else ()
        return tuple(dict.fromkeys(f"{root}/{each}" for root in IMAGE_ROOTS for each in inside))

    def in_source(self, what: str) -> str:
        """The same inside a checkout of the backend's repository."""
        if what == "converter":
            return f"tensorrt_llm/{self.converter}"
        if what == "llmapi":
            return self.templates.rpartition("/")[0] + "/llmapi"
        return {"templates": self.templates, "launcher": self.launcher}[what]

    def table(self, tool: str) -> Table:
        """The option table of convert_checkpoint, trtllm_build or launch."""
        if tool not in ("convert_checkpoint", "trtllm_build", "launch"):
            raise ValueError(f"tool {tool!r} is not one of convert_checkpoint, trtllm_build, launch")
        found: Table = getattr(self, tool)
        return found


# Where images keep the trees that the paths of a release are in.
IMAGE_ROOTS = ("/app", "/app/tensorrt_llm", "/tensorrtllm_backend", "/tensorrtllm_backend/tensorrt_llm")
# Upstream's descriptions disagree, so that each place is looked at whatever the release.
_ELSEWHERE = {
    "converter": ("examples/models/core/llama/convert_checkpoint.py", "examples/llama/convert_checkpoint.py"),
    "templates": ("all_models/inflight_batcher_llm", "triton_backend/all_models/inflight_batcher_llm"),
    "launcher": ("scripts/launch_triton_server.py", "triton_backend/scripts/launch_triton_server.py"),
}

DOCKERFILE_A = "dockerfile/Dockerfile.trt_llm_backend"
DOCKERFILE_B = "dockerfile/Dockerfile.triton.trt_llm_backend"
EMPTY: Table = {"options": []}

# version: backend tag, its commit, its TensorRT-LLM submodule, NGC tags, CUDA, TensorRT, driver, Dockerfile
_Row = tuple[str, str, str, tuple[str, ...], str, str, str, str]
# fmt: off
_ROWS: dict[str, _Row] = {
    "0.12.0": ("v0.12.0", "9a78477873574098c32467f0fd8a9d3b4c243d9b", "28fb9aacaa5a05494635194a9cbb264da9a744bd",
               ("24.08",), "12.5.1", "10.3.0", "555.42.06", DOCKERFILE_A),
    "0.13.0": ("v0.13.0", "f80395e67a464e229b6595acd8f9305b344a5d54", "201135e58aa525af7e523d091d4c9584229524bc",
               ("24.09",), "12.5.1", "10.4.0", "555.42.06", DOCKERFILE_A),
    "0.14.0": ("v0.14.0", "9958c21167e1a8e6bbddafc09b284904aaf22ab1", "b0880169d0fb8cd0363049d91aa548e58a41be07",
               ("24.10",), "12.5.1", "10.4.0", "555.42.06", DOCKERFILE_A),
    "0.15.0": ("v0.15.0", "8534b1cfd341399e046f60ef63a7d6beb549070b", "8f91cff22e7cc1feeb61f6edb58cd3bc91333fde",
               ("24.11",), "12.6.3", "10.6.0", "555.42.06", DOCKERFILE_A),
    "0.16.0": ("v0.16.0", "ad209ced188cbae19c7041d968dd4e6d3800ece2", "42a7b0922fc9e095f173eab9a7efa0bcdceadd0d",
               ("24.12",), "12.6.3", "10.7.0", "560.35.05", DOCKERFILE_A),
    "0.17.0": ("v0.17.0", "368eea9b13481a342caec025022c08c37ab816e8", "350625cc1c0754882f764a6df5540e35caa48ef3",
               ("25.01",), "12.8.0", "10.8.0.43", "570.86.10", DOCKERFILE_A),
    "0.17.0.post1": ("r25.02", "dc357949593b89426d5a9663f67bfeee547cd32f", "16d2467ea8e3b45d7d9555010c2ad018d006d5c1",
                     ("25.02",), "12.8.0", "10.8.0.43", "570.86.10", DOCKERFILE_A),
    "0.18.0": ("v0.18.0", "86542b637bbccdd708ab892337c8ad3a95932131", "3c0462002cbefde475d46acb5d5edefec92dfb6a",
               ("25.03",), "12.8.1", "10.9.0.34", "570.124.06", DOCKERFILE_A),
    "0.18.1": ("v0.18.1", "707ee36dfa52027f0a5aed544406b2744873a7c2", "62f3c954b9e44eb8ef6fd7f0e3ffef8602987e94",
               (), "12.8.1", "10.9.0.34", "570.124.06", DOCKERFILE_A),
    "0.18.2": ("v0.18.2", "c575d8cb980883efca12fe89ba918499c29459be", "5aec7af45fc0abd876fa68a9ae8c8cae084f3af3",
               ("25.04",), "12.8.1", "10.9.0.34", "570.124.06", DOCKERFILE_A),
    "0.19.0": ("v0.19.0", "c1e19638304d287f554f738c1411746555ed348c", "c6f7d423354214df818e206e87680fb2d513a718",
               ("25.05",), "12.8.1", "10.9.0.34", "570.124.06", DOCKERFILE_A),
    "0.20.0": ("v0.20.0", "40ab7b32e539d410cf29bc3f0463cb17be3fe50b", "7965842954628b0b5456a2f7d59786d3dcd41647",
               ("25.07", "25.06"), "12.9.0", "10.10.0.31", "575.51.03", ""),
    "0.21.0": ("v0.21.0", "2710a1ff62a700dbe01ae67f56d200102c249c46", "b4b1185af320f109f4cb73b1505832dbc63042d7",
               ("25.08",), "12.9.0", "10.11.0.33", "575.51.03", ""),
    "1.0.0": ("v1.0.0", "efb8a497eac3e16acf6f3ad250565465c80e6f0a", "ae8270b713446948246f16fadf4e2a32e35d0f62",
              ("25.10", "25.09"), "12.9.1", "10.11.0.33", "575.57.08", ""),
    "1.0.3": ("r25.11", "9f60afe80a27ea89d890e680faf942ac40a2f36e", "93392cefd25a3057383b9736e4bc25806aee7bfa",
              ("25.11",), "13.0.2", "10.13.3.9", "580.95.05", DOCKERFILE_B),
    "1.1.0": ("r25.12", "5419275f0e9830ca7083ddab1651eaa10c66636f", "9bab773cb5d367a705d7727807ccde1de7ec1b21",
              ("26.02", "26.01", "25.12"), "13.0.2", "10.13.3.9", "580.95.05", DOCKERFILE_B),
    "1.2.0": ("r26.03", "9736c4df0f5b3d02eacd2912ecd930072d59d9cf", "7103cc3707ab41c47ed67e1370e75712b755ef5f",
              ("26.03",), "13.1.0", "10.14.1.48", "590.44.01", DOCKERFILE_B),
    "1.2.1": ("r26.07", "3bc115373ce1fde1d94891964b492449402e3a68", "ca88df0a400515b8206a19eb30cd047eb7661035",
              ("26.07", "26.06", "26.05", "26.04"), "13.1.0", "10.14.1.48", "590.44.01", DOCKERFILE_B),
}
# fmt: on

# NGC 25.11 names its TensorRT-LLM by the longer version.
_ALIASES = {"1.0.3.2510": "1.0.3"}

# Releases whose config.pbtxt templates this collection ships.
_CONFIG_LINES = ("0.12.0", "1.1.0")

# First release of each line of option tables; how near the tables are is told in each file.
_LINES = (
    ("0.12.0", _v0_12_0, "tools: snapshot be9cd719 (pinned by NGC 24.08); launcher: exact"),
    ("0.13.0", _v0_13_0, "tools: snapshot 78f5c293 (pinned by NGC 24.09); launcher: exact"),
    ("0.14.0", _v0_14_0, "tools: snapshot 8681b3a4; launcher: exact"),
    ("0.15.0", _v0_15_0, "tools: snapshot c629546c; launcher: exact"),
    ("0.16.0", _v0_16_0, "tools: snapshot b171e879; launcher: exact"),
    ("0.17.0", _v0_17_0, "tools: nearest (008b2b8d, 368f8f2a); launcher: exact"),
    ("0.19.0", _v0_19_0, "tools: nearest (008b2b8d, 368f8f2a); launcher: v0.19.0"),
    ("1.1.0", _v1_1_0, "tools: nearest (65f1d153, 368f8f2a); launcher: nearest (0a2e2c1f)"),
)


def _order(version: str) -> tuple[int, ...]:
    """Sort key of a release number; a .postN or a build number sorts after the release, an rc before it."""
    numbers = [int(part) for part in re.findall(r"\d+", version)]
    key = tuple((numbers + [0, 0, 0])[:3])
    if re.search(r"(rc|a|b|\.dev)\d", version):
        return key + (-1,)
    return key + tuple(numbers[3:])


def _make(version: str) -> Release:
    tag, commit, submodule, ngc, cuda, tensorrt, driver, dockerfile = _ROWS[version]
    order = _order(version)
    _since, line, provenance = [entry for entry in _LINES if _order(entry[0]) <= order][-1]
    moved = order >= (0, 20, 0)
    root = "tensorrt_llm/triton_backend/" if moved else ""
    return Release(
        version=version,
        backend_tag=tag,
        backend_commit=commit,
        tensorrt_llm_commit=submodule,
        ngc_tags=ngc,
        cuda=cuda,
        tensorrt=tensorrt,
        driver=driver,
        dockerfile=dockerfile or None,
        converter="examples/" + ("models/core/" if moved else "") + "llama/convert_checkpoint.py",
        templates=root + "all_models/inflight_batcher_llm",
        launcher=root + "scripts/launch_triton_server.py",
        config_line=version if version in _CONFIG_LINES else None,
        flavours=FLAVOURS if order >= _order(FIRST_LLMAPI) else ("engine",),
        convert_checkpoint=line.CONVERT_CHECKPOINT,
        trtllm_build=line.TRTLLM_BUILD,
        launch=line.LAUNCH,
        provenance=provenance,
    )


_RELEASES: dict[str, Release] = {version: _make(version) for version in _ROWS}


def _llmapi_only(version: str) -> bool:
    """Whether this is a release after upstream removed engines (1.3 and newer)."""
    match = re.fullmatch(r"1\.(\d+)\.\d+([.a-z]\S*)?", version)
    return match is not None and int(match.group(1)) >= 3


def all_releases() -> list[str]:
    """Every release of the matrix, oldest first."""
    return list(_RELEASES)


def get(release: str) -> Release:
    """The release, or UnknownRelease with one line that says what to use."""
    name = str(release).strip()
    name = _ALIASES.get(name, name)
    if name in _RELEASES:
        return _RELEASES[name]
    names = ", ".join(_RELEASES)
    supported = f"supported are {FIRST} to {LAST_ENGINE}; use {DEFAULT_RELEASE} (default) or one of {names}"
    for found in _RELEASES.values():
        if name == "v" + found.version or name == found.backend_tag or name in found.ngc_tags + found.images:
            raise UnknownRelease(f"release {release!r} is a tag, not a TensorRT-LLM version; use {found.version}")
    if _llmapi_only(name):
        return Release(
            version=name,
            backend_tag="",
            backend_commit="",
            tensorrt_llm_commit="",
            ngc_tags=(),
            cuda="",
            tensorrt="",
            driver="",
            dockerfile=None,
            converter="",
            templates="tensorrt_llm/triton_backend/all_models/llmapi",
            launcher="tensorrt_llm/triton_backend/scripts/launch_triton_server.py",
            config_line=None,
            flavours=("llmapi",),
            convert_checkpoint=EMPTY,
            trtllm_build=EMPTY,
            launch=_v1_1_0.LAUNCH,
            provenance="newer than the matrix: the image must be named, the launcher's options are those of 1.1.0",
        )
    if re.fullmatch(r"\d+\.\d+(\.\d+\S*)?", name) and _order(name) < _order(FIRST):
        raise UnknownRelease(f"release {release!r} is not supported: it is older than {FIRST}; {supported}")
    raise UnknownRelease(f"release {release!r} is not supported: {supported}")


def check_flavour(release: str, flavour: str) -> list[str]:
    """Problems of using a release with a flavour, one line each; none when they go together."""
    if flavour not in FLAVOURS:
        return [f"flavour {flavour!r} is not one of {', '.join(FLAVOURS)}"]
    try:
        found = get(release)
    except UnknownRelease as error:
        return [str(error)]
    if flavour in found.flavours:
        return []
    if flavour == "engine":
        problem = (
            f"release {release!r} has no engines: flavour engine needs TensorRT-LLM {FIRST} to {LAST_ENGINE};"
            f" use release {DEFAULT_RELEASE} (default), or flavour llmapi"
        )
        return [problem]
    problem = (
        f"release {release!r} has no LLM API model: flavour llmapi needs TensorRT-LLM {FIRST_LLMAPI} or newer;"
        f" use release {DEFAULT_RELEASE} (default), or flavour engine"
    )
    return [problem]
