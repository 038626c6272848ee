"""The original model as the judge of the prepared one: run both on the example, take what agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from partitioner.capture import (
    Captured,
    Slot,
    TraceError,
    capture_export,
    capture_exported_program,
    capture_fx,
    first_line,
    private_copy,
    untraceable,
)
from partitioner.liveness import Liveness
from partitioner.observe import Observation, observe
from partitioner.prepare import layout_of, make_outputs_dense, prepare
from partitioner.values import spec_of

__all__ = ["Prepared", "Subject", "deviation", "prepare_and_check", "tensors_in"]

# Static estimate of a step's time: it needs the larger of its arithmetic and its memory traffic. Only ratios matter,
# and cuts must not depend on the machine or its load, so these are one common CPU core's, not measured ones.
_FLOPS_PER_S = 100e9
_BYTES_PER_S = 10e9


class Subject:
    """The original model, run for comparison on the example and on the example at another leading size."""

    def __init__(self, model: nn.Module | torch.export.ExportedProgram, example_args: tuple[Any, ...]) -> None:
        self._function: Callable[..., Any]
        self.captures: tuple[Callable[[], Captured], ...]
        if isinstance(model, torch.export.ExportedProgram):
            exported = model
            self._function = exported.module()
            self.captures = (lambda: capture_exported_program(exported, self.args),)
        elif isinstance(model, nn.Module):
            module = private_copy(model)
            self._function = module
            # each capture its own copy: tracing may leave traces in the module's attributes
            self.captures = (
                lambda: capture_fx(private_copy(model), self.args),
                lambda: capture_export(private_copy(model), self.args),
            )
        else:
            raise ValueError(f"expected a torch.nn.Module or an ExportedProgram, got a {type(model).__name__}")
        self.args = _copied(example_args)
        try:
            self.expected = pytree.tree_leaves(self._function(*_copied(self.args)))
        except Exception as error:
            shapes = [tuple(t.shape) for t in tensors_in(self.args)]
            raise ValueError(
                f"the model fails on its example arguments (tensor shapes {shapes}): {type(error).__name__}: {error}"
            ) from error
        self.other_args: tuple[Any, ...] | None = None
        self.other_expected: list[Any] = []
        self._try_other_batch()

    @property
    def inputs(self) -> list[Tensor]:
        """The example's tensors, in order."""
        return tensors_in(self.args)

    def _try_other_batch(self) -> None:
        """Run with another leading size, if it is one of samples that do not depend on each other."""
        inputs = self.inputs
        if any(not t.ndim or t.shape[0] != inputs[0].shape[0] or not t.shape[0] for t in inputs):
            return
        size = inputs[0].shape[0]

        def enlarge(x: Any) -> Any:
            # one more sample, of other content: with batch statistics the first ones would change
            return torch.cat([x, x.flip(tuple(range(x.ndim)))[:1]]) if isinstance(x, Tensor) else x

        other = pytree.tree_map(enlarge, self.args)
        try:
            results = pytree.tree_leaves(self._function(*_copied(other)))
        except Exception:
            return
        same = [result[:size] if isinstance(result, Tensor) and result.ndim else result for result in results]
        scales = all(not isinstance(r, Tensor) or (r.ndim and r.shape[0] == size + 1) for r in results)
        numbers_may_differ = [
            wanted if isinstance(wanted, Tensor) else result
            for wanted, result in zip(self.expected, same, strict=False)
        ]
        if scales and not deviation(same, numbers_may_differ):
            self.other_args, self.other_expected = other, results


@dataclass(frozen=True)
class Prepared:
    """A graph that computes what the model does, and what its example run showed per step."""

    captured: Captured
    observation: Observation
    liveness: Liveness
    costs: list[float]
    flops: list[int]
    moved_nbytes: list[int]
    channels_last: bool
    dynamic_batch: bool


