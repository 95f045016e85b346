#!/usr/bin/env bash
# Test with the lowest versions that requirements.txt allows, in an environment of its own, .venv_lowest.
#
#   bash launch/test_lowest.sh [pytest arguments ...]        for example: bash launch/test_lowest.sh -k reference
set -euo pipefail
cd "$(dirname "$0")/.."
AFA_VENV=${AFA_VENV:-$PWD/.venv_lowest}
AFA_CONSTRAINTS=$(mktemp)
trap 'rm -f "$AFA_CONSTRAINTS"' EXIT
sed 's/>=/==/' requirements.txt >"$AFA_CONSTRAINTS"
source launch/environment.sh test

OMP_NUM_THREADS=1 python -m pytest --numprocesses "$(getconf _NPROCESSORS_ONLN)" "$@"
