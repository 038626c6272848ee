"""The model as MLServer's users write one: computed in threads, one on each core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from mlserver import MLModel, ModelSettings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving_rival import Array, pinned_model

__all__ = ["Reciprocal", "TorchModel", "reciprocal_settings", "settings"]


def settings(model: str, cores: tuple[int, ...], claims: str) -> Any:
    """How MLServer is told of it."""
    extra = {"model": model, "cores": list(cores), "claims": claims}
    return ModelSettings(name="net", implementation=TorchModel, parameters=ModelParameters(extra=extra))


def reciprocal_settings() -> Any:
    """The same of :class:`Reciprocal`."""
    return ModelSettings(name="reciprocal", implementation=Reciprocal)


class Reciprocal(MLModel):  # type: ignore[misc]  # MLServer is not installed everywhere
    """1 / x of each element, for benchmarks/conformance.py: its answers have infinities."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request."""
        with np.errstate(divide="ignore"):
            output = np.float32(1) / NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)])


class TorchModel(MLModel):  # type: ignore[misc]  # MLServer is not installed everywhere
    """See :func:`benchmarks.serving_rival.pinned_model`."""

    async def load(self) -> bool:
        """Make the model in each thread."""
        extra = self.settings.parameters.extra
        cores = tuple(extra["cores"])
        self._threads = [ThreadPoolExecutor(1) for _ in cores]
        self._free: SimpleQueue[tuple[ThreadPoolExecutor, Callable[[Array], Array]]] = SimpleQueue()
        self._places = asyncio.Semaphore(len(cores))
        loop = asyncio.get_running_loop()
        for thread in self._threads:
            infer = await loop.run_in_executor(thread, pinned_model, extra["model"], cores, Path(extra["claims"]))
            self._free.put((thread, infer))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request on whichever core is free."""
        image = NumpyCodec.decode_input(payload.inputs[0])
        async with self._places:
            thread, infer = self._free.get_nowait()
            try:
                output = await asyncio.get_running_loop().run_in_executor(thread, infer, image)
            finally:
                self._free.put((thread, infer))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)])
