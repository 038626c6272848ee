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
(PUSHED, ANSWERED, UNDER_WAY, COMING, ARRIVED, SUBMITTED, QUEUED, FRONT, ENTERING, CHANGED, UNSETTLED, EDGE) = range(12)
"""Places in ``Requests.counts``: events foreseen; requests answered, under way, known to come, come, submitted; in the
queue, and where that begins; on their way to it; changes of conditions, those whose moment is known; order of the next
one among events, -1: none is ahead."""


class Stages(NamedTuple):
    """Every stage: constants, and what it does; (stages,) unless said otherwise, requests by their place."""

    baseline_s: FloatArray
    """(stages, layers)"""
    behind_s: FloatArray
    """Seconds of the layers from each cut on, undisturbed, (stages, layers + 1)."""
    receive_s: FloatArray
    send_s: FloatArray
    """(layers + 1,)"""
    item: IntArray
    """-1: idle."""
    waiting: IntArray
    taken: BoolArray
    taker: IntArray
    factor: FloatArray
    slowdown: FloatArray
    free_s: FloatArray
    since_s: FloatArray
    layer_began_s: FloatArray
    event: IntArray
    event_s: FloatArray
    event_order: IntArray
    row: IntArray
    """Of its present layer times in ``Changes.rows_s``."""
    scenario: IntArray
    """0: alone."""


class Requests(NamedTuple):
    """Every request by number, and those under way by place, (in flight,)."""

    coming_s: FloatArray
    """Empty in a closed loop."""
    arrived_s: FloatArray
    submitted_s: FloatArray
    finished_s: FloatArray
    conditions_number: IntArray
    arrive_order: IntArray
    number: IntArray
    cut: IntArray
    entered_s: FloatArray
    free_places: IntArray
    """Places of nobody: the first ``in_flight - counts[UNDER_WAY]``."""
    queue: IntArray
    """Ring of places, from ``counts[FRONT]`` on."""
    entering_s: FloatArray
    entering_order: IntArray
    alone: FloatArray
    """Factor of noise on each device, (in flight, stages)."""
    place: IntArray
    """Where the noise of each is in a recording, and its factor of drift, (in flight, stages)."""
    drift: FloatArray
    counts: IntArray


class Changes(NamedTuple):
    """Changes of conditions in their order, (changes,), and the layers' times under each, (rows, layers)."""

    rows_s: FloatArray
    edge: FloatArray
    moment_s: FloatArray
    device: IntArray
    row: IntArray
    scenario: IntArray


class Draws(NamedTuple):
    """Noise of requests from ``begin`` on, (requests, stages) each, and recordings, one behind the other."""

    begin: int
    alone: FloatArray
    place: IntArray
    drift: FloatArray
    recorded: FloatArray
    first: IntArray
    """Where the recording of each scenario begins, and the end of the last one; empty: all are as if alone."""


def run_until_drawn(stages: Stages, requests: Requests, changes: Changes, draws: Draws) -> bool:
    """Let events happen until all requests are answered, or noise is to be drawn; returns whether all are."""
    counts, total = requests.counts, len(requests.finished_s)
    while counts[ANSWERED] < total:
        if counts[SUBMITTED] - draws.begin == len(draws.alone) and counts[SUBMITTED] < total:
            return False
        # The next event: the earliest, and of those the one that was foreseen first.
        at_s, order, stage, entering = np.inf, np.int64(0), -1, -1
        for k in range(len(stages.item)):
            if stages.event[k] != NOTHING and is_before(stages.event_s[k], stages.event_order[k], at_s, order):
                at_s, order, stage = stages.event_s[k], stages.event_order[k], k
        for k in range(counts[ENTERING]):
            if is_before(requests.entering_s[k], requests.entering_order[k], at_s, order):
                at_s, order, stage, entering = requests.entering_s[k], requests.entering_order[k], -1, k
        arrives = counts[ARRIVED] < counts[COMING]
        if arrives:
            number = counts[ARRIVED]
            arrives = is_before(requests.arrived_s[number], requests.arrive_order[number], at_s, order)
            if arrives:
                at_s, order = requests.arrived_s[number], requests.arrive_order[number]
        if counts[EDGE] >= 0 and is_before(changes.moment_s[counts[CHANGED]], counts[EDGE], at_s, order):
            at_s = changes.moment_s[counts[CHANGED]]
            change(stages, requests, changes, at_s)
            foresee_change(counts, changes)
        elif arrives:
            counts[ARRIVED] += 1
            submit(stages, requests, draws, at_s)
        elif entering >= 0:
            counts[ENTERING] -= 1
            requests.entering_s[entering] = requests.entering_s[counts[ENTERING]]
            requests.entering_order[entering] = requests.entering_order[counts[ENTERING]]
            offer(stages, requests, changes, draws, at_s)
        elif stages.event[stage] == LAYER:
            layer_done(stages, requests, changes, stage, at_s)
        else:
            sent(stages, requests, changes, draws, stage, at_s)
    return True


