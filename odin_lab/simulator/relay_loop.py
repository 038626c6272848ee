"""The relay without bounds as loops over numbers: what :class:`odin_lab.simulator.relay.RelayLine` does, to the bit.

Only where every boundary may hand over at any cut and no device is lost. Events are the line's, in the same order: at
the same moment those that were foreseen first come first. A stage has at most one ahead, so nothing is sorted: the next
event is looked for among the stages.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.relay import FAR_SOONER, MUCH_SOONER, SOONER, WEIGHT

__all__ = ["HELPERS", "Changes", "Draws", "Requests", "Stages", "run_until_drawn"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NOTHING, LAYER, SENT = 0, 1, 2
"""What a stage's next event is: none, the end of a layer, the end of sending."""
FACTOR, SLOWDOWN, FREE, SINCE, OPEN, BEGAN, EVENT = range(7)
"""Rows of ``Stages.real``: factor of noise; slowdown that is known; when it is free, as it published; since when it is
idle; from when on it may be handed a request (infinite if its place is taken, minus infinite if it is idle); when its
layer began; its next event (infinite if there is none)."""
ITEM, WAITING, TAKEN, TAKER, WHAT, ORDER, ROW, SCENARIO = range(8)
"""Rows of ``Stages.whole``: requests that it has and that wait for it, by place, -1 for none; whether its place is
taken; whom it sends to, -1 for the gateway; its next event, and that one's order among all; which row of ``rows_s`` its
times are; its scenario, 0 for none."""
ARRIVED_S, SUBMITTED_S, FINISHED_S = range(3)
CONDITIONS, ARRIVE_ORDER = range(2)
ENTERED, ENTERING_S = range(2)
NUMBER, CUT, FREE_PLACE, QUEUE, ENTERING_ORDER = range(5)
"""Rows of ``Requests.places``: number and cut of the request in each place; then lists: places of nobody, those of the
gateway's queue in a ring, and the order of the moments at which requests come to it."""
AT, MOMENT = range(2)
DEVICE, TO_ROW, TO_SCENARIO = range(3)
(PUSHED, ANSWERED, UNDER_WAY, COMING, ARRIVED, SUBMITTED, QUEUED, FRONT, ENTERING, CHANGED, UNSETTLED, EDGE) = range(12)
"""Places in ``Requests.counts``: events foreseen; requests answered, under way, known to come, come, submitted; in the
queue, and where that begins; on their way to it; changes of conditions, those whose moment is known; order of the next
one among events, -1: none is ahead."""


class Stages(NamedTuple):
    """What every stage is and does: few arrays, as each costs something at every call."""

    baseline_s: FloatArray
    """(stages, layers)"""
    behind_s: FloatArray
    """Seconds of the layers from each cut on, undisturbed, (stages, layers + 1)."""
    ends_s: FloatArray
    """Seconds to receive, and to send, at each cut, (2, layers + 1)."""
    real: FloatArray
    """(7, stages)"""
    whole: IntArray
    """(8, stages)"""


class Requests(NamedTuple):
    """Every request by number, and those under way by the place that each has."""

    coming_s: FloatArray
    """(requests,); empty in a closed loop."""
    times_s: FloatArray
    """Arrived, submitted, finished, (3, requests)."""
    numbers: IntArray
    """Of conditions at submission, and the order of the arrival among events, (2, requests)."""
    entries_s: FloatArray
    """When each comes to the queue; a list of these moments, as far as they are ahead, (2, in flight)."""
    places: IntArray
    """(5, in flight)"""
    counts: IntArray


class Changes(NamedTuple):
    """Changes of conditions in their order, and the layers' times under each."""

    rows_s: FloatArray
    """(rows, layers)"""
    real: FloatArray
    """When, in the interference's unit, and in seconds, infinite until that is known, (2, changes)."""
    whole: IntArray
    """Device, and its row and scenario from then on, (3, changes)."""


