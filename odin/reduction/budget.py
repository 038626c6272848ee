"""Which of a model's reduced forms are worth having within a budget of accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["FULL", "Option", "check_budget", "within_budget"]

FULL = "full"
"""Name of the form that computes all that the model does."""


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


def check_budget(budget: float) -> None:
    """Raise ``ValueError`` if a share of accuracy cannot be given away."""
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not 0.0 <= budget < 1.0:
        raise ValueError(
            f"an accuracy budget of {budget!r} is no share in [0, 1): 0.003 gives 0.3% of all answers away"
        )


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
