"""Mutated requests are answered right or refused with a sentence; ``mutations.py`` itself tries many more, live."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator

import mutations
import pytest
import torch

import odin


@contextlib.contextmanager
def in_this_process(chain: odin.Chain) -> Iterator[odin.Chain]:
    yield chain


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _, _ in mutations.subjects()])
def test_answered_right_or_refused_with_a_sentence(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about the tensors that the mutations make
        outcomes, faults = mutations.run(80, seed=1, serve=in_this_process, chosen=[name])
    assert not faults
    assert outcomes["right"] >= 5
    assert outcomes["refused"] >= 5


def test_the_judge_tells_right_from_wrong():
    model = mutations.Residual().eval()
    x = torch.rand(2, 3, 12, 12)

    def raw(_):
        raise RuntimeError("not a sentence of ours")

    def invents_numbers(x):
        return model(x).nan_to_num()

    assert mutations.judge(model, model, (x,)).outcome == "right"
    assert mutations.judge(model, lambda x: model(x) * 1.01, (x,)).outcome == "different"
    assert mutations.judge(model, invents_numbers, (x * float("nan"),)).outcome == "different"
    assert mutations.judge(model, lambda x: model(x)[:1], (x,)).outcome == "different"
    assert mutations.judge(model, raw, (x,)).outcome == "raw"
    assert mutations.judge(model, lambda x: torch.zeros(2, 5), (x[..., :1, :1, :1],)).outcome != "right"


def test_mutations_are_of_many_kinds():
    x = torch.rand(2, 3, 8, 8)
    kinds, shapes = set(), set()
    for number in range(400):
        what, args = mutations.mutated((x,), random.Random(number))
        kinds.update(what.split("+"))
        shapes.add(mutations.describe(args))
    assert kinds >= {
        "samples",
        "structure",
        "special_values",
        "other_dtype",
        "other_layout",
        "other_kind",
        "other_shape",
    }
    assert len(shapes) > 60
