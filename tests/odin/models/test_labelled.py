"""Labelled inputs: what is none, and how they are divided."""

from __future__ import annotations

import pytest
import torch

from odin.models.labelled import Labelled


@pytest.mark.parametrize(
    ("inputs", "classes", "told"),
    [
        (torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64), "one class for each"),
        (torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.zeros(2, 1), torch.tensor([0, -1]), "whole number from 0"),
        (torch.zeros(2, 1), torch.zeros(2), "whole number from 0"),
    ],
)
def test_classes_that_are_none(inputs, classes, told):
    with pytest.raises(ValueError, match=told):
        Labelled(inputs, classes).check()


def test_a_division_keeps_the_proportions_and_every_input():
    data = Labelled(torch.arange(300).float()[:, None], torch.arange(300) % 3)
    first, second = data.split(0.5, seed=4)
    assert torch.bincount(first.classes).tolist() == [50, 50, 50]
    assert sorted([*first.inputs.flatten().tolist(), *second.inputs.flatten().tolist()]) == list(range(300))
    again, other = data.split(0.5, seed=4)[0], data.split(0.5, seed=5)[0]
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    with pytest.raises(ValueError, match="share=1"):
        data.split(1.0)
    with pytest.raises(ValueError, match="cannot be divided"):
        Labelled(data.inputs[:1], data.classes[:1]).split(0.5)


def test_sequences_will_do_and_other_data_has_another_digest():
    data = Labelled.of([[1.0], [2.0]], [0, 1])
    assert data.classes.dtype == torch.int64
    assert data.digest == Labelled.of(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1], dtype=torch.int32)).digest
    assert data.digest != Labelled.of([[1.0], [2.0]], [1, 0]).digest
