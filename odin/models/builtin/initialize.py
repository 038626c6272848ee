"""Seeded random weights that keep every activation of a deep CNN at a sensible size.

Convolutions and linear layers draw uniformly with the variance of He et al. 2015 (arXiv:1502.01852), 2 / fan-in, so
that a ReLU stack neither grows nor fades. A residual sum would still double its variance with every block (fifty times
in ResNet-152, past what float16 holds), so the norm that closes each of L residual branches is scaled by 1 / sqrt(L)
(compare De and Smith 2020, arXiv:2002.10444), or the branch's layer scale is. Batch norms get statistics and affine
values that are not 0 and 1: folding them is then a real computation, as with trained weights. Where something else than
a ReLU comes before a convolution, the model says by which factor its weights must be larger.

Uniform draws are bit-equal on every machine; normal draws depend on the vector width of torch's kernels.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["initialize"]


def initialize(model: nn.Module, *, seed: int = 0) -> None:
    """Fill all convolutions, linear layers, norms and layer scales of ``model`` in place, alike for the same seed.

    Parameters
    ----------
    model
        A module with storage (not on the meta device); blocks with a residual branch name its last norm by an
        attribute ``closing_norm`` or have a parameter ``layer_scale``; a convolution may have an attribute ``gain``.
    seed
        Seed of the private generator; torch's global one stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    closing_norms = {getattr(module, "closing_norm", None) for module in model.modules()} - {None}
    layer_scales = [tensor for name, tensor in model.named_parameters() if name.endswith("layer_scale")]
    closing_scale = 1.0 / math.sqrt(max(1, len(closing_norms) + len(layer_scales)))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                bound = getattr(module, "gain", 1.0) * math.sqrt(6.0 / fan_in)
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                scale = closing_scale if module in closing_norms else 1.0
                module.reset_running_stats()
                assert module.running_mean is not None  # tracked by default
                assert module.running_var is not None
                module.running_mean.uniform_(-0.1, 0.1, generator=generator)
                module.running_var.uniform_(0.8, 1.2, generator=generator)
                module.weight.uniform_(0.8 * scale, 1.2 * scale, generator=generator)
                module.bias.uniform_(-0.1 * scale, 0.1 * scale, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.8, 1.2, generator=generator)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
        for layer_scale in layer_scales:
            layer_scale.uniform_(0.8 * closing_scale, 1.2 * closing_scale, generator=generator)
