"""A mixed trace of three accuracy classes by each policy that chooses variants, with and without interference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from statistics import fmean
from typing import NamedTuple

from rich.table import Table

from odin.family.facts import Facts
from odin.family.policies import make_variant_policy
from odin_lab.simulator.tenants import Outsider
from odin_lab.simulator.variants import WantClass, mixed_trace, run_family
from odin_lab.timings import load_timings

__all__ = ["VariantsRow", "recorded_facts", "variants_rows", "variants_study", "variants_table"]

ACCURACY = {"mobilenet_v2": 0.7188, "resnet50": 0.7613, "resnet152": 0.7831}
"""Top-1 on ImageNet of torchvision's first weights, as it publishes them."""
POLICIES = ("best", "cheapest", "infaas", "odin")
LOADS = (0.5, 0.8, 1.1)
"""Rate over what the devices could do if each request got the cheapest variant that is accurate enough."""
DEVICES = 2
_DEADLINE_TIMES = 3.0
_SECONDS = 120.0
_SPELL_S = 10.0


class VariantsRow(NamedTuple):
    """What a policy made of the trace, all seeds together.

    Attributes
    ----------
    load
        See :data:`LOADS`.
    disturbed
        Whether a program computes on the last device, ten seconds of every twenty.
    violated
        Share of the requests that were late, refused, or answered less accurately than asked for.
    cost_s
        Device seconds for each of the others.
    by_variant
        Share of the answered requests that each variant had.
    """

    load: float
    disturbed: bool
    policy: str
    requests: int
    violated: float
    late: float
    refused: float
    inaccurate: float
    cost_s: float
    by_variant: dict[str, float]


def recorded_facts() -> list[Facts]:
    """Three variants, with the times of the tables that come with the package."""
    facts = []
    for name, accuracy in ACCURACY.items():
        seconds = float(load_timings(name).baseline_s().sum())
        facts.append(Facts(name, seconds, 0.0, accuracy=accuracy, cost_s=seconds, capacity_hz=DEVICES / seconds))
    return facts


def variants_rows() -> int:
    """How many rows there are."""
    return len(LOADS) * 2 * len(POLICIES)


def variants_study(*, seeds: Sequence[int], on_row: Callable[[], object] = lambda: None) -> list[VariantsRow]:
    """Run all; ``on_row`` is called after each row."""
    rows = []
    for row in _rows(seeds):
        rows.append(row)
        on_row()
    return rows


def _rows(seeds: Sequence[int]) -> Iterator[VariantsRow]:
    facts = recorded_facts()
    classes = [WantClass(one.accuracy, _DEADLINE_TIMES * one.latency_s(), 1.0) for one in facts]
    least_s = fmean(min(one.cost_s for one in facts if one.is_accurate(want.accuracy)) for want in classes)
    begins_s = [_SPELL_S * number for number in range(1, int(_SECONDS / _SPELL_S), 2)]
    beside = [Outsider(DEVICES - 1, begin_s, begin_s + _SPELL_S) for begin_s in begins_s]
    for load, disturbed, policy in product(LOADS, (False, True), POLICIES):
        found = [
            run_family(
                facts,
                make_variant_policy(policy),
                mixed_trace(classes, rate_hz=load * DEVICES / least_s, seconds=_SECONDS, seed=seed),
                devices=DEVICES,
                outsiders=beside if disturbed else (),
                seed=seed,
            )
            for seed in seeds
        ]
        requests = sum(one.requests for one in found)
        answered = sum(sum(one.by_variant.values()) for one in found)
        kept = sum(one.kept for one in found)
        yield VariantsRow(
            load,
            disturbed,
            policy,
            requests,
            1.0 - kept / requests,
            sum(one.late for one in found) / requests,
            sum(one.refused for one in found) / requests,
            sum(one.inaccurate for one in found) / requests,
            sum(one.used_s for one in found) / kept if kept else math.inf,
            {one.name: sum(run.by_variant.get(one.name, 0) for run in found) / max(1, answered) for one in facts},
        )


def variants_table(rows: Sequence[VariantsRow], *, seeds: int) -> Table:
    """A line for each row."""
    told = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in ACCURACY.items())
    table = Table(
        title=f"a third of the requests asks for the accuracy of each of {told}, within {_DEADLINE_TIMES:g} x its "
        f"latency; {DEVICES} devices, {_SECONDS:g} s, {seeds} seeds; load: rate / what the cheapest accurate variants "
        "could do; disturbed: a program has half of the last device, ten seconds of every twenty",
        title_justify="left",
        header_style="bold",
    )
    names = ("load", "disturbed", "policy", "violated", "late", "refused", "inaccurate", "ms/kept", "answered by")
    for name in names:
        table.add_column(name, justify="left" if name in ("disturbed", "policy", "answered by") else "right")
    for row in rows:
        table.add_row(
            f"{row.load:g}",
            "yes" if row.disturbed else "",
            row.policy,
            f"{row.violated:.1%}",
            f"{row.late:.1%}",
            f"{row.refused:.1%}",
            f"{row.inaccurate:.1%}",
            f"{row.cost_s * 1e3:.1f}" if math.isfinite(row.cost_s) else "-",
            ", ".join(f"{name} {share:.0%}" for name, share in row.by_variant.items() if share),
            end_section=row.policy == POLICIES[-1],
        )
    return table
