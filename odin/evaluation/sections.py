"""What the report tells, in order: sections of text, tables and figures; what there is no data for is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from odin.evaluation.figures import Plot
from odin.evaluation.measured import detection_table, live_table, order_table, validation_table
from odin.evaluation.plots import draw_cdfs, draw_heat, draw_scaling, draw_slo
from odin.evaluation.plots_measured import draw_detection, draw_live, draw_timelines
from odin.evaluation.results import Cell, Results, ResultsError, Timeline, merge
from odin.evaluation.standing import Place, Standing, base_name, is_yardstick, mean, order_policies, standings
from odin.evaluation.style import Look, looks
from odin.evaluation.summary import (
    cells_table,
    costs_table,
    headline_table,
    misses_table,
    misses_text,
    scaling_table,
)
from odin.evaluation.tables import Table

__all__ = ["Report", "Section", "make_report"]

_NAMES = {"grid": "period x duration grid", "scaling": "scaling over devices", "live": "live runs", "single": "runs"}
_OURS = "predictive"


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
class _Data:
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


def make_report(results: Sequence[Results], *, title: str = "Evaluation of ODIN") -> Report:
    """Put together what there is to tell.

    Raises
    ------
    ResultsError
        If the results hold nothing, or contradict each other.
    """
    whole = merge(*results)
    if not (whole.cells or whole.timelines or whole.detections or whole.validations):
        raise ResultsError("the results hold nothing to report; give files with cells, timelines, detections")
    policies = [cell.policy for cell in whole.cells] + [line.policy for line in whole.timelines]
    data = _Data(whole, tuple(results), looks(policies))
    makers: tuple[Callable[[_Data], Section | None], ...] = (
        _headline,
        _misses,
        _timelines,
        _live,
        _heat,
        _latency,
        _slo,
        _scaling,
        _costs,
        _detection,
        _validation,
        _notes,
    )
    sections = tuple(section for make in makers if (section := make(data)) is not None)
    return Report(title, sections, tuple(results))


def study_name(study: str) -> str:
    """How a study is called in titles."""
    return _NAMES.get(study, study)


def _slug(*words: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in "-".join(words).lower())
    return "-".join(part for part in kept.split("-") if part)


def _compare(places: Mapping[Place, Mapping[str, Standing]], value: Callable[[Standing], float], form: str) -> str:
    """Each policy's mean in words, yardsticks aside."""
    policies = [p for p in order_policies(p for place in places.values() for p in place) if not is_yardstick(p)]
    told = {policy: mean(value(place[policy]) for place in places.values() if policy in place) for policy in policies}
    return ", ".join(f"{policy} {number:{form}}" for policy, number in told.items() if not math.isnan(number))


def _headline(data: _Data) -> Section | None:
    tables = tuple(headline_table(data.cells(study), f"Summary of the {study_name(study)}") for study in data.studies)
    return Section("summary", "Summary", (), tables) if tables else None


def _misses(data: _Data) -> Section | None:
    found = standings(cell for cell in data.whole.cells if not cell.study.startswith("live"))
    if not found:
        return None
    texts = []
    for study in dict.fromkeys(place.study for place in found):
        here = {place: group for place, group in found.items() if place.study == study}
        ours = [p for p in order_policies(p for group in here.values() for p in group) if base_name(p) == _OURS]
        texts += [f"In the {study_name(study)}, {misses_text(here, policy)}" for policy in ours]
    return Section("misses", "Wins and misses", tuple(texts), (misses_table(found, "Wins and misses of all policies"),))


