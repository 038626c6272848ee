"""Plans as arrays: which stage has each layer, and what its layers take undisturbed."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Setting

__all__ = ["PlanArrays", "PlanArraysCache"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_KEPT = 64
_LEAST_S = 1e-9


class PlanArrays(NamedTuple):
    """A plan as arrays.

    Attributes
    ----------
    first, last
        Half-open range of layers of each stage, shape (stages,).
    stage_of, layers
        Stage of each layer and its number: where in a matrix of stages by layers it is, shape (layers,).
    has
        Whether a stage has layers, shape (stages,).
    per_reference
        1 over the seconds of each stage's layers by the baselines, those that are infinite left out; 0 for stages
        without layers, shape (stages,).
    transfer_s
        Seconds to receive and to send for each stage, shape (stages,).
    """

    first: IntArray
    last: IntArray
    stage_of: IntArray
    layers: IntArray
    has: NDArray[np.bool_]
    per_reference: FloatArray
    transfer_s: FloatArray


class PlanArraysCache:
    """Plans of one pipeline as arrays; those used last are kept.

    Parameters
    ----------
    setting
        Baselines and transfers.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        finite_s = np.where(np.isfinite(setting.baseline_s), setting.baseline_s, 0.0)
        self._prefix_s = np.zeros((setting.stage_count, setting.layer_count + 1))
        np.cumsum(finite_s, axis=1, out=self._prefix_s[:, 1:])
        self._stages, self._layers = np.arange(setting.stage_count), np.arange(setting.layer_count)
        self._known: OrderedDict[Plan, PlanArrays] = OrderedDict()

    def of(self, plan: Plan) -> PlanArrays:
        """The plan's arrays, not to be changed."""
        arrays = self._known.get(plan)
        if arrays is not None:
            self._known.move_to_end(plan)
            return arrays
        counts = np.array(plan, dtype=np.int64)
        last = counts.cumsum()
        first = last - counts
        reference_s = self._prefix_s[self._stages, last] - self._prefix_s[self._stages, first]
        transfer_s = self._setting.receive_s[first] + self._setting.send_s[last]
        has, stage_of = counts > 0, self._stages.repeat(counts)
        per_reference = has / np.maximum(reference_s, _LEAST_S)
        arrays = PlanArrays(first, last, stage_of, self._layers, has, per_reference, transfer_s)
        if len(self._known) >= _KEPT:
            self._known.popitem(last=False)
        self._known[plan] = arrays
        return arrays
