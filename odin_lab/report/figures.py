"""Figures as SVG, for a page that is light or dark, wide or narrow, and as files; matplotlib is imported only here."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from odin.partitioner.files import write_whole
from odin_lab.report.results import Results
from odin_lab.report.style import DARK, GRID, INK, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["KINDS", "NARROW", "WIDE", "Layout", "Plot", "ReportError", "legend", "panels", "save", "svg", "write"]

KINDS = ("png", "svg", "pdf")
"""Endings of a figure's file."""


class ReportError(ValueError):
    """The report cannot be made."""


class Layout(NamedTuple):
    """The room for a figure."""

    name: str
    width_in: float
    columns: int
    size_pt: float

    @property
    def narrow(self) -> bool:
        """Whether it is for a telephone's width."""
        return self.columns == 1


WIDE = Layout("wide", 9.2, 3, 9.0)
NARROW = Layout("narrow", 3.75, 1, 8.0)


@dataclass(frozen=True)
class Plot:
    """A figure to draw.

    Attributes
    ----------
    slug
        Its name as a file and on the page.
    title, caption
        What it shows, and what is seen.
    draw
        Draws it into a layout.
    sources
        What its data came from.
    """

    slug: str
    title: str
    caption: str
    draw: Callable[[Layout], Figure]
    sources: tuple[Results, ...] = ()


@contextmanager
def _rules(layout: Layout) -> Iterator[None]:
    """Matplotlib's settings while a figure is drawn and written."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ReportError("figures need matplotlib: pip install 'odin-pipeline[report]'") from error
    size = layout.size_pt
    settings: dict[str, Any] = {
        "svg.fonttype": "path",  # looks the same wherever it is opened
        "svg.hashsalt": "odin",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": size - 1,
        "ytick.labelsize": size - 1,
        "legend.fontsize": size - 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.5,
        "axes.linewidth": 0.7,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.minor.width": 0.5,
        "ytick.minor.width": 0.5,
        "lines.markersize": 4.0,
        "axes.titlelocation": "left",
        "axes.titley": 1.0,  # else each title's place is looked for, which takes long
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings.update(dict.fromkeys(colors, INK))
    rules: Any = settings  # their names change from version to version
    with rc_context(rules):
        yield


def panels(
    layout: Layout,
    count: int,
    *,
    height_in: float,
    columns: int | None = None,
    entries: Sequence[str] = (),
    tick_letters: int = 4,
    x_label: bool = True,
    y_label: bool = True,
) -> tuple[Figure, list[Axes]]:
    """Panels beside and below each other, with room for a legend of these entries on top, all on one y axis.

    Every margin is known beforehand: to try what fits, as matplotlib's layouts do, takes most of a figure's time.

    Parameters
    ----------
    layout
        The room there is.
    count
        Number of panels.
    height_in
        Height of a panel with its title and labels.
    columns
        Most panels beside each other; default: as many as the layout has room for.
    entries
        What the legend will tell.
    tick_letters
        Letters of the longest label at the y axis.
    x_label, y_label
        Whether the axes have names.
    """
    from matplotlib.figure import Figure

    across = min(count, columns or layout.columns)
    down = -(-count // across)
    width_in = layout.width_in if layout.narrow or across > 1 else 0.62 * layout.width_in
    rows = -(-len(entries) // _legend_columns(width_in, layout, entries)) if entries else 0
    line_in = layout.size_pt / 72
    top_in = rows * line_in * 1.7 + 0.1
    whole_in = down * height_in + top_in
    figure = Figure(figsize=(width_in, whole_in))
    left_in = tick_letters * 0.62 * line_in + 0.12 + y_label * 1.6 * line_in
    bottom_in = 1.9 * line_in + x_label * 1.5 * line_in
    each_in = (width_in - left_in - 0.1) / across
    own_in = each_in - 0.15, height_in - bottom_in - 1.9 * line_in
    found: list[Axes] = []
    for at in range(count):
        row, column = divmod(at, across)
        x_in = left_in + column * each_in
        y_in = whole_in - top_in - (row + 1) * height_in + bottom_in
        place = (x_in / width_in, y_in / whole_in, own_in[0] / width_in, own_in[1] / whole_in)
        axes = figure.add_axes(place, sharey=found[0] if found else None)
        axes.tick_params(labelleft=column == 0)
        axes.xaxis.set_label_coords(0.5, (0.15 * line_in - bottom_in) / own_in[1])
        axes.yaxis.set_label_coords((0.4 * line_in - left_in) / own_in[0], 0.5)
        axes.xaxis.label.set_verticalalignment("bottom")
        axes.yaxis.label.set_verticalalignment("top")
        found.append(axes)
    return figure, found


def _legend_columns(width_in: float, layout: Layout, entries: Sequence[str]) -> int:
    """How many there is room for beside each other; matplotlib fills them one after the other."""
    letter_in, handle_in = 0.62 * layout.size_pt / 72, 4.3 * layout.size_pt / 72
    for count in range(len(entries), 1, -1):
        each, more = divmod(len(entries), count)
        starts = [at * each + min(at, more) for at in range(count + 1)]
        letters = sum(max(map(len, entries[first:last])) for first, last in pairwise(starts))
        if letters * letter_in + count * handle_in <= width_in:
            return count
    return 1


def legend(figure: Figure, layout: Layout, looks: Sequence[tuple[str, Look]], *, lines: bool = True) -> None:
    """One legend for all panels, on top."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dash, linewidth=look.width, label=name)
        if lines
        else Patch(color=look.color, label=name)
        for name, look in looks
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=_legend_columns(figure.get_figwidth(), layout, [name for name, _ in looks]),
        handlelength=3.2 if lines else 1.2,
        columnspacing=1.4,
        borderaxespad=0.0,
    )


