"""What sections of the report are made of, and what they are made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from odin_lab.report.comparison import Place, Score, is_yardstick, mean, order_policies
from odin_lab.report.figures import Plot
from odin_lab.report.results import Cell, Results
from odin_lab.report.style import Look
from odin_lab.report.tables import Table

__all__ = ["Data", "Report", "Section", "compare", "slug", "study_name"]

_NAMES = {"grid": "period x duration grid", "scaling": "scaling over devices", "live": "live runs", "single": "runs"}


@dataclass(frozen=True)
class Section:
    """A heading with texts, tables and figures."""

    slug: str
    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of it; ``sources`` are the results that it was made of."""

    title: str
    sections: tuple[Section, ...]
    sources: tuple[Results, ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        """The figures of all sections."""
        return tuple(plot for section in self.sections for plot in section.plots)


@dataclass(frozen=True)
class Data:
    """The results together, and from which of them what came."""

    whole: Results
    sources: tuple[Results, ...]
    looks: Mapping[str, Look]

    def cells(self, study: str) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.whole.cells if cell.study == study)

    def of(self, *studies: str) -> tuple[Results, ...]:
        return tuple(part for part in self.sources if any(cell.study in studies for cell in part.cells))

    def having(self, name: str) -> tuple[Results, ...]:
        return tuple(part for part in self.sources if getattr(part, name))

    def seen(self, cells: Iterable[Cell]) -> dict[str, Look]:
        found = {cell.policy for cell in cells}
        return {policy: look for policy, look in self.looks.items() if policy in found}

    @property
    def studies(self) -> tuple[str, ...]:
        told = dict.fromkeys(cell.study for cell in self.whole.cells)
        return tuple(sorted(told, key=lambda study: ([*_NAMES, study].index(study), study)))


def study_name(study: str) -> str:
    """How a study is called in titles."""
    return _NAMES.get(study, study)


def slug(*words: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in "-".join(words).lower())
    return "-".join(part for part in kept.split("-") if part)


def compare(places: Mapping[Place, Mapping[str, Score]], value: Callable[[Score], float], form: str) -> str:
    """Each policy's mean in words, yardsticks aside."""
    policies = [p for p in order_policies(p for place in places.values() for p in place) if not is_yardstick(p)]
    told = {policy: mean(value(place[policy]) for place in places.values() if policy in place) for policy in policies}
    return ", ".join(f"{policy} {number:{form}}" for policy, number in told.items() if not math.isnan(number))