class Draws(NamedTuple):
    """Noise of requests from ``begin`` on, (requests, stages), and of those under way, (in flight, stages).

    By factors as if alone, and places in a recording with factors of drift; and recordings, one behind the other.
    """

    begin: int
    alone: FloatArray
    place: IntArray
    drift: FloatArray
    own: FloatArray
    own_place: IntArray
    own_drift: FloatArray
    recorded: FloatArray
    first: IntArray
    """Where the recording of each scenario begins, and the end of the last one; empty: all are as if alone."""


def run_until_drawn(stages: Stages, requests: Requests, changes: Changes, draws: Draws) -> bool:
    """Let events happen until all requests are answered, or noise is to be drawn; returns whether all are."""
    counts, total = requests.counts, requests.times_s.shape[1]
    while counts[ANSWERED] < total:
        if counts[SUBMITTED] - draws.begin == len(draws.alone) and counts[SUBMITTED] < total:
            return False
        # The next event: the earliest, and of those the one that was foreseen first.
        at_s, order, stage, entering = np.inf, np.int64(0), -1, -1
        for k in range(len(stages.baseline_s)):
            if stages.real[EVENT, k] <= at_s and is_before(stages.real[EVENT, k], stages.whole[ORDER, k], at_s, order):
                at_s, order, stage = stages.real[EVENT, k], stages.whole[ORDER, k], k
        for k in range(counts[ENTERING]):
            if is_before(requests.entries_s[ENTERING_S, k], requests.places[ENTERING_ORDER, k], at_s, order):
                at_s, order, stage, entering = (
                    requests.entries_s[ENTERING_S, k],
                    requests.places[ENTERING_ORDER, k],
                    -1,
                    k,
                )
        arrives = counts[ARRIVED] < counts[COMING]
        if arrives:
            number = counts[ARRIVED]
            arrives = is_before(
                requests.times_s[ARRIVED_S, number], requests.numbers[ARRIVE_ORDER, number], at_s, order
            )
            if arrives:
                at_s, order = requests.times_s[ARRIVED_S, number], requests.numbers[ARRIVE_ORDER, number]
        if counts[EDGE] >= 0 and is_before(changes.real[MOMENT, counts[CHANGED]], counts[EDGE], at_s, order):
            at_s = changes.real[MOMENT, counts[CHANGED]]
            change(stages, requests, changes, at_s)
            foresee_change(counts, changes)
        elif arrives:
            counts[ARRIVED] += 1
            submit(stages, requests, draws, at_s)
        elif entering >= 0:
            counts[ENTERING] -= 1
            requests.entries_s[ENTERING_S, entering] = requests.entries_s[ENTERING_S, counts[ENTERING]]
            requests.places[ENTERING_ORDER, entering] = requests.places[ENTERING_ORDER, counts[ENTERING]]
            offer(stages, requests, changes, draws, at_s)
        elif stages.whole[WHAT, stage] == LAYER:
            layer_done(stages, requests, changes, stage, at_s)
        else:
            sent(stages, requests, changes, draws, stage, at_s)
    return True


def is_before(at_s: float, order: int | np.int64, other_s: float, other_order: int | np.int64) -> bool:
    """Whether one event comes before another."""
    if at_s == other_s < np.inf:
        return bool(order < other_order)
    return at_s < other_s


def foresee(stages: Stages, counts: IntArray, k: int, event: int, at_s: float) -> None:
    """A stage's next event."""
    counts[PUSHED] += 1
    stages.whole[WHAT, k], stages.real[EVENT, k], stages.whole[ORDER, k] = event, at_s, counts[PUSHED]


def foresee_change(counts: IntArray, changes: Changes) -> None:
    """The next change of conditions, if it is known when it comes."""
    counts[EDGE] = -1
    if counts[CHANGED] < changes.real.shape[1] and changes.real[MOMENT, counts[CHANGED]] < np.inf:
        counts[PUSHED] += 1
        counts[EDGE] = counts[PUSHED]


