"""Actions as they travel: headers of the stages' channels, whose fields say which model, and what is to be done.

====================  ===========================================================================================
``request``           the action's number
``epoch``             the model's number
``cut``               run, load or evict
``tensors, slot``     of a run: its input, in the slots of who sends; in the answer the outputs, in the executor's
``left_s``            of a run: how long after ``sent_s`` it may be begun
``timings``           of an answer: one record; of a load its two parts are reading and all else
====================  ===========================================================================================
"""

from __future__ import annotations

import math

from odin.fleet.scheduler import EVICT, LOAD, RUN
from odin.monitor.timing import StageTiming, unpack_timings
from odin.stages.channel.wire import Header, Kind, TensorMeta

__all__ = ["kind_of_action", "timing_of", "to_header", "with_timing"]

_KINDS = (RUN, LOAD, EVICT)


def to_header(
    number: int,
    kind: str,
    model: int,
    *,
    left_s: float = math.inf,
    slot: int = 0,
    tensors: tuple[TensorMeta, ...] = (),
) -> Header:
    """The message that has an executor do something."""
    return Header(
        Kind.REQUEST, number, epoch=model, cut=_KINDS.index(kind), left_s=left_s, slot=slot, home=slot, tensors=tensors
    )


def kind_of_action(header: Header) -> str:
    """What is to be done."""
    return _KINDS[header.cut]


def with_timing(header: Header, timing: StageTiming) -> Header:
    """The answer to an action, without its tensors, which sending adds."""
    return header._replace(timings=timing.pack(), tensors=())


def timing_of(header: Header) -> StageTiming:
    """What an executor measured."""
    return unpack_timings(header.timings)[0]
