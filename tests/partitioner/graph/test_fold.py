"""Batch norm merged into weights, against batch norm itself, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere

from odin.partitioner.graph.fold import folded


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("function", "weight_shape", "input_shape", "channels", "groups", "transposed"),
    [
        (F.conv2d, (6, 2, 3, 3), (1, 4, 8, 8), 6, 2, False),
        (F.conv_transpose2d, (4, 3, 3, 3), (1, 4, 8, 8), 6, 2, True),
        (F.conv_transpose1d, (4, 3, 3), (1, 4, 8), 3, 1, True),
        (F.conv3d, (6, 4, 3, 3, 3), (1, 4, 5, 5, 5), 6, 1, False),
    ],
)
def test_folded(function, weight_shape, input_shape, channels, groups, transposed, affine, biased):
    random = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    weight, x, mean, var = tensor(*weight_shape), tensor(*input_shape), tensor(channels), tensor(channels).abs() + 0.1
    scale, shift = (tensor(channels), tensor(channels)) if affine else (None, None)
    bias = tensor(channels) if biased else None
    expected = F.batch_norm(function(x, weight, bias, groups=groups), mean, var, scale, shift, eps=1e-3)
    new_weight, new_bias = folded(weight, mean, var, scale, shift, bias, eps=1e-3, groups=groups, transposed=transposed)
    torch.testing.assert_close(function(x, new_weight, new_bias, groups=groups), expected, rtol=1e-12, atol=1e-12)


def test_the_weights_dtype_is_kept():
    one = torch.ones(2)
    weight, bias = folded(torch.ones(2, 1, 1, 1).half(), one, one, None, None, None, eps=0.0)
    assert weight.dtype == bias.dtype == torch.float16
    assert bias.tolist() == [-1.0, -1.0]