def change(stages: Stages, requests: Requests, changes: Changes, now_s: float) -> None:
    """Conditions may have changed: layers under way take their new times from now on."""
    counts, before = requests.counts, stages.whole[ROW].copy()
    while counts[CHANGED] < changes.real.shape[1] and changes.real[MOMENT, counts[CHANGED]] <= now_s:
        k = changes.whole[DEVICE, counts[CHANGED]]
        stages.whole[ROW, k], stages.whole[SCENARIO, k] = (
            changes.whole[TO_ROW, counts[CHANGED]],
            changes.whole[TO_SCENARIO, counts[CHANGED]],
        )
        counts[CHANGED] += 1
    for k in range(len(stages.baseline_s)):
        if stages.whole[WHAT, k] != LAYER or before[k] == stages.whole[ROW, k]:
            continue
        old, new = changes.rows_s[before[k]], changes.rows_s[stages.whole[ROW, k]]
        if (old != new).any():
            from_s, cut = max(now_s, stages.real[BEGAN, k]), requests.places[CUT, stages.whole[ITEM, k]]
            left_s = (stages.real[EVENT, k] - from_s) * (new[cut] / old[cut] if old[cut] > 0 else 1.0)
            foresee(stages, counts, k, LAYER, from_s + left_s)


def come(requests: Requests, now_s: float) -> None:
    """The next request is known to come."""
    counts = requests.counts
    number = counts[COMING]
    counts[COMING] += 1
    counts[PUSHED] += 1
    requests.times_s[ARRIVED_S, number] = requests.coming_s[number] if len(requests.coming_s) else now_s
    requests.numbers[ARRIVE_ORDER, number] = counts[PUSHED]


def submit(stages: Stages, requests: Requests, draws: Draws, now_s: float) -> None:
    """The request that has waited longest enters, if it may."""
    counts, in_flight = requests.counts, requests.places.shape[1]
    if counts[SUBMITTED] == counts[ARRIVED] or counts[UNDER_WAY] == in_flight:
        return
    number = counts[SUBMITTED]
    counts[SUBMITTED] += 1
    counts[UNDER_WAY] += 1
    place = requests.places[FREE_PLACE, in_flight - counts[UNDER_WAY]]
    requests.times_s[SUBMITTED_S, number], requests.numbers[CONDITIONS, number] = now_s, counts[CHANGED]
    requests.places[NUMBER, place], requests.places[CUT, place] = number, 0
    for k in range(len(stages.baseline_s)):
        draws.own[place, k] = draws.alone[number - draws.begin, k]
        if len(draws.first):
            draws.own_place[place, k] = draws.place[number - draws.begin, k]
            draws.own_drift[place, k] = draws.drift[number - draws.begin, k]
    requests.entries_s[ENTERED, place] = now_s + stages.ends_s[1, 0]
    requests.places[QUEUE, (counts[FRONT] + counts[QUEUED]) % in_flight] = place
    counts[QUEUED] += 1
    counts[PUSHED] += 1
    requests.entries_s[ENTERING_S, counts[ENTERING]] = requests.entries_s[ENTERED, place]
    requests.places[ENTERING_ORDER, counts[ENTERING]] = counts[PUSHED]
    counts[ENTERING] += 1


def answer(stages: Stages, requests: Requests, changes: Changes, draws: Draws, place: int, left_s: float) -> None:
    """A request has left the line."""
    counts = requests.counts
    finished_s = left_s + stages.ends_s[0, -1]
    requests.times_s[FINISHED_S, requests.places[NUMBER, place]] = finished_s
    counts[ANSWERED] += 1
    requests.places[FREE_PLACE, requests.places.shape[1] - counts[UNDER_WAY]] = place
    counts[UNDER_WAY] -= 1
    if counts[UNSETTLED] < changes.real.shape[1] and changes.real[AT, counts[UNSETTLED]] <= counts[ANSWERED]:
        while counts[UNSETTLED] < changes.real.shape[1] and changes.real[AT, counts[UNSETTLED]] <= counts[ANSWERED]:
            changes.real[MOMENT, counts[UNSETTLED]] = left_s
            counts[UNSETTLED] += 1
        change(stages, requests, changes, left_s)
    if not len(requests.coming_s) and counts[COMING] < requests.times_s.shape[1]:
        come(requests, finished_s)
    submit(stages, requests, draws, finished_s)


