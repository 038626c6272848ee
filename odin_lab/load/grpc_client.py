"""The protocol over gRPC: one connection per client, tensors as raw bytes, messages that are written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from odin.server.datatypes import datatype_of, to_raw
from odin.server.grpc_messages import inference
from odin_lab.load.address import Address
from odin_lab.load.client import (
    CONNECTION,
    INVALID,
    LATE,
    NOT_FOUND,
    NOT_READY,
    OTHER,
    REFUSED,
    TIMEOUT,
    Input,
    ModelFace,
    NamedArray,
    RequestFailedError,
    Target,
)

__all__ = ["GrpcClient"]

_SERVICE = "/inference.GRPCInferenceService"
_KINDS = {
    "INVALID_ARGUMENT": INVALID,
    "NOT_FOUND": NOT_FOUND,
    "RESOURCE_EXHAUSTED": REFUSED,
    "UNAVAILABLE": NOT_READY,
    "DEADLINE_EXCEEDED": LATE,
}
_OF_THE_CONNECTION = ("failed to connect", "connection", "socket", "endpoint", "goaway")
"""How gRPC's own texts begin, or what is in them, where it is not the server that says UNAVAILABLE."""
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # or all clients of a process would share one connection
]
_MOST_TEXT = 300


class GrpcClient:
    """See :class:`odin_lab.load.client.Client`.

    Raises
    ------
    ValueError
        If the URL has no host or no port.
    """

    def __init__(self, target: Target) -> None:
        at = Address.parse(target.url, form="grpc://HOST:PORT")
        if at.port is None or at.path:
            raise ValueError(f"{target.url} is no address of a server; give grpc://HOST:PORT")
        self._target = target
        self._shown = [("authorization", f"Bearer {target.token}")] if target.token else None
        address = f"[{at.host}]:{at.port}" if ":" in at.host else f"{at.host}:{at.port}"
        if at.secure:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        self._messages: Any = inference
        self._infer = self._channel.unary_unary(f"{_SERVICE}/ModelInfer")

    def connect(self) -> None:
        """Open the connection."""
        try:
            grpc.channel_ready_future(self._channel).result(self._target.patience_s)
        except grpc.FutureTimeoutError as error:
            raise RequestFailedError(CONNECTION, "no connection in time") from error

    def check_ready(self, *, model: bool) -> None:
        """Ask the server, or the model."""
        asked = {"name": self._target.model} if model else {}
        if not self._ask("ModelReady" if model else "ServerReady", **asked).ready:
            raise RequestFailedError(NOT_READY, "it says so")

    def ready_models(self) -> list[str]:
        """Ask the model repository's index."""
        try:
            found = self._ask("RepositoryIndex", ready=True)
        except RequestFailedError as error:
            if error.kind == CONNECTION or error.code == "UNAUTHENTICATED":
                raise
            return []  # an extension that not every server has
        # MLServer writes "State.READY"
        return [one.name for one in found.models if one.state.rpartition(".")[2] in ("", "READY")]

    def describe(self) -> ModelFace:
        """Ask for the server's metadata and the model's."""
        server, model = self._ask("ServerMetadata"), self._ask("ModelMetadata", name=self._target.model)
        inputs = tuple(Input(one.name, one.datatype, tuple(one.shape)) for one in model.inputs)
        return ModelFace(f"{server.name} {server.version}".strip(), model.name, inputs, True)

    def prepare(self, tensors: Sequence[NamedArray]) -> bytes:
        """Write the message, with the tensors' raw bytes."""
        request = self._messages.ModelInferRequest(model_name=self._target.model)
        for name, datatype, array in tensors:
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(bytes(to_raw(datatype_of(datatype), array)))
        if self._target.timeout_us:
            request.parameters["timeout"].int64_param = self._target.timeout_us
        return bytes(request.SerializeToString())

    def infer(self, prepared: Any) -> None:
        """Send, and receive all of the answer, which is not parsed."""
        self._call(self._infer, prepared)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _ask(self, method: str, **fields: Any) -> Any:
        request = getattr(self._messages, f"{method}Request")(**fields)
        call = self._channel.unary_unary(f"{_SERVICE}/{method}")
        return getattr(self._messages, f"{method}Response").FromString(self._call(call, request.SerializeToString()))

    def _call(self, method: Any, message: bytes) -> bytes:
        call = method.future(
            message, metadata=self._shown
        )  # not with a deadline of gRPC's, which the server would be told of
        try:
            return bytes(call.result(self._target.patience_s))
        except grpc.FutureTimeoutError as error:
            call.cancel()
            raise RequestFailedError(TIMEOUT, f"after {self._target.patience_s:g} s") from error
        except grpc.RpcError as error:
            raise _failure(error) from error


def _failure(error: Any) -> RequestFailedError:
    code, text = error.code().name, str(error.details() or "")
    if code == "UNAVAILABLE" and any(word in text.lower() for word in _OF_THE_CONNECTION):
        return RequestFailedError(CONNECTION, text[:_MOST_TEXT])
    return RequestFailedError(_KINDS.get(code, OTHER), text[:_MOST_TEXT], code=code)
