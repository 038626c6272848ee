"""Text that must fit: cleaned of what would upset a terminal, cut to a width, padded to it."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells
from rich.text import Text

from odin.monitor.view.sparkline import ASCII, Glyphs

__all__ = ["clean", "fit", "fit_end", "pad", "wrap"]


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


def fit_end(text: str, width: int, glyphs: Glyphs) -> str:
    """Cut off what goes beyond ``width`` cells at the beginning: of ``node/cpu:3`` the end tells most."""
    while cell_len(text) > max(0, width):
        text = text.removeprefix(glyphs.ellipsis)[1:]
        text = glyphs.ellipsis + text if text and width > 0 else ""
    return text


def wrap(text: str, width: int, *, lines: int, glyphs: Glyphs) -> list[str]:
    """Break a text between words into at most so many lines of ``width`` cells; an ellipsis ends what is cut."""
    broken: list[str] = []
    for word in text.split():
        if broken and cell_len(f"{broken[-1]} {word}") <= width:
            broken[-1] += f" {word}"
        else:
            broken += chop_cells(word, max(1, width))
    if len(broken) > lines:
        last = " ".join(broken[lines - 1 :])
        broken[lines - 1 :] = [fit(Text(last), width, glyphs).plain]
    return broken
