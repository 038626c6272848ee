"""Dollars per million requests, dedicated against shared devices: Perseus's rule.

After LeMay, Li and Guo, "Perseus: Characterizing performance and cost of multi-tenant serving for CNN models",
IC2E 2020 (arXiv 1912.02322): a machine that costs ``price`` an hour and keeps its limit up to ``rate`` requests a
second serves one for ``price / (3600 * rate)``.

With :math:`D_i` the peak rate of model i alone on the devices, :math:`r_i` its rate where all models share them, both
the highest within its limit, and :math:`P` the price per hour::

    dedicated cost of a request of model i     d_i = P / (3600 * D_i)
    the same traffic on dedicated devices      sum of r_i * 3600 * d_i = P * U  an hour,  U = sum of r_i / D_i
    the same traffic on shared devices         P an hour
    gain of sharing                            1 - P / (P * U) = 1 - 1 / U

``U`` is the number of dedicated machines, all of them full, whose work the shared one does: Perseus's tenancy gain as
a quotient. Of the shared price model i is charged its part of the work, ``(r_i / D_i) / U``; then a request of it costs
``d_i / U``, and the gain is the same for every model. Where rates are given, machines are whole ones, which a dedicated
model with little traffic leaves mostly idle: :func:`machines`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Machines", "Sharing", "cost_per_million", "machines", "sharing"]

_ROUNDING = 1e-9


class Sharing(NamedTuple):
    """What sharing comes to.

    Attributes
    ----------
    work
        Dedicated machines, all of them full, that do the same work: ``U``.
    dedicated, shared
        Dollars per million requests, by model.
    """

    work: float
    dedicated: dict[str, float]
    shared: dict[str, float]

    @property
    def gain(self) -> float:
        """Part of the dedicated cost that is saved; below 0: sharing costs more."""
        return 1 - 1 / self.work


class Machines(NamedTuple):
    """Whole machines for given rates."""

    dedicated: int
    shared: int


def cost_per_million(price_per_hour: float, rate_hz: float) -> float:
    """Price of a million requests on devices that serve so many a second.

    Raises
    ------
    ValueError
        If the price or the rate is not a number above 0.

    Examples
    --------
    >>> cost_per_million(0.09, 25.0)
    1.0
    """
    for name, value in (("price per hour", price_per_hour), ("rate", rate_hz)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} {value}: it must be a number above 0")
    return 1e6 * price_per_hour / (3600 * rate_hz)


def sharing(price_per_hour: float, *, dedicated_hz: Mapping[str, float], shared_hz: Mapping[str, float]) -> Sharing:
    """Compare the costs of models alone and together.

    Parameters
    ----------
    dedicated_hz
        Highest rate within its limit of each model alone on the devices.
    shared_hz
        Rates, all at once, with which every model keeps its limit on the same devices.

    Raises
    ------
    ValueError
        If not the same models are in both, or a number is not above 0.

    Examples
    --------
    >>> found = sharing(0.09, dedicated_hz={"a": 25.0, "b": 50.0}, shared_hz={"a": 15.0, "b": 30.0})
    >>> round(found.work, 3), round(found.gain, 3)
    (1.2, 0.167)
    >>> {name: round(cost, 4) for name, cost in found.shared.items()}
    {'a': 0.8333, 'b': 0.4167}
    """
    _same_models(dedicated_hz, shared_hz)
    dedicated = {name: cost_per_million(price_per_hour, rate_hz) for name, rate_hz in dedicated_hz.items()}
    work = sum(_positive(shared_hz[name]) / rate_hz for name, rate_hz in dedicated_hz.items())
    return Sharing(work, dedicated, {name: cost / work for name, cost in dedicated.items()})


def machines(
    rates_hz: Mapping[str, float], *, dedicated_hz: Mapping[str, float], shared_hz: Mapping[str, float]
) -> Machines:
    """Whole machines that given rates need: for each model its own, or some that all models share.

    The shared rates are taken to stand in the proportion of those that are given, so that so many machines, each with
    an equal part of all traffic, keep every limit; other proportions are counted by the model that needs most.

    Raises
    ------
    ValueError
        If not the same models are in all, or a number is not above 0.

    Examples
    --------
    >>> peaks = {"a": 25.0, "b": 50.0, "c": 5.0}
    >>> machines({"a": 4.0, "b": 4.0, "c": 1.0}, dedicated_hz=peaks, shared_hz={"a": 8.0, "b": 8.0, "c": 2.0})
    Machines(dedicated=3, shared=1)
    """
    _same_models(dedicated_hz, shared_hz)
    _same_models(dedicated_hz, rates_hz)
    dedicated = sum(_whole(_positive(rates_hz[name]) / _positive(rate_hz)) for name, rate_hz in dedicated_hz.items())
    return Machines(dedicated, _whole(max(rates_hz[name] / _positive(rate_hz) for name, rate_hz in shared_hz.items())))


def _same_models(some: Mapping[str, float], others: Mapping[str, float]) -> None:
    if not some or some.keys() != others.keys():
        raise ValueError(f"rates of {sorted(some)} and of {sorted(others)}: give both of the same models")


def _positive(rate_hz: float) -> float:
    if not 0 < rate_hz < math.inf:
        raise ValueError(f"rate {rate_hz}: it must be a number above 0")
    return rate_hz


def _whole(number: float) -> int:
    return math.ceil(number * (1 - _ROUNDING))
