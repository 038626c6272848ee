#!/usr/bin/env bash
# PyTorch's ONNX exporter: pooling a channels-last value is exported as a gather by computed indices.
#
# One would guess that the memory format of weights and inputs, which ONNX does not have, leaves no trace in the exported
# model. With the weight of a convolution in torch.channels_last and a free batch size, AdaptiveAvgPool2d(1) behind it
# becomes ReduceMean, Reshape, and a Gather whose indices are computed from the batch size (Range, Mul, Add): the
# decomposition restores channels-last strides by as_strided, and the exporter writes that down element by element. With
# a contiguous weight it is a ReduceMean. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
cat >"$folder/program.py" <<'PYTHON'
import collections
import logging
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def operators(memory_format):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1)).eval()
    model = model.to(memory_format=memory_format)
    example = torch.zeros(2, 3, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model, (example,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    return collections.Counter(node.op_type for node in program.model_proto.graph.node)


plain, channels_last = operators(torch.contiguous_format), operators(torch.channels_last)
print(f"torch {torch.__version__}")
print("contiguous:   ", dict(plain))
print("channels last:", dict(channels_last))
assert plain["Gather"] == 0 and plain["ReduceMean"] == 1
assert channels_last["Gather"] == 1 and channels_last["Range"] == 1
PYTHON
"$folder/venv/bin/python" "$folder/program.py"
