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
# A file's fixtures and references are made once; in the order of names, the files that take longest are not the last.
exec "$bin/python" -m pytest --numprocesses "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder
