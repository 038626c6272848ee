"""The model as LitServe's users write one; its workers are processes, each on a core of its own.

Requests and answers are JSON, since LitServe reads no other bodies.
"""

from pathlib import Path
from typing import Any

import litserve as ls
import numpy as np
from starlette.requests import Request

from benchmarks.serving_rival import Array, pinned_model

__all__ = ["TorchApi"]


class TorchApi(ls.LitAPI):  # type: ignore[misc]  # LitServe is not installed everywhere
    """See :func:`benchmarks.serving_rival.pinned_model`."""

    def __init__(self, model: str, cores: tuple[int, ...], claims: str) -> None:
        super().__init__(api_path="/v2/models/net/infer")
        self._of = model, cores, Path(claims)

    def setup(self, device: str) -> None:
        """Make the model, in a worker."""
        self._infer = pinned_model(*self._of)

    def decode_request(self, request: Request) -> Array:
        """Read the only input. By the annotation, which must be no text, LitServe sees that it is to parse JSON."""
        (given,) = request["inputs"]
        return np.array(given["data"], np.float32).reshape(given["shape"])

    def predict(self, x: Array) -> Array:
        """Compute."""
        return self._infer(x)

    def encode_response(self, output: Array) -> dict[str, Any]:
        """Write the only output."""
        about = {"name": "output", "datatype": "FP32", "shape": output.shape, "data": output.ravel().tolist()}
        return {"model_name": "net", "outputs": [about]}