def slowdown_now(stages: Stages, k: int, now_s: float) -> float:
    """What a stage's slowdown is taken for: one that is idle forgets it."""
    slowdown, chain_s = stages.real[SLOWDOWN, k], stages.behind_s[k, 0]
    if stages.whole[ITEM, k] < 0 and slowdown != 1.0 and chain_s > 0:
        slowdown = 1.0 + (slowdown - 1.0) * 0.5 ** ((now_s - stages.real[SINCE, k]) / chain_s)
    known: float = slowdown
    return known


def wait_for(stages: Stages, k: int, now_s: float) -> float:
    """Seconds until a stage is free, as it published."""
    if stages.whole[ITEM, k] < 0:
        return 0.0
    free_s = stages.real[FREE, k]
    wait_s: float = (free_s if free_s >= now_s else 2 * now_s - free_s) - now_s
    return wait_s


def takes_new(stages: Stages, requests: Requests, k: int, now_s: float) -> bool:
    """Whether a stage that is about to begin with a request takes the one that has waited longest."""
    waiting = requests.counts[QUEUED]
    if (
        waiting == 0
        or requests.entries_s[ENTERED, requests.places[QUEUE, requests.counts[FRONT]]] > now_s
        or stages.whole[TAKEN, k]
    ):
        return False
    own_s, done = slowdown_now(stages, k, now_s) * stages.behind_s[k, 0], 0.0
    for other in range(len(stages.baseline_s)):
        if other != k:
            its_s = slowdown_now(stages, other, now_s) * stages.behind_s[other, 0]
            by_then = float(waiting)
            if its_s > 0:
                by_then = max(0.0, FAR_SOONER * own_s - wait_for(stages, other, now_s)) // its_s
            sooner = stages.whole[ITEM, other] < 0 and its_s <= MUCH_SOONER * own_s
            done += max(by_then, 1.0 if sooner else 0.0)
    return not done >= waiting


def offer(stages: Stages, requests: Requests, changes: Changes, draws: Draws, now_s: float) -> None:
    """Idle stages may take what waits."""
    for k in range(len(stages.baseline_s)):
        if requests.counts[QUEUED] == 0:
            return
        if stages.whole[ITEM, k] < 0 and takes_new(stages, requests, k, now_s):
            take(stages, requests, changes, draws, k, now_s)


def take(stages: Stages, requests: Requests, changes: Changes, draws: Draws, k: int, now_s: float) -> None:
    """Begin with the next request, if one waits."""
    counts, place = requests.counts, stages.whole[WAITING, k]
    if place >= 0:
        stages.whole[WAITING, k], stages.whole[TAKEN, k] = -1, False
    elif takes_new(stages, requests, k, now_s):
        place = requests.places[QUEUE, counts[FRONT]]
        counts[FRONT] = (counts[FRONT] + 1) % requests.places.shape[1]
        counts[QUEUED] -= 1
    stages.whole[WHAT, k], stages.real[EVENT, k] = NOTHING, np.inf
    if place < 0:
        stages.whole[ITEM, k] = -1
        stages.real[FREE, k] = stages.real[SINCE, k] = now_s
        publish(stages, k)
        return
    stages.whole[ITEM, k] = -1  # until now
    stages.real[SLOWDOWN, k] = slowdown_now(stages, k, now_s)
    stages.whole[ITEM, k] = place
    scenario = stages.whole[SCENARIO, k]
    if scenario > 0 and len(draws.first):
        first = draws.first[scenario]
        at = first + draws.own_place[place, k] % (draws.first[scenario + 1] - first)
        stages.real[FACTOR, k] = draws.recorded[at] * draws.own_drift[place, k]
    else:
        stages.real[FACTOR, k] = draws.own[place, k]
    go_on(stages, requests, changes, k, now_s + stages.ends_s[0, requests.places[CUT, place]])


