#!/usr/bin/env bash
# Compares decoding with ggml's own C code, in one run: installs ggml from PyPI, pinned, into a folder of its own, and
# passes its library to the bench. Needs python3 and a C++ compiler.
#
# usage: benches/ggml.sh [OPTIONS OF THE BENCH]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${OFFLOAD_GGML:-$HOME/.cache/offload-ggml-0.0.45}
if [ ! -e "$folder/done" ]; then
    python3 -m venv --clear "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check ggml-python==0.0.45
    touch "$folder/done"
fi
library=$(echo "$folder"/lib/python3*/site-packages/ggml/lib/libggml-base.so)
exec cargo bench --bench decode -- --ggml "$library" "$@"
