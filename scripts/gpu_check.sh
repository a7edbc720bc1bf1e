#!/usr/bin/env bash
# Checks and times every strategy on a GPU in one call, with the python that is there (torch, NumPy, h5py) or $PYTHON.
#   scripts/gpu_check.sh [options of scripts/gpu_check.py]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
PYTHONPATH=. "$python" scripts/gpu_check.py "$@"
PYTHONPATH=. "$python" scripts/benchmark.py --device cuda --nets main,mlp,residual,block --rounds 5 \
    --methods "khatri_rao,khatri_rao (blocks),hvp,torch.func.hessian,chunked jvp(grad)"