def _timelines(data: _Data) -> Section | None:
    groups: dict[tuple[str, str, str], list[Timeline]] = {}
    for line in data.whole.timelines:
        groups.setdefault((line.study, line.model, line.title), []).append(line)
    plots = []
    for (study, model, title), lines in groups.items():
        ordered = {line.policy: line for line in lines}
        lines = [ordered[policy] for policy in order_policies(ordered)]
        sources = tuple(part for part in data.sources if any(line in part.timelines for line in lines))
        means = ", ".join(
            f"{line.policy} {rate:.3g}/s" for line in lines if not math.isnan(rate := mean(line.throughput_hz))
        )
        events = max(len(line.interference) for line in lines)
        caption = (
            f"{model}, {title}: {events} interference events. Shaded, and in a lane for each device: interference; "
            "triangles: plan changes; dotted: the best plan undisturbed. Mean of the shown throughput: " + means + "."
        )
        draw = partial(draw_timelines, timelines=lines, looks=data.looks)
        plots.append(
            Plot(
                _slug("timeline", study, model, title),
                f"Throughput over time: {model}, {title}",
                caption,
                draw,
                sources,
            )
        )
    return Section("timelines", "Throughput over time", plots=tuple(plots)) if plots else None


def _live(data: _Data) -> Section | None:
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
                f"medians of {repeats} interleaved repeats, whiskers their 95% intervals (bootstrap over the repeats)"
                if repeats > 1
                else "one repeat, so no intervals"
            )
            rates = _compare(standings(cells), attrgetter("throughput_hz"), ".3g")
            caption = (
                f"The same load and interference for each, on the real pipeline: {spread}. Throughput, /s: {rates}."
            )
            draw = partial(draw_live, cells=cells, looks=data.looks)
            words = place.model, str(place.devices), f"{place.period:g}", f"{place.duration:g}"
            plots.append(Plot(_slug(study, *words), title, caption, draw, data.of(study)))
    return Section("live", "Live runs", (), tuple(tables), tuple(plots)) if plots else None


def _heat(data: _Data) -> Section | None:
    tables, plots = [], []
    references = (("of_delayed", "delayed oracle"), ("of_oracle", "oracle"))
    for name, reference in references:
        value = attrgetter(name)
        places = {
            place: {
                p: s
                for p, s in found.items()
                if math.isfinite(value(s)) and (name != "of_delayed" or not is_yardstick(p))
            }
            for place, found in standings(data.cells("grid")).items()
        }
        places = {
            place: {p: s for p, s in found.items() if base_name(p) != "oracle"} for place, found in places.items()
        }
        policies = order_policies(policy for found in places.values() for policy in found)
        if not policies:
            continue
        worst = [
            f"{policy} {min(value(found[policy]) for found in places.values() if policy in found):.3f}"
            for policy in policies
        ]
        caption = (
            f"Throughput / that of the {reference} over the period and the duration of the interference, in requests; "
            f"one colour scale for all. Worst cells: {', '.join(worst)}."
        )
        label = f"throughput / {reference}"
        draw = partial(draw_heat, places=places, policies=policies, value=value, looks=data.looks, label=label)
        plots.append(Plot(_slug("heat", name), label.capitalize(), caption, draw, data.of("grid")))
        tables.append(cells_table(data.cells("grid"), name, f"Throughput / {reference}, cell by cell"))
    return Section("grid", "Every period and duration", (), tuple(tables), tuple(plots)) if plots else None


