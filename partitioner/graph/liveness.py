"""Which values are alive at each place of a graph, and whether the graph can be cut there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from odin.partitioner.graph.capture import Captured
from odin.partitioner.graph.cuts import Crossing
from odin.partitioner.graph.observe import Observation
from odin.partitioner.graph.values import ValueSpec

__all__ = ["Liveness"]


class Liveness:
    """The values that would cross a cut after each step.

    A cut is legal if copies of the values that cross can take the values' place in every example run:

    - each is a tensor or a number (not a list or tuple of tensors), of a size that does not depend on the data;
    - no tensor shares its memory with a weight;
    - the memory of none is written after the cut, so a layer never writes what it is given, and values that share
      memory may be copied apart;
    - no step after the cut looks at the memory behind a tensor (``as_strided``), unless all of it crosses.

    Views that are not dense, such as a half of a tensor's channels, are copied by the layer that hands them on
    (:meth:`crossing_views`), so that strides are the same whether the next layer runs in this process or in another.
    Weights do not cross: each layer reads those that it uses.

    Parameters
    ----------
    captured
        The prepared graph.
    observations
        Example runs, the first at the example's own size; the others may have another leading size, where a value that
        was dense may not be.

    Attributes
    ----------
    crossings
        One :class:`~odin.partitioner.graph.cuts.Crossing` per step.
    inputs, outputs
        The graph's inputs and outputs with their specs.
    observations
        The example runs.
    """

    def __init__(self, captured: Captured, observations: Sequence[Observation]) -> None:
        self.observations = observations
        steps = captured.steps
        position = dict.fromkeys(captured.placeholders, -1) | {step: i for i, step in enumerate(steps)}
        last_use = dict.fromkeys(position, -1)
        for index, step in enumerate(steps):
            for operand in step.all_input_nodes:
                if operand in position:
                    last_use[operand] = index
        for node in captured.outputs:
            if node in position:
                last_use[node] = len(steps)

        # memory is written until its last write; before that no cut may copy it
        self._last_write: list[dict[int, int]] = []
        for observation in observations:
            last_write: dict[int, int] = {}
            for index, step in enumerate(steps):
                last_write.update(dict.fromkeys(observation.seen[step].writes, index))
            self._last_write.append(last_write)

        strided = (torch.as_strided, torch.as_strided_, torch.ops.aten.as_strided.default)
        self._last_as_strided = max(
            (i for i, step in enumerate(steps) if step.target in (*strided, "as_strided", "as_strided_")), default=-1
        )

        alive = list(captured.placeholders)
        self._alive: list[tuple[fx.Node, ...]] = []
        for index, step in enumerate(steps):
            alive = [node for node in (*alive, step) if last_use[node] > index]
            self._alive.append(tuple(alive))
        self.crossings = [self._crossing(index) for index in range(len(steps))]
        self.inputs = self._with_specs(captured.placeholders)
        self.outputs = self._with_specs(captured.outputs)

    def crossing_values(self, cut: int) -> list[tuple[fx.Node, ValueSpec]]:
        """Return what crosses a legal cut after step ``cut``, in the order of creation."""
        return self._with_specs(self._alive[cut])

    def crossing_views(self, cut: int) -> frozenset[fx.Node]:
        """Return which of the values that cross are parts of something larger, and so perhaps not dense."""
        return frozenset(n for n in self._alive[cut] if not all(o.seen[n].whole for o in self.observations))

    def _with_specs(self, nodes: Sequence[fx.Node]) -> list[tuple[fx.Node, ValueSpec]]:
        described = []
        for node in nodes:
            spec = self.observations[0].seen[node].spec
            assert spec is not None, node
            described.append((node, spec))
        return described

    def _crossing(self, cut: int) -> Crossing:
        nodes = self._alive[cut]
        specs = [self.observations[0].seen[node].spec for node in nodes]
        legal = bool(nodes) and all(
            self._can_copy(nodes, cut, observation, last_write)
            for observation, last_write in zip(self.observations, self._last_write, strict=True)
        )
        known = [spec for spec in specs if spec is not None]
        tensors = sum(spec.kind == "tensor" for spec in known)
        return Crossing(legal, tensors, sum(spec.nbytes for spec in known))

    def _can_copy(
        self, nodes: Sequence[fx.Node], cut: int, observation: Observation, last_write: dict[int, int]
    ) -> bool:
        for node in nodes:
            seen = observation.seen[node]
            if seen.spec is None or seen.sized_by_data or seen.storages & observation.state_storages.keys():
                return False
            if any(last_write.get(storage, -1) > cut for storage in seen.storages):
                return False
            if cut < self._last_as_strided and not seen.whole:
                return False
        return True
