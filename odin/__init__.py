"""Interference-aware pipeline-parallel CNN inference.

>>> import odin
>>> with odin.Pipeline("resnet50", stages=["cpu:0", "cpu:1"]) as pipe:  # doctest: +SKIP
...     for y in pipe.map(images):
...         ...
"""

from __future__ import annotations

from odin.errors import (
    DeadlineExceededError,
    LayerFailedError,
    OdinError,
    PipelineClosedError,
    StageLostError,
)
from odin.pipeline import Pipeline
from odin.snapshot import PipelineSnapshot, StageSnapshot
from odin.sources import Source, load_source
from partitioner.chain import Chain, TraceError, build_chain
from partitioner.plan import Plan
from stages.device import Device, DeviceError

__all__ = [
    "Chain",
    "DeadlineExceededError",
    "Device",
    "DeviceError",
    "LayerFailedError",
    "OdinError",
    "Pipeline",
    "PipelineClosedError",
    "PipelineSnapshot",
    "Plan",
    "Source",
    "StageLostError",
    "StageSnapshot",
    "TraceError",
    "build_chain",
    "load_source",
]
