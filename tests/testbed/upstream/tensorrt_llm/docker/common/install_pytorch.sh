#!/usr/bin/env bash
# Upstream's argument and its values. A build from source takes long: here as long as a test needs.
set -e
case "$1" in
    pypi | skip) echo "Installing PyTorch from $1" ;;
    src_cxx11_abi | src_non_cxx11_abi)
        echo "Compiling PyTorch from source"
        sleep "${SOURCE_BUILD_SECONDS:-60}" ;;
    *)
        echo "Error: $1 is not a way to install PyTorch" >&2
        exit 1 ;;
esac
