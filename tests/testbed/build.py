# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of the test bed, made on this machine out of Debian's packages and PyPI's alone.

    python tests/testbed/build.py             all of them but those of the scenario fleet
    python tests/testbed/build.py python      this one and what it is made from
    python tests/testbed/build.py --json ...  the references by name, as JSON

Every image is called trtllm-test/NAME:HASH, where HASH is that of all it is made from: what is there is not made again.
Needs root, Docker, mmdebstrap and git-lfs; the package mirror is the one that this machine's apt uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from testbed import source

WORK = ROOT / ".work" / "testbed"
PREFIX = "trtllm-test"
REFERENCE = ROOT / "roles" / "tensorrtllm_backend_build" / "files" / "reference"
REQUIREMENTS = REFERENCE / "requirements.txt"
SUITE = "bookworm"
PACKAGES = "ca-certificates,python3"


class BuildError(Exception):
    """One line that says what is missing and what to do."""


def run(argv: Iterable[object], **options: object) -> str:
    """The command's output; on failure its last lines in the error."""
    words = [str(part) for part in argv]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        errors="replace", **options,  # type: ignore[call-overload]
    )  # fmt: skip
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise BuildError("%s: exit code %d\n%s" % (" ".join(words[:6]), done.returncode, tail))
    return str(done.stdout)


def mirror() -> str:
    """Where this machine's own apt gets Debian from."""
    if os.environ.get("TESTBED_MIRROR"):
        return os.environ["TESTBED_MIRROR"]
    folder = Path("/etc/apt/sources.list.d")
    for path in [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.sources")), *sorted(folder.glob("*.list"))]:
        if not path.is_file():
            continue
        for part in re.split(r"\n\s*\n", path.read_text("utf-8")):
            if not re.search(r"\b%s\b" % SUITE, part):
                continue
            found = re.search(r"(?m)^(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(http\S+)", part)
            if found and "security" not in found.group(1):
                return found.group(1)
    raise BuildError(
        "no Debian %s in this machine's apt sources: run it on Debian 12, or name a mirror in TESTBED_MIRROR" % SUITE
    )


@dataclass(frozen=True)
class Image:
    """How one image is made. Its context is its folder below images/, further files, and what prepare adds.

    One with content is no build: it is its base, run, with other images pushed into it, as it is then.
    """

    base: str = ""
    # build arguments whose values are other images
    images: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    prepare: Callable[[Path], None] | None = None
    # what prepare depends on, beside this file
    inputs: tuple[Path, ...] = ()
    dockerfile: str = "Dockerfile"
    folder: str = ""
    # names in the registry and the images pushed under them
    content: tuple[tuple[str, str], ...] = ()

    @property
    def needs(self) -> list[str]:
        return [name for name in (self.base, *self.images.values(), *(image for _name, image in self.content)) if name]


def rootfs(context: Path) -> None:
    run(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + PACKAGES,
         "--aptopt=Acquire::Languages none", "--aptopt=Acquire::Retries 3", "--dpkgopt=force-unsafe-io",
         *("--dpkgopt=path-exclude=/usr/share/%s/*" % name for name in ("man", "locale", "doc", "info")),
         SUITE, context / "rootfs.tar", mirror()],
        env={**os.environ, "TMPDIR": str(context)},
    )  # fmt: skip


def packages(context: Path) -> None:
    """The backend's Python packages for Debian's Python, whichever Python runs this."""
    run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--no-compile",
         "--disable-pip-version-check", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp",
         "--require-hashes", "--target", context / "packages", "--requirement", REQUIREMENTS]
    )  # fmt: skip
    # Stubs of other Pythons are of no use there.
    for stub in (context / "packages" / "pytriton" / "tritonserver" / "python_backend_stubs").iterdir():
        if stub.name != "3.11":
            shutil.rmtree(stub)


def backend(release: str) -> Image:
    """The very Dockerfile that the role builds from a checkout, built here."""
    layout = source.LAYOUTS[release]

    def prepare(context: Path) -> None:
        source.write_tree(context, release)

    return Image(
        images={"BASE_IMAGE": "tritonserver"}, prepare=prepare, inputs=source.inputs(), dockerfile=layout.dockerfile,
        folder="-",
    )  # fmt: skip


NVIDIA = HERE / "nvidia"
TOOLKIT = ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-runtime-hook")
IMAGES: dict[str, Image] = {
    "base": Image(prepare=rootfs),
    "python": Image(base="base"),
    "tritonserver": Image(base="base", prepare=packages, inputs=(REQUIREMENTS,)),
    "backend-0.12.0": backend("0.12.0"),
    "backend-1.1.0": backend("1.1.0"),
    "registry": Image(base="base"),
    # As nvcr.io, for hosts that pull: a volume would not be part of an image, so the registry's store is none.
    "registry-content": Image(
        base="registry", folder="-",
        content=(("nvidia/tritonserver:24.07-py3", "tritonserver"),
                 ("nvidia/tritonserver:25.12-trtllm-python-py3", "backend-1.1.0")),
    ),
    "host": Image(base="base", files=(NVIDIA / "nvidia-smi", NVIDIA / "nvidia-standin.conf")),
    "repo": Image(base="base", files=(*(NVIDIA / name for name in TOOLKIT), HERE / "gitserver.py")),
    "host-debian": Image(base="host", folder="debian"),
    "fleet": Image(base="base"),
    "fleet-balancer": Image(base="host"),
    "host-el9": Image(base="host", images={"REPO": "repo"}, folder="el", arguments={"EL": "9", "EL_FULL": "9.5"}),
}


