"""Outputs are compared element by element, those that are no numbers among them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odin.partitioner.chain import build_chain
from odin.partitioner.engines.agreement import Agreement, Comparison
from odin.partitioner.engines.build import build_form
from odin.partitioner.engines.names import available_engines

ENGINES = [engine for engine in available_engines() if engine != "torch"]
NAN, INF = float("nan"), float("inf")


def compared(found: list[float], wanted: list[float]) -> Agreement:
    comparison = Comparison()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison.add([np.array([found], np.float32)], [np.array([wanted], np.float32)])
    return comparison.agreement


@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_what_is_no_number_in_both_agrees_and_the_rest_is_still_compared(special: float):
    agreement = compared([special, 2.5], [special, 2.0])
    assert agreement.finite
    assert agreement.largest_error == 0.25


@pytest.mark.parametrize(
    ("found", "wanted"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, -INF), (-INF, INF), (NAN, INF)]
)
def test_what_is_a_number_in_one_of_both_only_does_not_agree(found: float, wanted: float):
    assert not compared([found, 2.0], [wanted, 2.0]).finite


class Masked(nn.Module):
    """Some of its outputs are minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.masked_fill(torch.arange(4).view(1, 4, 1, 1) == 2, -INF)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_masks_with_infinity_is_taken(engine: str):
    chain = build_chain(Masked().eval(), (torch.zeros(1, 3, 8, 8),), name="masked", keep=False)
    assert build_form(chain, engine=engine).agreement.finite
