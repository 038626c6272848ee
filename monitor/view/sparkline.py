"""Histories as text: columns of eighths of a cell, with a line for a bound above them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ASCII", "UNICODE", "Glyphs", "calm_top", "chart", "per_cell", "sparkline", "thin_out"]


class Glyphs(NamedTuple):
    """The characters that pictures are drawn with.

    Attributes
    ----------
    levels
        Nothing, then ever fuller cells.
    bound
        A piece of the line that marks a bound.
    held, half_right, half_left, free
        A bar's cell that is filled, filled on its right, on its left, and not filled.
    blurred
        A bar's cell that is filled now and then.
    ellipsis
        Stands for text that had to be left out.
    below
        Leads from a row to the remark below it.
    beyond
        The top of a column that would be higher than the picture.
    """

    levels: str
    bound: str
    held: str
    half_right: str
    half_left: str
    free: str
    blurred: str
    ellipsis: str
    below: str
    beyond: str


UNICODE = Glyphs(" ▁▂▃▄▅▆▇█", "╌", "━", "╺", "╸", "─", "╍", "…", "└", "▲")
ASCII = Glyphs(" ._-=+*##", "~", "#", "#", "#", ".", "=", "~", "`", "^")


def per_cell(points: int, cells: int) -> int:
    """How many points to draw in each cell so that about ``points`` of them fill ``cells``, rather fewer."""
    return max(1, int(points / max(1, cells) + 0.4))


def calm_top(values: Sequence[float], *, at_least: Sequence[float] = ()) -> float:
    """The value that fills a picture: single high ones must not flatten all the others.

    Everything up to 1.5 times what 95% of the values, and all of ``at_least``, come to is shown.
    """
    known = sorted(value for value in values if math.isfinite(value))
    shown = max((value for value in at_least if math.isfinite(value)), default=0.0)
    if not known:
        return shown
    usual = max(known[int(0.95 * (len(known) - 1))], shown)
    return max(shown, min(known[-1], 1.5 * usual)) if usual > 0 else known[-1]


def thin_out(values: Sequence[float], count: int, *, end: int = 0) -> list[float]:
    """Means of ``count`` neighbours; nan for a group of nothing but nan.

    Groups begin at multiples of ``count`` when the value after the last one has index ``end``, so that the picture
    moves on by whole cells rather than shimmering.
    """
    if count <= 1:
        return list(values)
    start = end - len(values)
    groups: dict[int, list[float]] = {}
    for index, value in enumerate(values, start):
        groups.setdefault(index // count, []).append(value)
    means = []
    for group in groups.values():
        known = [value for value in group if not math.isnan(value)]
        means.append(sum(known) / len(known) if known else math.nan)
    return means


def sparkline(values: Sequence[float], *, top: float, glyphs: Glyphs = UNICODE) -> str:
    """One row, a cell per value; 0 is the foot of the row, ``top`` fills it, nan is blank."""
    return chart(values, top=top, height=1, glyphs=glyphs)[0]


def chart(
    values: Sequence[float], *, bounds: Sequence[float] = (), top: float, height: int, glyphs: Glyphs = UNICODE
) -> list[str]:
    """Rows from top to bottom, a cell per value.

    Parameters
    ----------
    values
        Heights, in the unit of ``top``; what is measured shows at least the least mark, nan is blank.
    bounds
        Where a line is drawn, in cells that the column leaves blank; as many as values, or none.
    top
        The value that fills all rows; what is above it gets a mark.
    height
        Number of rows.
    """
    grid = [[glyphs.levels[0]] * len(values) for _ in range(height)]
    full = len(glyphs.levels) - 1
    for column, value in enumerate(values):
        if column < len(bounds) and bounds[column] > 0 and top > 0:
            row = height - 1 - min(height - 1, int(bounds[column] / top * height * (1 - 1e-9)))
            grid[row][column] = glyphs.bound
        if math.isnan(value):
            continue
        share = min(1.0, max(0.0, value / top)) if top > 0 else 0.0
        steps = max(1, round(share * height * full))
        for row in range(height):
            filled = min(full, steps - (height - 1 - row) * full)
            if filled > 0:
                grid[row][column] = glyphs.levels[filled]
        if value > top > 0:
            grid[0][column] = glyphs.beyond
    return ["".join(row) for row in grid]
