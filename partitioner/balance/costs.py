"""Each stage's cost for any range of layers, in exact arithmetic.

    cost of stage s on layers [a, b) = sum(times_s[s, a:b]) + receive_s[s, a] + send_s[s, b]        for a < b
    cost of stage s when empty at b  = relay_s[s, b], by default receive_s[s, b] + send_s[s, b]

With prefix sums P the first line is ``ready[s, b] - start[s, a]``, where ready = P + send and start = P -
receive.

Prefix sums of floats round, and then "the best plan" would depend on the order of the additions. So every
input of a stage is first rounded to whole multiples of a power of two (about 2**-50 of all that stage could
ever cost, as fine as the rounding of a float sum). From there on every sum and every difference is a whole
number below 2**53: exact in a float, in any order. An infinite time counts as one jump larger than all finite
costs together, so that no ``inf - inf`` can arise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.partitioner.plan import Plan

__all__ = ["StageCosts", "fluid_bound_hz", "stage_times"]

FloatArray = NDArray[np.float64]

_BITS = 50  # of the 53 that a float holds: one for the jump, two for sums of two terms


def times_matrix(times_s: ArrayLike, stage_count: int | None = None) -> FloatArray:
    """Check layer times and return them as a float array of shape (stages, layers).

    Raises
    ------
    ValueError
        If the shape does not fit, or a time is negative or not a number.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim == 1 and stage_count is not None:
        if stage_count < 1:
            raise ValueError(f"stage_count is {stage_count}; a pipeline needs at least one stage")
        times = np.broadcast_to(times, (stage_count, len(times)))
    if times.ndim != 2:
        raise ValueError(
            f"times_s has shape {times.shape}; give (stages, layers), or (layers,) together with stage_count"
        )
    if stage_count is not None and len(times) != stage_count:
        raise ValueError(f"times_s has {len(times)} rows, stage_count is {stage_count}; leave stage_count out")
    if 0 in times.shape:
        raise ValueError(f"times_s has shape {times.shape}; at least one stage and one layer are needed")
    _check_times("times_s", times)
    return times


def _check_times(name: str, values: FloatArray) -> None:
    if values.size and not values.min() >= 0:  # also true for nan
        row = np.argwhere(~(values >= 0))[0]
        where = f"{name}{[int(index) for index in row]}" if len(row) else name
        raise ValueError(f"{where} is {values[tuple(row)]}; times are seconds >= 0, inf for what cannot be run")


def _cut_matrix(name: str, values_s: ArrayLike | None, shape: tuple[int, int]) -> FloatArray:
    """Transfer seconds for each stage and cut; None is free."""
    if values_s is None:
        return np.zeros(shape)
    values = np.asarray(values_s, dtype=np.float64)
    _check_times(name, values)
    if (
        values.ndim > 2
        or (values.ndim and values.shape[-1] != shape[1])
        or (values.ndim == 2 and values.shape[0] != shape[0])
    ):
        raise ValueError(
            f"{name} has shape {values.shape}; {shape[1] - 1} layers have {shape[1]} cuts "
            f"(0 is the input, the last the output): give ({shape[1]},) or {shape}"
        )
    return np.broadcast_to(values, shape)


def _finite(values: FloatArray) -> FloatArray:
    return np.where(np.isinf(values), 0.0, values)


