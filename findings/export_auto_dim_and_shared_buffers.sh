#!/usr/bin/env bash
# Two surprises of torch.export: a dimension marked Dim.AUTO may become a constant without a word, while the size in the
# graph still is a SymInt and not an int; and running ExportedProgram.module() writes the program's own buffers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")


class LoopsOverBatch(nn.Module):
    def forward(self, x):
        return torch.stack([sample / sample.norm() for sample in x])


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


print("torch", torch.__version__)
program = torch.export.export(LoopsOverBatch(), (torch.randn(2, 3),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
size = next(node for node in program.graph.nodes if node.op == "placeholder").meta["val"].shape[0]
print(f"a loop over a Dim.AUTO batch exports without an error: size {size!r} of type {type(size).__name__}")
try:
    program.module()(torch.randn(3, 3))
    taken = True
except Exception as error:
    taken = False
    print(f"another size then fails: {str(error).splitlines()[0]}")
silent = isinstance(size, torch.SymInt) and str(size) == "2" and not taken

program = torch.export.export(Counts(), (torch.ones(1),))
before = program.state_dict["calls"].item()
program.module()(torch.ones(1))
after = program.state_dict["calls"].item()
again = program.module()(torch.ones(1)).item()
print(f"the program's buffer: {before} before, {after} after one run of .module(); a second .module() returns {again}")
sys.exit(0 if silent and before == 0 and after == 1 and again == 2 else 1)
PYTHON
