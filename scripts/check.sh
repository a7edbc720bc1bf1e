#!/usr/bin/env bash
# The one check: CI, the commit hook and CONTRIBUTING.md all call it.
#   scripts/check.sh           format, lint, types, tests (WORKERS=8 on a machine with more than 2 cores)
#   scripts/check.sh --quick   the same without the tests
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}  # as in pipeline/experiment/instantiate.py: tests must not crawl on busy cores
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
[ "${1:-}" = --quick ] && exit
export OMP_NUM_THREADS=1  # the nets are small, and the workers take the cores
# What tests write is written through to the disk file by file: it goes into memory where there is room for it.
if [ "$(df --output=avail --block-size=M /dev/shm 2>/dev/null | tail -1 | tr -dc 0-9)" -gt 4000 ] 2>/dev/null; then
    TMPDIR=$(mktemp --directory /dev/shm/curvature-tests.XXXXXX)
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
fi
# A file's fixtures and references are made once; in the order of names, the files that take longest are not the last.
"$bin/python" -m pytest --numprocesses "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder
