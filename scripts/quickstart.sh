#!/usr/bin/env bash
# Installs ODIN into .venv and streams two real photographs, again and again, through ResNet50 cut into two stages
# on two cores (one stage where there is one core). Arguments go to "odin run", the last one wins:
#   scripts/quickstart.sh --repeat 500 --stages cpu:0,cpu:3 --weights resnet50.pth
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
. scripts/venv.sh

ensure_venv demo
photographs=$(.venv/bin/python -c 'import pathlib, sklearn; print(pathlib.Path(sklearn.__file__).parent / "datasets/images")')
stages=$(.venv/bin/python -c 'import os; print(",".join(f"cpu:{core}" for core in sorted(os.sched_getaffinity(0))[:2]))')
set -- run resnet50 --input "$photographs" --repeat 50 --stages "$stages" --output results.jsonl "$@"
echo "== odin $*"
exec .venv/bin/odin "$@"
