#!/usr/bin/env bash
# ONNX Runtime: a saved optimised model can be cut inside the region that it computes in blocked layout.
#
# With all optimisations ONNX Runtime computes convolutions on a layout in blocks of channels (NCHWc), which it enters and
# leaves by reorder nodes of its own. One would guess that what crosses a boundary between two sessions must be in the
# layout of the model that was exported, at the cost of two reorders at every cut. But a model that was saved through
# optimized_model_filepath can be cut at a blocked value, and sessions over its pieces, which are not optimised again,
# give the same bits as the whole. Where in the exported model a piece comes from is told by the names of its nodes: each
# has that of a value that it computes there, with the suffix _nchwc. Blocked values have new names. Exits 0 as long as
# that is so.
set -euo pipefail
if ! grep -qwE 'avx|asimd' /proc/cpuinfo; then
  echo "This processor has no vectors for which ONNX Runtime blocks channels."
  exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/program.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

BLOCKS = 4
random = np.random.default_rng(0)
nodes, weights, before = [], [], "x"
for k in range(BLOCKS):  # convolution, addition of a shortcut, ReLU
    width = 3 if k == 0 else 64
    array = random.standard_normal((64, width, 3, 3), dtype=np.float32) * np.float32((2 / (9 * width)) ** 0.5)
    weights.append(numpy_helper.from_array(array, f"weight{k}"))
    nodes.append(helper.make_node("Conv", [before, f"weight{k}"], [f"conv{k}"], f"block{k}_conv", pads=[1, 1, 1, 1]))
    if k:
        nodes.append(helper.make_node("Add", [f"conv{k}", before], [f"sum{k}"], f"block{k}_add"))
    nodes.append(helper.make_node("Relu", [f"sum{k}" if k else f"conv{k}"], [f"block{k}"], f"block{k}_relu"))
    before = f"block{k}"
shape = (1, 3, 16, 16)
graph = helper.make_graph(
    nodes,
    "shown",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info(before, TensorProto.FLOAT, None)],
    weights,
)
onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "exported.onnx")


def session(model, *, optimize=False):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if optimize:
        options.optimized_model_filepath = "optimized.onnx"
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


x = random.standard_normal(shape, dtype=np.float32)
(expected,) = session("exported.onnx", optimize=True).run(None, {"x": x})
optimized = onnx.load("optimized.onnx").graph
print("onnxruntime", onnxruntime.__version__)
for node in optimized.node:
    print(f"  {node.domain or 'ai.onnx'} {node.op_type} {node.name!r}: {', '.join(node.output)}")

blocked = [node for node in optimized.node if node.domain == "com.microsoft.nchwc" and node.op_type == "Conv"]
exported = {name for node in nodes for name in node.output}
named = all(node.name.endswith("_nchwc") and node.name.removesuffix("_nchwc") in exported for node in blocked)
readers = {name for node in optimized.node if node.op_type == "Conv" for name in node.input}
cuts = [name for node in blocked for name in node.output if name in readers]
renamed = not exported & set(cuts)
print(f"blocked values that can be cut at: {', '.join(cuts)}; nodes named after exported values: {named}")

# Cut at each of them: a piece is a run of nodes, which reads what crosses the cut before it.
produced = {name: index for index, node in enumerate(optimized.node) for name in node.output}
sizes = {weight.name: weight for weight in optimized.initializer}
ends = [produced[cut] + 1 for cut in cuts] + [len(optimized.node)]
values, opsets = {"x": x}, onnx.load("optimized.onnx").opset_import
for begin, end in zip([0, *ends], ends):
    run = optimized.node[begin:end]
    made = {name for node in run for name in node.output}
    reads = list(dict.fromkeys(name for node in run for name in node.input if name and name not in made | set(sizes)))
    later = {name for node in optimized.node[end:] for name in node.input} | {output.name for output in optimized.output}
    gives = [name for node in run for name in node.output if name in later]
    piece = helper.make_graph(
        run,
        "piece",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, values[name].shape) for name in reads],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in gives],
        [weight for name, weight in sizes.items() if any(name in node.input for node in run)],
    )
    model = helper.make_model(piece, opset_imports=opsets, ir_version=9).SerializeToString()
    results = session(model).run(gives, {name: values[name] for name in reads})
    values.update(zip(gives, results))
(found,) = (values[output.name] for output in optimized.output)
same = np.array_equal(found, expected) and np.abs(expected).max() > 0.1
crossed = ", ".join(f"{cut} {values[cut].shape}" for cut in cuts)
print(f"{len(ends)} pieces; what crosses: {crossed}; the same bits as the whole: {same}")
sys.exit(0 if len(blocked) == BLOCKS and len(cuts) == BLOCKS - 1 and named and renamed and same else 1)
PYTHON
cd "$folder"
if venv/bin/python program.py; then echo "As described."; else echo "No longer so."; exit 1; fi
