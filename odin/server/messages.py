"""What REST and gRPC translate to and from: requests, answers, and what a model says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy.typing as npt

from odin.server.datatypes import Datatype

__all__ = [
    "Caller",
    "InferRequest",
    "InferResponse",
    "ModelMetadata",
    "ModelState",
    "Parameter",
    "RequestedOutput",
    "Tensor",
    "TensorMetadata",
]

Parameter = bool | int | float | str


class Tensor(NamedTuple):
    """A tensor that goes in or comes out.

    Attributes
    ----------
    name, datatype
        As in the model's metadata.
    array
        Its elements and shape; see :mod:`odin.server.datatypes`.
    parameters
        The protocol's own, such as ``classification``.
    """

    name: str
    datatype: Datatype
    array: npt.NDArray[Any]
    parameters: Mapping[str, Parameter] = {}


class RequestedOutput(NamedTuple):
    """An output that a request asks for.

    Attributes
    ----------
    name
        Of the output.
    classification
        How many best classes are wanted instead of its values; 0: its values.
    parameters
        All that the request says of it.
    """

    name: str
    classification: int = 0
    parameters: Mapping[str, Parameter] = {}


class Caller(NamedTuple):
    """Who sent a request, for the access log and traces.

    Attributes
    ----------
    protocol
        ``"http"`` or ``"grpc"``.
    address
        Of the peer, as ``HOST:PORT``.
    request_nbytes
        Size of the request's body as it came.
    """

    protocol: str = ""
    address: str = ""
    request_nbytes: int = 0


class InferRequest(NamedTuple):
    """A request for inference.

    Attributes
    ----------
    model, version
        Which; no version: the one that is served.
    id
        Given by the client, and given back.
    parameters
        ``timeout`` (microseconds) and ``priority`` count, of families ``accuracy``, ``latency`` (microseconds) and
        ``accuracy_budget`` as well; others are accepted and change nothing.
    inputs
        Tensors, in any order.
    outputs
        Which outputs are wanted; empty: all.
    timeout_s
        Seconds that the client waits by its connection, as a gRPC deadline; None: any time.
    traceparent
        The caller's trace, as W3C's header of that name has it; empty: none.
    caller
        Who sent it.
    """

    model: str
    version: str
    id: str
    parameters: Mapping[str, Parameter]
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    timeout_s: float | None = None
    traceparent: str = ""
    caller: Caller = Caller()


class InferResponse(NamedTuple):
    """The answer to a request for inference; attributes as those of the request."""

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Parameter] = {}


class TensorMetadata(NamedTuple):
    """An input or output of a model; ``-1`` in the shape is a size that the request chooses."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class ModelMetadata(NamedTuple):
    """What a model says of itself."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class ModelState(NamedTuple):
    """An entry of the repository's index.

    Attributes
    ----------
    name, version
        Of the model.
    state
        ``UNAVAILABLE``, ``LOADING``, ``READY`` or ``UNLOADING``.
    reason
        Why it is unavailable.
    """

    name: str
    version: str
    state: str
    reason: str
