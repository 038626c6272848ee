"""What models say of themselves, and their calls from named tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import odin
from odin.server.datatypes import DATATYPES
from odin.server.failures import RequestError
from odin.server.messages import Tensor
from odin.server.signature import Signature

FP32, INT64 = DATATYPES["FP32"], DATATYPES["INT64"]


class Two(nn.Module):
    """Two inputs, named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x, y):
        together = self.linear(x) + y
        return {"sum": together, "best": together.argmax(1)}


def two(**names) -> tuple[odin.Chain, Signature]:
    torch.manual_seed(0)
    example = (torch.zeros(2, 3), torch.zeros(2, 4))
    chain = odin.build_chain(Two(), example, name="two")
    return chain, Signature.of(chain, example, chain(*example), **names)


def fp32(name, *shape):
    return Tensor(name, FP32, np.ones(shape, "f4"))


def test_sizes_that_the_request_chooses_are_minus_one():
    _, signature = two()
    assert [(one.name, one.datatype.name, one.shape) for one in signature.inputs] == [
        ("input_0", "FP32", (-1, 3)),
        ("input_1", "FP32", (-1, 4)),
    ]
    assert [(one.name, one.datatype.name, one.shape) for one in signature.outputs] == [
        ("sum", "FP32", (-1, 4)),
        ("best", "INT64", (-1,)),
    ]


def test_named_tensors_in_any_order_make_the_call():
    chain, signature = two(inputs=("x", "y"))
    y, x = np.full((5, 4), 2, "f4"), np.full((5, 3), 3, "f4")
    result = chain(*signature.call([Tensor("y", FP32, y), Tensor("x", FP32, x)]))
    expected = chain(torch.from_numpy(x), torch.from_numpy(y))
    tensors = signature.name_outputs(result)
    assert [(tensor.name, tensor.datatype.name, tensor.array.dtype) for tensor in tensors] == [
        ("sum", "FP32", np.dtype("f4")),
        ("best", "INT64", np.dtype("i8")),
    ]
    assert (tensors[0].array == expected["sum"].numpy()).all()
    assert tensors[1].array.shape == (5,)  # [n] is not answered as [n, 1]


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ([fp32("x", 1, 3)], "input 'y' is missing"),
        ([fp32("x", 1, 3), fp32("y", 1, 4), fp32("z", 1)], "there is no input 'z'; there are 'x', 'y'"),
        ([fp32("x", 1, 3), fp32("x", 1, 3), fp32("y", 1, 4)], "input 'x' is given twice"),
        ([fp32("x", 1, 3, 1), fp32("y", 1, 4)], "input 'x' has shape [1, 3, 1], the model takes [-1, 3]"),
        ([fp32("x", 0, 3), fp32("y", 0, 4)], "input 'x' has shape [0, 3], the model takes [-1, 3]"),
        ([fp32("x", 1, 3), fp32("y", 2, 4)], "inputs have different leading sizes: 'x': 1, 'y': 2"),
        (
            [Tensor("x", INT64, np.ones((1, 3), "i8")), fp32("y", 1, 4)],
            "input 'x' is of datatype INT64, the model takes FP32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors, told):
    _, signature = two(inputs=("x", "y"))
    with pytest.raises(RequestError) as refused:
        signature.call(tensors)
    assert str(refused.value).startswith(told)
    assert refused.value.kind.http_status == 400


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"inputs": ("x",)}, "1 names for inputs (x), but the model has 2"),
        ({"outputs": ("a", "a")}, "names for outputs occur twice: a, a"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, told):
    with pytest.raises(ValueError, match="names for") as refused:
        two(**names)
    assert told in str(refused.value)


class Half(nn.Module):
    """Works in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4, dtype=torch.bfloat16)

    def forward(self, x):
        return self.linear(x)


def test_bfloat16_goes_in_and_out_by_its_bits():
    torch.manual_seed(0)
    example = torch.zeros(1, 3, dtype=torch.bfloat16)
    chain = odin.build_chain(Half(), (example,), name="half")
    signature = Signature.of(chain, (example,), chain(example))
    assert signature.inputs[0].datatype.name == "BF16"
    x = torch.randn(2, 3).bfloat16()
    bits = x.view(torch.uint16).numpy()
    (out,) = signature.name_outputs(chain(*signature.call([Tensor("input", DATATYPES["BF16"], bits)])))
    assert (torch.from_numpy(out.array).view(torch.bfloat16) == chain(x)).all()