def go_on(stages: Stages, requests: Requests, changes: Changes, k: int, now_s: float) -> None:
    """Hand over to the first later stage that would be done with the rest so much sooner, or begin with a layer."""
    cut = requests.places[CUT, stages.whole[ITEM, k]]
    mine, behind_s = stages.real[SLOWDOWN, k], stages.behind_s
    layer_s, rest_s = mine * stages.baseline_s[k, cut], mine * behind_s[k, cut]
    most_s = rest_s * (MUCH_SOONER if requests.counts[QUEUED] else SOONER)
    for taker in range(k + 1, len(stages.baseline_s)):
        if stages.real[OPEN, taker] - now_s > layer_s:  # such as most
            continue
        its, wait_s = slowdown_now(stages, taker, now_s), wait_for(stages, taker, now_s)
        if wait_s + its * stages.baseline_s[taker, cut] > layer_s:
            continue
        if wait_s + stages.ends_s[1, cut] + its * behind_s[taker, cut] <= most_s:
            stages.whole[TAKEN, taker], stages.whole[TAKER, k] = True, taker
            stages.real[FREE, k] = now_s + stages.ends_s[1, cut]
            foresee(stages, requests.counts, k, SENT, stages.real[FREE, k])
            publish(stages, k)
            publish(stages, taker)
            return
    stages.real[BEGAN, k] = now_s
    foresee(
        stages, requests.counts, k, LAYER, now_s + changes.rows_s[stages.whole[ROW, k], cut] * stages.real[FACTOR, k]
    )
    stages.real[FREE, k] = now_s + layer_s + mine * behind_s[k, cut + 1]
    publish(stages, k)


def publish(stages: Stages, k: int) -> None:
    """Say when a stage may be handed a request."""
    stages.real[OPEN, k] = (
        np.inf if stages.whole[TAKEN, k] else -np.inf if stages.whole[ITEM, k] < 0 else stages.real[FREE, k]
    )


def layer_done(stages: Stages, requests: Requests, changes: Changes, k: int, now_s: float) -> None:
    """A stage has computed a layer."""
    place = stages.whole[ITEM, k]
    cut, took_s = requests.places[CUT, place], now_s - stages.real[BEGAN, k]
    baseline_s = stages.baseline_s[k, cut]
    if 0 < baseline_s < np.inf:
        stages.real[SLOWDOWN, k] += WEIGHT * (took_s / baseline_s - stages.real[SLOWDOWN, k])
    requests.places[CUT, place] = cut + 1
    if cut + 1 < stages.baseline_s.shape[1]:
        go_on(stages, requests, changes, k, now_s)
    else:
        stages.whole[TAKER, k] = -1
        foresee(stages, requests.counts, k, SENT, now_s + stages.ends_s[1, cut + 1])


def sent(stages: Stages, requests: Requests, changes: Changes, draws: Draws, k: int, now_s: float) -> None:
    """A stage has sent its request on, or to the gateway (-1)."""
    place, taker = stages.whole[ITEM, k], stages.whole[TAKER, k]
    stages.whole[TAKER, k], stages.real[SINCE, k] = -1, now_s
    stages.whole[WHAT, k], stages.real[EVENT, k] = NOTHING, np.inf
    if taker < 0:
        answer(stages, requests, changes, draws, place, now_s)
    else:
        stages.whole[WAITING, taker] = place
        if stages.whole[ITEM, taker] < 0:
            take(stages, requests, changes, draws, taker, now_s)
    take(stages, requests, changes, draws, k, now_s)
    offer(stages, requests, changes, draws, now_s)


HELPERS = (
    is_before, foresee, foresee_change, change, come, submit, answer, slowdown_now, wait_for, takes_new, offer, take,
    go_on, publish, layer_done, sent,
)  # fmt: skip
