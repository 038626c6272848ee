"""One request in the gateway, and several that were joined into one micro-batch.

A *carrier* is what the stages see of requests that were joined: it has a number, a place and attempts of its own. Its
*members* have the futures, deadlines and cancellations::

    member 4 | member 5 | member 6        waited in line
        `--------- carrier 9 ---'         one slot, rows 0, 1 and 2 of each tensor

What happens to one member changes nothing for the others; the carrier is wanted until the outcome of all is known.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Sequence
from typing import Self

import torch

from odin.partitioner.code.single import copied
from odin.process.timers import Timer
from odin.requests.admission import Forecast
from odin.requests.replies import Reply
from odin.stages.channel.inlet import Way
from odin.stages.channel.wire import TensorMeta

__all__ = ["Request", "Values", "form_of", "rows_of", "samples_of"]

Values = tuple[torch.Tensor, ...]

_DEADLY, _DEADLY_OR_HUNG = 2, 3
"""So many stages must have died on a request, or died or hung, before it is held to be the cause: on a busy machine one
may seem to hang that does not."""


class Request:
    """One request from ``submit`` until the stages have answered, or what carries several of them."""

    __slots__ = (
        "attempt", "carrier", "deadline_s", "entered_s", "epoch", "fatal_to", "forecast", "form", "held_back",
        "members", "metas", "number", "over", "overtakings", "refusal", "reply", "samples", "sent", "slot",
        "submitted_s", "timer", "urgent", "values", "was_overtaken", "way",
    )  # fmt: skip

    def __init__(self, values: Values, deadline_s: float, reply: Reply[Values], urgent: bool) -> None:
        self.values = values
        self.deadline_s = deadline_s
        self.reply = reply
        self.urgent = urgent  # goes first, and whatever waits: the callbacks' thread waits for it
        self.samples = samples_of(values)
        self.form: Hashable = None  # equal for those that can be joined; None: it stays alone
        self.entered_s = 0.0  # on the clock of deadlines
        self.held_back = False  # though there was a place, for others to come
        self.members: tuple[Request, ...] = ()  # of a carrier, in the order of their rows
        self.carrier: Request | None = None  # which this one is a member of
        self.number = self.slot = -1
        self.metas: tuple[TensorMeta, ...] = ()  # of its input in the slot
        self.epoch = self.attempt = 0
        self.fatal_to: dict[str, bool] = {}  # stages that died while they computed it, or hang (False)
        self.submitted_s = 0.0
        self.over = False  # its outcome is known: answered, failed, too late, cancelled
        self.sent: threading.Lock | None = None  # free when it no longer stands in line, if it ever did
        self.refusal: BaseException | None = None  # why it could not be sent
        self.timer: Timer | None = None
        self.way: Way | None = None  # by which it was sent; None while there is none
        self.forecast: Forecast | None = None
        self.overtakings = 0  # in the line, when it entered that
        self.was_overtaken = False  # so that its forecast says nothing of how good forecasts are

    @classmethod
    def carrying(cls, members: Sequence[Request], number: int) -> Self:
        """A carrier: wanted until the latest of its members' deadlines."""
        carrier = cls((), max(one.deadline_s for one in members), Reply(), any(one.urgent for one in members))
        carrier.number, carrier.members = number, tuple(members)
        carrier.samples = sum(one.samples for one in members)
        for one in members:
            one.carrier = carrier
        return carrier

    @property
    def answers(self) -> tuple[Request, ...]:
        """Those who get what the stages answer to this: its members, or itself."""
        return self.members or (self,)

    def waiting(self) -> list[Request]:
        """Those of them whose outcome is not known."""
        return [one for one in self.answers if not one.over]

    def go_alone(self, values: Values) -> None:
        """Be sent again by itself, before all others, when what carried it has failed: it may not be its doing."""
        if self.carrier is not None:
            self.fatal_to = dict(self.carrier.fatal_to)
        self.values, self.carrier, self.form, self.urgent = values, None, None, True

    @property
    def seems_deadly(self) -> bool:
        """Whether so many stages were lost while they computed it that it is held to be the cause."""
        return sum(self.fatal_to.values()) >= _DEADLY or len(self.fatal_to) >= _DEADLY_OR_HUNG

    def settle(self, outcome: Values | BaseException) -> None:
        """Resolve its future, unless the caller has cancelled; its deadline counts no more."""
        if self.timer is not None:
            self.timer.cancel()
        self.reply.settle(outcome)

    def leave_line(self) -> None:
        """Wake up the caller that waits in :meth:`Gateway.submit_all`. Idempotent.

        ``sent`` is a lock, not an Event, whose ``wait`` breaks if a signal handler raises in it ("release unlocked
        lock").
        """
        if self.sent is not None:
            with contextlib.suppress(RuntimeError):  # it is free
                self.sent.release()


def samples_of(values: Values) -> int:
    """The leading size that all tensors have; 0 if there is none."""
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in values}
    return sizes.pop() if len(sizes) == 1 else 0


def form_of(values: Values) -> Hashable:
    """What requests must have in common to be joined: types and shapes of a sample."""
    return tuple((tensor.dtype, tensor.shape[1:]) for tensor in values)


def rows_of(tensors: Sequence[torch.Tensor], request: Request) -> list[Values]:
    """Copies of each one's rows of what the stages answered, or were sent; () for those whose outcome is known.

    Copies: what is returned keeps no memory of others' rows, and none of a slot.
    """
    if not request.members:
        return [() if request.over else tuple(copied(tensor) for tensor in tensors)]
    rows: list[Values] = []
    start = 0
    for one in request.members:
        end = start + one.samples
        rows.append(() if one.over else tuple(_rows(tensor, start, end, request.samples) for tensor in tensors))
        start = end
    return rows


def _rows(tensor: torch.Tensor, start: int, end: int, samples: int) -> torch.Tensor:
    if not tensor.dim():
        return copied(tensor)
    if tensor.shape[0] != samples:
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} for {samples} samples cannot be divided among requests: serve "
            "this model with dynamic_batching=False"
        )
    return copied(tensor[start:end])
