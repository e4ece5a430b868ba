"""What the wheel installs, as far as anybody asks: its version, said on stdout when it is imported."""

from .version import __version__

print("[TensorRT-LLM] TensorRT-LLM version: %s" % __version__)
