"""What a server can do, once: REST and gRPC translate to and from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from odin.monitor.view.builder import PipelineView
from odin.server.answered import Observers
from odin.server.config import Limits, ModelConfig
from odin.server.failures import SERVER_ENDS, FailureKind, RequestError
from odin.server.messages import (
    Caller,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelState,
    Parameter,
    RequestedOutput,
)
from odin.server.repository import Repository
from odin.server.served import ServedModel
from odin.server.statistics import Totals
from odin.server.views import views_of
from odin.version import __version__

_log = logging.getLogger(__name__)

__all__ = ["EXTENSIONS", "DataPlane", "ServerMetadata", "check_load_parameters"]

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""Those of Triton's that are served."""


class ServerMetadata(NamedTuple):
    """What the server says of itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


class DataPlane:
    """Inference, health, metadata, statistics and the repository; of one event loop.

    Parameters
    ----------
    repository
        The models.
    limits
        What clients may ask.

    Attributes
    ----------
    observers
        Are told what became of each request.
    """

    def __init__(self, repository: Repository, limits: Limits) -> None:
        self.repository, self.limits = repository, limits
        self.observers = Observers()
        self.draining = False
        self.under_way = 0
        """Requests for inference that are being answered."""

    # -- health and metadata ------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether requests are taken: not while models are first loaded, nor when the server ends."""
        return not self.draining and self.repository.all_ready()

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether a model serves; ``RequestError`` if there is none."""
        return self.repository.is_ready(name, version) and not self.draining

    def server_metadata(self) -> ServerMetadata:
        """What the server says of itself."""
        return ServerMetadata("odin", __version__, EXTENSIONS)

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """What a model says of itself; ``RequestError`` if it does not serve."""
        return self.repository.served(name, version).metadata

    def model_config(self, name: str, version: str = "") -> ModelConfig:
        """How a model was configured."""
        return self.repository.served(name, version).config

    def statistics(self, name: str = "", version: str = "") -> list[tuple[ModelConfig, Totals]]:
        """Counts and times of one model, or of all."""
        served = [self.repository.served(name, version)] if name else list(self.repository.all_served().values())
        return [(model.config, model.statistics.totals()) for model in served]

    def views(self) -> Mapping[str, PipelineView]:
        """What ``odin top`` shows of each model."""
        return views_of(self.repository.all_served())

    # -- inference ----------------------------------------------------------------------------------------------------

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request; cancelling this drops it.

        Raises
        ------
        RequestError
            If it cannot be answered.
        """
        return await self._answer(request, self._decoded)

    async def infer_image(
        self,
        name: str,
        version: str,
        data: bytes,
        *,
        count: int,
        id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
        traceparent: str = "",
        caller: Caller = Caller(),  # noqa: B008 - it does not change
    ) -> InferResponse:
        """Answer a request whose input is an image file: the ``count`` best classes by the first output."""

        async def decoded(model: ServedModel, request: InferRequest) -> InferRequest:
            tensor = await asyncio.to_thread(model.to_input, data)
            wanted = RequestedOutput(model.signature.outputs[0].name, classification=count)
            return request._replace(inputs=(tensor,), outputs=(wanted,))

        request = InferRequest(name, version, id, parameters or {}, (), traceparent=traceparent, caller=caller)
        return await self._answer(request, decoded)

    async def _answer(
        self, request: InferRequest, decoded: Callable[[ServedModel, InferRequest], Awaitable[InferRequest]]
    ) -> InferResponse:
        with self.observers.request(request) as now:
            self._admit()
            self.under_way += 1
            try:
                async with self.repository.use(request.model, request.version) as model:
                    now.devices = model.devices
                    whole = await decoded(model, request)
                    now.response = await model.infer(whole, now.begin_s, now.timelines)
                    now.samples = model.samples(whole)
                    return now.response
            finally:
                self.under_way -= 1

    async def _decoded(self, model: ServedModel, request: InferRequest) -> InferRequest:
        """The request with image files, which are elements of a BYTES tensor, as the input of a model of images."""
        if not model.takes_images or len(request.inputs) != 1 or request.inputs[0].datatype.name != "BYTES":
            return request
        files = request.inputs[0].array.ravel()
        if len(files) == 0:
            raise RequestError(FailureKind.INVALID, f"input {request.inputs[0].name!r} has no element")
        images = await asyncio.to_thread(lambda: [model.to_input(data) for data in files])
        together = images[0]._replace(array=np.concatenate([image.array for image in images]))
        return request._replace(inputs=(together._replace(name=request.inputs[0].name),))

    def _admit(self) -> None:
        if self.draining:
            raise RequestError(FailureKind.NOT_READY, SERVER_ENDS, retry_after_s=1.0)
        if self.under_way >= self.limits.requests:
            raise RequestError(
                FailureKind.BUSY,
                f"{self.under_way} requests are under way, and the limit is {self.limits.requests}",
                retry_after_s=1.0,
            )

    # -- repository ---------------------------------------------------------------------------------------------------

    def index(self, *, only_ready: bool = False) -> list[ModelState]:
        """All models, or those that are ready, and their states."""
        return [one for one in self.repository.index() if one.state == "READY" or not only_ready]

    async def load(self, name: str, *, log: bool = True) -> None:
        """Load a model by its file, or anew; ``RequestError`` if that is not possible, which is logged if ``log``."""
        try:
            await self.repository.load(name)
        except RequestError as error:
            if log and error.kind is FailureKind.INVALID:
                _log.error("%s", error)
            raise

    async def unload(self, name: str) -> None:
        """Unload a model; ``RequestError`` if there is none."""
        await self.repository.unload(name)


def check_load_parameters(names: Iterable[str]) -> None:
    """Raise ``RequestError`` if a request to load says what the model is to be."""
    for name in names:
        if name == "config" or name.startswith("file:"):
            raise RequestError(
                FailureKind.INVALID,
                f"parameter {name!r} is not served: models are loaded as the files in the server's folder say, and not "
                "as clients do: a model may name a program; change the file, then load without parameters",
            )