def is_before(at_s: float, order: int, other_s: float, other_order: int) -> bool:
    """Whether one event comes before another."""
    return at_s < other_s or (at_s == other_s < np.inf and order < other_order)


def foresee(stages: Stages, counts: IntArray, k: int, event: int, at_s: float) -> None:
    """A stage's next event."""
    counts[PUSHED] += 1
    stages.event[k], stages.event_s[k], stages.event_order[k] = event, at_s, counts[PUSHED]


def foresee_change(counts: IntArray, changes: Changes) -> None:
    """The next change of conditions, if it is known when it comes."""
    counts[EDGE] = -1
    if counts[CHANGED] < len(changes.edge) and changes.moment_s[counts[CHANGED]] < np.inf:
        counts[PUSHED] += 1
        counts[EDGE] = counts[PUSHED]


def change(stages: Stages, requests: Requests, changes: Changes, now_s: float) -> None:
    """Conditions may have changed: layers under way take their new times from now on."""
    counts, before = requests.counts, stages.row.copy()
    while counts[CHANGED] < len(changes.edge) and changes.moment_s[counts[CHANGED]] <= now_s:
        k = changes.device[counts[CHANGED]]
        stages.row[k], stages.scenario[k] = changes.row[counts[CHANGED]], changes.scenario[counts[CHANGED]]
        counts[CHANGED] += 1
    for k in range(len(stages.item)):
        if stages.event[k] != LAYER or before[k] == stages.row[k]:
            continue
        old, new = changes.rows_s[before[k]], changes.rows_s[stages.row[k]]
        if (old != new).any():
            from_s, cut = max(now_s, stages.layer_began_s[k]), requests.cut[stages.item[k]]
            left_s = (stages.event_s[k] - from_s) * (new[cut] / old[cut] if old[cut] > 0 else 1.0)
            foresee(stages, counts, k, LAYER, from_s + left_s)


def come(requests: Requests, now_s: float) -> None:
    """The next request is known to come."""
    counts = requests.counts
    number = counts[COMING]
    counts[COMING] += 1
    counts[PUSHED] += 1
    requests.arrived_s[number] = requests.coming_s[number] if len(requests.coming_s) else now_s
    requests.arrive_order[number] = counts[PUSHED]


def submit(stages: Stages, requests: Requests, draws: Draws, now_s: float) -> None:
    """The request that has waited longest enters, if it may."""
    counts, in_flight = requests.counts, len(requests.number)
    if counts[SUBMITTED] == counts[ARRIVED] or counts[UNDER_WAY] == in_flight:
        return
    number = counts[SUBMITTED]
    counts[SUBMITTED] += 1
    counts[UNDER_WAY] += 1
    place = requests.free_places[in_flight - counts[UNDER_WAY]]
    requests.submitted_s[number], requests.conditions_number[number] = now_s, counts[CHANGED]
    requests.number[place], requests.cut[place] = number, 0
    for k in range(len(stages.item)):
        requests.alone[place, k] = draws.alone[number - draws.begin, k]
        if len(draws.first):
            requests.place[place, k] = draws.place[number - draws.begin, k]
            requests.drift[place, k] = draws.drift[number - draws.begin, k]
    requests.entered_s[place] = now_s + stages.send_s[0]
    requests.queue[(counts[FRONT] + counts[QUEUED]) % in_flight] = place
    counts[QUEUED] += 1
    counts[PUSHED] += 1
    requests.entering_s[counts[ENTERING]] = requests.entered_s[place]
    requests.entering_order[counts[ENTERING]] = counts[PUSHED]
    counts[ENTERING] += 1


