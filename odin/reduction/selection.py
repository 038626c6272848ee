"""Which of a model's reduced forms computes a request: the most accurate one that is in time, within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Option", "Selected", "check_budget", "select", "within_budget"]


class Option(NamedTuple):
    """A form of a model: the full one, an exit, a width.

    Attributes
    ----------
    name
        ``"full"``, ``"exit-7"``, ``"width-0.5"``.
    seconds
        That it computes for one request with nothing else running.
    lost
        Share of accuracy that it loses against the full model; 0 for the full one.
    """

    name: str
    seconds: float
    lost: float


class Selected(NamedTuple):
    """The answer of :func:`select`.

    Attributes
    ----------
    option
        What computes the request.
    predicted_s
        Until it is answered.
    in_time
        Whether that is within the time that there is. If not, no option within the budget is, and this is the fastest.
    """

    option: Option
    predicted_s: float
    in_time: bool


def check_budget(budget: float) -> None:
    """Raise ``ValueError`` if a share of accuracy cannot be given away."""
    if not 0.0 <= budget < 1.0:
        raise ValueError(f"an accuracy budget of {budget} is no share in [0, 1): 0.003 gives 0.3% of all answers away")


def within_budget(options: Iterable[Option], budget: float) -> list[Option]:
    """Return the options that lose no more than the budget, the most accurate first, each faster than those before it.

    One that seems to gain accuracy counts as losing none, as that is chance; of those that lose as much the slowest,
    such as the full model, comes first. An option that is no faster than one that loses less is left out.

    Examples
    --------
    >>> options = [Option("full", 8e-3, 0.0), Option("exit-3", 4e-3, 0.002), Option("exit-1", 2e-3, 0.05)]
    >>> [option.name for option in within_budget(options, 0.003)]
    ['full', 'exit-3']
    """
    check_budget(budget)
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (max(0.0, one.lost), -one.seconds, one.name)):
        if option.lost <= budget and (not kept or option.seconds < kept[-1].seconds):
            kept.append(option)
    return kept


def select(
    options: Sequence[Option], *, time_s: float, wait_s: float = 0.0, slowdown: float = 1.0, budget: float
) -> Selected:
    """Choose by a request's deadline and how slow the machine is now.

    The full model if it is in time; else the most accurate reduced one that is. Pure: the same call in a server and in
    a simulation.

    Parameters
    ----------
    options
        Among them the full model, with ``lost`` 0.
    time_s
        Seconds until the deadline; infinite for none.
    wait_s
        Seconds until computing begins.
    slowdown
        Time now / time with nothing else running, of the devices that compute it.
    budget
        Share of accuracy that may be lost.

    Raises
    ------
    ValueError
        If no option is within the budget, or a number makes no sense.

    Examples
    --------
    >>> options = [Option("full", 8e-3, 0.0), Option("exit-3", 4e-3, 0.002), Option("exit-1", 2e-3, 0.05)]
    >>> [select(options, time_s=10e-3, slowdown=now, budget=0.003).option.name for now in (1.0, 2.0, 4.0)]
    ['full', 'exit-3', 'exit-3']
    """
    if math.isnan(time_s) or not wait_s >= 0.0 or not slowdown > 0.0:
        raise ValueError(f"time_s={time_s}, wait_s={wait_s}, slowdown={slowdown}: numbers, wait >= 0, slowdown > 0")
    kept = within_budget(options, budget)
    if not kept:
        raise ValueError(f"no option loses at most {budget:.2%}: put the full model, which loses nothing, among them")
    for option in kept:
        predicted_s = wait_s + option.seconds * slowdown
        if predicted_s <= time_s:
            return Selected(option, predicted_s, True)
    return Selected(kept[-1], wait_s + kept[-1].seconds * slowdown, False)
