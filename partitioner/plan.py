"""A plan: how many layers of the chain each stage runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

__all__ = ["Plan"]


class Plan(tuple[int, ...]):
    """How many layers each stage runs, in pipeline order.

    Stage ``i`` runs the half-open range ``ranges[i]`` of the chain's layers. A stage may run none. The text form is
    the counts joined by ``|``; :meth:`parse` reads it back.

    Parameters
    ----------
    counts
        Layers per stage, each >= 0, at least one stage.

    Raises
    ------
    ValueError
        If there is no stage or a count is negative.

    Examples
    --------
    >>> plan = Plan((7, 11))
    >>> str(plan), plan.ranges, plan.layer_count
    ('7|11', ((0, 7), (7, 18)), 18)
    >>> Plan.parse("7|11") == plan
    True
    """

    __slots__ = ()

    def __new__(cls, counts: Iterable[int]) -> Self:
        plan = super().__new__(cls, (int(count) for count in counts))
        if not plan:
            raise ValueError("a plan needs at least one stage: Plan((7, 11)) gives 7 layers to stage 0, 11 to stage 1")
        if min(plan) < 0:
            raise ValueError(f"plan {'|'.join(map(str, plan))} has a negative layer count; counts are >= 0")
        return plan

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form, for example ``"7|11"``.

        Raises
        ------
        ValueError
            If the text is not integers joined by ``|``.
        """
        try:
            return cls(int(part) for part in text.split("|"))
        except ValueError as error:
            raise ValueError(f"{text!r} is not a plan: write layers per stage joined by '|', such as 7|11") from error

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Half-open layer range ``(first, last)`` of each stage."""
        first, ranges = 0, []
        for count in self:
            ranges.append((first, first + count))
            first += count
        return tuple(ranges)

    @property
    def layer_count(self) -> int:
        """Layers in all."""
        return sum(self)

    def check_fits(self, *, layer_count: int, stage_count: int) -> None:
        """Raise ``ValueError`` unless the plan spreads ``layer_count`` layers over ``stage_count`` stages."""
        if len(self) != stage_count:
            raise ValueError(f"plan {self} has {len(self)} stages, the pipeline has {stage_count}")
        if self.layer_count != layer_count:
            raise ValueError(f"plan {self} spreads {self.layer_count} layers, the model has {layer_count}")

    def __str__(self) -> str:
        return "|".join(map(str, self))

    def __repr__(self) -> str:
        return f"Plan(({', '.join(map(str, self))}{',' if len(self) == 1 else ''}))"