def context_files(name: str) -> list[Path]:
    image = IMAGES[name]
    folder = HERE / "images" / (image.folder or name)
    own = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [*own, *image.files]


@functools.cache
def identity(name: str) -> str:
    """Hash of everything that the image is made from, what it is based on included."""
    image = IMAGES[name]
    found = hashlib.sha256()
    for path in [*context_files(name), *image.inputs]:
        found.update(b"%s\0%d\0" % (str(path.relative_to(ROOT)).encode(), path.stat().st_mode & 0o111))
        found.update(hashlib.sha256(path.read_bytes()).digest())
    for other in image.needs:
        found.update(identity(other).encode())
    found.update(repr((sorted(image.arguments.items()), SUITE, PACKAGES, image.dockerfile, image.content)).encode())
    return found.hexdigest()[:12]


def repository(name: str) -> str:
    return "%s/%s" % (PREFIX, "backend" if name.startswith("backend-") else name)


def tag(name: str) -> str:
    version = name.partition("backend-")[2]
    return "%s:%s" % (repository(name), "-".join(filter(None, [version, identity(name)])))


def docker(*argv: object, **options: object) -> str:
    return run(["docker", *argv], **options)


def exists(reference: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", reference], capture_output=True, check=False).returncode == 0


def forget_older(name: str) -> None:
    """Earlier builds of this image, unless something uses them."""
    kept = tag(name)
    start = kept.rpartition("-")[0] + "-" if name.startswith("backend-") else repository(name) + ":"
    listed = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository(name)).split()
    for reference in listed:
        if reference.startswith(start) and reference != kept and re.search(r"[:-][0-9a-f]{12}$", reference):
            subprocess.run(["docker", "image", "rm", reference], capture_output=True, check=False)


def fill(reference: str, base: str, content: Iterable[tuple[str, str]]) -> None:
    """Runs a registry on loopback, pushes the images and keeps the registry with them as an image."""
    container = docker("run", "--detach", "--publish", "127.0.0.1::5000", base).split()[-1]
    try:
        address = docker("port", container, "5000/tcp").split()[0]
        host, _colon, port = address.rpartition(":")
        for _attempt in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), 1).close()
                break
            time.sleep(0.1)
        for target, source_image in content:
            pushed = "%s/%s" % (address, target)
            docker("tag", source_image, pushed)
            try:
                docker("push", "--quiet", pushed)
            finally:
                docker("image", "rm", pushed)
        docker("stop", "--time", "5", container)
        docker("commit", container, reference)
    finally:
        docker("rm", "--force", "--volumes", container)


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build(name: str, say: Callable[[str], None] = report) -> str:
    """Makes the image unless it is there, and returns its reference."""
    reference = tag(name)
    if exists(reference):
        return reference
    image = IMAGES[name]
    arguments = dict(image.arguments)
    if image.base:
        arguments["BASE"] = build(image.base, say)
    for argument, other in image.images.items():
        arguments[argument] = build(other, say)
    if name == "backend-0.12.0":
        arguments["BASE_IMAGE"], _colon, arguments["BASE_TAG"] = arguments["BASE_IMAGE"].rpartition(":")
    begun = time.monotonic()
    if image.content:
        fill(reference, arguments["BASE"], [(target, build(other, say)) for target, other in image.content])
        forget_older(name)
        say("%s (%.0f s)" % (reference, time.monotonic() - begun))
        return reference
    context = WORK / name
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    try:
        folder = HERE / "images" / (image.folder or name)
        for path in context_files(name):
            target = context / (path.relative_to(folder) if path.is_relative_to(folder) else path.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        if image.prepare:
            image.prepare(context)
        # The classic builder: it needs no plugin and takes images of this engine as they are.
        docker(
            "build", "--force-rm", "--tag", reference, "--file", context / image.dockerfile,
            *(word for item in arguments.items() for word in ("--build-arg", "%s=%s" % item)), context,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip
    finally:
        shutil.rmtree(context, ignore_errors=True)
    forget_older(name)
    say("%s (%.0f s)" % (reference, time.monotonic() - begun))
    return reference


def image(name: str) -> str:
    """The image's reference; made first if need be, by one process at a time."""
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(name)


def main() -> int:
    names = [name for name in sys.argv[1:] if name != "--json"]
    # Those of the scenario fleet are made when it runs.
    names = names or [name for name in IMAGES if not name.startswith("fleet")]
    unknown = [name for name in names if name not in IMAGES]
    if unknown:
        print("ERROR: no image %s: choose from %s" % (", ".join(unknown), ", ".join(IMAGES)), file=sys.stderr)
        return 2
    try:
        found = {name: image(name) for name in names}
    except (BuildError, OSError) as error:
        print("ERROR: %s" % error, file=sys.stderr)
        return 1
    if "--json" in sys.argv:
        print(json.dumps(found))
    else:
        print("\n".join("%-16s %s" % item for item in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
