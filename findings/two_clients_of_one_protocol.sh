#!/usr/bin/env bash
# Two Python clients of the Open Inference Protocol cannot be in one process: the second import raises.
#
# One would expect two packages with module names of their own to leave each other alone. Each brings a description of
# the same protobuf package ("inference"), and protobuf keeps one registry of names per process: whichever is imported
# second raises TypeError (duplicate symbol). A server that defines these messages, too, could not be tested by either.
# Remedy for who defines them: a descriptor pool of one's own.
set -euo pipefail
TRITON=2.73.0
OPEN_INFERENCE=2.0.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tritonclient[grpc]==$TRITON" "open-inference-grpc==$OPEN_INFERENCE" "grpcio==1.85.3"
cat >"$folder/program.py" <<'PROGRAM'
import importlib.metadata, subprocess, sys

NAMES = ("tritonclient.grpc", "open_inference.grpc.service")

def outcome(*names):
    program = "".join(f"import {name}\n" for name in names)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return "imported" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

each = [outcome(name) for name in NAMES]
both = outcome(*NAMES)
versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tritonclient", "open-inference-grpc", "protobuf"))
print(f"{versions}: each alone: {', '.join(each)}; one after the other: {both}")
raise SystemExit(0 if each == ["imported"] * 2 and "duplicate symbol" in both else 1)
PROGRAM
if timeout 120 "$folder/venv/bin/python" "$folder/program.py"; then echo "As described."; else echo "No longer so."; exit 1; fi
