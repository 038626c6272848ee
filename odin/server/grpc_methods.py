"""Methods of the inference service, from and to the bytes of messages; the data plane does the work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import unquote

import grpc.aio

from odin.server.config import Limits
from odin.server.dataplane import DataPlane, check_load_parameters
from odin.server.failures import SERVER_ENDS, FailureKind, RequestError
from odin.server.grpc_answers import config_answer, index_answer, metadata_answer, server_answer, statistics_answer
from odin.server.grpc_failures import failure_of, text_of
from odin.server.grpc_form import in_stream, read_request, split_raw, write_answer
from odin.server.grpc_messages import inference, parse
from odin.server.messages import Caller, InferRequest

__all__ = ["InferenceService", "metadata_of"]

_PARSED_ASIDE_NBYTES = 256 * 1024
"""Messages with more beside raw tensors are read in another thread: a million typed values take a tenth of a second."""

_STREAM_DEPTH = 16
"""Requests of one stream that are under way; further ones stay with the client."""


class InferenceService:
    """Methods by name; each takes what the client sends, and the call.

    Parameters
    ----------
    dataplane, limits
        As those of :class:`odin.server.grpc_service.GrpcServer`.
    ending
        Set when the server ends.
    """

    def __init__(self, dataplane: DataPlane, limits: Limits, ending: asyncio.Event) -> None:
        self._dataplane, self._limits, self._ending = dataplane, limits, ending
        self._kept: set[asyncio.Task[None]] = set()  # loads and unloads, which go on without their clients

    def unary(self) -> Mapping[str, Callable[[bytes, Any], Awaitable[bytes]]]:
        """Methods that answer one message with one."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }

    # -- health and metadata ------------------------------------------------------------------------------------------

    async def _server_live(self, message: bytes, context: Any) -> bytes:
        return _written(inference.ServerLiveResponse(live=True))

    async def _server_ready(self, message: bytes, context: Any) -> bytes:
        return _written(inference.ServerReadyResponse(ready=self._dataplane.is_ready() and not self._ending.is_set()))

    async def _model_ready(self, message: bytes, context: Any) -> bytes:
        asked = parse(inference.ModelReadyRequest, message)
        return _written(inference.ModelReadyResponse(ready=self._dataplane.is_model_ready(asked.name, asked.version)))

    async def _server_metadata(self, message: bytes, context: Any) -> bytes:
        return _written(server_answer(self._dataplane.server_metadata()))

    async def _model_metadata(self, message: bytes, context: Any) -> bytes:
        asked = parse(inference.ModelMetadataRequest, message)
        return _written(metadata_answer(self._dataplane.model_metadata(asked.name, asked.version)))

    async def _model_config(self, message: bytes, context: Any) -> bytes:
        asked = parse(inference.ModelConfigRequest, message)
        metadata = self._dataplane.model_metadata(asked.name, asked.version)
        config = self._dataplane.model_config(asked.name, asked.version)
        return _written(config_answer(metadata, config, request_nbytes=self._limits.request_nbytes))

    async def _model_statistics(self, message: bytes, context: Any) -> bytes:
        asked = parse(inference.ModelStatisticsRequest, message)
        return _written(statistics_answer(self._dataplane.statistics(asked.name, asked.version)))

    # -- repository ---------------------------------------------------------------------------------------------------

    async def _repository_index(self, message: bytes, context: Any) -> bytes:
        asked = parse(inference.RepositoryIndexRequest, message)
        return _written(index_answer(self._dataplane.index(only_ready=asked.ready)))

    async def _repository_load(self, message: bytes, context: Any) -> bytes:
        asked = parse(inference.RepositoryModelLoadRequest, message)
        check_load_parameters(asked.parameters)
        await self._to_its_end(self._dataplane.load(asked.model_name))
        return _written(inference.RepositoryModelLoadResponse())

    async def _repository_unload(self, message: bytes, context: Any) -> bytes:
        asked = parse(inference.RepositoryModelUnloadRequest, message)
        await self._to_its_end(self._dataplane.unload(asked.model_name))
        return _written(inference.RepositoryModelUnloadResponse())

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it also if the client does not wait for it: a model that is half loaded is nobody's wish."""
        task = asyncio.get_running_loop().create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        await asyncio.shield(task)

    # -- inference ----------------------------------------------------------------------------------------------------

    async def _model_infer(self, message: bytes, context: Any) -> bytes:
        request = await self._read(message, context)
        return write_answer(await self._dataplane.infer(request))

    async def _read(self, message: bytes, context: Any) -> InferRequest:
        """Read a call's request; the data plane's observers hear of one that cannot be read."""
        caller = Caller("grpc", _address(context.peer()), len(message))
        try:
            rest, raw = split_raw(message)
            timeout_s = context.time_remaining()
            traceparent = metadata_of(context.invocation_metadata(), "traceparent")
            if len(rest) > _PARSED_ASIDE_NBYTES:
                asked = await asyncio.to_thread(read_request, rest, raw, timeout_s=timeout_s, traceparent=traceparent)
            else:
                asked = read_request(rest, raw, timeout_s=timeout_s, traceparent=traceparent)
        except RequestError as error:
            self._dataplane.observers.failed(InferRequest("", "", "", {}, (), caller=caller), error)
            raise
        return asked._replace(caller=caller)

    async def model_stream_infer(self, messages: Any, context: Any) -> None:
        """Answer each request of a stream, in order; up to ``_STREAM_DEPTH`` are served at the same time."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_STREAM_DEPTH)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take(context, answers, group))
                while (answer := await answers.get()) is not None:
                    await context.write(await answer)
        except BaseExceptionGroup as errors:  # what reading or writing raised
            raise errors.exceptions[0] from None
        if self._ending.is_set():
            raise RequestError(FailureKind.NOT_READY, SERVER_ENDS, retry_after_s=1.0)

    async def _take(
        self, context: Any, answers: asyncio.Queue[asyncio.Task[bytes] | None], group: asyncio.TaskGroup
    ) -> None:
        """Take requests from a stream until it ends, or the server does."""
        ending = group.create_task(self._ending.wait())
        while True:
            coming = group.create_task(context.read())
            await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                break
            if (message := coming.result()) is grpc.aio.EOF:
                break
            await answers.put(group.create_task(self._answer_in_stream(message, context)))
        ending.cancel()
        await answers.put(None)

    async def _answer_in_stream(self, message: bytes, context: Any) -> bytes:
        id = ""
        try:
            request = await self._read(message, context)
            id = request.id
            return in_stream(write_answer(await self._dataplane.infer(request)))
        except Exception as error:
            failed = inference.ModelStreamInferResponse(error_message=text_of(failure_of(error)))
            failed.infer_response.id = id
            return _written(failed)


def _written(message: Any) -> bytes:
    written: bytes = message.SerializeToString()
    return written


def _address(peer: str) -> str:
    """``HOST:PORT`` of what gRPC calls ``ipv4:HOST:PORT``."""
    return unquote(peer.partition(":")[2]) if peer.startswith(("ipv4:", "ipv6:")) else peer


def metadata_of(pairs: Any, name: str) -> str:
    """Return the first value of a header; empty if there is none."""
    return next((value for key, value in pairs or () if key == name and isinstance(value, str)), "")