def answer(stages: Stages, requests: Requests, changes: Changes, draws: Draws, place: int, left_s: float) -> None:
    """A request has left the line."""
    counts = requests.counts
    finished_s = left_s + stages.receive_s[-1]
    requests.finished_s[requests.number[place]] = finished_s
    counts[ANSWERED] += 1
    requests.free_places[len(requests.number) - counts[UNDER_WAY]] = place
    counts[UNDER_WAY] -= 1
    if counts[UNSETTLED] < len(changes.edge) and changes.edge[counts[UNSETTLED]] <= counts[ANSWERED]:
        while counts[UNSETTLED] < len(changes.edge) and changes.edge[counts[UNSETTLED]] <= counts[ANSWERED]:
            changes.moment_s[counts[UNSETTLED]] = left_s
            counts[UNSETTLED] += 1
        change(stages, requests, changes, left_s)
    if not len(requests.coming_s) and counts[COMING] < len(requests.finished_s):
        come(requests, finished_s)
    submit(stages, requests, draws, finished_s)


def slowdown_now(stages: Stages, k: int, now_s: float) -> float:
    """What a stage's slowdown is taken for: one that is idle forgets it."""
    slowdown, chain_s = stages.slowdown[k], stages.behind_s[k, 0]
    if stages.item[k] >= 0 or slowdown == 1.0 or not chain_s > 0:
        return slowdown
    return 1.0 + (slowdown - 1.0) * 0.5 ** ((now_s - stages.since_s[k]) / chain_s)


def wait_for(stages: Stages, k: int, now_s: float) -> float:
    """Seconds until a stage is free, as it published."""
    if stages.item[k] < 0:
        return 0.0
    free_s = stages.free_s[k]
    return (free_s if free_s >= now_s else 2 * now_s - free_s) - now_s


def takes_new(stages: Stages, requests: Requests, k: int, now_s: float) -> bool:
    """Whether a stage that is about to begin with a request takes the one that has waited longest."""
    waiting = requests.counts[QUEUED]
    if waiting == 0 or requests.entered_s[requests.queue[requests.counts[FRONT]]] > now_s or stages.taken[k]:
        return False
    own_s, done = slowdown_now(stages, k, now_s) * stages.behind_s[k, 0], 0.0
    for other in range(len(stages.item)):
        if other != k:
            its_s = slowdown_now(stages, other, now_s) * stages.behind_s[other, 0]
            by_then = float(waiting)
            if its_s > 0:
                by_then = max(0.0, FAR_SOONER * own_s - wait_for(stages, other, now_s)) // its_s
            sooner = stages.item[other] < 0 and its_s <= MUCH_SOONER * own_s
            done += max(by_then, 1.0 if sooner else 0.0)
    return not done >= waiting


def offer(stages: Stages, requests: Requests, changes: Changes, draws: Draws, now_s: float) -> None:
    """Idle stages may take what waits."""
    for k in range(len(stages.item)):
        if requests.counts[QUEUED] == 0:
            return
        if stages.item[k] < 0 and takes_new(stages, requests, k, now_s):
            take(stages, requests, changes, draws, k, now_s)


