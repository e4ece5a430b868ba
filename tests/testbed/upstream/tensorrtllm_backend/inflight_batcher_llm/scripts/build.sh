#!/usr/bin/env bash
# Stands for the build of the C++ backend.
set -e
mkdir -p build
cp src/* build/
