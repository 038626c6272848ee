"""The relay: where a request changes hands is decided when it gets there, by who is free.

Where every stage may begin with a request (:attr:`Windows.all_begin`) and all are on one machine, each takes a new one
by itself when it is free, from one queue, unless others would be done much sooner (:func:`is_left_to_others`). It hands
over to a later stage only what would be done sooner there (:func:`is_done_sooner`).

Else new requests go to the first stage. At each cut that it comes to, a stage looks at the later stages in order and
hands over to the first that may take the request there (:class:`Windows`), has its one waiting place free, would not
delay it (it takes the next layer later than all the rest takes here), and for which one of these holds::

    must   no later cut is allowed: the stage waits here until there is a place
    idle   that stage has nothing to do
    busy   this stage has another request to go on with, unless the next cut is cheaper and reached in time
    soon   that stage is free nearer to this cut than to the next one

If there is none it goes on. At the end of the chain it answers the request itself. Before it begins with a request it
passes it on as it is to a stage that would have the next layer done in half the time: even one layer of each request on
a very slow stage would hold up all others. On production lines this is known as a bucket brigade (Bartholdi and
Eisenstein, Operations Research 44, 1996); here a slow stage can be passed by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from odin.partitioner.plan import Plan

__all__ = [
    "FAR_SOONER", "MUCH_SOONER", "SOONER", "WEIGHT", "Later", "Windows", "free_at", "hand_over", "idle_slowdown",
    "is_better", "is_done_sooner", "is_expected_at", "is_hopeless", "is_left_to_others", "is_much_sooner",
    "slowdown_after",
]  # fmt: skip

WEIGHT = 0.3
"""Of the latest layer in a stage's slowdown: some three layers are remembered."""


SOONER, MUCH_SOONER, FAR_SOONER = 0.75, 0.5, 0.1
"""Of the time here, in which a request must be done elsewhere: what is known of stages' speeds is so to some 20%."""


