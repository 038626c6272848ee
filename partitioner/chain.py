"""A CNN as a chain of layers: captured, prepared for inference, cut, and checked against the original."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from odin.partitioner.cache.chain_cache import ChainCache
from odin.partitioner.check.agreement import Prepared, Subject, deviation, prepare_and_check, tensors_in
from odin.partitioner.code.bounds import Bounds
from odin.partitioner.code.fuse import Packing, fuse
from odin.partitioner.code.program import KeepingNan, LayerFunction, LayerProgram, Program, generate, module_path
from odin.partitioner.code.single import copied
from odin.partitioner.graph.capture import Captured, Slot, TraceError
from odin.partitioner.graph.cuts import choose_cuts
from odin.partitioner.graph.names import layer_names
from odin.partitioner.graph.prepare import layout_of
from odin.partitioner.graph.values import ValueSpec, decoder, dtype_name, plain

__all__ = ["Chain", "Layer", "LayerProgram", "Program", "TraceError", "ValueSpec", "build_chain"]

_LONGEST_STRUCTURE = 120
"""Characters of the structure of arguments in an error."""


@dataclass(frozen=True)
class Layer:
    """Static description of a layer; sizes are those of the example input.

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
        Whether inputs of another leading size than the example's work, each sample by itself, so that requests may be
        cut along it and put together (tried, and compared with the original).
    fingerprint
        Hexadecimal digest of the structure, shapes, dtypes and torch's version; not of the weights' values.
    captured_with
        ``"torch.fx"`` or ``"torch.export"``.
    released
        Whether :meth:`release_weights` was called.
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
        self.released = False
        self._functions: tuple[LayerFunction, ...] = ()
        self._packed: tuple[torch.Size, ...] = ()  # shapes of the last arguments
        self._dtypes = tuple(getattr(torch, spec.dtype) for spec in inputs)
        self.fingerprint = _fingerprint(self)

    def __repr__(self) -> str:
        return f"Chain({self.name!r}, {len(self.layers)} layers)"

    @property
    def channels_last(self) -> bool:
        """Whether :meth:`layout` brings images into channels-last order."""
        return self._channels_last

    @property
    def takes_tensors(self) -> bool:
        """Whether a call's arguments are tensors, none within a structure and nothing else among them."""
        return self._call.takes_tensors

    @property
    def outcome(self) -> Any:
        """What a call returns, with a numbered ``Slot`` in the place of each output tensor."""
        return self._call.outcome

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
        if self._call.takes_tensors and len(args) == len(self._packed):
            # Mostly they are as those of the call before, which were looked at more closely.
            like = zip(args, self._packed, self._dtypes, self._call.devices, strict=True)
            if all(
                type(arg) is Tensor
                and not arg.is_nested
                and arg.layout is torch.strided
                and arg.shape == shape
                and arg.dtype is dtype
                and arg.device == device
                for arg, shape, dtype, device in like
            ):
                return args
        tensors = self._call.flatten(args)
        leading: int | None = None
        for index, (tensor, spec, device) in enumerate(zip(tensors, self.inputs, self._call.devices, strict=True)):
            shape = tuple(tensor.shape)
            free = 1 if self.dynamic_batch else 0
            if len(shape) != len(spec.shape) or shape[free:] != spec.shape[free:]:
                expected = f"({', '.join(['any', *map(str, spec.shape[1:])])})" if free else spec.shape
                hint = (
                    ""
                    if free
                    else "; the model does not take another leading size than its example's, or its samples depend on "
                    "each other: give an example of the size that you need"
                )
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
        self._packed = tuple(tensor.shape for tensor in tensors)
        return tuple(tensors)

    def layout(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Bring input tensors into the memory layout of the prepared model; no copy where they have it already."""
        if self._channels_last:
            return tuple(layout_of(tensor) for tensor in tensors)
        return tuple(
            tensor if tensor.is_contiguous() else copied(tensor, torch.contiguous_format) for tensor in tensors
        )

    def run(
        self, values: tuple[Tensor, ...], first: int = 0, last: int | None = None, *, keep_nan: bool = False
    ) -> tuple[Tensor, ...]:
        """Run the layers ``[first, last)``.

        Parameters
        ----------
        values
            What crosses the cut before layer ``first``; not written.
        first, last
            Half-open range of layers, by default all.
        keep_nan
            Compute in the slower way that keeps NaN from layer ``first`` on. Layers take it by themselves where they
            find values that call for it; what they return then carries that mark to the layers after them.

        Returns
        -------
        tuple of Tensor
            What crosses the cut after layer ``last - 1``.
        """
        if self.released:
            raise RuntimeError(f"the weights of {self.name} were released; build the chain anew to run it here")
        if not self._functions:
            # Packed as in the stages, so that the bits are theirs; only now, as few chains run where they are built.
            packed = self.program.pack(self.state)
            self._functions = tuple(layer.bind(packed) for layer in self.program.layers)
        if keep_nan:
            values = KeepingNan(values)
        with torch.inference_mode():
            for function in self._functions[first:last]:
                values = function(values)
        return values

    def try_plain(self, args: tuple[Any, ...]) -> list[Any]:
        """Run with plain weights, without packing them, and return the leaves of the result; for checks."""
        values = self.layout(self.pack(args))
        with torch.inference_mode():
            for layer in self.program.layers:
                values = layer.bind(self.state)(values)
        return pytree.tree_leaves(self.unpack(values))

    def release_weights(self) -> None:
        """Let go of the weights; what describes the chain stays, but it cannot be run here any more."""
        self.released = True
        self.state = {}
        self._functions = ()

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
        self.outcome = captured.outcome
        leaves, self._out_spec = pytree.tree_flatten(captured.outcome)
        self._returned: list[Any] = leaves
        self.takes_tensors = captured.in_spec == pytree.tree_flatten(tuple(range(len(devices))))[1] and all(
            isinstance(argument, Slot) for argument in captured.arguments
        )
        """Whether the arguments are tensors, none within a structure and nothing else among them."""
        self._returns_tensor = self._out_spec.is_leaf() and isinstance(leaves[0], Slot)

    def flatten(self, args: tuple[Any, ...]) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(tuple(args))
        if spec != self._in_spec:
            expected = ["Tensor" if isinstance(leaf, Slot) else type(leaf).__name__ for leaf in self._arguments]
            raise ValueError(
                f"arguments have the structure {_structure([type(leaf).__name__ for leaf in leaves], spec)}, the model "
                f"takes {_structure(expected, self._in_spec)} as in the example"
            )
        tensors = []
        for position, (leaf, expected) in enumerate(zip(leaves, self._arguments, strict=True)):
            if isinstance(expected, Slot):
                if not isinstance(leaf, Tensor):
                    raise ValueError(
                        f"argument {position} is of type {type(leaf).__name__}, the model takes a tensor there; "
                        "torch.as_tensor(...) makes one of numbers and arrays"
                    )
                tensors.append(plain(leaf, f"argument {position}"))
            elif isinstance(leaf, Tensor) or leaf != expected:
                raise ValueError(
                    f"argument {position} is {leaf!r}, but the chain was built for {expected!r}; "
                    "only tensors may differ from the example: build another chain for another value"
                )
        return tensors

    def restore(self, values: Sequence[Any]) -> Any:
        if self._returns_tensor:
            return values[self._returned[0].index]
        leaves = [values[leaf.index] if isinstance(leaf, Slot) else leaf for leaf in self._returned]
        return pytree.tree_unflatten(leaves, self._out_spec)


class _Word(str):
    """Text that is shown without quotation marks."""

    __repr__ = str.__str__


def _structure(types: Iterable[str], spec: pytree.TreeSpec) -> str:
    """A structure with the names of its values' types; the beginning of a long one."""
    text = repr(pytree.tree_unflatten([_Word(name) for name in types], spec))
    return text if len(text) <= _LONGEST_STRUCTURE else f"{text[:_LONGEST_STRUCTURE]}..."


def build_chain(
    model: nn.Module | torch.export.ExportedProgram,
    example_args: tuple[Any, ...],
    *,
    name: str = "model",
    coarse_share: float = 0.10,
    minimum_share: float = 0.005,
    minimum_s: float = 0.0,
    keep: bool = True,
) -> Chain:
    """Turn a CNN into a chain of layers.

    The model is captured (``torch.fx``, or ``torch.export`` where that fails), prepared for inference, cut
    (:func:`odin.partitioner.graph.cuts.choose_cuts`) and compared with the original on the example. If the prepared
    form deviates by more than rounding, a less prepared one is taken. The result depends on the model and the example's
    shapes only, never on measured time.

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
    minimum_s
        So does one that is estimated to take less than so many seconds on one core: for engines that are not called
        so cheaply.
    keep
        Keep on disk what takes long to find out (the graph that ``torch.export`` makes, that the model keeps no state),
        and use what an earlier start kept of the same model; see :class:`odin.partitioner.cache.known.Known`.

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
    if not tensors_in(example_args):
        raise ValueError(f"example_args hold no tensor: {example_args!r}")
    # outside inference mode: preparation watches tensor versions, which inference tensors do not have
    with torch.inference_mode(False), torch.no_grad():
        subject = Subject(model, example_args, cache=ChainCache() if keep else None)
        prepared = prepare_and_check(subject)
        total_s = sum(prepared.costs)
        if total_s > 0:
            minimum_share = min(1.0, max(minimum_share, minimum_s / total_s))
        chain = _cut(prepared, subject, name, coarse_share, minimum_share, fused=prepared.channels_last)
        if prepared.channels_last and deviation(chain.try_plain(subject.args), subject.expected):
            # Fusing rewrote the graph, so it is prepared anew.
            chain = _cut(prepare_and_check(subject), subject, name, coarse_share, minimum_share, fused=False)
        return chain


def _cut(
    prepared: Prepared, subject: Subject, name: str, coarse_share: float, minimum_share: float, *, fused: bool
) -> Chain:
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

    uses: Counter[str] = Counter()
    for node in captured.graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] += len(node.users)
    for entry in captured.modules.values():
        uses.update(entry.tensors.values())

    boundaries = [liveness.inputs, *(liveness.crossing_values(cut) for cut in cuts), liveness.outputs]
    layers, programs = [], []
    bounds = Bounds(captured, liveness.observations)
    for index, (first, last) in enumerate(ranges):
        before, after = boundaries[index], boundaries[index + 1]
        remaining: list[fx.Node] = list(steps[first:last])
        packings: list[Packing] = []
        if fused:
            remaining, packings = fuse(remaining, frozenset(node for node, _ in after), prepared.observation, uses)
        checks = bounds.walk(remaining)
        program = generate(
            names[index],
            remaining,
            [(node, spec.kind) for node, spec in before],
            [(node, spec.kind) for node, spec in after],
            captured.modules,
            packings,
            views=liveness.crossing_views(last - 1) if last < len(steps) else frozenset(),
            checks=checks,
            output_bounds=[bounds.of(node) for node, _ in after],
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


def _fingerprint(chain: Chain) -> str:
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            digest.update(f"{part}\0".encode(errors="backslashreplace"))

    add(torch.__version__, chain.inputs, chain.dynamic_batch)
    for layer, program in zip(chain.layers, chain.program.layers, strict=True):
        functions = [f if isinstance(f, str) else getattr(f, "__qualname__", type(f)) for f in program.functions]
        add(layer, program.source, functions, program.constants, program.weights)
        add(*((module.skeleton, module.tensors) for module in program.modules))
    for name, tensor in sorted(chain.state.items()):
        add(name, tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return digest.hexdigest()
