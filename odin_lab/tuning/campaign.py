"""What ``odin tune`` does: probes of each mode, a choice, perhaps a sweep, and then serving with the tuner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from odin.tuning.choice import Choice, Probe, best_within, choose, largest_within
from odin_lab.tuning.measure import Effort, probe
from odin_lab.tuning.modes import Mode

__all__ = ["Findings", "Look", "Probed", "best_of_sweep", "find", "first_values"]

_FAR_OVER = 2
"""A sweep ends after so many values in a row that break the limit: larger ones do, too."""
_BATCH_PROBE = 8


class Probed(Protocol):
    """A pipeline in a mode that can be measured: a :class:`~odin_lab.tuning.served.Served`."""

    value: int

    def submit(self, samples: int) -> Future[Any]:
        """Send a request of so many samples."""


class Look(Protocol):
    """Told where one is; whether to stop is its answer."""

    def __call__(self, what: str, done: int, of: int) -> bool: ...


class Findings(NamedTuple):
    """What was measured before anything is decided.

    Attributes
    ----------
    probes
        By which is chosen: few of each mode.
    swept
        Every value, if it was asked for; the probes' among them.
    choice
        What was decided by the probes; None: it was ended before all of them were.
    mode
        The chosen one.
    ended
        Whether it was ended before all was measured.
    """

    probes: tuple[Probe, ...]
    swept: tuple[Probe, ...]
    choice: Choice | None
    mode: Mode | None
    ended: bool = False

    @property
    def largest(self) -> int:
        """Largest value that is worth going to: not beyond the chosen number of instances if more were measured with
        less throughput.
        """
        choice, mode = self.choice, self.mode
        if choice is None or mode is None:
            return 1
        more = [one for one in self.probes if one.knob == choice.knob == "instances" and one.value > choice.start]
        return choice.start if choice.keeps and more else mode.largest


def first_values(mode: Mode) -> tuple[int, ...]:
    """The values that are measured first: one, an instance for each core, and many.

    Examples
    --------
    >>> first_values(Mode("batch", ("cpu:0-1",), 32)), first_values(Mode("instances", ("cpu:0", "cpu:1"), 2))
    ((1, 8), (1, 2))
    >>> first_values(Mode("instances", ("cpu:0", "cpu:1") * 3, 6))
    (1, 2, 6)
    """
    if mode.knob == "batch":
        values = {1, min(mode.largest, _BATCH_PROBE)}
    else:
        values = {1, min(mode.largest, len(set(mode.stages))), mode.largest}
    return tuple(sorted(values))


class _EndedError(Exception):
    """The user wants no more."""


class _Meter:
    """Measures values of a mode, each once."""

    def __init__(
        self, mode: Mode, served: Probed, effort: Effort, look: Look, on_probe: Callable[[Probe], None]
    ) -> None:
        self._mode, self._served, self._effort = mode, served, effort
        self._look, self._on_probe = look, on_probe
        self._known: dict[int, Probe] = {}

    @property
    def known(self) -> list[Probe]:
        """What was measured, by value."""
        return [self._known[value] for value in sorted(self._known)]

    def measure(self, value: int) -> Probe:
        """Measure a value, or tell what is known of it; raises :class:`_EndedError` if the user wants no more."""
        if value not in self._known:
            mode, effort = self._mode, self._effort
            self._served.value = value
            title, total = f"{mode.title}, {value}", effort.requests + effort.warm * mode.clients(value)
            answered = 0

            def note(count: int) -> None:
                nonlocal answered
                answered = count

            found = probe(
                mode,
                value,
                self._served.submit,
                effort=effort,
                stop=lambda: self._look(title, answered, total),
                look=note,
            )
            if found is None:
                raise _EndedError
            self._known[value] = found
            self._on_probe(found)
        return self._known[value]


def find(
    modes: Sequence[Mode],
    open_mode: Callable[[Mode], AbstractContextManager[Probed]],
    *,
    limit_s: float,
    statistic: str = "p95",
    effort: Effort,
    sweep: bool = False,
    look: Look = lambda what, done, of: False,
    on_probe: Callable[[Probe], None] = lambda probe: None,
) -> Findings:
    """Measure each mode in turn, and choose.

    The last value of each is the largest that keeps the limit as the first ones predict it. If the user wants no more,
    what is known until then, without a choice.

    Parameters
    ----------
    modes
        What to compare.
    open_mode
        Starts a mode's pipeline.
    limit_s, statistic
        What latencies are to keep.
    effort
        How long a value is measured.
    sweep
        Measure every value of each mode, too.
    look
        Told where one is.
    on_probe
        Told of each measurement.
    """
    probes: list[Probe] = []
    swept: list[Probe] = []
    for mode in modes:
        with open_mode(mode) as served:
            meter = _Meter(mode, served, effort, look, on_probe)
            try:
                for value in first_values(mode):
                    meter.measure(value)
                meter.measure(largest_within(meter.known, limit_s=limit_s, largest=mode.largest, statistic=statistic))
                probes += meter.known
                over = 0
                for value in range(1, mode.largest + 1) if sweep else ():
                    over = over + 1 if meter.measure(value).latency_s(statistic) > limit_s else 0
                    if over == _FAR_OVER:
                        break
            except _EndedError:
                known = [one for one in probes if one.knob != mode.knob] + meter.known
                return Findings(tuple(known), (*swept, *meter.known) if sweep else (), None, None, True)
            if sweep:
                swept += meter.known
    choice = choose(probes, limit_s=limit_s, statistic=statistic)
    return Findings(tuple(probes), tuple(swept), choice, next(mode for mode in modes if mode.knob == choice.knob))


def best_of_sweep(
    findings: Findings, value: int, *, limit_s: float, statistic: str = "p95"
) -> tuple[Probe, float] | None:
    """The best of a sweep, and the throughput with a value of the chosen knob as a part of its; None without one."""
    if findings.choice is None:
        return None
    best = best_within(findings.swept, limit_s=limit_s, statistic=statistic)
    own = [one for one in findings.swept if (one.knob, one.value) == (findings.choice.knob, value)]
    return None if best is None or not own else (best, own[0].throughput_hz / best.throughput_hz)
