"""Compares the prepared model with the original: both are run, and the most optimised form that agrees is used."""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from odin.partitioner.cache.chain_cache import ChainCache
from odin.partitioner.cache.known import Known
from odin.partitioner.check.executed import Executed
from odin.partitioner.check.independence import deviation, other_sizes, tensors_in
from odin.partitioner.check.reachable import contents
from odin.partitioner.check.repeat import FirstCall, Run, check_repeatable, first_call, other_contents, own_copy, run
from odin.partitioner.graph.capture import (
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
from odin.partitioner.graph.containers import known_containers
from odin.partitioner.graph.liveness import Liveness
from odin.partitioner.graph.model_copy import refusal
from odin.partitioner.graph.observe import Observation, observe
from odin.partitioner.graph.prepare import layout_of, make_outputs_dense, prepare
from odin.partitioner.graph.values import obstacle, plain
from odin.partitioner.graph.watching import Draws

__all__ = ["Prepared", "Subject", "deviation", "prepare_and_check", "tensors_in"]

_logger = logging.getLogger(__name__)

# Static estimate of a step's time: it needs the larger of its arithmetic and its memory traffic. Only ratios matter,
# and cuts must not depend on the machine or its load, so these are one common CPU core's, not measured ones.
_FLOPS_PER_S = 100e9
_BYTES_PER_S = 10e9

_KEPT = "the graph kept on disk"
_AFTER_A_CALL = ", after a first call"


class Subject:
    """The original model, run for comparison on the example and on the example at other leading sizes.

    Attributes
    ----------
    args
        The example's arguments.
    expected
        The leaves of what the model returns for them.
    other_values
        A call with other values of the same size, if the model takes them: it shows what was frozen of the example's.
    other_sizes
        Calls with other leading sizes, if any size will do: samples do not depend on each other, whichever are before
        or after them.

    Parameters
    ----------
    cache
        Where what is found out is kept for the next start, and looked up; None for not at all.
    """

    def __init__(
        self,
        model: nn.Module | torch.export.ExportedProgram,
        example_args: tuple[Any, ...],
        *,
        cache: ChainCache | None = None,
    ) -> None:
        self.args = own_copy(plain_tensors(example_args))
        self._fresh: Callable[[], Callable[..., Any]]
        self._captures: list[tuple[str, Callable[[], Captured]]]
        if isinstance(model, torch.export.ExportedProgram):
            exported = model
            self._fresh = lambda: _with_own_buffers(exported.module())
            self._captures = [("the exported program", lambda: capture_exported_program(exported, self.args))]
        elif isinstance(model, nn.Module):
            if problem := refusal(model):
                raise TraceError(problem)
            module = model
            self._fresh = lambda: private_copy(module)
            # each capture its own copy: tracing may leave traces in the module's attributes
            self._captures = [
                ("torch.fx", lambda: capture_fx(private_copy(module), self.args)),
                ("torch.export", lambda: capture_export(private_copy(module), self.args, any_leading_size=True)),
                ("torch.export at the example's leading size", lambda: capture_export(private_copy(module), self.args)),
            ]
        else:
            raise ValueError(f"expected a torch.nn.Module or an ExportedProgram, got a {type(model).__name__}")
        self._captured: dict[str, Captured | TraceError] = {}
        self._outcome: pytree.TreeSpec
        executed = Executed() if cache is not None and isinstance(model, nn.Module) else None
        first = first_call(self._fresh, self.args, watched=functools.partial(self._watched, executed))
        self.expected = first.made.results
        self.other_values: tuple[Run, ...] = ()
        self.other_sizes: tuple[Run, ...] = ()
        self._known: Known | None = None
        if executed is not None and cache is not None and isinstance(model, nn.Module):
            self._known = Known(private_copy(model), self.args, executed, self._outcome, cache=cache)
        if self._known is None or not self._check_what_is_known(self._known, first):
            self._check(first)

    def _watched(self, executed: Executed | None, function: Callable[..., Any]) -> Callable[..., Any]:
        draws = Draws(function)

        def call(*args: Any) -> Any:
            with draws, executed or contextlib.nullcontext():
                results = function(*args)
            _check_results(results, draws)
            self._outcome = pytree.tree_structure(results)
            return results

        return call

    def _check(self, first: FirstCall) -> None:
        """See whether the model keeps state between calls, and whether its samples depend on each other."""
        runs = check_repeatable(self._fresh, first)
        self.other_values = runs[1:2]
        self.other_sizes = other_sizes(self._fresh(), runs)

    def _check_what_is_known(self, known: Known, first: FirstCall) -> bool:
        """Call the model only as often as the comparison with its graph needs; whether an earlier start knew it."""
        if not known.stateless:
            return False
        function = self._fresh()
        for other in other_contents(self.args) if known.other_values else ():
            with contextlib.suppress(Exception):  # it need not take them
                self.other_values = (run(function, other),)
                break
        if known.other_sizes:
            self.other_sizes = other_sizes(function, (first.made, *self.other_values), rows=1)
        if bool(self.other_values) == known.other_values and bool(self.other_sizes) == known.other_sizes:
            return True
        known.forget("it does not take the values and sizes that it took")
        self.other_values = self.other_sizes = ()
        return False

    @property
    def inputs(self) -> list[Tensor]:
        """The example's tensors, in order."""
        return tensors_in(self.args)

    def captures(self) -> Iterator[tuple[str, Callable[[], Captured]]]:
        """Ways to capture the model, the quickest first; each works once, and gives a copy of its own at each call."""
        known = self._known
        for how, capture in self._captures:
            if how == "torch.export" and known is not None and known.graph is not None:
                yield _KEPT, functools.partial(self._capture, _KEPT, known.graph.copy)
                # asked for another one: it was not the model's
                known.forget("its graph computes something else")
                self._check(first_call(self._fresh, self.args))
            yield how, functools.partial(self._capture, how, capture)
        called = self._fresh()
        if not isinstance(called, nn.Module) or isinstance(called, fx.GraphModule):
            return
        before = contents(called)
        run(called, self.args)
        if contents(called).changed(before):
            # What it builds in its first call (a grid of positions in a buffer) is there now.
            for how, any_size in (("", True), (" at the example's leading size", False)):
                how = f"torch.export{how}{_AFTER_A_CALL}"
                capture = functools.partial(capture_export, private_copy(called), self.args, any_leading_size=any_size)
                yield how, functools.partial(self._capture, how, capture)

    def keep(self, how: str) -> None:
        """Keep what was found out for the next start; ``how`` is the capture that agreed with the model."""
        if self._known is None or (how == _KEPT and self._known.stateless):
            return
        captured = self._captured[how]
        assert isinstance(captured, Captured)
        self._known.keep(
            captured if captured.how == "torch.export" else None,
            other_values=bool(self.other_values),
            other_sizes=bool(self.other_sizes),
            any_example=not how.endswith(_AFTER_A_CALL),
        )

    def _capture(self, how: str, capture: Callable[[], Captured]) -> Captured:
        if how not in self._captured:
            level = logging.INFO if how.startswith("torch.export") else logging.DEBUG  # minutes for large models
            _logger.log(level, "capturing the model with %s ...", how)
            try:
                self._captured[how] = capture()
            except TraceError as error:
                self._captured[how] = error
        made = self._captured[how]
        if isinstance(made, TraceError):
            raise made
        return made.copy()


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
    for how, capture in subject.captures():
        for fold_batch_norm, channels_last in ((True, True), (True, False), (False, False)):
            try:
                captured = capture()
            except TraceError as error:
                failures.append(str(error))
                break
            try:
                prepare(captured, subject.inputs, fold_batch_norm=fold_batch_norm, channels_last=channels_last)
                result = _check(captured, subject, channels_last)
            except TraceError as error:
                if how == _KEPT:  # only graphs that could be prepared are kept
                    failures.append(str(error))
                    break
                raise
            except Exception as error:
                # tracing gave a graph that does not run, or one that cannot run in this layout
                failures.append(f"the graph of {captured.how} fails: {first_line(error)}")
                continue
            if isinstance(result, Prepared):
                subject.keep(how)
                return result
            failures.append(f"the graph of {captured.how} deviates from the model: {result}")
    raise untraceable(list(dict.fromkeys(failures)))


def _check(captured: Captured, subject: Subject, channels_last: bool) -> Prepared | str:
    """Run the prepared graph on the example and at the other leading size; a text says how results deviate."""

    def arrange(tensors: list[Tensor]) -> list[Tensor]:
        return [layout_of(t) if channels_last else t.contiguous() for t in tensors]

    observations = [observe(captured, arrange(own_copy(subject.inputs)), count_flops=True)]
    if observations[0].writes & observations[0].state_storages.keys():
        return "it writes its own constants"
    difference = deviation(_results(captured, observations[0].outputs), subject.expected)
    if difference:
        return difference
    for other in subject.other_values:
        varied = observe(captured, arrange(tensors_in(own_copy(other.args))))
        difference = deviation(_results(captured, varied.outputs), other.results)
        if difference:
            return f"on other values than the example's {difference}; something of an earlier call was kept"
    for other in () if captured.one_size else subject.other_sizes:
        try:
            seen_there = observe(captured, arrange(tensors_in(own_copy(other.args))))
            if deviation(_results(captured, seen_there.outputs), other.results):
                break
            observations.append(seen_there)
        except Exception:  # a constant of the example's size in the graph: that size only
            break
    any_size = bool(subject.other_sizes) and len(observations) == 1 + len(subject.other_sizes)
    if not any_size:
        del observations[1:]
    for index, node in enumerate(captured.outputs):
        if node.op != "get_attr" and observations[0].seen[node].sized_by_data:
            inside = node.meta.get("module_path")
            raise TraceError(
                f"the size of output {index} ({node.name}{f' in {inside}' if inside else ''}) depends on the data (a "
                "mask as index, nonzero, unique, non-maximum suppression, ...); stages exchange tensors of sizes that "
                "are known beforehand. Return a fixed number (torch.topk), or the mask beside the values, and select "
                "from what the pipeline answers"
            )
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
        dynamic_batch=any_size,
    )


