"""How policies look in every figure: colours that colour-blind eyes tell apart, markers and dashes for grey prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from odin_lab.report.comparison import base_name, is_yardstick, order_policies

__all__ = ["DARK", "DEVICES", "GRID", "INK", "LOSS", "Look", "looks"]

INK = "#0a0b0c"
"""Text, axes, yardsticks. The page replaces it by the colour of its text, light or dark."""
GRID = "#d8d9da"
"""Grid lines; replaced as well."""
DEVICES = ("#56789d", "#936f31", "#5c7f52", "#986590", "#477e7e", "#a96354", "#78784e", "#7470a4")
"""Interference by device; white letters are read on it."""
LOSS = ("#5a1a02", "#a63c06", "#e07b1a", "#fdc76b", "#fff3d6", "#fdfcf7")
"""Heat maps, from a great loss to none."""


class Look(NamedTuple):
    """A policy's line, marker and bar."""

    color: str
    marker: str
    dash: Any  # as matplotlib takes it
    width: float


DARK = {
    "#0072b2": "#4aa8e0",
    "#b0508c": "#d983b8",
    "#007d5b": "#2cc298",
    "#6b7075": "#a3a9af",
    "#007f98": "#56b4e9",
    "#857000": "#cdb03a",
    "#c25400": "#f07a1f",
    "#9b1b30": "#f2788a",
    "#6a51a3": "#a08be0",
    "#7a5c3a": "#b8966b",
    "#1b7837": "#4cb26a",
    "#c51b7d": "#f06bb5",
}
"""What the page shows in place of colours that are hard to see on a dark ground."""

# Okabe and Ito's colours, darkened until letters in them are read on white (4.5 to 1). The dashes are in units of the
# line's width.
_KNOWN = {
    "relay": Look("#9b1b30", "p", "-", 2.2),
    "filter": Look("#c25400", "o", "-", 2.6),
    "odin:alpha=2": Look("#007d5b", "^", (0, (5, 1.5)), 1.4),
    "odin:alpha=10": Look("#b0508c", "v", (0, (6, 1.5, 1.5, 1.5)), 1.4),
    "lls": Look("#0072b2", "s", (0, (3, 1.2)), 1.4),
    "static": Look("#6b7075", "D", (0, (1.2, 1.2)), 1.6),
    "oracle": Look(INK, "+", "-", 0.9),
    "delayed-oracle": Look(INK, "x", (0, (4, 2)), 0.9),
}
_SPARE = (
    Look("#007f98", "P", (0, (7, 2, 2, 2, 2, 2)), 1.4),
    Look("#857000", "X", (0, (8, 2)), 1.4),
    Look("#7a5c3a", "*", (0, (2, 2)), 1.4),
    Look("#6a51a3", "h", (0, (4, 1, 1, 1, 1, 1)), 1.4),
    Look("#1b7837", "<", (0, (1, 1)), 1.4),
    Look("#c51b7d", ">", (0, (9, 3)), 1.4),
)


def looks(policies: Iterable[str]) -> dict[str, Look]:
    """The look of each policy; those that are new here take what is left, in their order."""
    ordered = order_policies(policies)
    found = {policy: _KNOWN[policy] for policy in ordered if policy in _KNOWN}
    spare = 0
    for policy in ordered:
        if policy in found:
            continue
        name = base_name(policy)
        look = _KNOWN.get(name)
        if look is None or look in found.values() or is_yardstick(policy):
            look = _SPARE[spare % len(_SPARE)]
            spare += 1
        found[policy] = look
    return {policy: found[policy] for policy in ordered}
