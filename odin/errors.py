"""Errors of serving: raised by the pipeline's methods and by the futures of requests."""

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


class StageLostError(OdinError):
    """A stage's process or machine is lost; start a new pipeline and submit the request again.

    Attributes
    ----------
    stage
        Index of the lost stage, or ``None`` if it is not known.
    """

    def __init__(self, message: str, stage: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage
