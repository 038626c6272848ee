"""The tables of the report: scores of the policies, what they cost, what was missed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from odin_lab.report.comparison import Place, Score, is_yardstick, mean, order_policies, scores
from odin_lab.report.goals import GOALS
from odin_lab.report.results import Cell
from odin_lab.report.tables import Better, Row, Table, Value

__all__ = [
    "cells_table",
    "costs_table",
    "headline_table",
    "misses_table",
    "misses_text",
    "scaling_table",
    "yardsticks",
]

_TOLD = 6

Scores = Mapping[Place, Mapping[str, Score]]


def _policies(found: Scores) -> tuple[str, ...]:
    return order_policies(policy for place in found.values() for policy in place)


def _values(found: Scores, policy: str, name: str) -> list[float]:
    return [getattr(place[policy], name) for place in found.values() if policy in place]


def _summary(found: Scores, repeats: Mapping[int, Scores], policy: str, name: str, better: Better, form: str) -> Value:
    """Mean over the places, behind it the worst of them; compared by the same mean in each repeat."""
    kept = [value for value in _values(found, policy, name) if math.isfinite(value)]
    worst = (min if better == "high" else max)(kept, default=math.nan)
    by_repeat = {repeat: mean(_values(own, policy, name)) for repeat, own in repeats.items()}
    return Value.of(mean(kept), form, extra=f"({worst:{form}})" if len(kept) > 1 else "", by_repeat=by_repeat)


def _by_repeat(cells: Sequence[Cell]) -> dict[int, Scores]:
    """Scores of each repeat alone."""
    return {repeat: scores(c for c in cells if c.repeat == repeat) for repeat in {cell.repeat for cell in cells}}


def yardsticks(policies: Sequence[str]) -> frozenset[int]:
    """Where in a sequence the policies are that are out of competition."""
    return frozenset(at for at, policy in enumerate(policies) if is_yardstick(policy))


def headline_table(cells: Iterable[Cell], title: str) -> Table:
    """Policies x what matters: the mean over all places and, in parentheses, the worst place."""
    cells = list(cells)
    found, repeats = scores(cells), _by_repeat(cells)
    policies = _policies(found)
    columns: tuple[tuple[str, str, Better, str], ...] = (
        ("throughput / fluid bound", "of_fluid", "high", ".3f"),
        ("throughput / oracle", "of_oracle", "high", ".3f"),
        ("throughput / delayed oracle", "of_delayed", "high", ".3f"),
        ("throughput / static", "of_static", "high", ".2f"),
        ("throughput / lls", "of_lls", "high", ".2f"),
        ("p99 latency / lls", "p99_of_lls", "low", ".2f"),
        ("requests at 80% of peak", "holds", "high", ".3f"),
        ("changes per event", "changes_per_event", "low", ".2f"),
    )
    rows: tuple[Row, ...] = tuple(
        (policy, *(_summary(found, repeats, policy, name, better, form) for _, name, better, form in columns))
        for policy in policies
    )
    settings = f"{len(found)} settings" if len(found) != 1 else "one setting"
    worst = ", in parentheses the worst of them" if len(found) > 1 else ""
    caption = f"Mean over {settings}{worst}. Higher is better, but for the p99 latency and the plan changes."
    if oracles := yardsticks(policies):
        caption += (
            " The oracles, in italics, know the true layer times, and take no part in the comparison; but they know no "
            "drift, and move whole layers, so that others can be above 1 beside them. Nothing can be above the fluid "
            "bound."
        )
    better = tuple(column[2] for column in columns)
    return Table(title, caption, ("policy", *(c[0] for c in columns)), rows, better, oracles).without_empty()


def costs_table(cells: Iterable[Cell], title: str) -> Table:
    """What the policies spend on finding plans."""
    cells = list(cells)
    found, repeats = scores(cells), _by_repeat(cells)
    policies = _policies(found)
    names = ("exploring", "trials_per_event", "changes_per_event")
    rows: tuple[Row, ...] = tuple(
        (
            policy,
            *(
                _summary(found, repeats, policy, name, "low", ".3f" if at == 0 else ".2f")
                for at, name in enumerate(names)
            ),
        )
        for policy in policies
    )
    caption = "Mean over the settings, in parentheses the worst. A trial is a plan that is tried to see how it does."
    columns = ("policy", "share of requests on trial", "trials per event", "plan changes per event")
    return Table(title, caption, columns, rows, ("low",) * 3, yardsticks(policies)).without_empty()


def cells_table(cells: Iterable[Cell], name: str, title: str) -> Table:
    """Each place in a row, each policy in a column: the numbers of the heat maps."""
    cells = list(cells)
    found, repeats = scores(cells), _by_repeat(cells)
    policies = _policies(found)
    rows: list[Row] = []
    for place in found:
        only = {place: found[place]}
        alone = {repeat: {place: own[place]} for repeat, own in repeats.items() if place in own}
        where = (place.model, str(place.devices), f"{place.period:g}", f"{place.duration:g}")
        rows.append((*where, *(_summary(only, alone, policy, name, "high", ".3f") for policy in policies)))
    return Table(
        title,
        "Mean over the repeats.",
        ("model", "devices", "period", "duration", *policies),
        tuple(rows),
        ("high",),
        frozenset(4 + at for at in yardsticks(policies)),
        labels=4,
        best_by="row",
        folded=True,
    )


def scaling_table(cells: Iterable[Cell], title: str, *, reference: str = "oracle") -> Table:
    """Throughput of each policy on more and more devices, as share of that of ``oracle`` or ``delayed-oracle``."""
    cells = list(cells)
    found, repeats = scores(cells), _by_repeat(cells)
    policies, name = _policies(found), "of_delayed" if reference == "delayed-oracle" else "of_oracle"
    models = sorted({place.model for place in found})
    sizes = sorted({place.devices for place in found})
    rows: list[Row] = []
    for model in models:

        def here(found: Scores, size: int, model: str = model) -> Scores:
            return {p: found[p] for p in found if (p.model, p.devices) == (model, size)}

        label = (model,) if len(models) > 1 else ()
        for policy in policies:
            told = (
                _summary(
                    here(found, size), {r: here(own, size) for r, own in repeats.items()}, policy, name, "high", ".3f"
                )
                for size in sizes
            )
            rows.append((*label, policy, *(replace(value, extra="") for value in told)))
        if reference in policies:
            told_hz = (mean(_values(here(found, size), reference, "throughput_hz")) for size in sizes)
            rows.append((*label, f"{reference}, images/s", *(Value.of(value, ".1f") for value in told_hz)))
    labels = 2 if len(models) > 1 else 1
    out = frozenset(
        at for at, row in enumerate(rows) if row[labels - 1] not in policies or is_yardstick(str(row[labels - 1]))
    )
    return Table(
        title,
        "Mean over the repeats.",
        (("model",) if len(models) > 1 else ()) + ("policy", *(f"{size} devices" for size in sizes)),
        tuple(rows),
        tuple("high" for _ in sizes),
        out,
        labels=labels,
    ).without_empty()


def _limit(figure: str) -> float:
    return next(goal.limit for goal in GOALS if goal.figure == figure)


def _misses(place: Mapping[str, Score], policy: str) -> tuple[bool, ...]:
    return tuple(not goal.holds(getattr(place[policy], goal.figure)) for goal in GOALS)


def misses_table(found: Scores, title: str) -> Table:
    """How often each policy misses what is asked, and how often it has the highest mean."""
    policies = [policy for policy in _policies(found) if not is_yardstick(policy)]
    rows: list[Row] = []
    for policy in policies:
        places = [place for place in found.values() if policy in place]
        counts = [sum(_misses(place, policy)[at] for place in places) for at in range(len(GOALS))]
        highest = sum(
            place[policy].throughput_hz >= max(s.throughput_hz for p, s in place.items() if not is_yardstick(p))
            for place in places
        )
        rows.append((policy, str(len(places)), *(Value.of(count, ".0f") for count in (highest, *counts))))
    caption = (
        "In how many of the settings each policy has the highest mean throughput of those that are no yardsticks, by "
        "however little, and misses what is asked."
    )
    columns = (
        "policy",
        "settings",
        "highest mean in",
        f"below {_limit('of_delayed'):g} of the delayed oracle",
        f"below {_limit('of_static'):g} of static",
        f"over {_limit('changes_per_event'):g} changes per event",
    )
    return Table(title, caption, columns, tuple(rows), labels=2)


def misses_text(found: Scores, policy: str) -> str:
    """Where the policy misses what is asked, the worst first; or that it does nowhere."""
    places = {place: score for place, score in found.items() if policy in score}
    asked: tuple[tuple[str, Callable[[Score], float], int, str], ...] = (
        (f"below {_limit('of_delayed'):g} of the delayed oracle's throughput", lambda s: s.of_delayed, 1, ".3f"),
        (f"below {_limit('of_static'):g} of static's throughput", lambda s: s.of_static, 1, ".3f"),
        (
            f"more than {_limit('changes_per_event'):g} plan changes per interference event",
            lambda s: s.changes_per_event,
            -1,
            ".2f",
        ),
    )
    told = []
    for at, (what, value, sign, form) in enumerate(asked):
        known = [place for place in places if not math.isnan(value(places[place][policy]))]
        missed = [place for place in known if _misses(places[place], policy)[at]]
        missed.sort(key=lambda place: sign * value(places[place][policy]))
        listed = "; ".join(f"{place} ({value(places[place][policy]):{form}})" for place in missed[:_TOLD])
        more = f"; and {len(missed) - _TOLD} more" if len(missed) > _TOLD else ""
        if missed:
            told.append(f"{what} in {len(missed)} of {len(known)} settings: {listed}{more}.")
        else:
            told.append(
                f"{what} in none of {len(known)} settings." if known else f"{what}: not known from these results."
            )
    return " ".join(f"{policy} is {text}" if at < 2 else f"It makes {text}" for at, text in enumerate(told))
