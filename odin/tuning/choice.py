"""Batching or instances: which gains more throughput within the latency limit, by a few probes of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from odin.tuning.policy import KNOBS, KnobName

__all__ = ["Choice", "Probe", "best_within", "choose", "largest_within", "predicted_s"]


class Probe(NamedTuple):
    """What was measured with one value of a knob, with as many samples under way as are computed at a time.

    Attributes
    ----------
    knob
        Which one.
    value
        Its value.
    p95_s, mean_s
        Of the requests' latencies.
    throughput_hz
        Samples per second.
    requests
        How many were answered.
    """

    knob: KnobName
    value: int
    p95_s: float
    mean_s: float
    throughput_hz: float
    requests: int = 0

    def latency_s(self, statistic: str = "p95") -> float:
        """The figure that is held against the limit."""
        return self.mean_s if statistic == "mean" else self.p95_s


class Choice(NamedTuple):
    """What was decided, why in one sentence, and what to begin with.

    Attributes
    ----------
    knob
        Which one is turned from now on.
    start
        Its value to begin with.
    keeps
        Whether any probe kept the limit.
    why
        The reason.
    """

    knob: KnobName
    start: int
    keeps: bool
    why: str


def predicted_s(probes: Sequence[Probe], value: int, *, statistic: str = "p95") -> float:
    """Latency with an untried value of a knob, on the line through the two nearest probes; ``nan`` without any.

    DNNScaler (arXiv 2308.13803) completes a matrix of latencies, with those of 17 other networks, from two probes. We
    have no such library, so that two probes give a line: a batch of b samples takes a + b c seconds.

    Examples
    --------
    >>> known = [Probe("batch", 1, 0.010, 0.010, 100.0), Probe("batch", 8, 0.045, 0.045, 178.0)]
    >>> round(predicted_s(known, 16), 4)
    0.085
    """
    known = sorted(probes, key=lambda probe: (abs(probe.value - value), probe.value))[:2]
    if not known:
        return math.nan
    if len(known) == 1:
        return known[0].latency_s(statistic)
    low, high = sorted(known, key=lambda probe: probe.value)
    low_s, high_s = low.latency_s(statistic), high.latency_s(statistic)
    slope_s = max(0.0, (high_s - low_s) / (high.value - low.value))  # less for more is noise
    return low_s + slope_s * (value - low.value)


def largest_within(probes: Sequence[Probe], *, limit_s: float, largest: int, statistic: str = "p95") -> int:
    """Largest value that keeps the limit as predicted; 1 if none does.

    Examples
    --------
    >>> known = [Probe("instances", 1, 0.010, 0.010, 100.0), Probe("instances", 4, 0.040, 0.040, 100.0)]
    >>> largest_within(known, limit_s=0.031, largest=8)
    3
    """
    keeps = [value for value in range(1, largest + 1) if predicted_s(probes, value, statistic=statistic) <= limit_s]
    return max(keeps, default=1)


def best_within(probes: Sequence[Probe], *, limit_s: float, statistic: str = "p95") -> Probe | None:
    """The probe with the most throughput of those that keep the limit; None if none does."""
    keep = [probe for probe in probes if probe.latency_s(statistic) <= limit_s]
    return max(keep, key=lambda probe: (probe.throughput_hz, -probe.value), default=None)


def choose(probes: Sequence[Probe], *, limit_s: float, statistic: str = "p95") -> Choice:
    """Choose the knob whose best probe within the limit has the most throughput.

    If no probe keeps the limit, the knob with the least latency: it misses it by the least. With equal throughputs,
    batching, which has fewer processes.

    Raises
    ------
    ValueError
        If there are no probes.

    Examples
    --------
    >>> probes = [
    ...     Probe("batch", 1, 0.010, 0.010, 100.0), Probe("batch", 4, 0.034, 0.034, 118.0),
    ...     Probe("instances", 1, 0.018, 0.018, 56.0), Probe("instances", 2, 0.019, 0.018, 108.0),
    ... ]
    >>> choose(probes, limit_s=0.050).why
    'batching: 118 samples/s with a batch of 4 within 50 ms (p95 34 ms), 1.09 times the 108 of 2 instances'
    >>> choose(probes, limit_s=0.020).why
    'instances: 108 samples/s with 2 instances within 20 ms (p95 19 ms), 1.08 times the 100 of a batch of 1'
    """
    if not probes:
        raise ValueError("there are no probes to choose by; measure each knob with a value or two")
    best = {knob: best_within([one for one in probes if one.knob == knob], limit_s=limit_s, statistic=statistic)
            for knob in KNOBS}  # fmt: skip
    found = sorted(
        (probe for probe in best.values() if probe is not None),
        key=lambda probe: (-probe.throughput_hz, KNOBS.index(probe.knob)),
    )
    if not found:
        least = min(probes, key=lambda probe: (probe.latency_s(statistic), KNOBS.index(probe.knob)))
        why = (
            f"{_mode(least.knob)}: nothing that was tried keeps {_ms(limit_s)} ms; {_setting(least)} comes nearest "
            f"({_figure(least, statistic)})"
        )
        return Choice(least.knob, least.value, False, why)
    chosen = found[0]
    why = (
        f"{_mode(chosen.knob)}: {chosen.throughput_hz:.3g} samples/s with {_setting(chosen)} within {_ms(limit_s)} ms "
        f"({_figure(chosen, statistic)})"
    )
    if len(found) > 1:
        gain = chosen.throughput_hz / max(found[1].throughput_hz, 1e-9)
        why += f", {gain:.3g} times the {found[1].throughput_hz:.3g} of {_setting(found[1])}"
    elif len({probe.knob for probe in probes}) > 1:
        other = next(knob for knob in KNOBS if knob != chosen.knob)
        why += f"; no number of {'instances' if other == 'instances' else 'samples in a batch'} that was tried keeps it"
    return Choice(chosen.knob, chosen.value, True, why)


def _mode(knob: KnobName) -> str:
    return "batching" if knob == "batch" else "instances"


def _setting(probe: Probe) -> str:
    if probe.knob == "batch":
        return f"a batch of {probe.value}"
    return f"{probe.value} instance{'' if probe.value == 1 else 's'}"


def _figure(probe: Probe, statistic: str) -> str:
    return f"{statistic} {_ms(probe.latency_s(statistic))} ms"


def _ms(value_s: float) -> str:
    return f"{value_s * 1e3:.3g}"
