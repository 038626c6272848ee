"""Text that must fit: cleaned of what would upset a terminal, cut to a width, padded to it."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from monitor.sparkline import ASCII, Glyphs

__all__ = ["clean", "fit", "pad"]


def clean(text: str, glyphs: Glyphs) -> str:
    """Return the text on one line without control characters, and without what a plain terminal cannot show.

    Names of processes and files are whatever somebody chose them to be, escape codes included.
    """
    shown = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return shown.encode("ascii", "replace").decode() if glyphs is ASCII else shown


def fit(text: Text, width: int, glyphs: Glyphs) -> Text:
    """Cut off what goes beyond ``width`` cells, with an ellipsis in its place."""
    text = text.copy()
    if text.cell_len > width:
        text.truncate(max(0, width - cell_len(glyphs.ellipsis)), overflow="crop")
        if width > 0:
            text.append(glyphs.ellipsis)
    return text


def pad(text: Text, width: int) -> Text:
    """Fill up with blanks to ``width`` cells."""
    text = text.copy()
    text.pad_right(max(0, width - text.cell_len))
    return text
