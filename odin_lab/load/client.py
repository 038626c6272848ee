"""What any client of an Open Inference Protocol server can do, whatever it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt
from msgspec import Struct

__all__ = ["Client", "Input", "ModelFace", "NamedArray", "RequestFailedError", "Target", "open_client"]

REFUSED, NOT_READY, LATE, INVALID, NOT_FOUND = "refused", "not ready", "late", "invalid", "not found"
CONNECTION, TIMEOUT, OTHER = "connection", "no answer in time", "failed"


class RequestFailedError(Exception):
    """A request was not answered.

    Attributes
    ----------
    kind
        One of those above, whatever the protocol.
    label
        What it is counted as: the kind with its code, ``"refused (429)"``, ``"refused (RESOURCE_EXHAUSTED)"``.
    text
        What the server, or the system, says of it.
    """

    def __init__(self, kind: str, text: str = "", *, code: str = "") -> None:
        self.kind, self.text = kind, text
        self.code, self.label = code, f"{kind} ({code})" if code else kind
        super().__init__(f"{self.label}: {text}" if text else self.label)


class Input(NamedTuple):
    """An input as the model describes it; -1 is a size that the request chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelFace(Struct, frozen=True):
    """A model as its server describes it.

    Attributes
    ----------
    server
        Name and version of the server.
    binary
        Whether it takes and gives tensors as raw bytes.
    """

    server: str
    name: str
    inputs: tuple[Input, ...]
    binary: bool


class NamedArray(NamedTuple):
    """An input's tensor; BF16 as uint16, BYTES as ``bytes`` objects, as in :mod:`odin.server.datatypes`."""

    name: str
    datatype: str
    array: npt.NDArray[Any]


class Target(Struct, frozen=True):
    """Whom requests go to, and how they ask.

    Attributes
    ----------
    url
        ``http://HOST:PORT``, or ``grpc://HOST:PORT``; ``https`` and ``grpcs`` with TLS.
    model
        Its name.
    binary
        Whether tensors go as raw bytes, where the protocol leaves the choice.
    deadline_ms
        Sent with every request, as ``timeout``; None: no deadline.
    patience_s
        Seconds without an answer after which a request counts as failed.
    token
        Bearer token to send; empty: none.
    """

    url: str
    model: str = ""
    binary: bool = True
    deadline_ms: float | None = None
    patience_s: float = 10.0
    token: str = ""

    @property
    def timeout_us(self) -> int:
        """The deadline as the protocol has it; 0: none."""
        return 0 if self.deadline_ms is None else max(1, round(self.deadline_ms * 1e3))


class Client(Protocol):
    """A connection, for one thread at a time."""

    def connect(self) -> None:
        """Open the connection; ``RequestFailedError`` if nobody listens."""

    def check_ready(self, *, model: bool) -> None:
        """Raise ``RequestFailedError`` if the server, or the model that is asked for, is not ready."""

    def ready_models(self) -> list[str]:
        """Names of the models that are ready; empty if the server does not tell."""

    def describe(self) -> ModelFace:
        """Ask for what the server says of itself and of the model."""

    def prepare(self, tensors: Sequence[NamedArray]) -> Any:
        """Turn inputs into a request that can be sent many times."""

    def infer(self, prepared: Any) -> None:
        """Send a request and read the whole answer; ``RequestFailedError`` unless it is one."""

    def close(self) -> None:
        """Close the connection."""


def open_client(target: Target) -> Client:
    """Make the client for a URL.

    Raises
    ------
    ValueError
        If there is none for it.
    """
    scheme = target.url.partition("://")[0]
    if scheme in ("http", "https"):
        from odin_lab.load.rest import RestClient

        return RestClient(target)
    if scheme in ("grpc", "grpcs"):
        try:
            from odin_lab.load.grpc_client import GrpcClient
        except ImportError as error:
            raise ValueError(f"{target.url} needs gRPC: pip install 'odin-pipeline[serve]' ({error})") from error
        return GrpcClient(target)
    raise ValueError(f"{target.url}: give the server's address as http://HOST:PORT or grpc://HOST:PORT")
