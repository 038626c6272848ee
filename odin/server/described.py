"""A model's inputs and outputs as Triton's configuration has them, and how many samples a request may have."""

from __future__ import annotations

import math
from typing import NamedTuple

from odin.server.config import ModelConfig
from odin.server.messages import ModelMetadata, TensorMetadata

__all__ = ["Described", "describe_batches"]

_MOST_SAMPLES = 2**31 - 1  # of the field's type


class Described(NamedTuple):
    """By Triton's convention a model that takes any number of samples has a largest one, and dims without that axis.

    Attributes
    ----------
    max_batch_size
        Most samples of a request; 0 if the leading axis is one as any other.
    free
        Whether it is above 0.
    """

    max_batch_size: int

    @property
    def free(self) -> bool:
        """See the class."""
        return self.max_batch_size > 0

    def dims(self, tensor: TensorMetadata) -> tuple[int, ...]:
        """Sizes of a tensor's axes; -1 for any."""
        return tensor.shape[1:] if self.free else tensor.shape


def describe_batches(metadata: ModelMetadata, config: ModelConfig, *, request_nbytes: int) -> Described:
    """As many samples as fit into a message of ``request_nbytes``, and into the queue of micro-batches."""
    tensors = metadata.inputs + metadata.outputs
    if not metadata.inputs or any(tensor.shape[:1] != (-1,) for tensor in tensors):
        return Described(0)
    sample_nbytes = sum(map(_sample_nbytes, metadata.inputs))
    fit = min(request_nbytes // max(1, sample_nbytes), max(1, config.max_waiting) * config.batch, _MOST_SAMPLES)
    return Described(max(1, fit))


def _sample_nbytes(tensor: TensorMetadata) -> int:
    return math.prod(size for size in tensor.shape if size > 0) * tensor.datatype.held_as.itemsize
