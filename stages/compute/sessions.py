"""Layers of a cut model in ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odin.partitioner.engines.cut_model import CutModel
from odin.partitioner.engines.processor import check_processor
from odin.partitioner.engines.session import open_layers
from odin.stages.compute.cores import CoreExecutor

__all__ = ["SessionExecutor"]


class SessionExecutor(CoreExecutor):
    """Runs each layer in a session of its own.

    What NaN becomes is the runtime's matter: it does not know of requests that must keep it.

    Parameters
    ----------
    model
        All layers.
    weights
        Arrays by name; never written.
    threads
        Compute threads.

    Raises
    ------
    ValueError
        If the model was optimised for another kind of processor.
    """

    def __init__(self, model: CutModel, weights: Mapping[str, Any], *, threads: int = 1) -> None:
        check_processor(model.processor)
        names = [layer.name for layer in model.layers]
        super().__init__(names, open_layers(model, weights, threads=threads), threads=threads)