def _groups(data: _Data, told: Callable[[Cell], Any]) -> dict[str, dict[str, list[Cell]]]:
    """Cells that tell something, by study and model; scaling is left out: its devices differ too much to be one."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for study in (study for study in data.studies if study != "scaling"):
        for cell in data.cells(study):
            if told(cell):
                found.setdefault(study, {}).setdefault(cell.model, []).append(cell)
    return found


def _pooled(cells: Mapping[str, Sequence[Cell]]) -> str:
    counts = {(cell.devices, cell.period, cell.duration) for group in cells.values() for cell in group}
    return f"all {len(counts)} settings together" if len(counts) > 1 else "one setting"


def _latency(data: _Data) -> Section | None:
    plots = []
    for study, groups in _groups(data, attrgetter("latency_quantiles_s")).items():
        every = [cell for cells in groups.values() for cell in cells]
        p99 = _compare(standings(every), lambda standing: standing.latency_p99_s * 1e3, ".0f")
        caption = f"Latency of the requests of {_pooled(groups)}, a panel per model. Mean p99, ms: {p99}."
        draw = partial(draw_cdfs, groups=groups, looks=data.seen(every))
        title = f"Latency in the {study_name(study)}"
        plots.append(Plot(_slug("latency", study), title, caption, draw, data.of(study)))
    return Section("latency", "Latency distributions", plots=tuple(plots)) if plots else None


def _slo(data: _Data) -> Section | None:
    plots = []
    for study, groups in _groups(data, attrgetter("below_peak")).items():
        every = [cell for cells in groups.values() for cell in cells]
        share = _compare(standings(every), lambda standing: 1 - standing.holds, ".1%")
        caption = (
            "Share of requests whose momentary throughput is below a share of the peak (lower is better), over "
            f"{_pooled(groups)}. Below 80% of the peak: {share}."
        )
        draw = partial(draw_slo, groups=groups, looks=data.seen(every))
        title = f"Service levels in the {study_name(study)}"
        plots.append(Plot(_slug("slo", study), title, caption, draw, data.of(study)))
    return Section("slo", "Service levels", plots=tuple(plots)) if plots else None


def _scaling(data: _Data) -> Section | None:
    cells = data.cells("scaling")
    found = standings(cells)
    plots = []
    for model in dict.fromkeys(cell.model for cell in cells):
        places = {place: group for place, group in found.items() if place.model == model}
        own = [cell for cell in cells if cell.model == model]
        references = [
            (label, attrgetter(name), attrgetter(name))
            for name, label in (("of_oracle", "/ oracle"), ("of_delayed", "/ delayed oracle"))
            if any(math.isfinite(getattr(cell, name)) for cell in own)
        ]
        if not references:
            continue
        least, most = min(places).devices, max(place.devices for place in places)
        told = {place: group for place, group in places.items() if place.devices == most}
        caption = (
            f"{model} on {least} to {most} devices: means, and the least and the most of the runs as bands. On {most} "
            f"devices, of the oracle's throughput: {_compare(told, attrgetter('of_oracle'), '.3f')}."
        )
        draw = partial(draw_scaling, places=places, cells=own, looks=data.seen(own), references=references)
        title = f"Scaling with devices: {model}"
        plots.append(Plot(_slug("scaling", model), title, caption, draw, data.of("scaling")))
    if not plots:
        return None
    table = scaling_table(cells, "Throughput / oracle over devices")
    return Section("scaling", "Scaling with devices", (), (table,), tuple(plots))


def _costs(data: _Data) -> Section | None:
    tables = tuple(
        costs_table(data.cells(study), f"Costs of finding plans: {study_name(study)}")
        for study in data.studies
        if not study.startswith("live")
    )
    return Section("costs", "What finding plans costs", (), tables) if tables else None


def _detection(data: _Data) -> Section | None:
    points = data.whole.detections
    if not points:
        return None
    caption = (
        "Mean observations until a detector tells a slowdown, beside the least that there can be for as few false "
        "alarms, ln(ARL)/KL (dashed; where detectors differ in false alarms, each has its own). None can alarm before "
        "the first observation (line at 1)."
    )
    plot = Plot(
        "detection",
        "Detection delay against the bound",
        caption,
        partial(draw_detection, points=points),
        data.having("detections"),
    )
    return Section("detection", "Detection delay", (), (detection_table(points, "Detection delays"),), (plot,))


def _validation(data: _Data) -> Section | None:
    found = data.whole.validations
    if not found:
        return None
    tables = [validation_table(found, "Simulated against live")]
    order = order_table(found, "Order of the policies, simulated and live")
    return Section("validation", "Simulated against live", (), (*tables, *([order] if order.rows else [])))


def _notes(data: _Data) -> Section | None:
    return Section("notes", "Notes", data.whole.notes) if data.whole.notes else None
