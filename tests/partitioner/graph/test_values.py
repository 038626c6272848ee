"""Numbers and sizes survive a cut exactly."""

from __future__ import annotations

import pytest
import torch

from odin.partitioner.graph.values import ValueSpec, decoder, encoder, spec_of


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int", -(2**53) - 1), ("bool", True), ("float", 0.1), ("size", torch.Size([2, 3])), ("size", torch.Size([]))],
)
def test_there_and_back(kind, value):
    back = decoder(kind)(encoder(kind)(value))
    assert back == value
    assert type(back) is type(value)
    assert spec_of(value).kind == kind


def test_specs():
    assert spec_of(torch.zeros(2, 3, dtype=torch.uint8)) == ValueSpec("tensor", (2, 3), "uint8", 6)
    assert spec_of(torch.Size([4, 5])) == ValueSpec("size", (2,), "int64", 16)
    assert spec_of(3) == ValueSpec("int", (), "int64", 8)
    assert spec_of(True) == ValueSpec("bool", (), "bool", 1)


@pytest.mark.parametrize("value", [None, "text", (1, 2), [torch.zeros(1)], torch.zeros(2).to_sparse()])
def test_what_cannot_cross(value):
    assert spec_of(value) is None
