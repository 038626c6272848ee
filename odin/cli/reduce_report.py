"""How ``odin reduce`` shows what it found: a table, and a figure of accuracy against speed-up."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table

from odin.reduction.budget import within_budget
from odin.reduction.manifest import Manifest

__all__ = ["FIGURE", "plot_manifest", "render_manifest"]

FIGURE = "accuracy.svg"


def render_manifest(manifest: Manifest) -> RenderableType:
    """The table of all forms; those that may be chosen within the budget are marked."""
    chosen = {option.name for option in within_budget([form.option for form in manifest.forms], manifest.budget)}
    full = manifest.forms[0]
    table = Table(
        title=f"{manifest.model} on one core ({manifest.processor}); * may be chosen: loses at most "
        f"{manifest.budget:.2%}, and no form loses less and is as fast",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("form", no_wrap=True)
    for name in ("layers", "ms", "speed-up", "accuracy\n%", "95%\ninterval", "lost\n%", "agrees\n%", "off by\n%"):
        table.add_column(name, justify="right", no_wrap=True)
    for form in manifest.forms:
        one = form.judgement
        table.add_row(
            f"{form.name}{' *' if form.name in chosen else ''}",
            str(form.layers),
            f"{form.seconds * 1e3:.3g}",
            f"{full.seconds / form.seconds:.2f}",
            f"{one.accuracy.value * 100:.2f}",
            f"{one.accuracy.low * 100:.1f}..{one.accuracy.high * 100:.1f}",
            "-" if form is full else f"{one.lost.value * 100:.2f}",
            f"{one.agreement * 100:.1f}",
            f"{one.calibration_error * 100:.1f}",
        )
    return table


def plot_manifest(manifest: Manifest, folder: Path) -> str:
    """Write the figure, and tell where it is; or how to get it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No figure was drawn: pip install 'odin-pipeline[report]' (matplotlib)."
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    full = manifest.forms[0]
    for kind, color, marker in (("full", "#000000", "s"), ("exit", "#0072b2", "o"), ("width", "#d55e00", "^")):
        forms = [form for form in manifest.forms if form.kind == kind]
        if not forms:
            continue
        speed = [full.seconds / form.seconds for form in forms]
        found = [form.judgement.accuracy for form in forms]
        values = [one.value * 100 for one in found]
        ends = [[(one.value - one.low) * 100 for one in found], [(one.high - one.value) * 100 for one in found]]
        label = {"full": "full model", "exit": "early exits", "width": "narrower"}[kind]
        axes.errorbar(speed, values, ends, fmt=marker, color=color, capsize=2, linewidth=1, label=label)
        for form, x, y in zip(forms, speed, values, strict=True):
            axes.annotate(form.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.axhline(
        (full.judgement.accuracy.value - manifest.budget) * 100, color="#6b7075", linewidth=0.8, linestyle="--"
    )
    axes.set_xlabel("speed-up on one core")
    axes.set_ylabel("accuracy, % (95% interval)")
    axes.set_title(f"{manifest.model}; dashed: {manifest.budget:.2%} lost", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    path = folder / FIGURE
    figure.savefig(path)
    return f"Accuracy against speed-up: {path}"
