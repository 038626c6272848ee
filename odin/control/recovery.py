"""What happens when a stage is lost: others do its work, and another process takes its place.

::

    gateway's thread        recovery's thread                        a thread for each replacement
    a channel ends  ----->  (requests were sent again at once)
                            the others prepare for its layers
                            backoff ------------------------------>  start a process, give it the model, connect it
                            it takes part again  <-----------------  ready
    watchdog: silent -----> as above, but its channels stay, and it is back when it says something

Where all stages take new requests from one queue, nothing has to be prepared: requests go on at once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from odin.control.faults import Faults
from odin.control.watchdog import Reading, Watchdog
from odin.errors import OdinError, PipelineClosedError, StageLostError, first_line
from odin.monitor.events import Event, StageBack, StageLost
from odin.stages.channel.link import Sender
from odin.stages.channel.readiness import BEGUN, FINISHING, FREE_S, IDLE_SINCE_S, SLOWDOWN, WORKING, waiting

__all__ = ["Recovery", "Serves", "Stages"]

_log = logging.getLogger(__name__)

_LOOK_S = 0.1
"""Seconds between looks at the stages while requests are under way."""
_PATIENCE = 4.0
"""So many times longer for one that would compute if it had its core, or waits for a later one to take a request."""
_FAR_S = 0.05
"""Seconds that count as those of a request for a stage on another machine, whose words may come late."""
_GIVE_UP_TIMES, _GIVE_UP_S = 20.0, 10.0
"""One that hangs for so many times the time after which it was taken for hung, and so long, is ended and replaced."""
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 30.0
_ATTEMPTS = 8
"""Replacements of a stage that may fail, or die soon, one after the other."""
_STEADY_S, _STEADY_LOOKS = 30.0, 16
"""One that has lived so long, or was seen to get on so often, was not ended by what ended the one before."""
_AGAIN_S = 0.5
"""Seconds until preparing is tried again, if nothing happens before."""


class Serves(Protocol):
    """The gateway, as recovery uses it."""

    def lose(self, stage: int, name: str, *, dead: bool) -> tuple[int, int]:
        """See :meth:`odin.requests.gateway.Gateway.lose`."""

    def regain(self, stage: int, *, replaced: bool) -> None:
        """See :meth:`odin.requests.gateway.Gateway.regain`."""

    def fail(self, error: OdinError) -> None:
        """See :meth:`odin.requests.gateway.Gateway.fail`."""

    def wake_when_busy(self, wake: Callable[[], None]) -> bool:
        """See :meth:`odin.requests.gateway.Gateway.wake_when_busy`."""

    def sender(self, stage: int) -> Sender | None:
        """See :meth:`odin.requests.gateway.Gateway.sender`."""


class Stages(Protocol):
    """What recovery does to stages: an :class:`odin.control.arrangement.Arrangement`."""

    live: tuple[int, ...]

    def name(self, stage: int) -> str:
        """Stage, device and process, for messages."""

    def pid(self, stage: int) -> int:
        """Its process."""

    def wants_core(self, stage: int) -> bool:
        """Whether its process waits for its core or has it; as far as is known from here."""

    def has_answered(self, stage: int) -> bool:
        """Whether one that did not answer has done so since then."""

    def regroup(self, stages: tuple[int, ...]) -> None:
        """Spread all layers over these stages, from the next request on.

        One that does not answer is the ``stage`` of the :class:`~odin.StageLostError` that is raised.
        """

    def end(self, stage: int) -> None:
        """End its process for good, also one that is stopped."""

    def replace(self, stage: int) -> None:
        """Start another process in its place, and connect it with the gateway and the stages that live."""

    @property
    def cannot_replace(self) -> str | None:
        """Why no process can be started now; None if one can."""


@dataclass
class _State:
    watchdog: Watchdog
    lost_s: float | None = None
    hangs: bool = False
    unanswered: bool = False
    end_again_s: float = 0.0
    replacing: bool = False
    given_up: bool = False
    blocked: bool = False  # nothing can be started now
    attempts: int = 0
    next_try_s: float = 0.0
    said: Hashable = None
    got_on: int = 0  # looks at which it had said something new
    lived_since_s: float = field(default=-float("inf"))


class Recovery:
    """Follows every stage of a pipeline, in a thread of its own.

    Parameters
    ----------
    chain_s
        For each stage, seconds of the whole chain there with nothing else running.
    gateway, stages
        What it acts on.
    emit
        Takes events.
    faults
        Told of what goes wrong.
    """

    def __init__(
        self,
        chain_s: Sequence[float],
        *,
        gateway: Serves,
        stages: Stages,
        emit: Callable[[Event], None],
        faults: Faults,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._gateway, self._stages = gateway, stages
        self._emit, self._faults, self._clock = emit, faults, clock
        self._chain_s = tuple(chain_s)
        self._state = [_State(Watchdog(interval_s=_LOOK_S)) for _ in self._chain_s]
        self._news: deque[Callable[[], None]] = deque()
        self._stir = threading.Condition()
        self._closed = self._woken = self._draining = False
        self._grouped = tuple(range(len(self._chain_s)))
        self._group_again_s = 0.0
        self._replacing: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="odin-recovery", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def drain(self) -> None:
        """The pipeline is being closed: replace nothing any more, but go on watching until :meth:`close`."""
        self._draining = True

    def close(self) -> None:
        """Watch no more; waits for replacements that are under way to end. Idempotent."""
        with self._stir:
            self._closed = True
            self._stir.notify_all()
        for thread in (self._thread, *self._replacing):
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    def stage_gone(self, stage: int) -> None:
        """Take note that a stage's channel has ended; its requests go to others before this returns."""
        if self._closed:
            return
        had, failed = self._gateway.lose(stage, self._stages.name(stage), dead=True)
        self._tell(lambda: self._note_gone(stage, had, failed))

    def _tell(self, news: Callable[[], None]) -> None:
        with self._stir:
            self._news.append(news)
            self._stir.notify_all()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            try:
                self._step()
            except PipelineClosedError:
                return
            except Exception as error:
                self._faults.tell("recovery from lost stages", error, "it is tried again")
                with self._stir:
                    self._stir.wait(_AGAIN_S)

    def _step(self) -> None:
        with self._stir:
            news, self._news = self._news, deque()
        for tell in news:
            tell()
        now_s = self._clock()
        for stage in range(len(self._state)):
            self._look_at(stage, now_s)
        self._regroup(now_s)
        for stage, state in enumerate(self._state):
            may_be_replaced = not (state.hangs or state.replacing or state.given_up or self._draining)
            if state.lost_s is not None and may_be_replaced:
                self._replace_when_due(stage, state, now_s)
        self._end_if_none_is_left()
        self._rest()

    def _rest(self) -> None:
        """Wait for news; while requests are under way, or stages lost, only until the next look."""
        whole = all(state.lost_s is None for state in self._state)
        idle = whole and self._gateway.wake_when_busy(self._wake)
        with self._stir:
            if not (self._news or self._woken or self._closed):
                self._stir.wait(None if idle else _LOOK_S)
            self._woken = False

    def _wake(self) -> None:
        with self._stir:
            self._woken = True
            self._stir.notify_all()

    def _look_at(self, stage: int, now_s: float) -> None:
        state = self._state[stage]
        if state.lost_s is not None and not state.hangs:
            return
        sender = self._gateway.sender(stage)
        if sender is None:
            return
        words = sender.readiness.words
        hands_over = _hands_over(words)
        reading = _read(sender, self._expected_s(stage, and_later=hands_over or sender.way is not None))
        if reading.words != state.said:
            state.said = reading.words
            state.got_on += 1
        if not state.hangs:
            patient_s = _PATIENCE * state.watchdog.limit_s
            if state.watchdog.look(reading, now_s) and (
                state.watchdog.silent_s >= patient_s or not (hands_over or self._stages.wants_core(stage))
            ):
                self._note_hung(stage, state, now_s)
            return
        silent_s, limit_s = now_s - (state.lost_s or now_s), state.watchdog.limit_s
        says = not state.watchdog.look(reading._replace(has_work=True), now_s)
        if self._stages.has_answered(stage) if state.unanswered else says:
            self._back(stage, replaced=False)
        elif silent_s > max(_GIVE_UP_S, _GIVE_UP_TIMES * limit_s) and now_s >= state.end_again_s:
            state.end_again_s = now_s + _GIVE_UP_S
            self._stages.end(stage)  # its channels end with it, which is news

    def _expected_s(self, stage: int, *, and_later: bool) -> float:
        """Seconds that a request takes at most in a stage, as slow as it is; with those in later ones, if it waits."""
        total_s = 0.0
        for one in range(stage, len(self._state) if and_later else stage + 1):
            sender = self._gateway.sender(one)
            slowdown = 1.0 if sender is None else max(1.0, sender.readiness.words[SLOWDOWN])
            total_s += self._chain_s[one] * slowdown
        return total_s

    def _note_hung(self, stage: int, state: _State, now_s: float, why: str = "") -> None:
        """It says nothing, or does not answer (``why``)."""
        state.lost_s, state.hangs, state.unanswered, state.end_again_s = now_s, True, bool(why), 0.0
        had, failed = self._gateway.lose(stage, self._stages.name(stage), dead=False)
        why = f"process {self._stages.pid(stage)} " + (
            why
            or f"has said nothing for {state.watchdog.silent_s:.1f} s (it should within {state.watchdog.limit_s:.1f} s)"
        )
        self._emit(StageLost(now_s, stage, why, True, had, failed))

    def _note_gone(self, stage: int, had: int, failed: int) -> None:
        state, now_s = self._state[stage], self._clock()
        if state.lost_s is None or state.hangs:
            if now_s - state.lived_since_s > _STEADY_S or state.got_on >= _STEADY_LOOKS:
                state.attempts = 0
            state.got_on = 0
            state.lost_s, state.hangs = (now_s if state.lost_s is None else state.lost_s), False
            state.next_try_s = now_s + self._backoff_s(state)
            why = f"process {self._stages.pid(stage)} is gone"
            self._emit(StageLost(now_s, stage, why, False, had, failed))

    def _regroup(self, now_s: float) -> None:
        """Have those that live prepared, if they are others than those that are."""
        live = self._stages.live = tuple(stage for stage, state in enumerate(self._state) if state.lost_s is None)
        if live and live != self._grouped and now_s >= self._group_again_s:
            self._group_again_s = now_s + _AGAIN_S
            try:
                self._stages.regroup(live)
            except StageLostError as error:
                self._note_silent(error)
                return
            self._grouped, self._group_again_s = live, 0.0

    def _note_silent(self, error: StageLostError) -> None:
        """One that others waited for has not answered: it hangs, and they go on without it."""
        if error.stage is None:
            raise error
        state = self._state[error.stage]
        if state.lost_s is None:
            self._note_hung(error.stage, state, self._clock(), "does not answer")
        self._group_again_s = 0.0

    # -- replacements -----------------------------------------------------------------------------------------------

    def _backoff_s(self, state: _State) -> float:
        return float(min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**state.attempts))

    def _replace_when_due(self, stage: int, state: _State, now_s: float) -> None:
        if now_s < state.next_try_s:
            return
        why = self._stages.cannot_replace
        if why is None and state.attempts >= _ATTEMPTS:
            why = f"{state.attempts} processes one after the other did not start, or died soon"
        if why is not None:
            state.given_up = True
            self._faults.tell(
                f"replacing stage {stage}", why, "it is given up, and the others serve without it", kind="end"
            )
            return
        state.replacing = True
        state.attempts += 1
        thread = threading.Thread(target=self._replace, args=(stage,), name=f"odin-replace-{stage}", daemon=True)
        self._replacing = [other for other in self._replacing if other.is_alive()]
        self._replacing.append(thread)
        thread.start()

    def _replace(self, stage: int) -> None:
        state = self._state[stage]
        try:
            self._stages.replace(stage)
        except BaseException as error:
            if self._closed or isinstance(error, PipelineClosedError):
                return
            if isinstance(error, StageLostError) and error.stage not in (None, stage):
                self._tell(partial(self._not_its_fault, state, error))
                return
            text = first_line(error)
            _log.info("stage %d could not be replaced: %s", stage, text)

            def failed() -> None:
                state.replacing = False
                state.next_try_s = self._clock() + self._backoff_s(state)
                self._faults.tell(f"replacing stage {stage}", text, "it is tried again", kind="failed", repeat="event")

            self._tell(failed)
        else:
            self._tell(lambda: self._back(stage, replaced=True))

    def _not_its_fault(self, state: _State, error: StageLostError) -> None:
        """A stage that it was to be connected with hangs: it is replaced again, without that one."""
        state.replacing, state.attempts = False, state.attempts - 1
        self._note_silent(error)

    def _back(self, stage: int, *, replaced: bool) -> None:
        state, now_s = self._state[stage], self._clock()
        away_s = now_s - (now_s if state.lost_s is None else state.lost_s)
        state.lost_s, state.hangs, state.unanswered = None, False, False
        state.replacing = state.blocked = False
        if replaced:
            state.lived_since_s = now_s
            state.watchdog = Watchdog(interval_s=_LOOK_S)
        self._gateway.regain(stage, replaced=replaced)
        self._emit(StageBack(now_s, stage, self._stages.pid(stage), away_s, replaced))

    def _end_if_none_is_left(self) -> None:
        if all(state.given_up or state.blocked for state in self._state):
            names = ", ".join(self._stages.name(stage) for stage in range(len(self._state)))
            why = self._stages.cannot_replace or "none could be replaced"
            self._gateway.fail(StageLostError(f"all stages are lost ({names}): {why}; start a new pipeline"))
            self._closed = True


def _read(sender: Sender, expected_s: float) -> Reading:
    """What a stage says in the words that it shares with those who send to it."""
    words, way = sender.readiness.words, sender.way
    said = (words[FREE_S], words[IDLE_SINCE_S], words[BEGUN], words[WORKING])
    if way is None:
        return Reading(waiting(words) > 0 or words[IDLE_SINCE_S] == math.inf, said, expected_s)
    # What other stages sent to one on another machine is not known here; but it also speaks while it waits.
    return Reading(True, (*said, way.heard), expected_s + 2 * way.delay_s + _FAR_S)


def _hands_over(words: memoryview[float]) -> bool:
    """Whether a stage is done with a request that it still has: then it may have to wait for a later one."""
    return words[IDLE_SINCE_S] == math.inf and words[WORKING] == words[FINISHING] == -1.0