def svg(plot: Plot, layout: Layout) -> str:
    """The figure as an element of a page: text in the page's colour, identifiers that no other figure has."""
    text = _render(plot, layout, "svg").decode()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    own = f"{plot.slug}-{layout.name}-"
    text = re.sub(r'\bid="', f'id="{own}', text)
    text = re.sub(r'href="#', f'href="#{own}', text)
    text = text.replace("url(#", f"url(#{own}")
    text = text.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    for color in DARK:
        text = text.replace(color, f"var(--c{color[1:]}, {color})")
    points = re.search(r'\bwidth="([0-9.]+)pt"', text)
    most_in = float(points[1]) / 72 * (1.3 if layout.narrow else 1.07) if points else layout.width_in
    label = plot.title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" style="max-width:{most_in:.2f}in" ', 1)


def save(plot: Plot, folder: Path, *, on_drawn: Callable[[], None] = lambda: None) -> tuple[Path, Path]:
    """Write the figure as SVG and PNG, on white; returns the files. ``on_drawn`` is called after each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{plot.slug}.svg", folder / f"{plot.slug}.png"
    for path in paths:
        path.write_bytes(_render(plot, WIDE, path.suffix[1:], facecolor="white"))
        on_drawn()
    return paths


def write(plot: Plot, path: Path) -> None:
    """Write the figure as the file's ending says, on white.

    Raises
    ------
    ReportError
        If the ending is none of ``.png``, ``.svg``, ``.pdf``, or matplotlib is missing.
    """
    kind = path.suffix.lower()[1:]
    if kind not in KINDS:
        raise ReportError(f"{path}: a figure's file ends in {', '.join(f'.{known}' for known in KINDS)}")
    write_whole(path, _render(plot, WIDE, kind, facecolor="white"))


def _render(plot: Plot, layout: Layout, kind: str, **options: Any) -> bytes:
    with _rules(layout):
        figure = plot.draw(layout)
        file = io.BytesIO()
        metadata = {"png": {"Software": None}, "svg": {"Date": None}}.get(kind, {})
        figure.savefig(file, format=kind, dpi=160, metadata=metadata, **options)
    return file.getvalue()
