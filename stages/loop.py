"""The stage's loop: receive, compute, hand on; within the windows of each request's epoch.

A request says which layer is next. The stage runs layers up to the last cut of its window, or hands over at an earlier
one if that is better (:mod:`odin.stages.hand_over`), to whichever later stage. With the last layer done, or if it
fails, the request goes to the gateway.

Only the gateway's goodbye or loss ends the loop. A later stage may die, hang and be replaced meanwhile: what cannot be
handed over to it goes back to the gateway, which has kept the request's input and sends it again. If the connection to
a stage on another machine breaks, what was on that way is lost, though both live: the gateway is told. While a stage
has a request it is noted beside that input, if it can see the gateway's memory::

    begin with it     holder: this stage
    hand over to 2    holder: this stage, or 2 already    (before it is sent: wherever it is lost, one of them has died)

Migration, seen from one stage (DESIGN: "how a layer moves")::

    control thread                    data thread
    prepare(e+1, windows)             ... request under e   -> up to layer 9
      executor.prepare                ... request under e
      under[e+1] = windows            first request of e+1  -> up to layer 7
                                      the first that says that e is over: forget e

Every request carries its epoch, so the switch needs no pause.

A stage that may use only a share of its device pauses between requests (:mod:`odin.stages.pacer`). Until then it is not
free, and takes nothing.
"""

from __future__ import annotations

import enum
import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from odin.monitor.timing import StageTiming
from odin.partitioner.relay import Windows, is_hopeless
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Message, Receiver, Sender
from odin.stages.channel.readiness import BEGUN, FINISHING, WORKING, Readiness
from odin.stages.channel.shared_queue import NewRequest
from odin.stages.channel.tcp import TcpSender
from odin.stages.channel.wire import GATEWAY, NO_STAGE, Failure, Header, Kind
from odin.stages.compute.executor import Executor, LayerError, Result, Values
from odin.stages.hand_over import HandOver, Reach, Takers
from odin.stages.pacer import Pacer

__all__ = ["DEADLINE", "StageLoop"]

DEADLINE = "deadline"
"""Kind of the failure of a request whose deadline passed, or cannot be met any more, before a stage started on it."""

_TRACEBACK_CHARS = 6_000


class _Under(NamedTuple):
    """What holds under an epoch."""

    windows: Windows
    stages: Sequence[int]
    reach: Reach
    takers: Takers


class _Skipped(enum.Enum):
    """Why a request is not computed here, other than a failure; instead of an executor's ticket."""

    UNWANTED = enum.auto()  #: the gateway waits for it no more, or for another attempt
    UNKNOWN = enum.auto()  #: its epoch is: this stage may have taken another one's place just now


class _Launched(NamedTuple):
    message: Message
    ticket: Any
    first: int
    last: int
    queue_s: float
    target: int | None = GATEWAY


