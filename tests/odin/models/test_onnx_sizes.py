"""Inputs of sizes that no machine holds are refused by a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_models import chain_of_convolutions, save

from odin.models.sources import load_source


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_an_input_that_does_not_fit_into_memory(size: int, tmp_path: Path):
    model = chain_of_convolutions()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = size
    with pytest.raises(ValueError, match=r"huge\.onnx takes .* which does not fit into memory"):
        load_source(str(save(model, tmp_path / "huge.onnx")))