class Windows(tuple[tuple[int, int], ...]):
    """At which cuts each boundary between neighbouring stages may hand over, first and last cut included.

    Cut ``c`` lies before layer ``c``. The text form is the cuts at which each stage may end, joined by ``|``, each
    after an ``@``; the last stage ends with the chain. So ``@0-18|@18`` is a relay of two stages over 18 layers, and
    ``@7|@18`` the plan ``7|11``. :meth:`parse` reads it back.

    Parameters
    ----------
    windows
        (first, last) cut for each boundary, then (layers, layers) for the end of the chain.

    Raises
    ------
    ValueError
        If a window is empty, or begins or ends before the one in front of it, or the last is not the end of the chain.

    Examples
    --------
    >>> str(Windows.whole(stage_count=2, layer_count=18)), str(Windows.of_plan(Plan((7, 11))))
    ('@0-18|@18', '@7|@18')
    >>> Windows.parse("@7|@18").plan
    Plan((7, 11))
    """

    __slots__ = ()

    def __new__(cls, windows: Iterable[tuple[int, int]]) -> Self:
        values = [(int(first), int(last)) for first, last in windows]
        text = "|".join(_window_text(first, last) for first, last in values)
        if not values:
            raise ValueError("windows need at least one stage: Windows.whole(stage_count=2, layer_count=18)")
        before = (0, 0)
        for window in values:
            if window[0] > window[1] or window[0] < before[0] or window[1] < before[1]:
                raise ValueError(
                    f"windows {text}: {_window_text(*window)} must not be empty, nor begin or end before the window in "
                    "front of it; cuts are 0 or more"
                )
            before = window
        if before[0] != before[1]:
            raise ValueError(f"windows {text}: the last stage ends with the chain; close with one cut, such as @18")
        return super().__new__(cls, values)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form, for example ``"@0-18|@18"``.

        Raises
        ------
        ValueError
            If the text is not cuts or ranges of cuts, each after an ``@``, joined by ``|``.
        """
        values = []
        for part in text.split("|"):
            first, dash, last = part.strip().removeprefix("@").partition("-")
            if not part.strip().startswith("@") or not first.isdecimal() or (dash and not last.isdecimal()):
                raise ValueError(
                    f"{text!r} is not windows: write where each stage may end, joined by '|', such as @0-18|@18"
                )
            values.append((int(first), int(last if dash else first)))
        return cls(values)

    @classmethod
    def of_plan(cls, plan: Plan) -> Self:
        """Windows of one cut."""
        return cls((last, last) for _, last in plan.ranges)

    @classmethod
    def whole(cls, *, stage_count: int, layer_count: int) -> Self:
        """The relay without bounds: every boundary at any cut."""
        return cls((*[(0, layer_count)] * (stage_count - 1), (layer_count, layer_count)))

    @property
    def layer_count(self) -> int:
        """Layers of the chain."""
        return self[-1][1]

    @property
    def plan(self) -> Plan | None:
        """The plan that they are, if each is one cut; else None."""
        if any(first != last for first, last in self):
            return None
        return Plan(last - before for last, before in zip(self._lasts, (0, *self._lasts), strict=False))

    @property
    def all_begin(self) -> bool:
        """Whether any stage may run a request from its first layer on, so that whoever is free can take a new one."""
        return self.plan is None and all(self.range_of(stage)[0] == 0 < last for stage, (_, last) in enumerate(self))

    @property
    def _lasts(self) -> tuple[int, ...]:
        return tuple(last for _, last in self)

    @classmethod
    def around(cls, plan: Plan, *, free: Sequence[bool]) -> Self:
        """Widest windows if some boundaries may lie anywhere between those that must stay where a plan has them.

        Parameters
        ----------
        free
            For each boundary between stages, whether it may move.
        """
        lasts = [last for _, last in plan.ranges]
        end = lasts[-1]
        windows = []
        for boundary, last in enumerate(lasts[:-1]):
            before = [lasts[other] for other in range(boundary) if not free[other]]
            after = [lasts[other] for other in range(boundary + 1, len(lasts) - 1) if not free[other]]
            windows.append(((before or [0])[-1], (after or [end])[0]) if free[boundary] else (last, last))
        return cls((*windows, (end, end)))

    def nearest(self, plan: Plan) -> Plan:
        """Return the plan within the windows that is nearest to a given one."""
        lasts = [min(max(last, low), high) for (_, last), (low, high) in zip(plan.ranges, self, strict=True)]
        return Plan(last - before for last, before in zip(lasts, (0, *lasts), strict=False))

    def with_idle(self, rows: Sequence[int], stage_count: int) -> Windows:
        """Windows for more stages, of which only ``rows`` have a row here; the others get nothing to run.

        Examples
        --------
        >>> str(Windows.parse("@0-18|@18").with_idle((0, 2), 3)), str(Windows.parse("@7|@18").with_idle((1, 2), 3))
        ('@0-18|@0-18|@18', '@0|@7|@18')
        """
        own = dict(zip(rows, self, strict=True))
        windows, before = [], (0, 0)
        for stage in range(stage_count):
            before = own.get(stage, before)
            windows.append(before)
        return Windows((*windows[:-1], self[-1]))

    def takers(self, stage: int, cut: int) -> range:
        """Later stages that may take a request from a stage at a cut, and have layers to run from there on."""
        taker = first = stage
        while taker + 1 < len(self) and self[taker][0] <= cut <= self[taker][1]:
            taker += 1
            if self[taker][1] == cut:  # nothing is left for it, nor for those before it
                first = taker
        return range(first + 1, taker + 1)

    def range_of(self, stage: int) -> tuple[int, int]:
        """Half-open range of the layers that a stage may have to run."""
        return (self[stage - 1][0] if stage else 0), self[stage][1]

    def check_fits(self, *, layer_count: int, stage_count: int) -> None:
        """Raise ``ValueError`` unless they are for so many layers and stages."""
        if len(self) != stage_count or self.layer_count != layer_count:
            raise ValueError(
                f"windows {self} are for {len(self)} stages and {self.layer_count} layers; the pipeline has "
                f"{stage_count} and {layer_count}"
            )

    def __str__(self) -> str:
        return "|".join(_window_text(first, last) for first, last in self)

    def __repr__(self) -> str:
        return f"Windows.parse({str(self)!r})"


def _window_text(first: int, last: int) -> str:
    return f"@{first}" if first == last else f"@{first}-{last}"


class Later(NamedTuple):
    """A later stage as one that may hand over to it sees it.

    Attributes
    ----------
    idle
        Whether it has nothing to do.
    taken
        Whether its one waiting place is.
    free_s
        When it expects to be free, as it published.
    layer_s
        Seconds of the next layer there, at its present speed.
    """

    idle: bool
    taken: bool
    free_s: float
    layer_s: float


def hand_over(
    now_s: float,
    later: Sequence[Later] | Iterable[Later],
    *,
    must: bool,
    busy: bool,
    layer_s: float,
    rest_s: float,
    cost_s: float,
    saves_s: float = 0.0,
) -> int | None:
    """Which of the stages that may take a request at this cut gets it; None: go on, or wait if it must be handed over.

    Parameters
    ----------
    now_s
        The time.
    later
        Those stages, in order.
    must
        Whether no later cut is allowed.
    busy
        Whether another request waits for this stage.
    layer_s, rest_s
        Seconds of the next layer, and of all layers that this stage may still run, here at the present speed.
    cost_s
        Seconds to hand over.
    saves_s
        By how much less it costs at the next cut; while the other stage is busy anyway that one is preferred.

    Returns
    -------
    int or None
        Index into ``later``.

    Examples
    --------
    >>> occupied = Later(idle=False, taken=False, free_s=1.3, layer_s=0.2)
    >>> hand_over(1.0, [occupied], must=False, busy=False, layer_s=0.5, rest_s=2.0, cost_s=0.0)
    >>> hand_over(1.0, [occupied], must=False, busy=False, layer_s=0.7, rest_s=2.0, cost_s=0.0)
    0
    """
    for index, (idle, taken, free_s, its_layer_s) in enumerate(later):
        if not taken and (must or is_better(now_s, idle, free_s, its_layer_s, busy, layer_s, rest_s, cost_s, saves_s)):
            return index
    return None


def is_better(
    now_s: float,
    idle: bool,
    free_s: float,
    its_layer_s: float,
    busy: bool,
    layer_s: float,
    rest_s: float,
    cost_s: float,
    saves_s: float = 0.0,
) -> bool:
    """Whether to hand over to a stage whose place is free, rather than go on; parameters as of :func:`hand_over`."""
    wait_s = 0.0 if idle else is_expected_at(free_s, now_s) - now_s
    if wait_s + its_layer_s > rest_s:
        return False
    return idle or wait_s - cost_s < layer_s / 2 or (busy and not (saves_s > 0.0 and wait_s > layer_s))


def is_done_sooner(
    now_s: float,
    idle: bool,
    free_s: float,
    its_layer_s: float,
    its_rest_s: float,
    layer_s: float,
    rest_s: float,
    cost_s: float,
    waiting: bool,
) -> bool:
    """Whether to hand over to a stage whose place is free, where all stages take new requests from one queue.

    Parameters as of :func:`hand_over`.

    Examples
    --------
    A stage as fast as this one is of no use, but one that is idle, while this one is slowed by half:

    >>> is_done_sooner(1.0, True, 0.0, 0.2, 2.0, 0.2, 2.0, 0.0, False)
    False
    >>> is_done_sooner(1.0, True, 0.0, 0.2, 2.0, 0.3, 3.0, 0.0, False)
    True
    """
    wait_s = 0.0 if idle else is_expected_at(free_s, now_s) - now_s
    if wait_s + its_layer_s > layer_s:  # by the next cut this stage does more than the other one would
        return False
    return wait_s + cost_s + its_rest_s <= rest_s * (MUCH_SOONER if waiting else SOONER)


def is_much_sooner(now_s: float, idle: bool, free_s: float, its_layer_s: float, layer_s: float) -> bool:
    """Whether to pass a request on to a stage with nothing done for it; parameters as of :func:`is_better`."""
    wait_s = 0.0 if idle else is_expected_at(free_s, now_s) - now_s
    return wait_s + its_layer_s <= layer_s * MUCH_SOONER


def is_left_to_others(chain_s: float, others: Iterable[tuple[bool, float, float]], *, waiting: int) -> bool:
    """Whether a stage leaves what waits in the queue to others, which would be done with it much sooner.

    So it does with one for each such stage that has nothing to do, since nothing is lost then, and with all if this one
    is so slow that it counts for nothing beside the others.

    Parameters
    ----------
    chain_s
        Seconds of a whole request on this stage.
    others
        For each of the others: whether it is idle, seconds until it is free, and seconds of a whole request there.
    waiting
        Requests in the queue.

    Examples
    --------
    >>> idle, busy = (True, 0.0, 1.0), (False, 0.5, 1.0)
    >>> [is_left_to_others(3.0, [idle], waiting=1), is_left_to_others(3.0, [idle], waiting=2)]
    [True, False]
    >>> [is_left_to_others(chain_s, [busy], waiting=1) for chain_s in (3.0, 20.0)]
    [False, True]
    """
    done = 0.0
    for idle, wait_s, its_chain_s in others:
        by_then = max(0.0, FAR_SOONER * chain_s - wait_s) // its_chain_s if its_chain_s > 0 else waiting
        done += max(by_then, idle and its_chain_s <= MUCH_SOONER * chain_s)
    return done >= waiting > 0


def is_hopeless(left_s: float, least_s: float) -> bool:
    """Whether a request's deadline, so many seconds away, passes although nothing disturbs it any more.

    Examples
    --------
    >>> is_hopeless(0.5, 0.4), is_hopeless(0.5, 0.6)
    (False, True)
    """
    return least_s > left_s


def is_expected_at(free_s: float, now_s: float) -> float:
    """When a stage is free that said so: if it is late, then as much later again, so that one that hangs is left alone.

    Examples
    --------
    >>> is_expected_at(5.0, 4.0), is_expected_at(5.0, 7.0)
    (5.0, 9.0)
    """
    return free_s if free_s >= now_s else 2 * now_s - free_s


def free_at(layer_end_s: float, *, rest_s: float, next_free_s: float) -> float:
    """When a stage expects to be free: what it publishes.

    Parameters
    ----------
    layer_end_s
        When it ends the present layer: not before can it hand over.
    rest_s
        Seconds of the layers behind that one, at its present speed.
    next_free_s
        When the next stage takes over, as that one published; infinite if its waiting place is taken, or there is none.

    Examples
    --------
    >>> free_at(2.0, rest_s=3.0, next_free_s=4.0), free_at(2.0, rest_s=3.0, next_free_s=math.inf)
    (4.0, 5.0)
    """
    return min(layer_end_s + rest_s, max(layer_end_s, next_free_s))


def slowdown_after(slowdown: float, layer_s: float, baseline_s: float) -> float:
    """A stage's slowdown, given the one before, with one more layer: an exponentially weighted mean.

    Examples
    --------
    >>> slowdown_after(1.0, 0.4, 0.2)
    1.3
    """
    if not baseline_s > 0 or math.isinf(baseline_s):
        return slowdown
    return slowdown + WEIGHT * (layer_s / baseline_s - slowdown)


def idle_slowdown(slowdown: float, *, idle_s: float, chain_s: float) -> float:
    """What to make of a slowdown that is so old: half of what it is off 1 is forgotten in the time of a whole chain.

    So a stage that is passed by is given a request again one day, and is seen to have recovered.

    Examples
    --------
    >>> idle_slowdown(5.0, idle_s=2.0, chain_s=1.0)
    2.0
    """
    if slowdown == 1.0 or not chain_s > 0:
        return slowdown
    return float(1.0 + (slowdown - 1.0) * 0.5 ** (idle_s / chain_s))