def prepare_and_check(subject: Subject) -> Prepared:
    """Capture and prepare in the most optimised way whose results match the original's."""
    failures: list[str] = []
    for capture in subject.captures:
        for fold_batch_norm, channels_last in ((True, True), (True, False), (False, False)):
            try:
                captured = capture()
            except TraceError as error:
                failures.append(str(error))
                break
            try:
                prepare(captured, subject.inputs, fold_batch_norm=fold_batch_norm, channels_last=channels_last)
                result = _check(captured, subject, channels_last)
            except TraceError:
                raise
            except Exception as error:
                # tracing gave a graph that does not run, or one that cannot run in this layout
                failures.append(f"the graph of {captured.how} fails: {first_line(error)}")
                continue
            if isinstance(result, Prepared):
                return result
            failures.append(f"the graph of {captured.how} deviates from the model: {result}")
    raise untraceable(list(dict.fromkeys(failures)))


def _check(captured: Captured, subject: Subject, channels_last: bool) -> Prepared | str:
    """Run the prepared graph on the example and at the other leading size; a text says how results deviate."""

    def arrange(tensors: list[Tensor]) -> list[Tensor]:
        return [layout_of(t) if channels_last else t.contiguous() for t in tensors]

    observations = [observe(captured, arrange(_copied(subject.inputs)), count_flops=True)]
    if observations[0].writes & observations[0].state_storages.keys():
        return "it writes its own constants"
    difference = deviation(_results(captured, observations[0].outputs), subject.expected)
    if difference:
        return difference
    if subject.other_args is not None:
        try:
            other = observe(captured, arrange(tensors_in(_copied(subject.other_args))))
            if not deviation(_results(captured, other.outputs), subject.other_expected):
                observations.append(other)
        except Exception:  # a constant of the example's size in the graph: that size only
            pass
    if make_outputs_dense(captured, observations):
        return _check(captured, subject, channels_last)
    seen = [observations[0].seen[step] for step in captured.steps]
    return Prepared(
        captured=captured,
        observation=observations[0],
        liveness=Liveness(captured, observations),
        costs=[max(entry.flops / _FLOPS_PER_S, entry.moved_nbytes / _BYTES_PER_S) for entry in seen],
        flops=[entry.flops for entry in seen],
        moved_nbytes=[entry.moved_nbytes for entry in seen],
        channels_last=channels_last,
        dynamic_batch=len(observations) > 1,
    )


def _results(captured: Captured, outputs: list[Any]) -> list[Any]:
    leaves = pytree.tree_leaves(captured.outcome)
    # flattened again: a torch.Size is one output of ours and several leaves of the model's
    return pytree.tree_leaves([outputs[leaf.index] if isinstance(leaf, Slot) else leaf for leaf in leaves])


def deviation(results: list[Any], expected: list[Any]) -> str:
    """Say how results differ beyond rounding; an empty text if they do not."""
    if len(results) != len(expected):
        return f"{len(results)} outputs instead of {len(expected)}"
    for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        if not isinstance(wanted, Tensor):
            if result != wanted:
                return f"output {index} is {result!r} instead of {wanted!r}"
            continue
        if not isinstance(result, Tensor) or result.shape != wanted.shape or result.dtype != wanted.dtype:
            return f"output {index} is {spec_of(result)} instead of {spec_of(wanted)}"
        if not wanted.is_floating_point():
            if not torch.equal(result, wanted):
                return f"output {index} differs"
            continue
        tolerance = 1e-4 if wanted.dtype in (torch.float32, torch.float64) else 2e-2
        scale = wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 0.0
        if not torch.allclose(result, wanted, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            error = (result - wanted).abs().max().item()
            return f"output {index} differs by {error:.3g}, at a largest magnitude of {scale:.3g}"
    return ""


def tensors_in(args: Any) -> list[Tensor]:
    """Return the tensors inside nested arguments, in order."""
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


def _copied(args: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, args)
