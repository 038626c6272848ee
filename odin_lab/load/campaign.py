"""The trials that a command asks for: one, or those of the search for the highest rate that keeps a bound."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from odin_lab.load.client import RequestFailedError, open_client
from odin_lab.load.figures import Figures, Request, figures_of, requests_of
from odin_lab.load.hopeless import not_hopeless
from odin_lab.load.introduction import Introduction
from odin_lab.load.samples import make_samples
from odin_lab.load.search import RateSearch
from odin_lab.load.task import Task
from odin_lab.load.trial import Trial, run_trial

__all__ = ["SHARE", "Campaign", "Finished", "Wishes"]

SHARE = 0.99
"""Of all requests, that must be answered within the bound."""
_LEAST = 100
"""Requests of which a 99th percentile can be told ..."""
_MOST_TIMES = 4
"""... unless they take so many times longer than was asked for."""
_NO_BOUND_MS = 3.6e6  # LoadGen wants one
_CAPACITY_S = 5.0
_CAPACITY_CLIENTS = 16

Look = Callable[[Trial], bool]


class Wishes(Struct, frozen=True):
    """What is asked for.

    Attributes
    ----------
    scenario, seconds, clients, samples, seed, images
        As of :class:`odin_lab.load.task.Task`.
    rate_hz
        ``server``: at this rate; None: search the highest one that keeps ``bound_ms``.
    bound_ms
        Within which a request is in time; None: no bound.
    """

    scenario: str
    seconds: float
    clients: int
    rate_hz: float | None
    bound_ms: float | None
    samples: int = 16
    seed: int = 0
    images: Path | None = None


class Finished(NamedTuple):
    """A trial that is over."""

    title: str
    figures: Figures
    requests: list[Request]


class Campaign:
    """Carries trials out, one after the other.

    Parameters
    ----------
    known
        From :func:`odin_lab.load.introduction.introduce`.
    lone_s
        Seconds that a request takes alone.
    look
        Called with the title and a trial while it runs; False: the user wants no more.
    run
        Carries one out.

    Attributes
    ----------
    finished
        Trials that are over.
    search
        The search for a rate; None if none was asked for.
    ended
        Whether the user wanted no more, or there is nobody to ask any more.
    server_gone
        Whether the server could not be connected to any more.
    """

    def __init__(
        self,
        known: Introduction,
        wishes: Wishes,
        *,
        lone_s: float,
        look: Callable[[str, Trial], bool],
        run: Callable[..., Trial] = run_trial,
    ) -> None:
        self._known, self._wishes, self._lone_s, self._look, self._run = known, wishes, lone_s, look, run
        self.finished: list[Finished] = []
        self.search: RateSearch | None = None
        self.ended = self.server_gone = False

    def carry_out(self) -> None:
        """Do all that was asked for, or until the user wants no more."""
        wishes = self._wishes
        match wishes.scenario:
            case "clients":
                self._closed_loop(wishes.clients, wishes.seconds)
            case "single-stream":
                self._try("single-stream", self._task(rate_hz=1 / self._lone_s))
            case "offline":
                self._offline()
            case _ if wishes.rate_hz is not None:
                self._at(wishes.rate_hz)
            case _:
                self._find()

    def _task(self, *, scenario: str = "", seconds: float = 0.0, clients: int = 0, rate_hz: float = 1.0) -> Task:
        wishes = self._wishes
        seconds = seconds or wishes.seconds
        scenario = scenario or wishes.scenario
        least = min(_LEAST, int(_MOST_TIMES * seconds * rate_hz)) if scenario == "server" else 1
        return Task(
            self._known.target,
            self._known.inputs,
            scenario,
            seconds,
            clients=clients or wishes.clients,
            rate_hz=rate_hz,
            bound_ms=wishes.bound_ms or _NO_BOUND_MS,
            least=max(1, least),
            samples=wishes.samples,
            seed=wishes.seed,
            images="" if wishes.images is None else str(wishes.images.absolute()),
        )

    def _try(self, title: str, task: Task, look: Look = lambda trial: True) -> Figures:
        def both(trial: Trial) -> bool:
            self.ended = self.ended or not self._look(title, trial)
            return not self.ended and look(trial)

        trial = self._run(task, look=both)
        requests = requests_of(trial)
        figures = figures_of(trial, requests, bound_ms=self._wishes.bound_ms)
        self.finished.append(Finished(title, figures, requests))
        if trial.server_gone:
            self.ended = self.server_gone = True
        return figures

    def _closed_loop(self, clients: int, seconds: float) -> Figures:
        title = f"closed loop, {clients} client{'' if clients == 1 else 's'}"
        return self._try(title, self._task(scenario="clients", clients=clients, seconds=seconds))

    def _at(self, rate_hz: float, look: Look = lambda trial: True) -> Figures:
        return self._try(f"server, {rate_hz:.3g} requests/s", self._task(scenario="server", rate_hz=rate_hz), look)

    def _offline(self) -> None:
        capacity = self._closed_loop(self._wishes.clients, min(_CAPACITY_S, self._wishes.seconds))
        if not self.ended:
            self._try("offline", self._task(rate_hz=max(capacity.answered_hz, 0.1)))

    def _find(self) -> None:
        """Begin at what a closed loop reaches; bisect."""
        capacity = self._closed_loop(
            max(_CAPACITY_CLIENTS, self._wishes.clients), min(_CAPACITY_S, self._wishes.seconds)
        )
        start_hz = 0.8 * (capacity.answered_hz or 1 / self._lone_s)
        self.search = search = RateSearch(start_hz=start_hz)
        while not self.ended and (rate_hz := search.next_hz) is not None:
            self._settle()
            figures = self._at(rate_hz, self._not_hopeless(rate_hz))
            if not self.ended:
                search.add(rate_hz, passed=figures.keeps(SHARE) and not figures.broken_off)

    def _not_hopeless(self, rate_hz: float) -> Look:
        """Whether a trial can still keep the bound."""
        expected = max(rate_hz * self._wishes.seconds, _LEAST)
        return not_hopeless(expected=expected, share=SHARE, bound_s=(self._wishes.bound_ms or 0.0) / 1e3)

    def _settle(self) -> None:
        """Wait for what is left of the trial before: a request that comes last is answered last."""
        (sample,) = make_samples(self._known.inputs, count=1, seed=self._wishes.seed, images=self._wishes.images)
        with contextlib.closing(open_client(self._known.target)) as client, contextlib.suppress(RequestFailedError):
            client.infer(client.prepare(sample))
