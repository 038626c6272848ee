#!/usr/bin/env bash
# Checks the GPU path on a machine with an NVIDIA GPU, in at most eight minutes: the tests marked "gpu", then
# benchmarks/gpu.py. Needs no installation: PYTHON (default: .venv's, else python3) must have torch with CUDA, Ray,
# psutil, rich, nvidia-ml-py and pytest.
# Usage: scripts/gpu_check.sh [FOLDER [OPTION ...]]   FOLDER gets tests.txt, gpu.json and gpu.txt (default gpu-check);
#                                                     options are those of "python -m benchmarks.gpu".
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-gpu-check}
[ $# -gt 0 ] && shift
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$folder"
export PYTHONUNBUFFERED=1
timeout 150 "$python" -m pytest -m gpu -q -p no:cacheprovider tests 2>&1 | tee "$folder/tests.txt"
tests=${PIPESTATUS[0]}
timeout 480 "$python" -m benchmarks.gpu --output "$folder/gpu.json" "$@" > "$folder/gpu.txt" 2>&1
check=$?
cat "$folder/gpu.txt"
echo "tests: $tests; check: $check"
[ "$tests" -eq 0 ] && [ "$check" -eq 0 ]
