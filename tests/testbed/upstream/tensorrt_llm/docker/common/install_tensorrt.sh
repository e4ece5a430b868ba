#!/usr/bin/env bash
# Stands for the download of TensorRT.
set -e
mkdir -p /usr/local/tensorrt/lib