def take(stages: Stages, requests: Requests, changes: Changes, draws: Draws, k: int, now_s: float) -> None:
    """Begin with the next request, if one waits."""
    counts, place = requests.counts, stages.waiting[k]
    if place >= 0:
        stages.waiting[k], stages.taken[k] = -1, False
    elif takes_new(stages, requests, k, now_s):
        place = requests.queue[counts[FRONT]]
        counts[FRONT] = (counts[FRONT] + 1) % len(requests.queue)
        counts[QUEUED] -= 1
    stages.event[k] = NOTHING
    if place < 0:
        stages.item[k] = -1
        stages.free_s[k] = stages.since_s[k] = now_s
        return
    stages.item[k] = -1  # until now
    stages.slowdown[k] = slowdown_now(stages, k, now_s)
    stages.item[k] = place
    scenario = stages.scenario[k]
    if scenario > 0 and len(draws.first):
        first = draws.first[scenario]
        at = first + requests.place[place, k] % (draws.first[scenario + 1] - first)
        stages.factor[k] = draws.recorded[at] * requests.drift[place, k]
    else:
        stages.factor[k] = requests.alone[place, k]
    go_on(stages, requests, changes, k, now_s + stages.receive_s[requests.cut[place]])


def go_on(stages: Stages, requests: Requests, changes: Changes, k: int, now_s: float) -> None:
    """Hand over to the first later stage that would be done with the rest so much sooner, or begin with a layer."""
    cut = requests.cut[stages.item[k]]
    mine, behind_s = stages.slowdown[k], stages.behind_s
    layer_s, rest_s = mine * stages.baseline_s[k, cut], mine * behind_s[k, cut]
    most_s = rest_s * (MUCH_SOONER if requests.counts[QUEUED] else SOONER)
    for taker in range(k + 1, len(stages.item)):
        if stages.taken[taker]:
            continue
        its, wait_s = slowdown_now(stages, taker, now_s), wait_for(stages, taker, now_s)
        if wait_s + its * stages.baseline_s[taker, cut] > layer_s:
            continue
        if wait_s + stages.send_s[cut] + its * behind_s[taker, cut] <= most_s:
            stages.taken[taker], stages.taker[k] = True, taker
            stages.free_s[k] = now_s + stages.send_s[cut]
            foresee(stages, requests.counts, k, SENT, stages.free_s[k])
            return
    stages.layer_began_s[k] = now_s
    foresee(stages, requests.counts, k, LAYER, now_s + changes.rows_s[stages.row[k], cut] * stages.factor[k])
    stages.free_s[k] = now_s + layer_s + mine * behind_s[k, cut + 1]


def layer_done(stages: Stages, requests: Requests, changes: Changes, k: int, now_s: float) -> None:
    """A stage has computed a layer."""
    place = stages.item[k]
    cut, took_s = requests.cut[place], now_s - stages.layer_began_s[k]
    baseline_s = stages.baseline_s[k, cut]
    if 0 < baseline_s < np.inf:
        stages.slowdown[k] += WEIGHT * (took_s / baseline_s - stages.slowdown[k])
    requests.cut[place] = cut + 1
    if cut + 1 < stages.baseline_s.shape[1]:
        go_on(stages, requests, changes, k, now_s)
    else:
        stages.taker[k] = -1
        foresee(stages, requests.counts, k, SENT, now_s + stages.send_s[cut + 1])


def sent(stages: Stages, requests: Requests, changes: Changes, draws: Draws, k: int, now_s: float) -> None:
    """A stage has sent its request on, or to the gateway (-1)."""
    place, taker = stages.item[k], stages.taker[k]
    stages.taker[k], stages.event[k], stages.since_s[k] = -1, NOTHING, now_s
    if taker < 0:
        answer(stages, requests, changes, draws, place, now_s)
    else:
        stages.waiting[taker] = place
        if stages.item[taker] < 0:
            take(stages, requests, changes, draws, taker, now_s)
    take(stages, requests, changes, draws, k, now_s)
    offer(stages, requests, changes, draws, now_s)


HELPERS = (
    is_before, foresee, foresee_change, change, come, submit, answer, slowdown_now, wait_for, takes_new, offer, take,
    go_on, layer_done, sent,
)  # fmt: skip
