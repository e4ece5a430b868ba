#!/usr/bin/env bash
# As the vendor's: a banner on stdout, whatever is run, and then that.
cat <<'BANNER'

=============================
== Triton Inference Server ==
=============================

NVIDIA Release (stand-in of the test bed)
Triton Server Version 2.51.0
BANNER
if [ ! -x "$(command -v nvidia-smi)" ]; then
    printf '\nWARNING: The NVIDIA Driver was not detected.  GPU functionality will not be available.\n'
fi
echo
if [ $# -eq 0 ]; then
    exec /bin/bash
fi
exec "$@"
