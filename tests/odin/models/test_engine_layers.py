"""Layers for engines that are not called so cheaply: few, but one for each stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from example_models import Residual, seeded
from onnx_models import chain_of_convolutions, save

from odin.models.chains import to_chain
from odin.models.sources import Source, load_source
from odin.partitioner.engines.names import AUTO, available_engines

ENGINES = [engine for engine in available_engines() if engine != "torch"]


def module(_: Path) -> Source:
    return load_source(seeded(Residual), example_input=torch.zeros(1, 3, 32, 32))


def onnx_file(folder: Path) -> Source:
    return load_source(str(save(chain_of_convolutions(size=24), folder / "small.onnx")))


@pytest.mark.parametrize("source_of", [module, onnx_file])
@pytest.mark.parametrize("engine", [*ENGINES, AUTO])
def test_a_small_model_has_a_layer_for_each_stage(source_of, engine: str, tmp_path: Path):
    source = source_of(tmp_path)
    assert len(to_chain(source, engine=engine).layers) == 1
    assert len(to_chain(source, engine=engine, stage_count=2).layers) >= 2


def test_a_model_with_layers_enough_is_cut_as_ever():
    source = load_source("resnet18")
    layers = [to_chain(source, engine=ENGINES[0], stage_count=count).layers for count in (1, 4)]
    assert layers[0] == layers[1]
    assert len(layers[0]) < len(to_chain(source).layers)
