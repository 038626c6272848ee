"""Errors of serving: raised by the pipeline's methods and by the futures of requests."""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = [
    "DeadlineExceededError",
    "ForkedProcessError",
    "LayerFailedError",
    "OdinError",
    "PipelineClosedError",
    "PoisonRequestError",
    "StageLostError",
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


class DeadlineExceededError(OdinError, TimeoutError):
    """The request's deadline passed before its result arrived."""


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