def _results(captured: Captured, outputs: list[Any]) -> list[Any]:
    leaves = pytree.tree_leaves(captured.outcome)
    # flattened again: a torch.Size is one output of ours and several leaves of the model's
    return pytree.tree_leaves([outputs[leaf.index] if isinstance(leaf, Slot) else leaf for leaf in leaves])


def _with_own_buffers(module: nn.Module) -> nn.Module:
    """Give a module copies of what it may write; an exported program's modules share theirs."""
    for part in module.modules():
        for held in (part._buffers, vars(part)):
            held.update({name: value.clone() for name, value in held.items() if isinstance(value, Tensor)})
    return module


def plain_tensors(args: Any) -> Any:
    """Return arguments with ordinary tensors, or raise ``ValueError`` naming the one that stages cannot exchange."""
    for index, tensor in enumerate(tensors_in(args)):
        if tensor.device.type == "meta":
            raise ValueError(f"input {index} is on the meta device, without values: give an example with some")
    count = itertools.count()
    return pytree.tree_map(lambda leaf: plain(leaf, f"input {next(count)}") if isinstance(leaf, Tensor) else leaf, args)


def _check_results(results: Any, draws: Draws) -> None:
    """Raise :class:`TraceError` if results are random, or of a kind that a chain cannot return."""
    if draws.found:
        raise TraceError(
            f"the model draws random numbers while it runs ({draws.found}), so its results vary from call to "
            "call. Remedies: switch that off for inference (F.dropout(x, p, training=self.training)); or draw "
            "outside and pass the numbers as an input; or, if they are to be the same in every call, keep them as "
            "a buffer"
        )
    known_containers(results)
    for leaf in pytree.tree_leaves(results):
        _check_known(leaf)


_FIXED = (bool, int, float, complex, str, bytes, NoneType, torch.dtype, torch.device, torch.layout, enum.Enum)


def _check_known(leaf: Any) -> None:
    """Raise :class:`TraceError` if the chain cannot return this leaf of what the original returned."""
    if isinstance(leaf, Tensor):
        if problem := obstacle(leaf):
            raise TraceError(f"the model returns a tensor that stages cannot exchange: it is {problem}")
    elif not isinstance(leaf, _FIXED):
        raise TraceError(
            f"the model returns a {type(leaf).__name__}; return tensors, numbers, or tuples, lists, dicts and "
            "dataclasses of them"
        )
