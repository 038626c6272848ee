"""What is known of a variant, what a request wants, and what a policy answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from odin.reduction.budget import FULL

__all__ = [
    "Choice",
    "Facts",
    "Predict",
    "Prediction",
    "Refusal",
    "Seen",
    "Step",
    "VariantPolicy",
    "Want",
]


class Facts(NamedTuple):
    """A variant's profile, as policies see it.

    Attributes
    ----------
    slope_s, intercept_s
        Seconds of a request of ``n`` samples, nothing else running: ``slope_s * n + intercept_s``.
    load_s
        Seconds from the decision to load it until it serves.
    memory_mib
        What it takes while it is loaded.
    accuracy
        Share of right answers on labelled data; ``nan`` if it is not known.
    cost_s
        Seconds of a device for one sample.
    capacity_hz
        Samples per second of all its devices together.
    form
        Which form of its model it is: the full one, or a reduced one, which computes less, such as ``"exit-8"``.
    lost
        Share of accuracy that a reduced form loses against the full one.
    """

    name: str
    slope_s: float
    intercept_s: float
    load_s: float = 0.0
    memory_mib: float = 0.0
    accuracy: float = math.nan
    cost_s: float = 0.0
    capacity_hz: float = math.inf
    form: str = FULL
    lost: float = 0.0

    @property
    def reduced(self) -> bool:
        """Whether it computes less than its model does."""
        return self.form != FULL

    def latency_s(self, samples: int = 1) -> float:
        """Seconds of a request with nothing else running."""
        return self.slope_s * samples + self.intercept_s

    def is_accurate(self, accuracy: float) -> bool:
        """Whether it is known to be at least as accurate; each is at least as accurate as 0."""
        return accuracy <= 0 or self.accuracy >= accuracy

    def does(self, want: Want) -> bool:
        """Whether it is accurate enough for a request, and within its budget if it is a reduced form."""
        allowed = not self.reduced or (want.budget > 0 and self.lost <= want.budget)
        return allowed and self.is_accurate(want.accuracy)


class Want(NamedTuple):
    """What a request asks for.

    Attributes
    ----------
    accuracy
        The least; 0: any. It holds for reduced forms too.
    latency_s
        Seconds from now within which it is to be done; infinite: any time.
    budget
        Share of accuracy that a reduced form may lose; 0: none may be used.
    samples
        How many it has.
    """

    accuracy: float = 0.0
    latency_s: float = math.inf
    budget: float = 0.0
    samples: int = 1


_FAIR = 1.1
"""Of what is expected, which half of the requests do not take: times vary by a tenth on the quietest machine."""


class Prediction(NamedTuple):
    """Seconds from now until a variant would be done with a request: expected, and at the latest as far as is known."""

    expected_s: float
    latest_s: float

    @property
    def fair_s(self) -> float:
        """Seconds within which it is more likely done than not."""
        return _FAIR * self.expected_s


class Predict(Protocol):
    """Predicts a request under present conditions; asked only for the variants that come into question."""

    def __call__(self, variant: int, *, loaded: bool = False) -> Prediction:
        """By a variant as it is; ``loaded``: as if it were loaded."""


class Choice(NamedTuple):
    """A request gets this variant.

    Attributes
    ----------
    step
        How far it was necessary to go: ``first``, the one that would be taken with nothing else running;
        ``variant``, another one; ``load``, one that has to be loaded for it; ``reduced``, a reduced form;
        ``reduced-load``, one that has to be loaded.
    missed
        A variant that would have been preferred if it were loaded; -1: none.
    why
        See :class:`odin.monitor.events.VariantCount`: ``asked``, ``deadline``, ``interference`` or ``unloaded``.
    """

    variant: int
    expected_s: float
    latest_s: float
    step: str = "first"
    missed: int = -1
    why: str = "asked"


class Refusal(NamedTuple):
    """No variant does what a request wants.

    Attributes
    ----------
    soonest, soonest_s
        Of those that are accurate enough, the one that would be done first, and in how many seconds; -1 and infinite if
        none is accurate enough.
    most_accurate
        The best of all that the request allows; -1 if it allows none.
    missed
        As of :class:`Choice`.
    """

    soonest: int
    soonest_s: float
    most_accurate: int
    missed: int = -1


class Seen(NamedTuple):
    """What became of a variant since the last look.

    Attributes
    ----------
    loaded, loading
        Its state.
    answered, missed
        Requests that it answered; that would have got it if it were loaded.
    latency_s
        Mean seconds of those that it answered; ``nan`` without any.
    samples
        In those that it answered.
    under_way
        Requests that it has now.
    instances, most_instances
        Stages that take requests, and that it has.
    """

    loaded: bool
    loading: bool = False
    answered: int = 0
    missed: int = 0
    latency_s: float = math.nan
    samples: int = 0
    under_way: int = 0
    instances: int = 1
    most_instances: int = 1


class Step(NamedTuple):
    """A change of what is loaded.

    Attributes
    ----------
    action
        ``load``, ``unload`` or ``instances``.
    variant
        Which.
    why
        In a few words.
    instances
        Stages that are to take requests, of ``instances``.
    """

    action: str
    variant: int
    why: str
    instances: int = 0


class VariantPolicy(Protocol):
    """Chooses variants for requests, and looks now and then what should be loaded.

    Attributes
    ----------
    name
        Its name.
    refuses
        Whether requests that would be late are refused.
    starts_with_one
        Whether one instance of a variant serves at the beginning, rather than all of its stages.
    """

    name: str
    refuses: bool
    starts_with_one: bool

    def choose(
        self, facts: Sequence[Facts], loaded: Collection[int], want: Want, predict: Predict, tried: Collection[int] = ()
    ) -> Choice | Refusal:
        """Decide for one request; ``tried``: variants that have turned it away just now."""

    def look(self, facts: Sequence[Facts], seen: Sequence[Seen], *, memory_mib: float) -> Sequence[Step]:
        """Decide what is to be loaded; called once a second."""
