"""The report's sections on runs: over time, live, detection, simulated against live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from operator import attrgetter, itemgetter

from odin_lab.report.comparison import Place, mean, order_policies, scores
from odin_lab.report.figures import Plot
from odin_lab.report.measured import detection_table, live_table, order_table, validation_table
from odin_lab.report.medians import interval_text
from odin_lab.report.parts import Data, Section, compare, slug
from odin_lab.report.plots_measured import axis_end_hz, beyond, draw_detection, draw_live, draw_timelines, mean_hz
from odin_lab.report.promises import draw_promises, promises_table
from odin_lab.report.results import Cell, Timeline

__all__ = ["detection", "live", "promises", "timelines", "validation"]


def timelines(data: Data) -> Section | None:
    """Throughput over time, a figure per model and title."""
    groups: dict[tuple[str, str, str], list[Timeline]] = {}
    for line in data.whole.timelines:
        groups.setdefault((line.study, line.model, line.title), []).append(line)
    plots = []
    for (study, model, title), lines in groups.items():
        ordered = {line.policy: line for line in lines}
        lines = [ordered[policy] for policy in order_policies(ordered)]
        sources = tuple(part for part in data.sources if any(line in part.timelines for line in lines))
        means = ", ".join(f"{line.policy} {rate:.3g}/s" for line in lines if not math.isnan(rate := mean_hz(line)))
        peak = "; dotted: the best plan undisturbed" if any(math.isfinite(line.peak_hz) for line in lines) else ""
        events = max(len(line.interference) for line in lines)
        caption = (
            f"{model}, {title}: {events} interference events. Shaded, and in a lane for each device: interference; "
            f"triangles: plan changes{peak}. Mean throughput of the time shown: {means}."
            + (" Diamonds: knobs turned, pipelines planned together." if any(line.turns for line in lines) else "")
            + _spikes(lines)
        )
        draw = partial(draw_timelines, timelines=lines, looks=data.looks)
        plots.append(
            Plot(
                slug("timeline", study, model, title),
                f"Throughput over time: {model}, {title}",
                caption,
                draw,
                sources,
            )
        )
    return Section("timelines", "Throughput over time", plots=tuple(plots)) if plots else None


def _spikes(lines: Sequence[Timeline]) -> str:
    """What the axis of throughput leaves out."""
    shown, told = axis_end_hz(lines), []
    for line in lines:
        if points := beyond(line, shown):
            at_s, most = max(points, key=itemgetter(1))
            more = f" ({len(points)} points)" if len(points) > 1 else ""
            told.append(f"{line.policy} {most:.3g}/s at {at_s:.3g} s{more}")
    return f" Beyond the axis (arrows): {', '.join(told)}." if told else ""


def live(data: Data) -> Section | None:
    """Live runs, a table and a figure per place."""
    tables, plots = [], []
    for study in (study for study in data.studies if study.startswith("live")):
        places: dict[Place, list[Cell]] = {}
        for cell in data.cells(study):
            places.setdefault(Place(study, cell.model, cell.devices, cell.period, cell.duration), []).append(cell)
        for place, cells in places.items():
            title = f"Live: {place}" if study == "live" else f"{study}: {place}"
            tables.append(live_table(cells, title))
            repeats = max(sum(cell.policy == policy for cell in cells) for policy in {cell.policy for cell in cells})
            spread = (
                f"medians of {repeats} interleaved repeats, whiskers the {interval_text(repeats)}"
                if repeats > 1
                else "one repeat, so no intervals"
            )
            rates = compare(scores(cells), attrgetter("throughput_hz"), ".3g")
            caption = (
                f"The same load and interference for each, on the real pipeline: {spread}. Throughput, /s: {rates}."
            )
            draw = partial(draw_live, cells=cells, looks=data.looks)
            words = place.model, str(place.devices), f"{place.period:g}", f"{place.duration:g}"
            plots.append(Plot(slug(study, *words), title, caption, draw, data.of(study)))
    return Section("live", "Live runs", (), tuple(tables), tuple(plots)) if plots else None


def detection(data: Data) -> Section | None:
    """Detection delays."""
    points = data.whole.detections
    if not points:
        return None
    alarms = {name: mean(p.false_alarms for p in points if p.detector == name) for name in {p.detector for p in points}}
    told = ", ".join(f"{name} {alarms[name]:.2g}" for name in sorted(alarms))
    caption = (
        "Mean observations until a detector tells a slowdown (their median where it missed some), beside the least "
        "that there can be for as few false alarms, ln(ARL)/KL (dashed; where detectors differ in false alarms, each "
        "has its own). None can alarm before "
        f"the first observation (line at 1). False alarms per 1,000 observations: {told}."
    )
    plot = Plot(
        "detection",
        "Detection delay against the bound",
        caption,
        partial(draw_detection, points=points),
        data.having("detections"),
    )
    return Section("detection", "Detection delay", (), (detection_table(points, "Detection delays"),), (plot,))


def validation(data: Data) -> Section | None:
    """Simulated against live."""
    found = data.whole.validations
    if not found:
        return None
    tables = [validation_table(found, "Simulated against live")]
    order = order_table(found, "Order of the policies, simulated and live")
    return Section("validation", "Simulated against live", (), (*tables, *([order] if order.rows else [])))


def promises(data: Data) -> Section | None:
    """Expected against actual completions."""
    runs = data.whole.promises
    if not runs:
        return None
    told = ", ".join(f"{run.title} {run.off_p50_s * 1e3:+.1f} and {run.off_p99_s * 1e3:+.1f} ms" for run in runs)
    caption = (
        "Seconds from sending a request to the stages to its completion, as they were, over what was expected when it "
        "was submitted: points on the dashed line are as expected, those above it came later. Actual minus expected, "
        f"median and 99th percentile: {told}."
    )
    plot = Plot(
        "promises",
        "Expected against actual completion",
        caption,
        partial(draw_promises, runs=runs),
        data.having("promises"),
    )
    return Section("promises", "Predictability", (), (promises_table(runs, "Expected and actual completion"),), (plot,))
