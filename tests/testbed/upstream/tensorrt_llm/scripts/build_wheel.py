"""Stands for the build of TensorRT-LLM's wheel: refuses what the linker would, then installs the reference tools."""

import argparse
import compileall
import json
import pathlib
import shutil
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--trt_root", default="/usr/local/tensorrt")
parser.add_argument("--install", "-i", action="store_true")
parser.add_argument("--clean", "-c", action="store_true")
parser.add_argument("--prefix", default="")
args = parser.parse_args()

tree = pathlib.Path(__file__).resolve().parents[1]
for library in sorted(tree.glob("cpp/**/*_static.*")):
    print("-- Linking %s" % library.relative_to(tree), flush=True)
    if not library.read_bytes().startswith(b"!<arch>"):
        sys.exit("/usr/bin/ld:%s: file format not recognized; treating as linker script\n"
                 "collect2: error: ld returned 1 exit status" % library)  # fmt: skip

version = {}
exec((tree / "tensorrt_llm" / "version.py").read_text("utf-8"), version)
number = version["__version__"]
home = tree
if args.prefix:
    home = pathlib.Path(args.prefix) / "tensorrt_llm_wheel"
    for name in ("tensorrt_llm", "tensorrtllm_reference"):
        shutil.copytree(tree / name, home / name)
    shutil.copy(tree / "release.json", home / "release.json")
site = pathlib.Path("/usr/local/lib/python%d.%d/dist-packages" % sys.version_info[:2])
metadata = site / ("tensorrt_llm-%s.dist-info" % number)
metadata.mkdir(parents=True)
(metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: %s\n" % number, "utf-8")
(metadata / "INSTALLER").write_text("pip\n", "utf-8")
# Triton's Python reads its site-packages, and nothing of the environment.
(site / "tensorrt_llm.pth").write_text("%s\n" % home, "utf-8")
shutil.copy(tree / "bin" / "trtllm-build", "/usr/local/bin/trtllm-build")
compileall.compile_dir(home / "tensorrtllm_reference", quiet=1)
assert json.loads((home / "release.json").read_text("utf-8"))["release"] == number
print("Successfully installed tensorrt_llm-%s" % number)
