"""Memory layout of a tensor, from its shape and strides alone."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["contiguous_strides", "is_dense"]


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of a shape, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements fill a contiguous extent of memory, each place once, in any order of dimensions.

    Examples
    --------
    >>> is_dense((2, 3), (1, 2)), is_dense((2, 3), (6, 2)), is_dense((2, 3), (0, 1))
    (True, False, False)
    """
    step = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != step:
            return 0 in shape
        step *= size
    return True
