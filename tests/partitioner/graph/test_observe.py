"""One example run tells what each value is, whose memory it shares and what it costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from example_models import image
from torch import nn

from odin.partitioner.graph.capture import capture_fx
from odin.partitioner.graph.observe import is_dense, observe


def run(model: nn.Module, *inputs: torch.Tensor, count_flops: bool = False):
    captured = capture_fx(model.eval(), inputs)
    observation = observe(captured, inputs, count_flops=count_flops)
    return {node.name: observation.seen[node] for node in observation.seen}, observation


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(2, 3, 4, 5), True),
        (torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
        (torch.zeros(2, 3).t(), True),
        (torch.zeros(2, 4)[:, :2], False),
        (torch.zeros(1, 4)[:, :2], True),
        (torch.zeros(3, 1).expand(3, 2), False),
        (torch.zeros(()), True),
        (torch.zeros(0, 3), True),
    ],
)
def test_is_dense(tensor, dense):
    assert is_dense(tensor) is dense


def test_flops_and_bytes_of_a_convolution():
    seen, _ = run(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), image(size=8), count_flops=True)
    step = seen["_0"]
    assert step.flops == 2 * 4 * 6 * 6 * 3 * 9
    assert step.moved_nbytes == 4 * (3 * 64 + 4 * 3 * 9 + 4 * 36)
    assert step.spec.shape == (1, 4, 6, 6)


def test_in_place_writes_and_identities():
    class Model(nn.Module):
        def forward(self, x):
            x = F.dropout(x, 0.5, False)
            y = x + 1
            z = y.relu_()
            return z.view(-1)

    seen, observation = run(Model(), image())
    assert seen["dropout"].identity_of.name == "input_0"
    assert seen["dropout"].moved_nbytes == 0
    assert seen["relu_"].writes == seen["add"].storages
    assert seen["relu_"].identity_of is None
    assert seen["view"].storages == seen["add"].storages
    assert seen["view"].moved_nbytes == 0
    assert observation.writes == seen["add"].storages


def test_a_write_through_a_view_is_a_write_of_the_base():
    class Model(nn.Module):
        def forward(self, x):
            base = x * 2
            base[:, 0].add_(1)
            return base

    seen, _ = run(Model(), image())
    assert seen["add_"].writes == seen["mul"].storages


def test_lists_cannot_cross_and_sizes_can():
    class Model(nn.Module):
        def forward(self, x):
            left, right = x.chunk(2, dim=2)
            return left.reshape(x.shape[0], -1) + right.reshape(x.shape[0], -1)

    seen, _ = run(Model(), image())
    assert seen["chunk"].spec is None
    assert {seen[name].spec.kind for name in seen if name.startswith("getattr")} == {"size"}
    assert not seen["getitem"].dense
