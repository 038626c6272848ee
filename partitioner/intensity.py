"""Arithmetic intensity: how much a layer computes for each byte that it touches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.chain import Chain

__all__ = ["arithmetic_intensity"]


def arithmetic_intensity(chain: Chain) -> NDArray[np.float64]:
    """Floating-point operations of each layer per byte of its weights, inputs and outputs, shape (layers,).

    The x-axis of the roofline model (Williams, Waterman and Patterson, CACM 2009): layers with a low one wait for
    memory rather than for arithmetic.
    """
    read_nbytes = [sum(spec.nbytes for spec in chain.inputs), *(layer.output_nbytes for layer in chain.layers[:-1])]
    return np.array(
        [
            layer.flops / max(1, layer.parameter_nbytes + read + layer.output_nbytes)
            for layer, read in zip(chain.layers, read_nbytes, strict=True)
        ]
    )
