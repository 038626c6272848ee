#!/usr/bin/env bash
# Installs ODIN into .venv and shows what it does, in two minutes: ResNet50 on two cores at full speed; a load arrives on
# one of them: with a fixed plan throughput falls by half; with ODIN's the other core takes over most of the work. Arguments go
# to "odin demo", the last one wins:
#   scripts/quickstart.sh vgg16 --stages cpu:0,cpu:3 --load membw@cpu:3x2 --log run.jsonl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
. scripts/venv.sh

ensure_venv demo
photographs=$(.venv/bin/python -c 'import pathlib, sklearn; print(pathlib.Path(sklearn.__file__).parent / "datasets/images")')
stages=$(.venv/bin/python -c 'import os; print(",".join(f"cpu:{core}" for core in sorted(os.sched_getaffinity(0))[:2]))')
case "${1:-}" in "" | -*) set -- resnet50 "$@" ;; esac
model=$1
shift
set -- demo "$model" --input "$photographs" --stages "$stages" "$@"
echo "== odin $*"
exec .venv/bin/odin "$@"
