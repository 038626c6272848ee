"""What runs a range of layers: PyTorch, or another runtime to which the prepared chain is exported.

::

    chain --export--> ONNX model whose nodes are marked with their layer --optimize--> the same, as ONNX Runtime runs it
          --split--> one small model per layer (CutModel), weights apart, as plain arrays that all stages share
"""
