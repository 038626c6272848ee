"""A CNN as a chain of layers: captured, prepared for inference, cut, and checked against the original."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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
from partitioner.cuts import choose_cuts
from partitioner.liveness import Liveness
from partitioner.names import layer_names
from partitioner.observe import observe
from partitioner.prepare import layout_of, make_outputs_dense, prepare
from partitioner.program import LayerProgram, Program, generate, module_path
from partitioner.values import ValueSpec, decoder, dtype_name, spec_of

__all__ = ["Chain", "Layer", "LayerProgram", "Program", "TraceError", "ValueSpec", "build_chain"]

# Static estimate of a step's time: it needs the larger of its arithmetic and its memory traffic. Only ratios matter,
# and cuts must not depend on the machine or its load, so these are one common CPU core's, not measured ones.
_FLOPS_PER_S = 100e9
_BYTES_PER_S = 10e9


@dataclass(frozen=True)
class Layer:
    """What is known about a layer without running it; sizes are those of the example input.

    Attributes
    ----------
    index
        Position in the chain, 0-based.
    name
        Unique in the chain; after the modules inside: ``"conv1"``, ``"layer3.2"``, ``"features.10"``.
    flops
        Floating point operations (a multiply-add counts two), as ``torch.utils.flop_counter`` counts them.
    parameter_nbytes
        Bytes of the weights and buffers that the layer reads.
    output
        What crosses the cut after this layer; for the last layer the model's outputs.
    """

    index: int
    name: str
    flops: int
    parameter_nbytes: int
    output: tuple[ValueSpec, ...]

    @property
    def output_nbytes(self) -> int:
        """Bytes that cross the cut after this layer."""
        return sum(value.nbytes for value in self.output)


class Chain:
    """A prepared model as an ordered list of layers; built by :func:`build_chain`.

    Attributes
    ----------
    name
        The model's name.
    layers
        Metadata per layer.
    program
        The layers' code, picklable and without weights.
    state
        Prepared weights by name, which the layers read and never write. Weights that preparation did not change are
        the user's model's own memory. Copies must keep the strides.
    inputs
        The example's input tensors, in order.
    dynamic_batch
        Whether inputs of another leading size than the example's work (tried, and compared with the original).
    fingerprint
        Hexadecimal digest of the structure, shapes, dtypes and torch's version; not of the weights' values.
    captured_with
        ``"torch.fx"`` or ``"torch.export"``.
    """

    def __init__(
        self,
        *,
        name: str,
        layers: tuple[Layer, ...],
        program: Program,
        state: dict[str, Tensor],
        inputs: tuple[ValueSpec, ...],
        dynamic_batch: bool,
        call: _Call,
        channels_last: bool,
        captured_with: str,
    ) -> None:
        self.name = name
        self.layers = layers
        self.program = program
        self.state = state
        self.inputs = inputs
        self.dynamic_batch = dynamic_batch
        self.captured_with = captured_with
        self._call = call
        self._channels_last = channels_last
        self._functions = tuple(layer.bind(state) for layer in program.layers)
        self.fingerprint = _fingerprint(self)

    def __repr__(self) -> str:
        return f"Chain({self.name!r}, {len(self.layers)} layers)"

    def __call__(self, *args: Any) -> Any:
        """Run the prepared, unsplit model.

        Parameters
        ----------
        args
            As the model takes them.

        Returns
        -------
        Any
            As the model returns it.

        Raises
        ------
        ValueError
            If the arguments do not fit (:meth:`pack`).
        """
        return self.unpack(self.run(self.layout(self.pack(args))))

    def pack(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Flatten a call's arguments into the input tensors; nothing is copied.

        Parameters
        ----------
        args
            Positional arguments of the model's call, in the example's structure.

        Returns
        -------
        tuple of Tensor
            One per entry of ``inputs``.

        Raises
        ------
        ValueError
            If the structure, a fixed argument, a number of axes, a size other than a free leading one, a dtype or a
            device is not the example's.
        """
        tensors = self._call.flatten(args)
        leading: int | None = None
        for index, (tensor, spec, device) in enumerate(zip(tensors, self.inputs, self._call.devices, strict=True)):
            shape = tuple(tensor.shape)
            free = 1 if self.dynamic_batch else 0
            if len(shape) != len(spec.shape) or shape[free:] != spec.shape[free:]:
                expected = f"({', '.join(['any', *map(str, spec.shape[1:])])})" if free else spec.shape
                hint = "" if free else "; the model does not take another leading size than its example's"
                raise ValueError(f"input {index} of {self.name}: expected shape {expected}, got {shape}{hint}")
            if dtype_name(tensor.dtype) != spec.dtype:
                raise ValueError(
                    f"input {index} of {self.name}: expected dtype {spec.dtype}, got {dtype_name(tensor.dtype)}; "
                    f"convert it with .to(torch.{spec.dtype})"
                )
            if tensor.device != device:
                raise ValueError(
                    f"input {index} of {self.name}: expected device {device}, got {tensor.device}; "
                    f"move it with .to({str(device)!r})"
                )
            if free:
                if leading is None:
                    leading = shape[0]
                if shape[0] != leading or leading == 0:
                    raise ValueError(
                        f"input {index} of {self.name}: leading size {shape[0]}, but the inputs need one common "
                        f"leading size >= 1 (the first has {leading})"
                    )
        return tuple(tensors)

    def layout(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Bring input tensors into the memory layout of the prepared model; no copy where they have it already."""
        if self._channels_last:
            return tuple(layout_of(tensor) for tensor in tensors)
        return tuple(tensor.contiguous() for tensor in tensors)

    def run(self, values: tuple[Tensor, ...], first: int = 0, last: int | None = None) -> tuple[Tensor, ...]:
        """Run the layers ``[first, last)``.

        Parameters
        ----------
        values
            What crosses the cut before layer ``first``; not written.
        first, last
            Half-open range of layers, by default all.

        Returns
        -------
        tuple of Tensor
            What crosses the cut after layer ``last - 1``.
        """
        with torch.inference_mode():
            for function in self._functions[first:last]:
                values = function(values)
        return values

    def unpack(self, outputs: tuple[Tensor, ...]) -> Any:
        """Put the flat outputs of the last layer into the structure that the model returns."""
        specs = self.layers[-1].output
        values = [
            tensor if spec.kind == "tensor" else decoder(spec.kind)(tensor)
            for tensor, spec in zip(outputs, specs, strict=True)
        ]
        return self._call.restore(values)


class _Call:
    """How the model is called and what it returns: structures with numbered slots for the tensors."""

    def __init__(self, captured: Captured, devices: tuple[torch.device, ...]) -> None:
        self.devices = devices
        self._arguments = captured.arguments
        self._in_spec = captured.in_spec
        leaves, self._out_spec = pytree.tree_flatten(captured.outcome)
        self._returned: list[Any] = leaves

    def flatten(self, args: tuple[Any, ...]) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(tuple(args))
        if spec != self._in_spec:
            raise ValueError(f"arguments have the structure {spec}, the example had {self._in_spec}")
        tensors = []
        for position, (leaf, expected) in enumerate(zip(leaves, self._arguments, strict=True)):
            if isinstance(expected, Slot):
                if not isinstance(leaf, Tensor):
                    raise ValueError(f"argument {position} is a {type(leaf).__name__}, the model takes a tensor there")
                tensors.append(leaf)
            elif isinstance(leaf, Tensor) or leaf != expected:
                raise ValueError(
                    f"argument {position} is {leaf!r}, but the chain was built for {expected!r}; "
                    "only tensors may differ from the example: build another chain for another value"
                )
        return tensors

    def restore(self, values: Sequence[Any]) -> Any:
        leaves = [values[leaf.index] if isinstance(leaf, Slot) else leaf for leaf in self._returned]
        return pytree.tree_unflatten(leaves, self._out_spec)


def build_chain(
    model: nn.Module | torch.export.ExportedProgram,
    example_args: tuple[Any, ...],
    *,
    name: str = "model",
    coarse_share: float = 0.10,
    minimum_share: float = 0.005,
) -> Chain:
    """Turn a CNN into a chain of layers.

    The model is captured (``torch.fx``, or ``torch.export`` where that fails), prepared for inference, cut
    (:func:`partitioner.cuts.choose_cuts`) and compared with the original on the example. If the prepared form deviates
    by more than rounding, a less prepared one is taken. The result depends on the model and the example's shapes only,
    never on measured time.

    Parameters
    ----------
    model
        A module (used as in eval mode; not changed) or an exported program.
    example_args
        Positional arguments of one call. Tensors, also inside tuples, lists and dicts, become inputs; everything else
        is fixed.
    name
        The chain's name.
    coarse_share
        A layer with more than this share of the estimated cost is cut further, where several tensors cross.
    minimum_share
        A layer with less than this share joins a neighbour.

    Returns
    -------
    Chain

    Raises
    ------
    TraceError
        If the model cannot be turned into a graph; says where it stopped and what to do.
    ValueError
        If the example arguments hold no tensor or the model fails on them.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> chain = build_chain(model, (torch.zeros(1, 3, 8, 8),))
    >>> [layer.name for layer in chain.layers]
    ['0', '2']
    """
    if not isinstance(example_args, tuple):
        raise ValueError(f"example_args must be the tuple of the call's arguments, got a {type(example_args).__name__}")
    for share_name, share in (("coarse_share", coarse_share), ("minimum_share", minimum_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{share_name} is a share in [0, 1], got {share}")
    if not _tensors(example_args):
        raise ValueError(f"example_args hold no tensor: {example_args!r}")
    # outside inference mode: preparation watches tensor versions, which inference tensors do not have
    with torch.inference_mode(False), torch.no_grad():
        subject = _Subject(model, example_args)
        prepared = _prepare_and_check(subject)
        return _cut(prepared, subject, name, coarse_share, minimum_share)


class _Subject:
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
            shapes = [tuple(t.shape) for t in _tensors(self.args)]
            raise ValueError(
                f"the model fails on its example arguments (tensor shapes {shapes}): {type(error).__name__}: {error}"
            ) from error
        self.other_args: tuple[Any, ...] | None = None
        self.other_expected: list[Any] = []
        self._try_other_batch()

    @property
    def inputs(self) -> list[Tensor]:
        return _tensors(self.args)

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
        if scales and not _deviation(same, numbers_may_differ):
            self.other_args, self.other_expected = other, results


@dataclass(frozen=True)
class _Prepared:
    captured: Captured
    liveness: Liveness
    costs: list[float]
    flops: list[int]
    moved_nbytes: list[int]
    channels_last: bool
    dynamic_batch: bool


def _prepare_and_check(subject: _Subject) -> _Prepared:
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
            if isinstance(result, _Prepared):
                return result
            failures.append(f"the graph of {captured.how} deviates from the model: {result}")
    raise untraceable(list(dict.fromkeys(failures)))


def _check(captured: Captured, subject: _Subject, channels_last: bool) -> _Prepared | str:
    """Run the prepared graph on the example and at the other leading size; a text says how results deviate."""

    def arrange(tensors: list[Tensor]) -> list[Tensor]:
        return [layout_of(t) if channels_last else t.contiguous() for t in tensors]

    observations = [observe(captured, arrange(_copied(subject.inputs)), count_flops=True)]
    if observations[0].writes & observations[0].state_storages.keys():
        return "it writes its own constants"
    deviation = _deviation(_results(captured, observations[0].outputs), subject.expected)
    if deviation:
        return deviation
    if subject.other_args is not None:
        try:
            other = observe(captured, arrange(_tensors(_copied(subject.other_args))))
            if not _deviation(_results(captured, other.outputs), subject.other_expected):
                observations.append(other)
        except Exception:  # a constant of the example's size in the graph: that size only
            pass
    if make_outputs_dense(captured, observations):
        return _check(captured, subject, channels_last)
    seen = [observations[0].seen[step] for step in captured.steps]
    return _Prepared(
        captured=captured,
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


def _deviation(results: list[Any], expected: list[Any]) -> str:
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


def _cut(prepared: _Prepared, subject: _Subject, name: str, coarse_share: float, minimum_share: float) -> Chain:
    captured, liveness = prepared.captured, prepared.liveness
    steps = captured.steps
    work = prepared.flops if any(prepared.flops) else prepared.moved_nbytes
    heavy = [amount > 0 for amount in work]
    cuts = choose_cuts(
        prepared.costs, heavy, liveness.crossings, coarse_share=coarse_share, minimum_share=minimum_share
    )
    starts = [0, *(cut + 1 for cut in cuts)]
    ranges = list(zip(starts, [*starts[1:], len(steps)], strict=True))
    paths = [module_path(step) or step.name for step in steps]
    names = layer_names([[(paths[i], heavy[i]) for i in range(first, last)] for first, last in ranges])

    boundaries = [liveness.inputs, *(liveness.crossing_values(cut) for cut in cuts), liveness.outputs]
    layers, programs = [], []
    for index, (first, last) in enumerate(ranges):
        before, after = boundaries[index], boundaries[index + 1]
        program = generate(
            names[index],
            steps[first:last],
            [(node, spec.kind) for node, spec in before],
            [(node, spec.kind) for node, spec in after],
            captured.modules,
        )
        programs.append(program)
        read = (captured.state[state_name] for state_name in program.state_names)
        layers.append(
            Layer(
                index=index,
                name=names[index],
                flops=sum(prepared.flops[first:last]),
                parameter_nbytes=sum(tensor.numel() * tensor.element_size() for tensor in read),
                output=tuple(spec for _, spec in after),
            )
        )
    return Chain(
        name=name,
        layers=tuple(layers),
        program=Program(tuple(programs)),
        state=captured.state,
        inputs=tuple(spec for _, spec in liveness.inputs),
        dynamic_batch=prepared.dynamic_batch,
        call=_Call(captured, tuple(tensor.device for tensor in subject.inputs)),
        channels_last=prepared.channels_last,
        captured_with=captured.how,
    )


def _tensors(args: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


def _copied(args: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, args)


def _fingerprint(chain: Chain) -> str:
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            digest.update(f"{part}\0".encode())

    add(torch.__version__, chain.inputs, chain.dynamic_batch)
    for layer, program in zip(chain.layers, chain.program.layers, strict=True):
        functions = [f if isinstance(f, str) else getattr(f, "__qualname__", type(f)) for f in program.functions]
        add(layer, program.source, functions, program.constants, program.weights)
        add(*((module.skeleton, module.tensors) for module in program.modules))
    for name, tensor in sorted(chain.state.items()):
        add(name, tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return digest.hexdigest()
