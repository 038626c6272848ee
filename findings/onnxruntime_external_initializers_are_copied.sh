#!/usr/bin/env bash
# ONNX Runtime: weights that are given as external initializers are copied for each session; given as initializers they
# are not, but the file that the model names for them has to exist.
#
# A model may say that a weight lies in a file beside it. SessionOptions.add_external_initializers gives that weight from
# memory instead, and copies it: three sessions hold it three times. SessionOptions.add_initializer takes an OrtValue over
# memory that is shared and read-only, and copies nothing. With it the file that the model names must exist all the same,
# though it is not read: it may be empty. (With the other call it need not exist.) Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/program.py" <<'PYTHON'
import mmap
import os
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

SHAPE = (1024, 1024, 4, 4)  # of a convolution's weight, 64 MiB
SESSIONS = 3
way, file = sys.argv[1:]


def private_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1024


weight = TensorProto(name="weight", dims=SHAPE, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
weight.external_data.add(key="location", value="weights.bin")
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "weight"], ["y"])],
    "shown",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, SHAPE[1], 4, 4))],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, SHAPE[0], 1, 1))],
    [weight],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.save_model(model, "model.onnx")
if os.path.exists("weights.bin"):
    os.remove("weights.bin")
if file == "empty":
    open("weights.bin", "wb").close()

# Memory that other processes could share, and that nobody can write to.
nbytes = 4 * int(np.prod(SHAPE))
with open("shared", "wb") as shared:
    np.random.default_rng(0).standard_normal(nbytes // 4, dtype=np.float32).tofile(shared)
with open("shared", "rb") as shared:
    memory = mmap.mmap(shared.fileno(), nbytes, prot=mmap.PROT_READ)
array = np.frombuffer(memory, np.float32).reshape(SHAPE)
value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
x = np.ones((1, SHAPE[1], 4, 4), np.float32)
expected = array.sum(axis=(1, 2, 3), dtype=np.float64)

before, sessions = private_mib(), []
try:
    for _ in range(SESSIONS):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        if way == "add_initializer":
            options.add_initializer("weight", value)
        else:
            options.add_external_initializers(["weight"], [value])
        sessions.append(onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"]))
except Exception as error:
    print(f"{way}, the file {file}: {type(error).__name__}", flush=True)
    sys.exit(3)
grown = private_mib() - before
for session in sessions:
    (y,) = session.run(None, {"x": x})
    assert np.abs(y.ravel() - expected).max() < 0.1
print(f"{way}, the file {file}: {SESSIONS} sessions hold {grown:.0f} MiB of private memory more", flush=True)
sys.exit(0 if grown < 8 else 1 if abs(grown - SESSIONS * 64) < 8 else 2)
PYTHON
cd "$folder"
venv/bin/python -c 'import onnxruntime; print("onnxruntime", onnxruntime.__version__)'
seen=""
for case in "add_external_initializers missing" "add_external_initializers empty" "add_initializer missing" "add_initializer empty"; do
  status=0
  # shellcheck disable=SC2086
  venv/bin/python program.py $case || status=$?
  seen="$seen $status"
done
# 0: nothing copied, 1: a copy for each session, 3: refused
if [ "$seen" = " 1 1 3 0" ]; then echo "As described."; else echo "No longer so:$seen"; exit 1; fi
