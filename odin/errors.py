"""What can go wrong while serving, as exceptions of the futures."""

from __future__ import annotations

import os

__all__ = [
    "DeadlineExceededError",
    "ForkedProcessError",
    "LayerFailedError",
    "OdinError",
    "PipelineClosedError",
    "StageLostError",
]


class OdinError(RuntimeError):
    """Base of the errors that the serving pipeline raises."""


class PipelineClosedError(OdinError):
    """The pipeline was closed before, or while, the request was served."""


class ForkedProcessError(OdinError):
    """The process was forked from the one that the pipeline belongs to.

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
    """A layer raised on this request; the stage goes on with the next.

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
    """The request's deadline passed before its result was there."""


class StageLostError(OdinError):
    """A stage's process or node is gone; the request may be sent again to a new pipeline.

    Attributes
    ----------
    stage
        Index of the lost stage, or ``None`` if it could not be told which.
    """

    def __init__(self, message: str, stage: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage
