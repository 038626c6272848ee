"""The highest rates at which every model keeps its limit: all are raised together, in one proportion, by bisection."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from msgspec import Struct

from odin_lab.cost.attempt import SHARE, Attempt, attempt_of
from odin_lab.load.client import RequestFailedError, open_client
from odin_lab.load.hopeless import not_hopeless
from odin_lab.load.introduction import Introduction, gone
from odin_lab.load.samples import make_samples
from odin_lab.load.search import RateSearch
from odin_lab.load.task import Task
from odin_lab.load.trial import Trial, run_trial

__all__ = ["Peak", "PeakSearch", "Tenant", "run_together"]

_LEAST = 100
"""Requests of each model of which a 95th percentile can be told ..."""
_MOST_TIMES = 4
"""... unless they take so many times longer than was asked for."""
_GATE_S = 120.0
_CAPACITY_S, _CAPACITY_CLIENTS = 5.0, 16

Look = Callable[[str, Trial, object], bool]
Together = Callable[[Mapping[str, Task], Callable[[str, Trial], bool]], dict[str, Trial]]


class Tenant(NamedTuple):
    """A model that is asked, and its limit.

    Attributes
    ----------
    known
        From :func:`odin_lab.load.introduction.introduce`.
    limit_ms
        Within which 95% of all its requests are to be answered.
    """

    known: Introduction
    limit_ms: float


class Peak(Struct, frozen=True):
    """What a search came to.

    Attributes
    ----------
    best
        The trial at the highest rate at which all limits were kept; None: there was none.
    attempts
        All trials, in their order.
    """

    best: Attempt | None
    attempts: list[Attempt]

    @property
    def open_ended(self) -> bool:
        """Whether no rate was too much, as when the trials did not suffice: higher ones may be kept as well."""
        return self.best is not None and all(attempt.kept for attempt in self.attempts)

    @property
    def rates_hz(self) -> dict[str, float]:
        """Highest rate of each model; empty if there is none."""
        return {} if self.best is None else {name: part.rate_hz for name, part in self.best.parts.items()}


class PeakSearch:
    """Finds the highest rates of some models.

    Parameters
    ----------
    tenants
        By name; all are asked at once.
    seconds
        Of each trial; longer where rates are low.
    seed
        Of inputs and moments.
    precision, most
        As of :class:`odin_lab.load.search.RateSearch`.
    look
        Called with a title, a trial while it runs, and what tells trials apart; False: the user wants no more.
    run
        Carries trials out, all at once, and leaves nothing of them; default: :func:`run_together`, after which a
        server may still have requests to answer.

    Attributes
    ----------
    ended
        Whether the user wanted no more.
    """

    def __init__(
        self,
        tenants: Mapping[str, Tenant],
        *,
        seconds: float,
        seed: int,
        precision: float,
        most: int,
        look: Look,
        run: Together | None = None,
    ) -> None:
        self._tenants, self._seconds, self._seed = tenants, seconds, seed
        self._precision, self._most, self._look = precision, most, look
        self._run = run_together if run is None else run
        self._settles = run is None
        self.ended = False

    def capacity_hz(self, name: str) -> float:
        """Answers per second to many clients at once: where a search may begin; 0: none."""
        known = self._tenants[name].known
        seconds = min(_CAPACITY_S, self._seconds)
        task = Task(known.target, known.inputs, "clients", seconds, clients=_CAPACITY_CLIENTS, seed=self._seed)

        def look(_: str, trial: Trial) -> bool:
            self.ended = self.ended or not self._look(f"{name}, {_CAPACITY_CLIENTS} clients", trial, "clients")
            return not self.ended

        trial = self._run({name: task}, look)[name]
        answered = [one.over_s for one in trial.outcomes if not one.failure]
        return 0.0 if not answered else len(answered) / max(seconds, 1e-9)

    def find(self, weights: Mapping[str, float], *, start_hz: float) -> Peak:
        """Search.

        Parameters
        ----------
        weights
            Proportion of the models' rates.
        start_hz
            Rate of all together to begin with.
        """
        search = RateSearch(start_hz=start_hz, precision=self._precision, most=self._most)
        attempts: list[Attempt] = []
        best: Attempt | None = None
        while not self.ended and (rate_hz := search.next_hz) is not None:
            attempt = self._try(weights, rate_hz)
            if self.ended:
                break
            attempts.append(attempt)
            search.add(rate_hz, passed=attempt.kept)
            if attempt.kept and (best is None or attempt.rate_hz > best.rate_hz):
                best = attempt
            if self._settles:
                self._settle()
        return Peak(best, attempts)

    def _try(self, weights: Mapping[str, float], rate_hz: float) -> Attempt:
        whole = sum(weights.values())
        rates_hz = {name: rate_hz * weights[name] / whole for name in self._tenants}
        # all for the same time, in which the one that is asked least is asked often enough
        seconds = min(max(self._seconds, _LEAST / min(rates_hz.values())), _MOST_TIMES * self._seconds)
        tasks, possible = {}, {}
        for number, (name, tenant) in enumerate(self._tenants.items()):
            tasks[name] = Task(
                tenant.known.target,
                tenant.known.inputs,
                "server",
                seconds,
                rate_hz=rates_hz[name],
                bound_ms=tenant.limit_ms,
                seed=self._seed + number,  # or all would be asked at the same moments
            )
            possible[name] = not_hopeless(expected=rates_hz[name] * seconds, share=SHARE, bound_s=tenant.limit_ms / 1e3)
        hopeless = threading.Event()  # for one is for all

        def look(name: str, trial: Trial) -> bool:
            title = f"{name}{' of all' if len(self._tenants) > 1 else ' alone'}, {rates_hz[name]:.3g} requests/s"
            if not self._look(title, trial, rate_hz):
                self.ended = True
            if not possible[name](trial):
                hopeless.set()
            return not self.ended and not hopeless.is_set()

        trials = self._run(tasks, look)
        for name, trial in trials.items():
            if trial.server_gone:
                raise ConnectionError(gone(self._tenants[name].known.target.url))
        return attempt_of(trials, {name: tenant.limit_ms for name, tenant in self._tenants.items()})

    def _settle(self) -> None:
        """Wait for what is left of the trial before: a request that comes last is answered last."""
        for tenant in self._tenants.values():
            (sample,) = make_samples(tenant.known.inputs, count=1, seed=self._seed)
            with (
                contextlib.closing(open_client(tenant.known.target)) as client,
                contextlib.suppress(RequestFailedError),
            ):
                client.infer(client.prepare(sample))


def run_together(tasks: Mapping[str, Task], look: Callable[[str, Trial], bool]) -> dict[str, Trial]:
    """Carry out trials at once, each in a process of its own; all begin when the last is prepared.

    Raises
    ------
    ValueError, TrialBrokenError
        As :func:`odin_lab.load.trial.run_trial`.
    """
    gate = threading.Barrier(len(tasks))
    broken = threading.Event()

    def begin() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(_GATE_S)

    def stop() -> None:
        broken.set()
        gate.abort()

    def one(name: str, task: Task) -> Trial:
        def watch(trial: Trial) -> bool:
            if broken.is_set() or not look(name, trial):
                gate.abort()  # who waits there for the others would not look any more
                return False
            return True

        try:
            return run_trial(task, look=watch, gate=begin)
        except BaseException:
            stop()
            raise

    with ThreadPoolExecutor(len(tasks), thread_name_prefix="odin-cost") as pool:
        try:
            running = {name: pool.submit(one, name, task) for name, task in tasks.items()}
            return {name: future.result() for name, future in running.items()}
        except BaseException:  # Ctrl-C once more, or one of them broke
            stop()
            raise
