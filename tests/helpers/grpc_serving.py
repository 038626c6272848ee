"""A gRPC server of the tests: its event loop in a thread, and a data plane that does as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from patience import PROMPT_S

from odin.server.answered import Observers
from odin.server.config import Limits, ModelConfig
from odin.server.dataplane import ServerMetadata
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.grpc_service import GrpcServer
from odin.server.messages import InferRequest, InferResponse, ModelMetadata, ModelState, Tensor, TensorMetadata
from odin.server.statistics import Totals


class FakeDataPlane:
    """Has a model ``echo`` whose outputs are its inputs.

    A request with the parameter ``fail`` fails with that kind of failure, one with ``break`` with an error that nobody
    expected, and one with ``hold`` waits until :attr:`go_on` is set.
    """

    def __init__(self) -> None:
        self.ready, self.draining = True, False
        self.observers = Observers()
        self.requests: list[InferRequest] = []
        self.cancelled: list[str] = []
        self.repository: list[str] = []
        self.go_on = asyncio.Event()
        self.taken: asyncio.Queue[InferRequest] = asyncio.Queue()
        self.given_up: asyncio.Queue[str] = asyncio.Queue()

    def is_ready(self) -> bool:
        return self.ready

    def is_model_ready(self, name: str, version: str = "") -> bool:
        self._known(name, version)
        return self.ready

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("odin", "1.2", ("statistics",))

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        self._known(name, version)
        image = TensorMetadata("image", DATATYPES["FP32"], (-1, 3, 8, 8))
        return ModelMetadata(name, ("1",), "odin_torch", (image,), (TensorMetadata("y", DATATYPES["BYTES"], (-1, 4)),))

    def model_config(self, name: str, version: str = "") -> ModelConfig:
        self._known(name, version)
        return ModelConfig(name=name, source="resnet50", batch=4, max_waiting=1000)

    def statistics(self, name: str = "", version: str = "") -> list[tuple[ModelConfig, Totals]]:
        if name:
            self._known(name, version)
        totals = Totals(3, 7, {FailureKind.INVALID: 1, FailureKind.LATE: 1}, 1.5, 0.25, 1.0, 0.25, 0.5, 1.75e9)
        return [(ModelConfig(name="echo", source="resnet50"), totals)]

    async def infer(self, request: InferRequest) -> InferResponse:
        self.requests.append(request)
        self.taken.put_nowait(request)
        self._known(request.model, request.version)
        if "fail" in request.parameters:
            kind = FailureKind[str(request.parameters["fail"])]
            text = str(request.parameters.get("text", "as asked"))
            raise RequestError(kind, text, retry_after_s=0.0015 if kind is FailureKind.REFUSED else None)
        if "break" in request.parameters:
            raise KeyError("a secret of the server")
        if "hold" in request.parameters:
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled.append(request.id)
                self.given_up.put_nowait(request.id)
                raise
        outputs = tuple(tensor._replace(parameters={}) for tensor in request.inputs)
        return InferResponse(request.model, "1", request.id, outputs)

    def index(self, *, only_ready: bool = False) -> list[ModelState]:
        states = [ModelState("echo", "1", "READY", ""), ModelState("other", "2", "UNAVAILABLE", "not loaded")]
        return states[:1] if only_ready else states

    async def load(self, name: str) -> None:
        self.repository.append(f"load {name}")
        if name == "slow":
            await self.go_on.wait()
        elif name != "echo":
            raise RequestError(FailureKind.NOT_FOUND, f"there is no model {name!r}")
        self.repository.append(f"loaded {name}")

    async def unload(self, name: str) -> None:
        self.repository.append(f"unload {name}")

    def _known(self, name: str, version: str) -> None:
        if name != "echo" or version not in ("", "1"):
            raise RequestError(FailureKind.NOT_FOUND, f"there is no model {name!r} of version {version!r}")


class ServingLoop:
    """An event loop in a thread, as a server has one, for clients that block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="serving")
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it there, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PROMPT_S)

    def start(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it there; returns its future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PROMPT_S)
        self.loop.close()


class Serving(ServingLoop):
    """A gRPC server at a port, with its data plane."""

    dataplane: Any
    server: GrpcServer
    port: int

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def open(self, dataplane: Any, limits: Limits, **options: Any) -> None:
        self.dataplane = FakeDataPlane() if dataplane is None else dataplane
        self.server = GrpcServer(self.dataplane, port=0, limits=limits, **options)
        self.port = await self.server.start()


@contextmanager
def serving(dataplane: Any = None, *, limits: Limits | None = None, **options: Any) -> Iterator[Serving]:
    """Serve by gRPC."""
    here = Serving()
    try:
        here.call(here.open(dataplane, limits or Limits(), **options))
        yield here
        here.call(here.server.stop(0.0))
    finally:
        here.close()


def image(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def tensor_of(name: str, array: Any) -> Tensor:
    return Tensor(name, DATATYPES["FP32"], array)