class StageLoop:
    """Serves one stage until the gateway ends.

    One thread calls :meth:`run`; all other methods are for other threads.

    Parameters
    ----------
    index
        The stage's index in the pipeline.
    executor
        Runs the layers.
    inbox
        The channels from earlier stages and the gateway; closed when the loop ends.
    senders
        The channels to later stages, by index, the next one among them, and to the gateway; closed when the loop ends.
    readiness
        The stage's own words, which those at the other end of the inbox read.
    hand_over
        Decides between layers.
    epoch, windows, stages
        The first epoch, what holds under it, and whose each row of the windows is; without, those of all stages.
    pacer
        Holds the stage to a share of its device; default: to all of it.
    threads
        Compute threads, whose CPU seconds add up.

    """

    def __init__(
        self,
        index: int,
        executor: Executor,
        inbox: Inbox,
        senders: Mapping[int, Sender],
        *,
        readiness: Readiness,
        hand_over: HandOver,
        epoch: int,
        windows: Windows,
        stages: Sequence[int] | None = None,
        pacer: Pacer | None = None,
        threads: int = 1,
    ) -> None:
        self._index = index
        self._pacer, self._threads = pacer or Pacer(), threads
        self._executor = executor
        self._inbox = inbox
        self._senders = dict(senders)
        self._words = readiness.words
        self._hand_over = hand_over
        self._layer_count = windows.layer_count
        self._home = inbox.home
        if inbox.queue is not None:
            hand_over.share(inbox.queue.words)
        self._under: dict[int, _Under] = {}
        self._oldest = epoch
        self._under_lock = threading.Lock()
        self._working_lock = threading.Lock()
        self._transfer_s = self._cpu_s = 0.0
        self._stopped = self._ended = False
        self._live: Sequence[int] = ()
        self._unreached: dict[int, Sender] = {}  # of which the gateway is to be told
        memories = [*(receiver.memory for receiver in inbox.receivers), *(one.memory for one in senders.values())]
        for memory in {id(memory): memory for memory in memories}.values():
            executor.adopt(memory)
        self.prepare(epoch, windows, stages)
        for stage, sender in self._senders.items():
            self._follow(stage, sender)

    # -- from other threads -------------------------------------------------------------------------------------------

    def prepare(self, epoch: int, windows: Windows, stages: Sequence[int] | None = None) -> None:
        """Make ready for requests of ``epoch``, under which only some stages may live.

        Parameters
        ----------
        epoch, windows
            What holds under it.
        stages
            Those that live, and take part: row ``j`` of the windows is that of ``stages[j]``. Others are not sent to
            until they are among those of another epoch; if this one is not among them, it takes no new requests. What
            it takes of this epoch once it is among those of a later one, it runs whole.
        """
        stages = tuple(range(len(windows)) if stages is None else stages)
        with self._under_lock:
            self._live = stages
            for stage, sender in self._senders.items():
                if stage != GATEWAY:
                    (sender.resume if stage in stages else sender.abandon)()
            takes_part = self._index in stages
            self._inbox.take_new(
                takes_part,
                first=not windows.all_begin,
                note=lambda: self._hand_over.set_apart(not takes_part),
            )
            if not takes_part:  # it may only have waited for one that hangs
                if self._inbox.queue is not None:
                    self._under = {**self._under, epoch: self._under_alone(windows, stages)}
                return
            under = self._under_windows(windows, stages)
            self._executor.prepare(under.reach.first, under.reach.last)
            self._under = {**self._under, epoch: under}
        before = [stage for stage in stages if stage < self._index]
        self._inbox.tell_to(before[-1:])  # those that look at this stage, if it is on another machine

    def _under_windows(self, windows: Windows, stages: Sequence[int]) -> _Under:
        reach = Reach.of(windows, self._index, self._hand_over.reachable(stages), stages)
        return _Under(windows, stages, reach, self._hand_over.takers_of(reach))

    def _under_alone(self, windows: Windows, stages: Sequence[int]) -> _Under:
        """Under an epoch in which this stage takes no part: a request of it that waits in the queue is run whole."""
        self._executor.prepare(0, self._layer_count)
        reach = Reach(0, self._layer_count, ((),) * self._layer_count, free=False)
        return _Under(windows, stages, reach, self._hand_over.takers_of(reach))

    def add_sender(self, stage: int, sender: Sender) -> None:
        """Send to a later stage by this channel, which is owned from now on, instead of any other."""
        self._executor.adopt(sender.memory)
        with self._under_lock:
            before = self._senders.get(stage)
            if stage not in self._live:
                sender.abandon()
            self._senders = {**self._senders, stage: sender}
            self._hand_over.set_taker(stage, sender)
            self._under = {
                epoch: under if self._index not in under.stages else self._under_windows(under.windows, under.stages)
                for epoch, under in self._under.items()
            }
            if self._ended:
                before = sender
        self._follow(stage, sender)
        if before is not None:
            before.close(graceful=False)

    def _follow(self, stage: int, sender: Sender) -> None:
        """Have the gateway told when the connection to a stage on another machine breaks.

        Within this machine that happens only if the stage ends, which the gateway sees itself.
        """
        if stage != GATEWAY and isinstance(sender, TcpSender):
            sender.when_broken(partial(self._note_unreached, stage, sender))

    def _note_unreached(self, stage: int, sender: Sender) -> None:
        self._unreached[stage] = sender
        self._inbox.bring(Message(Header(Kind.UNREACHED, self._index, cut=stage), sender.memory, lambda slot: None))

    def add_receiver(self, receiver: Receiver) -> None:
        """Receive from one more stage."""
        self._executor.adopt(receiver.memory)
        self._inbox.add(receiver)

    def drop(self, stage: int) -> None:
        """Close the channels from and to a stage, whose place another one takes, with all that is in them."""
        self._inbox.drop(stage)
        sender = self._senders.get(stage)
        if sender is not None:
            sender.close(graceful=False)

    @property
    def gateway_gone(self) -> bool:
        """Once it has ended: whether the gateway has closed, or is gone without a goodbye; else it was stopped."""
        return not self._stopped

    def stop(self) -> None:
        """End the loop, dropping requests in flight."""
        self._stopped = True
        self._pacer.end()
        self._inbox.close()
        for sender in self._senders.values():
            sender.close(graceful=False)

    # -- the thread that serves ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the gateway has said goodbye, or is gone."""
        graceful = False
        self._cpu_s = time.thread_time()
        try:
            if self._executor.overlaps:
                self._run_overlapped()
            else:
                while (launched := self._receive_and_launch()) is not None:
                    self._finish_and_send(launched)
            graceful = True
        except ChannelClosedError:
            pass
        finally:
            with self._under_lock:
                self._ended = True
            # The receivers first: the goodbye to the gateway waits until it has heard it, and nobody who says goodbye
            # to this stage must wait for that as well.
            self._inbox.close()
            for stage, sender in self._senders.items():
                sender.close(graceful=graceful and stage == GATEWAY)

    def _run_overlapped(self) -> None:
        """Launch one request while the one before is finishing in a second thread."""
        launched: queue.Queue[_Launched | None] = queue.Queue(maxsize=1)
        errors: list[BaseException] = []

        def finish_all() -> None:
            try:
                while (item := launched.get()) is not None:
                    self._finish_and_send(item)
            except BaseException as error:
                errors.append(error)
                self._inbox.close()
                while launched.get() is not None:  # let the other thread run into the closed channel
                    pass

        finisher = threading.Thread(target=finish_all, name=f"odin-stage-{self._index}-finish", daemon=True)
        finisher.start()
        try:
            while (item := self._receive_and_launch()) is not None:
                launched.put(item)
        finally:
            launched.put(None)
            finisher.join()
            if errors:
                raise errors[0]

    def _receive_and_launch(self) -> _Launched | None:
        """Receive one message and start on it; ``None`` when nothing is to come."""
        message = self._receive()
        header = message.header
        if header.kind is Kind.CLOSE:
            return None
        now_s = time.perf_counter()
        if header.kind is not Kind.REQUEST:
            return _Launched(message, None, 0, 0, 0.0)
        if not isinstance(message, NewRequest):  # which no stage has counted
            self._words[BEGUN] += 1.0
        # Noted before it is asked whether it is wanted: if the gateway takes it for lost, it says that it is not first.
        self._note_holder(header)
        if not self._is_wanted(message):
            return _Launched(message, _Skipped.UNWANTED, 0, 0, 0.0)
        under = self._under_epoch(header)
        if under is None:
            return _Launched(message, _Skipped.UNKNOWN, 0, 0, 0.0)
        try:
            self._check_deadline(header, under.reach, now_s)
            return self._launch(message, under, now_s)
        except Exception as error:
            self._words[WORKING] = -1.0
            return _Launched(message, self._failure(error), 0, 0, 0.0)

    def _receive(self) -> Message:
        while True:
            try:
                return self._inbox.receive(self._rest, self._hand_over.leaves, stage=self._index)
            except ChannelClosedError as error:
                if error.peer is None or error.peer == GATEWAY:
                    raise
                # Another stage has ended; all that it had sent was received before.

    def _note_holder(self, header: Header, target: int | None = None) -> None:
        if self._home is not None:
            self._home.set_holder(header.home, header.request, header.attempt, self._index, target)

    def _is_wanted(self, message: Message) -> bool:
        header, home = message.header, self._home
        if home is None:
            return message.wanted
        return home.is_current(header.home, header.request, header.attempt)

    def _check_deadline(self, header: Header, reach: Reach, now_s: float) -> None:
        left_s = header.sent_s + header.left_s - now_s
        if left_s < 0:
            raise _DeadlineError(f"its deadline passed {-left_s:.3f} s before this stage's turn")
        least_s = self._hand_over.least_s(reach, header.cut, header.samples)
        if is_hopeless(left_s, least_s):
            raise _DeadlineError(
                f"its deadline cannot be met: it is {left_s:.3f} s away, and the rest takes {least_s:.3f} s at least"
            )

    def _rest(self) -> None:
        self._hand_over.rest(time.perf_counter())
        self._inbox.tell_readiness()

    def _launch(self, message: Message, under: _Under, now_s: float) -> _Launched:
        """Run the layers, or start to; decides who gets the request then."""
        header = message.header
        reach, takers = under.reach, under.takers
        first, last = header.cut, reach.last
        if self._pacer.limits:
            self._pacer.begin(now_s)
        executor, hand_over = self._executor, self._hand_over
        options: dict[str, Any] = {"keep_nan": True} if header.keep_nan else {}
        looks = reach.free and executor.looks_between_layers
        if looks:
            options["at_cut"] = self._at_cut if self._inbox.tells else hand_over.at_cut
        hand_over.begin(takers, first, last, now_s, shares=reach.shares, samples=header.samples)
        if looks and first < last and hand_over.passes_on(first, now_s):
            last = first
        with self._working_lock:
            self._words[WORKING] = header.request
        self._inbox.tell_readiness()
        ticket = executor.launch(first, last, message.read(executor.arrays), **options)
        if looks:
            last = first + len(ticket.layer_s)
            hand_over.ran(last, time.perf_counter())
        target = GATEWAY if last == self._layer_count else hand_over.target(last)
        return _Launched(message, ticket, first, last, max(0.0, now_s - header.sent_s), target)

    def _at_cut(self, cut: int, now_s: float) -> bool:
        """Between two layers, where earlier stages on other machines have to be told what changes."""
        stop = self._hand_over.at_cut(cut, now_s)
        if not stop:
            self._inbox.tell_news()
        return stop

    def _finish_and_send(self, launched: _Launched) -> None:
        """Wait for the result and hand it to the next stage or the gateway, or the failure to the gateway."""
        message, ticket, first, last, queue_s, target = launched
        header, used_s = message.header, 0.0
        try:
            if header.kind is not Kind.REQUEST:
                self._tell_unreached(header)
            elif isinstance(ticket, Failure):
                self._send(GATEWAY, header._replace(kind=Kind.ERROR, tensors=(), failure=ticket))
            elif isinstance(ticket, _Skipped):
                self._give_back(header)  # unwanted ones, too: the gateway may have seen this stage as their holder
            else:
                try:
                    result = self._finish(header, ticket)
                    used_s = self._used_s(result)
                    self._hand_on(header, result, first, last, queue_s, target)
                except ChannelClosedError:
                    raise
                except Exception as error:  # finishing or handing over failed, for example: too large for a slot
                    self._send(GATEWAY, header._replace(kind=Kind.ERROR, tensors=(), failure=self._failure(error)))
        finally:
            message.release()
        if self._pacer.limits:
            self._pause(used_s)

    def _tell_unreached(self, header: Header) -> None:
        """Tell the gateway, unless another stage has taken the place meanwhile."""
        if self._unreached.pop(header.cut, None) is self._senders.get(header.cut):
            self._send(GATEWAY, header)

    def _used_s(self, result: Result) -> float:
        """Seconds for which the device was used since the last request, receiving and handing on included if it can be
        told.
        """
        if self._executor.overlaps or self._threads > 1:
            return result.cpu_s / self._threads
        before_s, self._cpu_s = self._cpu_s, time.thread_time()
        return self._cpu_s - before_s

    def _pause(self, used_s: float) -> None:
        """Rest until the device was used no more than it may be, and say so; what waits goes on waiting."""
        now_s = time.perf_counter()
        pause_s = self._pacer.done(now_s, used_s)
        if pause_s > 0:
            self._hand_over.pause(now_s + pause_s)
            self._inbox.tell_readiness()
            self._pacer.wait(pause_s)

    def _finish(self, header: Header, ticket: Any) -> Result:
        """Wait for the result; meanwhile another request may be launched."""
        words = self._words
        with self._working_lock:
            words[FINISHING] = header.request
            if words[WORKING] == header.request:
                words[WORKING] = -1.0
        try:
            return self._executor.finish(ticket)
        finally:
            words[FINISHING] = -1.0

    def _hand_on(
        self, header: Header, result: Result, first: int, last: int, queue_s: float, target: int | None
    ) -> None:
        """Send a result to the next stage or the gateway, or give the request back if that stage is gone."""
        timing = StageTiming(self._index, first, last, queue_s, *result[1:4], self._transfer_s, result.layer_s)
        handing_s = time.perf_counter()
        passed_on = header._replace(
            left_s=header.left_s - (handing_s - header.sent_s),
            keep_nan=header.keep_nan or result.keep_nan,
            cut=last,
            timings=header.timings + timing.pack(),
        )
        if target is None:
            self._give_back(header)
            return
        if target != GATEWAY:
            self._note_holder(header, target)
        try:
            self._send(target, passed_on, result.values)
        except ChannelClosedError:
            if target == GATEWAY:
                raise
            self._give_back(header, target)
        self._transfer_s = time.perf_counter() - handing_s

    def _give_back(self, header: Header, target: int | None = None) -> None:
        """Have the gateway send a request again; ``target`` is who could not be reached, told as the cut."""
        unreached = NO_STAGE if target is None else target
        self._send(GATEWAY, Header(Kind.RETURNED, header.request, attempt=header.attempt, cut=unreached))

    def _send(self, target: int, header: Header, values: Values = ()) -> None:
        try:
            self._senders[target].send(header, values)
        except ChannelClosedError as error:
            error.peer = target
            raise

    def _under_epoch(self, header: Header) -> _Under | None:
        under = self._under.get(header.epoch)
        if under is None:
            return None
        # While another prepare is under way, forgetting can wait for the next request.
        if header.oldest > self._oldest and self._under_lock.acquire(blocking=False):
            try:
                self._oldest = header.oldest
                self._under = {epoch: known for epoch, known in self._under.items() if epoch >= header.oldest}
                self._executor.retain(tuple((known.reach.first, known.reach.last) for known in self._under.values()))
            finally:
                self._under_lock.release()
        return under

    def _failure(self, error: Exception) -> Failure:
        where = f"stage {self._index}"
        if isinstance(error, LayerError):
            where, error = f"layer {error.layer}", _cause(error)
        kind = DEADLINE if isinstance(error, _DeadlineError) else type(error).__qualname__
        text = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]
        return Failure(where, kind, str(error), text)


class _DeadlineError(Exception):
    """The request's deadline passed before this stage's turn, or cannot be met any more."""


def _cause(error: LayerError) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error