class StageCosts:
    """Exact costs of every stage over every range of layers.

    Parameters
    ----------
    times_s
        Seconds of each layer on each stage, shape (stages, layers); ``inf`` where a stage cannot run a layer.
    send_s, receive_s
        Seconds a stage spends to send, to receive, what crosses each cut, shape (stages, layers + 1) or
        (layers + 1,); cut ``i`` lies before layer ``i``. None is free.
    relay_s
        Seconds an empty stage spends to pass on what crosses each cut, same shapes, or one number; None is
        ``receive_s + send_s``. Leading empty stages pass on the input (cut 0), trailing ones the output (last
        cut).

    Attributes
    ----------
    stage_count, layer_count : int
    unit_s
        The stage's unit, a power of two, shape (stages,).
    jump
        What an infinite time counts, in units, shape (stages,); every finite cost is smaller.
    ready, start, relay
        In units, shape (stages, layers + 1); see the module's formula. ``relay`` is None where it follows
        from the formula, which then holds for ``a == b`` too.
    """

    def __init__(
        self,
        times_s: ArrayLike,
        *,
        send_s: ArrayLike | None = None,
        receive_s: ArrayLike | None = None,
        relay_s: ArrayLike | None = None,
        stage_count: int | None = None,
    ) -> None:
        times = times_matrix(times_s, stage_count)
        self.stage_count, self.layer_count = times.shape
        shape = (self.stage_count, self.layer_count + 1)
        send, receive = _cut_matrix("send_s", send_s, shape), _cut_matrix("receive_s", receive_s, shape)
        relay = None if relay_s is None else _cut_matrix("relay_s", relay_s, shape)

        with np.errstate(over="ignore"):
            top = _finite(times).sum(axis=1) + _finite(send).max(axis=1) + _finite(receive).max(axis=1)
            if relay is not None:
                top = np.maximum(top, _finite(relay).max(axis=1))
        if not np.isfinite(top).all():
            raise ValueError(f"the times of stage {int(np.argmin(np.isfinite(top)))} add up beyond floats; use seconds")
        jumps = np.isinf(times).sum(axis=1)
        jumps = np.where(jumps + np.isinf(send).any(axis=1) + np.isinf(receive).any(axis=1) > 0, jumps + 2, 0)
        bits = _BITS - np.ceil(np.log2(jumps + 1)).astype(np.int64)
        exponent = np.maximum(np.frexp(top)[1] - bits, -1074)
        self.unit_s: FloatArray = np.ldexp(1.0, exponent)
        self.jump: FloatArray = np.ldexp(1.0, bits + 1)

        def in_units(values: FloatArray) -> FloatArray:
            whole = np.rint(np.ldexp(values, -exponent[:, None]))
            return np.where(np.isinf(values), self.jump[:, None], whole)

        fastest_s: FloatArray = times.min(axis=0)
        self._bound_s: float = max(float(fastest_s.max()), float(fastest_s.sum()) / self.stage_count)
        self.prefix: FloatArray = np.zeros(shape)
        np.cumsum(in_units(times), axis=1, out=self.prefix[:, 1:])
        self.ready: FloatArray = self.prefix + in_units(send)
        self.start: FloatArray = self.prefix - in_units(receive)
        self.relay: FloatArray | None = None if relay is None else in_units(relay)

    def lower_bound_s(self) -> float:
        """Seconds that no plan's bottleneck is below: each layer on its fastest stage, the largest and the average."""
        return self._bound_s * (1 - 1e-9)  # rounded times may be a little less

    def limits(self, bottleneck_s: float) -> FloatArray:
        """Largest cost of each stage, in its units, that is no more than ``bottleneck_s`` seconds."""
        with np.errstate(over="ignore"):
            limits: FloatArray = np.minimum(np.floor(bottleneck_s / self.unit_s), self.jump - 1)
        return limits

    def starting(self, stage: int, first: int, last: int) -> FloatArray:
        """Units of one stage on layers [a, last) for every a in [first, last]; the last entry is empty."""
        units: FloatArray = self.ready[stage, last] - self.start[stage, first : last + 1]
        if self.relay is not None:
            units[-1] = self.relay[stage, last]
        return units

    def of_cuts(self, cuts: Sequence[int]) -> tuple[float, ...]:
        """Seconds of every stage for a plan given as its stages + 1 cuts, from 0 to the layer count."""
        bounds = np.asarray(cuts)
        stages = np.arange(self.stage_count)
        first, last = bounds[:-1], bounds[1:]
        units = self.ready[stages, last] - self.start[stages, first]
        if self.relay is not None:
            units = np.where(first == last, self.relay[stages, last], units)
        return tuple(np.where(units >= self.jump, np.inf, units * self.unit_s).tolist())


def stage_times(
    plan: Plan,
    times_s: ArrayLike,
    send_s: ArrayLike | None = None,
    receive_s: ArrayLike | None = None,
    relay_s: ArrayLike | None = None,
) -> tuple[float, ...]:
    """Seconds that each stage needs per request under a plan; the largest is the bottleneck.

    Parameters
    ----------
    plan
        Layers per stage.
    times_s, send_s, receive_s, relay_s
        See :class:`StageCosts`; ``times_s`` may also be (layers,) when all stages are equally fast.

    Raises
    ------
    ValueError
        If a value is bad or the plan does not fit the times.

    Examples
    --------
    >>> stage_times(Plan((2, 1)), [[1.0, 2.0, 4.0], [2.0, 4.0, 8.0]])
    (3.0, 8.0)
    """
    one_speed = np.ndim(times_s) == 1
    costs = StageCosts(
        times_s,
        send_s=send_s,
        receive_s=receive_s,
        relay_s=relay_s,
        stage_count=len(plan) if one_speed else None,
    )
    plan.check_fits(layer_count=costs.layer_count, stage_count=costs.stage_count)
    return costs.of_cuts([0, *(last for _, last in plan.ranges)])


def fluid_bound_hz(times_s: ArrayLike, *, stage_count: int | None = None) -> float:
    """Throughput if work could be divided without granularity and moved at no cost: the physical limit.

    The sum over stages of 1 / (seconds of the whole chain on that stage). It is a limit where a stage is faster or
    slower than another by the same factor for all layers, as one core beside another is. Devices with different
    strengths (a CPU and a GPU) can exceed it, each with the layers that suit it. A stage that cannot run some layer
    counts as dead.

    Parameters
    ----------
    times_s
        Seconds of each layer on each stage, (stages, layers), or (layers,) with ``stage_count``.

    Returns
    -------
    float
        Requests per second; 0.0 if all stages are dead, ``inf`` if one needs no time.
    """
    with np.errstate(divide="ignore", over="ignore"):
        return float((1.0 / times_matrix(times_s, stage_count).sum(axis=1)).sum())
