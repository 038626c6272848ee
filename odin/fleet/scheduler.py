"""Who runs which model next: Clockwork's scheduler for executors that load, run and evict; decisions without clocks.

After Gujarati et al., *Serving DNNs like Clockwork* (OSDI 2020): the executors choose nothing, all choices are made
here, from predicted times (:mod:`odin.fleet.estimates`)::

    at submit     where would it end, behind all that goes before it? Too late: refused; or, if it typically would be
                  in time and delays nobody, taken on trial, one at a time: else bad times would keep all out for ever
    whenever an executor has less than 10 ms of work before it:
        in the order of latest starts (deadline - run):
            typically late by now         dropped, never computed
            to be run here                [evict, ...] [load] run
            to be run elsewhere           leave it

Each request goes to the executor where it ends first, the time of loading its model there included. So a model is
opened by a second executor as soon as the queue before the first one is longer than opening takes, and only then. Of
several models that are to be loaded, the one with the largest unserved demand (its requests' seconds / time left) goes
first, unless a request that was accepted would be late by that.

The paper's executors are GPUs, which load and run at the same time; one core does one thing at a time. Its 25 ms limit
on what counts of a deadline is one second here, as runs on a core are longer.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from odin.fleet.estimates import Estimates, ModelFacts
from odin.fleet.residency import Residency

__all__ = [
    "EVICT",
    "LOAD",
    "MOST_SENT",
    "RUN",
    "Action",
    "Dropped",
    "Lost",
    "Measured",
    "Scheduler",
    "Verdict",
    "Waiting",
]

RUN, LOAD, EVICT = "run", "load", "evict"
AHEAD_S = 0.010
"""An executor has no more work sent ahead to it than this, beside what it is at."""
MOST_SENT = 16
"""Nor more actions than these, however short: inputs of runs wait in slots, of which there are so many."""
_LOOKED = 100
"""So many requests of the queue are placed one by one; those behind count by their seconds, spread over executors."""
_FAR_S = 1.0
"""More time left than this makes a demand no smaller."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request that was taken and is not answered.

    Attributes
    ----------
    number
        The request's.
    deadline_s
        Infinite for none.
    expected_s
        When it was predicted to be done when it was submitted.
    cold
        Whether its model was not in memory then.
    key
        Its place in the queue: latest start, and the order of coming.
    work_s
        Seconds that it was predicted to take when it was submitted, its load included.
    """

    number: int
    model: int
    samples: int
    deadline_s: float
    expected_s: float = math.nan
    cold: bool = False
    key: tuple[float, int] = (math.inf, 0)
    work_s: float = 0.0


class Action(NamedTuple):
    """Something for an executor to do, after all that was sent to it before.

    Attributes
    ----------
    number
        The action's own.
    kind
        ``RUN``, ``LOAD`` or ``EVICT``.
    expected_s
        Seconds that it is predicted to take.
    request
        What is run; None for other kinds.
    """

    number: int
    executor: int
    kind: str
    model: int
    expected_s: float
    request: Waiting | None = None


class Dropped(NamedTuple):
    """A request that is given up before it is computed: it would be done only after ``predicted_s`` more seconds."""

    request: Waiting
    predicted_s: float


class Verdict(NamedTuple):
    """What is to be done with a request that is submitted.

    Attributes
    ----------
    late
        Whether it is refused.
    predicted_s, load_s
        Seconds from now in which it would be done, and those of them in which its model is loaded.
    ahead
        Requests that go before it.
    delays
        Whether it is refused for the sake of an accepted one behind it.
    trial
        Whether it is taken though it might be late, as it typically would not be: one at a time.
    """

    late: bool
    predicted_s: float
    load_s: float
    ahead: int
    delays: bool = False
    trial: bool = False


class Measured(NamedTuple):
    """An action that has ended: what it was predicted to take, and took."""

    at_s: float
    kind: str
    model: int
    executor: int
    expected_s: float
    took_s: float


class Lost(NamedTuple):
    """What was lost with an executor.

    Attributes
    ----------
    requests
        That it had: they wait again.
    suspect
        What it was computing, or the request for which it was loading a model; None: neither.
    models
        That are in memory no more.
    """

    requests: list[Waiting]
    suspect: Waiting | None
    models: list[int]


class _Sent(NamedTuple):
    action: Action
    typical_s: float
    sent_s: float
    read_nbytes: int = 0
    first: bool = False


class _Executor:
    def __init__(self) -> None:
        self.live = True
        self.sent: deque[_Sent] = deque()
        self.last_end_s = -math.inf
        self.codes: set[str] = set()

    def free_s(self, now_s: float) -> float:
        """When it will typically have done all that was sent to it."""
        if not self.sent:
            return now_s
        first, *others = self.sent
        free_s = max(now_s, max(self.last_end_s, first.sent_s) + first.typical_s)
        return free_s + sum(one.typical_s for one in others)

    @property
    def margin2(self) -> float:
        """Square of the seconds by which all that may take longer, which it hardly ever does."""
        return sum((one.action.expected_s - one.typical_s) ** 2 for one in self.sent)

    def overdue_s(self, now_s: float) -> float:
        """Seconds by which what it is at takes longer than predicted; 0.0 if it does not."""
        if not self.sent:
            return 0.0
        first = self.sent[0]
        return max(0.0, now_s - max(self.last_end_s, first.sent_s) - first.action.expected_s)


class _Place(NamedTuple):
    """Where a request would be done: by ``end_s`` at the latest, hardly ever later; typically by ``typical_end_s``."""

    end_s: float
    executor: int
    load_s: float  # typical seconds
    run_s: float
    typical_end_s: float
    margin2: float


class Scheduler:
    """Decides for some executors; of one thread at a time, which says what time it is.

    Parameters
    ----------
    models
        Facts of each, by its number.
    executors
        How many there are.
    memory_nbytes
        That models in memory may take.
    refuses
        Whether requests that would be late are refused; otherwise they are only dropped when they are.

    Attributes
    ----------
    residency
        What is in memory.
    estimates
        What is predicted from.
    """

    def __init__(
        self, models: Sequence[ModelFacts], *, executors: int, memory_nbytes: int, refuses: bool = True
    ) -> None:
        self.models = list(models)
        self.residency = Residency(memory_nbytes)
        self.estimates = Estimates(executors)
        self._executors = [_Executor() for _ in range(executors)]
        self._refuses = refuses
        self._queue: list[tuple[float, int, Waiting]] = []  # by latest start, then as they came
        self._by_number: dict[int, Waiting] = {}  # what is in the queue
        self._order = itertools.count()
        self._numbers = itertools.count()
        self._wanted: Counter[int] = Counter()  # requests in the queue, by model
        self._trial: tuple[float, int] | None = None  # key of the request that is one

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(self, number: int, model: int, samples: int, deadline_s: float, now_s: float) -> Verdict:
        """Take a request, or refuse it.

        Parameters
        ----------
        number
            By which its action names it.
        samples
            In it.
        deadline_s
            On the clock of ``now_s``; infinite for none.
        """
        facts = self.models[model]
        work_s = self.estimates.typical_run_s(model, facts, samples, now_s)
        latest_s = deadline_s - work_s * self.estimates.run_factor(now_s)
        order = next(self._order)
        at = bisect.bisect(self._queue, (latest_s, order))
        cold = model not in self.residency
        if cold and model not in self._wanted:
            work_s += self.estimates.typical_load_s(facts.nbytes, now_s)
        request = Waiting(number, model, samples, deadline_s, cold=cold, key=(latest_s, order), work_s=work_s)
        verdict = Verdict(False, math.nan, 0.0, at) if deadline_s == math.inf else self._judge(request, at, now_s)
        if not verdict.late:
            request = replace(request, expected_s=now_s + verdict.predicted_s)
            self._put(request)
            if verdict.trial:
                self._trial = request.key
        return verdict

    def _judge(self, request: Waiting, at: int, now_s: float) -> Verdict:
        course = _Course(self, now_s)
        for _, _, one in self._queue[: min(at, _LOOKED)]:
            course.take(one)
        course.wait(sum(one.work_s for _, _, one in self._queue[_LOOKED:at]))
        behind = [one for _, _, one in self._queue[at : at + _LOOKED] if one.deadline_s < math.inf]
        usual = course.copy() if behind and self._refuses else course
        typical_s = course.typical_end_s(request)
        place = course.take(request)
        verdict = Verdict(False, place.end_s - now_s, place.load_s, at)
        if not self._refuses:
            return verdict
        if place.end_s > request.deadline_s:
            if self._trial is not None or typical_s > request.deadline_s:
                return verdict._replace(late=True)
            verdict = verdict._replace(trial=True)
        for one in behind:
            if course.take(one).end_s > one.deadline_s >= usual.take(one).end_s:
                return verdict._replace(late=True, delays=True)
        return verdict

    def _put(self, request: Waiting) -> None:
        bisect.insort(self._queue, (*request.key, request))
        self._by_number[request.number] = request
        self._wanted[request.model] += 1

    def _is_over(self, request: Waiting) -> None:
        if request.key == self._trial:
            self._trial = None

    def _take_out(self, request: Waiting) -> None:
        del self._queue[bisect.bisect_left(self._queue, request.key)]  # a tuple sorts before what it begins
        del self._by_number[request.number]
        self._wanted[request.model] -= 1
        if not self._wanted[request.model]:
            del self._wanted[request.model]

    def cancel(self, number: int) -> bool:
        """Forget a request, unless it was sent to an executor."""
        found = self._by_number.get(number)
        if found is not None:
            self._take_out(found)
            self._is_over(found)
        return found is not None

    @property
    def waiting(self) -> int:
        """Requests that no executor was sent."""
        return len(self._queue)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def decide(self, now_s: float) -> tuple[list[Action], list[Dropped]]:
        """What executors are to do now, in order, and which requests are given up."""
        actions: list[Action] = []
        dropped: list[Dropped] = []
        while self._queue and self._walk(now_s, actions, dropped):
            pass
        return actions, dropped

    def _walk(self, now_s: float, actions: list[Action], dropped: list[Dropped]) -> bool:
        """Go through the queue once while executors may be sent more; whether to begin anew."""
        ready = {number for number in range(len(self._executors)) if self._is_ready(number, now_s)}
        course, now = _Course(self, now_s), _Course(self, now_s)
        for _, _, request in self._queue[:_LOOKED] if ready else ():
            typical_s = now.typical_end_s(request)
            if typical_s > request.deadline_s:
                self._take_out(request)
                self._is_over(request)
                dropped.append(Dropped(request, typical_s - now_s))
                continue
            place = course.place(request)
            executor = place.executor
            if executor in ready:
                other = self._most_demanded(request, executor, now_s) if place.load_s else request
                if self._send(other, now.place_on(other, executor), now_s, actions):
                    if other is not request:
                        return True  # another order: all are placed anew
                    now.follow(request, place)
                    if not self._is_ready(executor, now_s):
                        ready.discard(executor)
                else:  # there is no room for its model at present
                    ready.discard(executor)
                if not ready:
                    break
            course.follow(request, place)
        return False

    def _is_ready(self, executor: int, now_s: float) -> bool:
        """Whether an executor may be sent more."""
        state = self._executors[executor]
        return state.live and len(state.sent) < MOST_SENT and state.free_s(now_s) < now_s + AHEAD_S

    def _most_demanded(self, planned: Waiting, executor: int, now_s: float) -> Waiting:
        """Whose model is loaded next: that with the largest unserved demand, if accepted requests are in time still."""
        demand: defaultdict[int, float] = defaultdict(float)
        heads: dict[int, Waiting] = {}
        for _, _, one in self._queue[:_LOOKED]:
            if one.model not in self.residency:
                heads.setdefault(one.model, one)
                facts = self.models[one.model]
                run_s = self.estimates.typical_run_s(one.model, facts, one.samples, now_s)
                load_s = self.estimates.typical_load_s(facts.nbytes, now_s)
                demand[one.model] += run_s / min(_FAR_S, max(AHEAD_S, one.deadline_s - now_s - load_s))
        if planned.model not in demand or len(demand) < 2:
            return planned
        best = max(heads.values(), key=lambda one: (demand[one.model], -one.key[1]))
        if demand[best.model] <= demand[planned.model]:
            return planned
        usual, changed = _Course(self, now_s), _Course(self, now_s)
        place = changed.place_on(best, executor)
        if place.end_s > best.deadline_s:
            return planned
        changed.follow(best, place)
        for _, _, one in self._queue[:_LOOKED]:
            if one.deadline_s == math.inf:
                break
            before_s = usual.take(one).end_s
            if one is not best and changed.take(one).end_s > one.deadline_s >= before_s:
                return planned
        return best

    def _send(self, request: Waiting, place: _Place, now_s: float, actions: list[Action]) -> bool:
        model, executor = request.model, place.executor
        if place.load_s and not self._load(model, executor, place.load_s, now_s, actions):
            return False
        self._take_out(request)
        self.residency.use(model)
        factor = self.estimates.run_factor(now_s)
        self._add(executor, RUN, model, place.run_s, now_s, actions, request, factor=factor)
        return True

    def _load(self, model: int, executor: int, load_s: float, now_s: float, actions: list[Action]) -> bool:
        """Have a model opened, for which others are evicted if need be; whether there is room."""
        facts, residency = self.models[model], self.residency
        read_nbytes = 0 if model in residency else facts.nbytes
        if read_nbytes:
            evicted = residency.to_evict(read_nbytes, kept=self._in_use(), wanted=self._wanted)
            if evicted is None:
                return False
            for other in evicted:
                self._evict(other, now_s, actions)
        state = self._executors[executor]
        first = facts.code not in state.codes
        state.codes.add(facts.code)
        residency.add(model, executor, facts.nbytes)
        factor = self.estimates.load_factor(now_s)
        self._add(executor, LOAD, model, load_s, now_s, actions, factor=factor, read_nbytes=read_nbytes, first=first)
        return True

    def _in_use(self) -> set[int]:
        return {one.action.model for executor in self._executors for one in executor.sent}

    def _evict(self, model: int, now_s: float, actions: list[Action]) -> None:
        for executor in self.residency.executors(model):
            typical_s = self.estimates.evict_s(now_s) * self.estimates.slowdown(executor, now_s)
            self._add(executor, EVICT, model, typical_s, now_s, actions)
        self.residency.remove(model)

    def _add(
        self,
        executor: int,
        kind: str,
        model: int,
        typical_s: float,
        now_s: float,
        actions: list[Action],
        request: Waiting | None = None,
        *,
        factor: float = 1.0,
        read_nbytes: int = 0,
        first: bool = False,
    ) -> None:
        action = Action(next(self._numbers), executor, kind, model, typical_s * factor, request)
        self._executors[executor].sent.append(_Sent(action, typical_s, now_s, read_nbytes, first))
        actions.append(action)

    def wake_s(self, now_s: float) -> float:
        """When to :meth:`decide` again if nothing else happens; infinite if only an answer or a request can matter."""
        if not self._queue:
            return math.inf
        # Of one that takes longer than predicted only the answer says more.
        busy = [one for one in self._executors if one.live and len(one.sent) < MOST_SENT and not one.overdue_s(now_s)]
        free = [one.free_s(now_s) for one in busy]
        return min((free_s - AHEAD_S for free_s in free if free_s >= now_s + AHEAD_S), default=math.inf)

    # -- what executors answer ----------------------------------------------------------------------------------------

    def answered(
        self, executor: int, number: int, now_s: float, *, took_s: float, bind_s: float = 0.0, ok: bool = True
    ) -> Measured | None:
        """An action has ended; None if it is not known, as one of an executor that was lost.

        Parameters
        ----------
        took_s
            Seconds that it took.
        bind_s
            Of a load: those of them that do not depend on the model's bytes.
        ok
            Whether it did what it should; nothing is learned from it otherwise, and a model that was to be loaded is
            not.
        """
        state = self._executors[executor]
        found = next((one for one in state.sent if one.action.number == number), None)
        if found is None:
            return None
        state.sent.remove(found)
        state.last_end_s = now_s
        action = found.action
        if action.request is not None:
            self._is_over(action.request)
        if not ok:
            if action.kind == LOAD:
                self.residency.remove(action.model, executor)
            return None
        facts, estimates = self.models[action.model], self.estimates
        if action.kind == RUN:
            assert action.request is not None
            estimates.ran(executor, action.model, facts, action.request.samples, took_s, now_s)
        elif action.kind == LOAD:
            estimates.loaded(executor, found.read_nbytes, took_s - bind_s, bind_s, now_s, first=found.first)
        else:
            estimates.evicted(executor, took_s, now_s)
        return Measured(now_s, action.kind, action.model, executor, action.expected_s, took_s)

    def lose(self, executor: int) -> Lost:
        """An executor is gone: what it had waits again."""
        state = self._executors[executor]
        at = state.sent[0].action.model if state.sent and state.sent[0].action.kind != EVICT else None
        suspect = next(
            (one.action.request for one in state.sent if one.action.request and one.action.model == at), None
        )
        requests = [one.action.request for one in state.sent if one.action.request is not None]
        self._executors[executor] = lost = _Executor()
        lost.live = False
        self.estimates.forget(executor)
        for request in requests:
            self._put(request)
        return Lost(requests, suspect, self.residency.lose(executor))

    def regain(self, executor: int, codes: Iterable[str] = ()) -> None:
        """An executor is there, or there again; ``codes`` are those of architectures that it has run."""
        self._executors[executor].live = True
        self._executors[executor].codes.update(codes)

    @property
    def live(self) -> list[int]:
        """Executors that are there."""
        return [number for number, one in enumerate(self._executors) if one.live]

    def is_live(self, executor: int) -> bool:
        """Whether an executor is there."""
        return self._executors[executor].live

    def overdue_s(self, executor: int, now_s: float) -> float:
        """Seconds by which what an executor is at takes longer than predicted; 0.0 if it does not."""
        return self._executors[executor].overdue_s(now_s)


class _Course:
    """How executors would go on from now: requests placed one after the other.

    A request ends after the typical seconds of all that goes before it there, and its own, and a margin that is hardly
    ever exceeded. Actions take longer independently of each other, so that the margin is the root of the sum of the
    squares of theirs: all of them together hardly ever take as long as each hardly ever does.
    """

    def __init__(self, scheduler: Scheduler, now_s: float) -> None:
        self._scheduler, self._now_s = scheduler, now_s
        executors = scheduler._executors
        self._free_s = {number: one.free_s(now_s) for number, one in enumerate(executors) if one.live}
        self._margin2 = {number: executors[number].margin2 for number in self._free_s}
        self._more_run = scheduler.estimates.run_factor(now_s) - 1
        self._more_load = scheduler.estimates.load_factor(now_s) - 1
        self._slowdown = {number: scheduler.estimates.slowdown(number, now_s) for number in self._free_s}
        self._opened: set[tuple[int, int]] = set()
        self._loaded: set[int] = set()
        self._known_s: dict[tuple[int, int], float] = {}

    def copy(self) -> _Course:
        """One that goes on by itself."""
        other = _Course.__new__(_Course)
        vars(other).update(vars(self))
        other._free_s, other._margin2 = dict(self._free_s), dict(self._margin2)
        other._opened, other._loaded = set(self._opened), set(self._loaded)
        return other

    def wait(self, work_s: float) -> None:
        """Go on as if so many seconds of work were done, spread over the executors that are there."""
        each_s = work_s * sum(self._slowdown.values()) / max(1, len(self._slowdown)) ** 2
        self._free_s = {number: free_s + each_s for number, free_s in self._free_s.items()}

    def _run_s(self, request: Waiting) -> float:
        key = request.model, request.samples
        known_s = self._known_s.get(key)
        if known_s is None:
            scheduler, model = self._scheduler, request.model
            facts = scheduler.models[model]
            known_s = scheduler.estimates.typical_run_s(model, facts, request.samples, self._now_s)
            self._known_s[key] = known_s
        return known_s

    def _load_s(self, model: int, executor: int) -> float:
        scheduler = self._scheduler
        if scheduler.residency.is_open(model, executor) or (model, executor) in self._opened:
            return 0.0
        facts = scheduler.models[model]
        nbytes = 0 if model in scheduler.residency or model in self._loaded else facts.nbytes
        first = facts.code not in scheduler._executors[executor].codes
        return scheduler.estimates.typical_load_s(nbytes, self._now_s, first=first)

    def place_on(self, request: Waiting, executor: int) -> _Place:
        """When a request would be done on an executor."""
        slowdown = self._slowdown[executor]
        load_s, run_s = self._load_s(request.model, executor) * slowdown, self._run_s(request) * slowdown
        margin2 = self._margin2[executor] + (load_s * self._more_load) ** 2 + (run_s * self._more_run) ** 2
        typical_end_s = self._free_s[executor] + load_s + run_s
        return _Place(typical_end_s + math.sqrt(margin2), executor, load_s, run_s, typical_end_s, margin2)

    def place(self, request: Waiting) -> _Place:
        """Where a request would be done first; infinitely late on none if there is no executor."""
        return min([self.place_on(request, executor) for executor in self._free_s], default=_NOWHERE)

    def typical_end_s(self, request: Waiting) -> float:
        """When a request would be done first if it, and its load, took what they typically take."""
        ends_s = [self.place_on(request, executor).typical_end_s for executor in self._free_s]
        return min(ends_s, default=math.inf)

    def follow(self, request: Waiting, place: _Place) -> None:
        """Go on as if a request were done there."""
        self._free_s[place.executor], self._margin2[place.executor] = place.typical_end_s, place.margin2
        if place.load_s:
            self._opened.add((request.model, place.executor))
            self._loaded.add(request.model)

    def take(self, request: Waiting) -> _Place:
        """:meth:`place` a request, and :meth:`follow`."""
        place = self.place(request)
        if place.executor >= 0:
            self.follow(request, place)
        return place


_NOWHERE = _Place(math.inf, -1, 0.0, 0.0, math.inf, 0.0)
