"""Layers as CUDA graphs: captured once on values of some form, then replayed with one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

__all__ = ["GraphMemory", "LayerGraph", "Rehearsal"]

Values = tuple[torch.Tensor, ...]

_MOST_FORMS = 4
"""Forms of values for which a layer is captured: each keeps memory for its values."""

_LARGEST_NBYTES = 64 * 2**20
"""Values beyond this take a GPU longer than launches do."""


class TensorForm(NamedTuple):
    """All of a tensor but its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def empty(self) -> torch.Tensor:
        """A tensor of this form on the current device, its values undefined."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="cuda")


Form = tuple[TensorForm, ...]
"""Form of the values at a cut."""


def form_of(values: Values) -> Form:
    """All of the values but themselves."""
    return tuple(TensorForm(tuple(value.shape), value.stride(), value.dtype) for value in values)


class _Seen(NamedTuple):
    """What the first run on values of some form has shown; libraries load in it, which no capture may do."""

    outputs: Form
    passed_on: tuple[int | None, ...]
    """For each output the input that it is, or None."""


class _FixedValues(tuple[torch.Tensor, ...]):
    """Values at addresses that never change."""

    __slots__ = ()


class GraphMemory:
    """Memory that graphs share for what each needs only while it runs; on the current stream's device.

    PyTorch gives such memory up with the last graph in it, and refuses it from then on: so one graph stays.

    Attributes
    ----------
    failed
        Why a capture went wrong; empty if none did. PyTorch holds the capture for unfinished then, and memory that is
        freed back, so that there should be no further one.
    """

    def __init__(self) -> None:
        self.handle: Any = torch.cuda.graph_pool_handle()
        self.failed = ""
        self._stays = torch.cuda.CUDAGraph()
        value = torch.zeros(1, device="cuda")
        self._stays.capture_begin(pool=self.handle, capture_error_mode="thread_local")
        value += 1
        self._stays.capture_end()


class LayerGraph:
    """A layer as a CUDA graph from fixed inputs to fixed outputs, both outside of the graphs' shared memory.

    What lies in that memory is needed only while one graph runs, so that all layers may use the same, in any order.
    """

    def __init__(
        self, function: Callable[[Values], Values], inputs: Values, seen: _Seen, *, memory: GraphMemory
    ) -> None:
        self.inputs = inputs
        self.outputs: Values = _FixedValues(
            form.empty() if source is None else inputs[source]
            for form, source in zip(seen.outputs, seen.passed_on, strict=True)
        )
        self._memory = memory
        self._graph = torch.cuda.CUDAGraph()
        # Other threads allocate and copy meanwhile: only this one must not.
        self._graph.capture_begin(pool=memory.handle, capture_error_mode="thread_local")
        try:
            for fixed, value, source in zip(self.outputs, function(inputs), seen.passed_on, strict=True):
                if source is None:
                    fixed.copy_(value)
        finally:
            self._graph.capture_end()

    def replay(self, values: Values) -> Values:
        """Run on the current stream; the outputs hold until the next replay."""
        if values is not self.inputs:
            for fixed, value in zip(self.inputs, values, strict=True):
                if fixed is not value:
                    fixed.copy_(value)
        self._graph.replay()
        return self.outputs


class Rehearsal:
    """What is known of one layer: the forms of values that it ran on, and its graphs.

    A layer is captured only after a run that showed that it never waits for the GPU (:meth:`examine`): a capture that
    fails does harm.

    Attributes
    ----------
    refused
        Why the layer is not captured; empty if it can be.
    """

    def __init__(self) -> None:
        self._seen: dict[Form, _Seen] = {}
        self._captured: dict[Form, LayerGraph] = {}
        self._latest: LayerGraph | None = None
        self._examined = False
        self.refused = ""

    def find(self, values: Values) -> LayerGraph | None:
        """The graph for values of this form; None if there is none."""
        if self._latest is not None and values is self._latest.inputs:
            return self._latest
        if self._captured:
            self._latest = self._captured.get(form_of(values))
            return self._latest
        return None

    def run(self, function: Callable[[Values], Values], values: Values) -> Values:
        """Run without a graph, and note what comes out."""
        outputs = function(values)
        if not self.refused and len(self._seen) < _MOST_FORMS and (form := form_of(values)) not in self._seen:
            sources = tuple(
                next((number for number, value in enumerate(values) if value is output), None) for output in outputs
            )
            self._seen[form] = _Seen(form_of(outputs), sources)
        return outputs

    def examine(self, function: Callable[[Values], Values], values: Values) -> Values:
        """Run as :meth:`run`, the second time so that waiting for the GPU is found out; no other thread uses it."""
        if self._examined or self.refused or form_of(values) not in self._seen:
            return self.run(function, values)
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():  # PyTorch calls it a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            outputs = self.run(function, values)
            self._examined = True
        except RuntimeError as error:
            self.refused = str(error) or type(error).__name__
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return self.run(function, values) if self.refused else outputs

    def is_due(self, values: Values) -> bool:
        """Whether the layer can be captured on this form, and that pays."""
        if self.refused or not self._examined:
            return False
        form = form_of(values)
        return form in self._seen and _pays(form, self._seen[form])

    def capture(
        self, function: Callable[[Values], Values], values: Values, *, memory: GraphMemory
    ) -> LayerGraph | None:
        """Capture the layer on values of a form that is due; None if it cannot be captured."""
        form = form_of(values)
        # Fixed inputs: those that the layer before fixed already, else a copy.
        fixed = values if isinstance(values, _FixedValues) else _FixedValues(value.clone() for value in values)
        try:
            captured = LayerGraph(function, fixed, self._seen[form], memory=memory)
        except RuntimeError as error:
            self.refused = memory.failed = str(error) or type(error).__name__
            return None
        self._captured[form] = captured
        return captured

    def capture_known(self, function: Callable[[Values], Values], *, memory: GraphMemory) -> None:
        """Capture the layer on every form that it has run on."""
        for form in list(self._seen):
            if memory.failed or form in self._captured:
                continue
            values = _FixedValues(tensor.empty().zero_() for tensor in form)
            if self.is_due(values):
                function(values)
                self.capture(function, values, memory=memory)

    def release(self) -> list[LayerGraph]:
        """Forget the graphs, not the forms; returns them, for they may be running."""
        captured, self._captured, self._latest = list(self._captured.values()), {}, None
        return captured


def _pays(form: Form, seen: _Seen) -> bool:
    return sum(tensor.nbytes for tensor in (*form, *seen.outputs)) <= _LARGEST_NBYTES
