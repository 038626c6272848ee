"""Errors of serving: raised by the pipeline's methods and by the futures of requests; and their first lines."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

__all__ = [
    "DeadlineExceededError",
    "ForkedProcessError",
    "LayerFailedError",
    "OdinError",
    "PipelineClosedError",
    "PoisonRequestError",
    "QueueFullError",
    "StageLostError",
    "first_line",
]


class OdinError(RuntimeError):
    """Base of the errors that the serving pipeline raises."""


class PipelineClosedError(OdinError):
    """The pipeline was closed before the request was finished, or before it was submitted."""


class ForkedProcessError(OdinError):
    """A forked child of the process that started the pipeline tried to use it.

    Attributes
    ----------
    owner_pid, pid
        The process that started the pipeline, and the child.
    """

    def __init__(self, owner_pid: int, pid: int | None = None) -> None:
        pid = os.getpid() if pid is None else pid
        super().__init__(
            f"the pipeline belongs to process {owner_pid}, of which this one ({pid}) is a forked child: submit there, "
            "or start a pipeline in a child that was forked before, or made by the start method 'spawn'"
        )
        self.owner_pid, self.pid = owner_pid, pid

    def __reduce__(self) -> tuple[type[ForkedProcessError], tuple[int, int]]:
        return ForkedProcessError, (self.owner_pid, self.pid)


class LayerFailedError(OdinError):
    """A layer raised an exception on this request; the stage continues with the next request.

    Attributes
    ----------
    where
        ``layer NAME``, or ``stage I`` if it failed outside the layers.
    kind, remote_traceback
        Type name and traceback of the exception in the stage.
    """

    def __init__(self, where: str, kind: str, message: str, remote_traceback: str) -> None:
        super().__init__(f"{where} raised {kind}: {message}")
        self.where = where
        self.kind = kind
        self.remote_traceback = remote_traceback

    def __reduce__(self) -> tuple[type[LayerFailedError], tuple[str, str, str, str]]:
        message = str(self).removeprefix(f"{self.where} raised {self.kind}: ")
        return LayerFailedError, (self.where, self.kind, message, self.remote_traceback)


_OF_REFUSED = "; send less at a time, allow longer, or take all (admission='none')"


class DeadlineExceededError(OdinError, TimeoutError):
    """The request's deadline passed before its result arrived, or it was refused because that was to be expected.

    Attributes
    ----------
    refused
        Whether it was refused when it was submitted, so that nothing was done for it.
    predicted_s
        Seconds from then within which it would have been done, as predicted; ``nan`` if it was not refused.
    """

    def __init__(self, message: str, *, refused: bool = False, predicted_s: float = math.nan) -> None:
        super().__init__(message)
        self.refused, self.predicted_s = refused, predicted_s

    @property
    def reason(self) -> str:
        """The message without what only the program that has the pipeline can do about it."""
        return str(self).removesuffix(_OF_REFUSED)

    @classmethod
    def of_refusal(
        cls, *, predicted_s: float, left_s: float, ahead: int, delays: bool = False, crowded: bool = False
    ) -> DeadlineExceededError:
        """The error of a request that is not taken.

        Parameters
        ----------
        predicted_s, left_s
            Seconds from now in which it would be done, and until its deadline.
        ahead
            Requests ahead of it.
        delays
            Whether it would be in time, but one that was accepted before would not.
        crowded
            Whether it would be in time, if barely, but so many come that another one can be without having to wait.
        """
        if left_s <= 0:
            message = f"refused: its deadline passed {-left_s * 1e3:.1f} ms before it was submitted"
            return cls(message, refused=True, predicted_s=predicted_s)
        before = f"with {ahead} requests ahead of it" if ahead != 1 else "with 1 request ahead of it"
        why = before
        if delays:
            why = f"in time, but an accepted one behind it would be late ({before})"
        elif crowded:
            why = f"barely in time, and others will come before its turn that need not wait for theirs ({before})"
        return cls(
            f"refused: it would be done in {predicted_s * 1e3:.1f} ms, its deadline is in {left_s * 1e3:.1f} ms, "
            f"{why}{_OF_REFUSED}",
            refused=True,
            predicted_s=predicted_s,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _deadline_exceeded, (str(self), self.refused, self.predicted_s)


def _deadline_exceeded(message: str, refused: bool, predicted_s: float) -> DeadlineExceededError:
    return DeadlineExceededError(message, refused=refused, predicted_s=predicted_s)


class QueueFullError(OdinError):
    """There is no room for the request at this moment, and its caller does not want to wait.

    Attributes
    ----------
    in_flight, waiting
        Requests that are under way, and that wait for a place.
    limit
        How many there may be.
    reason
        The message without what only the program that has the pipeline can do about it.
    """

    def __init__(self, *, in_flight: int, waiting: int, limit: int, option: str) -> None:
        self.reason = f"no room: {in_flight} requests are under way and {waiting} wait, and {option} is {limit}"
        super().__init__(f"{self.reason}; submit again later, wait for a place (wait=True), or allow more ({option}=)")
        self.in_flight, self.waiting, self.limit, self._option = in_flight, waiting, limit, option

    def __reduce__(self) -> tuple[Any, ...]:
        return _queue_full, (self.in_flight, self.waiting, self.limit, self._option)


def _queue_full(in_flight: int, waiting: int, limit: int, option: str) -> QueueFullError:
    return QueueFullError(in_flight=in_flight, waiting=waiting, limit=limit, option=option)


class PoisonRequestError(OdinError):
    """Several stages died or hung while they computed this request: it is not tried again, the pipeline lives.

    Attributes
    ----------
    request
        Its number.
    stages
        What the stages that were lost with it were called.
    """

    def __init__(self, request: int, stages: Sequence[str]) -> None:
        super().__init__(
            f"request {request} was being computed when {' and '.join(stages)} died or hung: its own input is probably "
            "the reason; look for what that input makes a layer do, such as an allocation or a crash in native code"
        )
        self.request, self.stages = request, tuple(stages)

    def __reduce__(self) -> tuple[type[PoisonRequestError], tuple[int, tuple[str, ...]]]:
        return PoisonRequestError, (self.request, self.stages)


class StageLostError(OdinError):
    """All stages are lost and none can be replaced, or what was asked for needs one that is lost at the moment.

    Attributes
    ----------
    stage
        Index of the lost stage, or ``None`` if it is not one.
    """

    def __init__(self, message: str, stage: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type; of an actor's error that of its cause, as its own first line
    says only where it was.
    """
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
