#!/usr/bin/env bash
# OpenVINO: compiling a model gives the calling thread another stack for signals.
#
# One would guess that a library which installs no signal handler leaves sigaltstack(2) alone. But compile_model for the
# CPU puts a stack of its own in the place of the thread's, such as that of Python's faulthandler, and it stays when
# compile_model has returned. The memory belongs to OpenVINO and goes when its objects go, so a program that handles
# signals should put its own stack back. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 numpy==2.4.6
cat >"$folder/program.py" <<'PYTHON'
import ctypes
import faulthandler
import sys

sys.modules["openvino_telemetry"] = None  # or importing OpenVINO would report that to a server
import openvino
from openvino import opset13


class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("nbytes", ctypes.c_size_t)]


def stack():
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.address, found.nbytes


faulthandler.enable()
before = stack()
image = opset13.parameter([1, 3, 8, 8], name="image")
model = openvino.Model([opset13.relu(image)], [image], "shown")
core = openvino.Core()
assert stack() == before
compiled = core.compile_model(model, "CPU")
after = stack()
print(f"openvino {openvino.__version__}")
print(f"bytes of the thread's signal stack: {before[1]}, and {after[1]} after compile_model")
assert before[1] > 0 and after[0] != before[0], (before, after)
PYTHON
"$folder/venv/bin/python" "$folder/program.py"
