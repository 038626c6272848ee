"""The model as somebody without ODIN would prepare it for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.fx.experimental.optimization import fuse

from odin.models.sources import load_source
from odin_lab.live.server import Array

__all__ = ["eager_model", "folded_model"]


def eager_model(model: str, weights: Path | None) -> Callable[[Array], Array]:
    """The model as it comes, in inference mode."""
    return runner(load_module(model, weights), torch.contiguous_format)


def folded_model(model: str, weights: Path | None) -> Callable[[Array], Array]:
    """Batch norms folded into the convolutions and channels last, torch's own means for both."""
    return runner(fuse(load_module(model, weights)), torch.channels_last)


def load_module(model: str, weights: Path | None) -> torch.nn.Module:
    """The named model in eval mode."""
    module = load_source(model, weights=weights).model
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"{model} is a file or an exported program; the alternatives need a module, such as resnet50")
    return module


def runner(module: torch.nn.Module, memory_format: torch.memory_format) -> Callable[[Array], Array]:
    """Image array -> output array, through the module in that memory format."""
    module = module.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stub wants a device first

    def infer(image: Array) -> Array:
        with torch.inference_mode():
            output = module(torch.from_numpy(image).contiguous(memory_format=memory_format))
            return np.asarray(output.numpy(), dtype=np.float32)

    return infer
