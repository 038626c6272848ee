"""The requests that have a slot: by which way they are sent, which stages may have them, and which are sent again.

When a stage is lost, what was with it is sent again from the slots, as another *attempt*. The first answer counts,
whichever attempt it is of; one that finds no request waiting for it is dropped. So a stage that was only taken for lost
does no harm, not even by reading a slot that holds the next input by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from odin.requests.conditions import Conditions
from odin.requests.request import Request, Values, rows_of
from odin.stages.channel.inlet import InForce, Inlet, Way
from odin.stages.channel.link import ChannelClosedError
from odin.stages.channel.readiness import FINISHING, WORKING
from odin.stages.channel.shm import ShmSender
from odin.stages.channel.wire import Header, Kind

__all__ = ["UnderWay"]

_BOUNCES = 6
"""A request that comes back so often because it could not be handed on is not sent again at once."""


class UnderWay:
    """The slots of one gateway, which calls all of this with its lock held. Nothing here waits.

    Parameters
    ----------
    inlet
        Slots, and the ways to the stages.
    in_force
        Under what the first request runs.
    places
        Most requests under way; as many as there are slots by default, which are the most that there can be.
    conditions
        Told which stages serve.
    clock
        Monotonic seconds, for timelines.

    Attributes
    ----------
    requests
        Those that have a slot, by number, oldest first; of some the outcome is known, but a stage has them still.
    in_force
        Under what the next request runs.
    shares
        Whether the next one goes to the queue from which all stages take.
    places
        Most requests under way.
    lost
        Stages that are gone or hang, and what they are called in errors.
    gone
        Those that are gone, until others have taken their places.
    wake
        Called with the next request that is sent, and forgotten then.
    """

    def __init__(
        self,
        inlet: Inlet,
        in_force: InForce,
        *,
        places: int | None = None,
        conditions: Conditions | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._inlet = inlet
        self._conditions = conditions
        self._clock = clock
        self.requests: dict[int, Request] = {}
        self.in_force = in_force
        self.places = min(places or inlet.slots, inlet.slots)
        self.lost: dict[int, str] = {}
        self.gone: set[int] = set()
        self.wake: Callable[[], None] | None = None
        self._held: dict[int, Request] = {}  # with no stage: to be sent when there is a way
        self._way: Way | None = None
        self._find_way()

    @property
    def free(self) -> int:
        """Free slots; computed, not counted, so that an exception cannot make the number wrong."""
        return self.places - len(self.requests)

    def switch(self, in_force: InForce, places: int | None) -> None:
        """Send under that from now on, to stages that all know which are lost; so many may be under way."""
        self.in_force = in_force
        self.places = min(places or self.places, self._inlet.slots)
        self._find_way()
        self.send_held()
        for stage in self.lost:
            self._send_what_followed(stage)

    def _find_way(self) -> None:
        """Set where new requests go; None while those that windows in force name are lost."""
        way, stages = self._inlet.way_under(self.in_force), self.in_force.stages
        live = [stage for stage in stages if stage not in self.lost]
        self.shares = way is not None and way is self._inlet.queue
        self._enters_here = self.shares or isinstance(way, ShmSender)
        self._way = way if self.shares or len(live) == len(stages) else None
        if self._conditions is not None:
            self._conditions.live = live

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, request: Request) -> None:
        """Take a free slot, of which there must be one, and send; raises what writing an input that is unfit does."""
        used = {other.slot for other in self.requests.values()}
        slot = next(slot for slot in range(self._inlet.slots) if slot not in used)
        if request.members:
            request.metas = self._inlet.write_rows(slot, [one.values for one in request.members])
        else:
            request.metas = self._inlet.write(slot, request.values)
        request.submitted_s = self._clock()
        if (wake := self.wake) is not None:
            self.wake = None
            wake()
        try:
            request.slot = slot
            self.requests[request.number] = request
            self.post(request)
        except BaseException:  # a signal's handler has raised, perhaps after it was sent
            request.over = True
            self.forget(request)
            raise
        for one in request.answers:
            one.values = ()

    def post(self, request: Request) -> None:
        """Send what lies in its slot, once more perhaps."""
        request.epoch, request.way = self.in_force.epoch, self._way
        request.attempt += 1
        self._inlet.mark(request.slot, request.number, request.attempt)
        if request.way is None:
            self._held[request.number] = request
            return
        now_s = time.perf_counter()
        header = Header(
            Kind.REQUEST,
            request.number,
            request.epoch,
            request.deadline_s - now_s,
            now_s,
            request.slot,
            request.metas,
            oldest=min(other.epoch for other in self.requests.values()),
            attempt=request.attempt,
            home=request.slot,
            samples=request.samples,
        )
        try:
            request.way.post(header)
        except ChannelClosedError:  # who receives learns of the loss, and sends it again
            self._held[request.number] = request

    def send_held(self) -> None:
        """Send the requests that no stage has, if there is a way."""
        if self._way is not None:
            held, self._held = self._held, {}
            for request in held.values():
                self.post(request)

    def forget(self, request: Request) -> None:
        """Free a request's slot; what is on its way of it is not begun, or its answer dropped."""
        if self.requests.pop(request.number, None) is not None:
            self._held.pop(request.number, None)
            self._inlet.unmark(request.slot)
            if request.way is not None:
                request.way.push()

    def give_up(self, request: Request) -> None:
        """Let no stage begin with a request that nobody waits for; its slot is free at once if none has begun."""
        request.over = True
        self._inlet.unmark(request.slot)
        # On another machine it may have begun without saying so; an answer will come.
        begun = self._inlet.holders(request.slot, request.number, request.attempt) or not self._enters_here
        if request.number in self._held or not begun:
            self.forget(request)

    def clear(self) -> list[Request]:
        """Forget all; returns those of whom the outcome is not known, each by itself."""
        waiting = [one for request in self.requests.values() for one in request.waiting()]
        self.requests, self._held = {}, {}
        return waiting

    def rows(self, request: Request) -> list[Values]:
        """Copies of the inputs of those whom a micro-batch carries, from its slot; () where the outcome is known."""
        return rows_of(self._inlet.read(request.slot, request.metas), request)

    # -- sending again ----------------------------------------------------------------------------------------------

    def lose(self, stage: int, name: str, *, dead: bool) -> list[Request]:
        """Send nothing more to a stage that has died, or hangs; returns what it may have, which is not sent again yet.

        Those that it was computing have it among their ``fatal_to``. Idempotent.
        """
        # A stage that others cannot reach is given up first, and its channels end then.
        known = stage in self.lost and not (dead and stage not in self.gone)
        self.lost[stage] = name
        computed = self._computed_by(stage)
        self._inlet.silence(stage)
        if dead:
            self.gone.add(stage)
            self._inlet.disconnect(stage)
        self._find_way()
        has = [] if known else [one for one in self.requests.values() if self._is_with(one, stage)]
        for request in has:
            if request.number in computed:
                request.fatal_to[name] = dead
        return has

    def regain(self, stage: int, *, replaced: bool) -> str | None:
        """Send to a stage again, which answers again, or has been ``replaced``; returns what it was called."""
        name = self.lost.pop(stage, None)
        self.gone.discard(stage)
        self._find_way()
        self.send_held()
        if replaced:
            self._send_what_followed(stage)
        return name

    def returned(self, request: Request) -> bool:
        """Send again what a stage could not hand on; whether it has come back too often, and waits to be sent."""
        too_often = request.attempt >= _BOUNCES
        if request.over:
            self.forget(request)
        elif request.number not in self._held:
            if too_often:
                self._held[request.number] = request
            else:
                self.post(request)
        return too_often

    def _send_what_followed(self, stage: int) -> None:
        """Send again what others handed to a stage after its loss was known here and before they knew.

        To be called when they all know.
        """
        for request in list(self.requests.values()):
            holders = self._inlet.holders(request.slot, request.number, request.attempt)
            follows = stage in holders if holders else not self._enters_here
            if request.number in self._held or not (follows or self._may_be_anywhere(holders)):
                continue
            if request.over:
                self.forget(request)
            else:
                self.post(request)

    def _computed_by(self, stage: int) -> set[int]:
        """Requests that a stage was computing, as it said last."""
        sender = self._inlet.senders.get(stage)
        if sender is None:
            return set()
        words = sender.readiness.words
        return {int(words[WORKING]), int(words[FINISHING])}

    def _is_with(self, request: Request, stage: int) -> bool:
        """Whether a request may be with a stage, as far as can be known."""
        holders = self._inlet.holders(request.slot, request.number, request.attempt)
        return not holders or stage in holders or request.way is None or self._may_be_anywhere(holders)

    def _may_be_anywhere(self, holders: Iterable[int]) -> bool:
        """Whether a request went to another machine: the stages there do not say who has it."""
        return not all(self._inlet.is_here(holder) for holder in holders)
