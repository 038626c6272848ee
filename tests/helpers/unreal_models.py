"""Models for tests of a server: their requests are checked as always, but a function stands in for the stages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from odin.models.images import Preprocess
from odin.server.config import Limits, ModelConfig
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import ModelState, TensorMetadata
from odin.server.served import ServedModel
from odin.server.signature import Signature
from odin.server.statistics import Statistics

FP32 = DATATYPES["FP32"]


def tensor(name: str, datatype: str = "FP32", *shape: int) -> TensorMetadata:
    return TensorMetadata(name, DATATYPES[datatype], shape or (-1,))


class UnrealPipeline:
    """Calls a function, which may be asynchronous, with the request's tensors."""

    engine = "torch"

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.timeouts_s: list[float | None] = []

    async def asubmit(
        self, *inputs: torch.Tensor, timeout_s: float | None = None, timelines: list[Any] | None = None
    ) -> Any:
        self.timeouts_s.append(timeout_s)
        result = self.function(*inputs)
        return await result if asyncio.iscoroutine(result) else result


class UnrealModel(ServedModel):
    """A served model without stages."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: tuple[TensorMetadata, ...],
        outputs: tuple[TensorMetadata, ...],
        *,
        preprocess: Preprocess | None = None,
        labels: tuple[str, ...] | None = None,
        **config: Any,
    ) -> None:
        self.config = ModelConfig(name=name, source=name, **config)
        self.statistics, self.under_way, self.devices = Statistics(), 0, ()
        self.preprocess, self.labels, self.random_weights = preprocess, labels, True
        self.pipeline: Any = UnrealPipeline(function)
        _, structure = pytree.tree_flatten((0,) * len(inputs))
        self.signature = Signature(inputs, outputs, (None,) * len(inputs), structure)


class UnrealRepository:
    """Models that are there, or are not; loading is a change of state."""

    def __init__(self, *models: UnrealModel) -> None:
        self.models = {model.config.name: model for model in models}
        self.unloaded: set[str] = set()
        self.starting = False

    @asynccontextmanager
    async def use(self, name: str, version: str = "") -> AsyncIterator[UnrealModel]:
        model = self.served(name, version)
        model.under_way += 1
        try:
            yield model
        finally:
            model.under_way -= 1

    def served(self, name: str, version: str = "") -> UnrealModel:
        model = self._known(name, version)
        if name in self.unloaded:
            raise RequestError(FailureKind.NOT_READY, f"model {name!r} is UNAVAILABLE: unloaded")
        return model

    def _known(self, name: str, version: str) -> UnrealModel:
        model = self.models.get(name)
        if model is None or version not in ("", model.config.version):
            raise RequestError(FailureKind.NOT_FOUND, f"there is no model {name!r} {version}")
        return model

    def is_ready(self, name: str, version: str = "") -> bool:
        return self._known(name, version).config.name not in self.unloaded

    def all_ready(self) -> bool:
        return not self.starting

    def all_served(self) -> Mapping[str, UnrealModel]:
        return {name: model for name, model in self.models.items() if name not in self.unloaded}

    def index(self) -> list[ModelState]:
        return [
            ModelState(name, "1", *(("UNAVAILABLE", "unloaded") if name in self.unloaded else ("READY", "")))
            for name in sorted(self.models)
        ]

    async def load(self, name: str) -> None:
        self.unloaded.discard(self._known(name, "").config.name)

    async def unload(self, name: str) -> None:
        self.unloaded.add(self._known(name, "").config.name)


def dataplane_of(*models: UnrealModel, **limits: Any) -> DataPlane:
    repository: Any = UnrealRepository(*models)
    return DataPlane(repository, Limits(**limits))


def double() -> UnrealModel:
    """Gives twice its input, and the sum of each row."""
    return UnrealModel(
        "double",
        lambda x: (2 * x, x.sum(1).long()),
        (tensor("x", "FP32", -1, 3),),
        (tensor("y", "FP32", -1, 3), tensor("total", "INT64", -1)),
        version="3",
    )


def echo(datatype: str) -> UnrealModel:
    """Gives its input."""
    return UnrealModel(f"echo_{datatype}", lambda x: x, (tensor("x", datatype),), (tensor("y", datatype),))


def pair() -> UnrealModel:
    """Gives the sum of two inputs."""
    return UnrealModel(
        "pair", lambda a, b: a + b, (tensor("a", "FP32", -1), tensor("b", "INT32", -1)), (tensor("sum", "FP32", -1),)
    )


def colours() -> UnrealModel:
    """Tells red, green and blue images apart."""
    return UnrealModel(
        "colours",
        lambda x: 10 * x.mean((2, 3)),
        (tensor("image", "FP32", -1, 3, 8, 8),),
        (tensor("scores", "FP32", -1, 3),),
        preprocess=Preprocess(resize=8, crop=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        labels=("red", "green", "blue"),
    )


class Waiting:
    """A model whose answers come when the test says so."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.model = UnrealModel("waiting", self._wait, (tensor("x"),), (tensor("y"),))

    async def _wait(self, x: torch.Tensor) -> torch.Tensor:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return x
