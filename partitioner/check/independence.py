"""Whether a model's samples, the entries along the leading axis, depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odin.partitioner.check.repeat import Run, run
from odin.partitioner.graph.values import as_bits, comparable, spec_of

__all__ = ["deviation", "other_sizes", "tensors_in"]

_ROWS = 9  # samples tried together at least: eight frames that are shifted among each other are common


def other_sizes(function: Callable[..., Any], runs: Sequence[Run], *, rows: int = _ROWS) -> tuple[Run, ...]:
    """Call a model with other leading sizes and see whether each sample's result is its own.

    For an example ``x`` of two samples and other contents ``y`` and ``z`` of the same size::

        samples   y0 y1 z0 x0 x1      each result as in the calls with x, y and z alone: whatever is before and after
        samples   x1                  as in the call with x: whatever was before is missing

    Requests are cut into parts and inputs put together on the strength of this, in any order and number.

    Parameters
    ----------
    function
        A copy of the model.
    runs
        The example's call first, then at least one with other contents.
    rows
        Samples tried together at least.

    Returns
    -------
    tuple of Run
        Calls with one sample more than the example and, if it has several, with one only, with the results that the
        model gave. Empty if it does not take other sizes, if a result has no entry per sample, or if samples depend on
        each other.
    """
    example, *others = runs
    inputs = tensors_in(example.args)
    if not others or any(not t.ndim or t.shape[0] != inputs[0].shape[0] or not t.shape[0] for t in inputs):
        return ()
    size = inputs[0].shape[0]
    if any(not _has_rows(made.results, size) for made in runs):
        return ()
    before = _concatenated(others)
    more = max(1, rows - size)
    repeats = -(-more // (size * len(others)))
    parts = [_rows(_concatenated([before] * repeats), 0, more), example]
    together = _concatenated(parts)
    tried = [together]
    if size > 1:
        tried.append(_rows(example, size - 1, size))
    for expected in tried:
        try:
            results = run(function, expected.args).results
        except Exception:  # this size only
            return ()
        if not _has_rows(results, tensors_in(expected.args)[0].shape[0]) or deviation(results, expected.results):
            return ()
        expected.results[:] = results
    return (_rows(together, more - 1, more + size), *tried[1:])


def _has_rows(results: list[Any], size: int) -> bool:
    """Whether every tensor has an entry per sample; numbers may not change with the size, which is seen later."""
    return all(leaf.ndim > 0 and leaf.shape[0] == size for leaf in results if isinstance(leaf, Tensor))


def _concatenated(runs: Sequence[Run]) -> Run:
    def join(*leaves: Any) -> Any:
        if not isinstance(leaves[0], Tensor):
            return leaves[0]
        bits = [as_bits(leaf.resolve_conj().resolve_neg()) for leaf in leaves]  # few operations know all types
        return torch.cat(bits).view(leaves[0].dtype)

    args = pytree.tree_map(join, runs[0].args, *(made.args for made in runs[1:]))
    return Run(args, [join(*leaves) for leaves in zip(*(made.results for made in runs), strict=True)])


def _rows(made: Run, first: int, last: int) -> Run:
    def take(leaf: Any) -> Any:
        return leaf[first:last].clone() if isinstance(leaf, Tensor) else leaf

    return Run(pytree.tree_map(take, made.args), [take(leaf) for leaf in made.results])


def deviation(results: list[Any], expected: list[Any]) -> str:
    """Say how results differ beyond rounding; an empty text if they do not."""
    if len(results) != len(expected):
        return f"{len(results)} outputs instead of {len(expected)}"
    for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        if isinstance(wanted, float) and isinstance(result, float):
            result, wanted = torch.tensor([result, wanted], dtype=torch.float64)
        if not isinstance(wanted, Tensor):
            if result != wanted:
                return f"output {index} is {result!r} instead of {wanted!r}"
            continue
        if not isinstance(result, Tensor) or result.shape != wanted.shape or result.dtype != wanted.dtype:
            return f"output {index} is {spec_of(result)} instead of {spec_of(wanted)}"
        dtype, result, wanted = wanted.dtype, comparable(result), comparable(wanted)
        if not wanted.is_floating_point():
            if not torch.equal(result, wanted):
                return f"output {index} differs"
            continue
        precise = (torch.float32, torch.float64, torch.complex64, torch.complex128)
        tolerance = 1e-4 if dtype in precise else max(2e-2, torch.finfo(dtype).eps)
        scale = wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 0.0
        if not torch.allclose(result, wanted, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            error = (result - wanted).abs().max().item()
            return f"output {index} differs by {error:.3g}, at a largest magnitude of {scale:.3g}"
    return ""


def tensors_in(args: Any) -> list[Tensor]:
    """Return the tensors inside nested arguments, in order."""
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
