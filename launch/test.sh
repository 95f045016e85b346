#!/usr/bin/env bash
# Install, lint, type-check and test.
#
#   bash launch/test.sh [pytest arguments ...]        for example: bash launch/test.sh -k reference
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh test

ruff check .
ruff format --check .
mypy afa tools
# One process per core, one thread each: the tests are many and small. Each process imports everything, so four at most;
# a file's tests stay together, as they share what is made for them.
OMP_NUM_THREADS=1 python -m pytest --numprocesses "$(getconf _NPROCESSORS_ONLN)" --maxprocesses 4 --dist loadfile \
    --durations=10 "$@"
