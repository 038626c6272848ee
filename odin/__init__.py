"""Interference-aware pipeline-parallel CNN inference.

>>> import odin
>>> with odin.Pipeline("resnet50", stages=["cpu:0", "cpu:1"]) as pipe:  # doctest: +SKIP
...     for y in pipe.map(images):
...         ...

Names are imported when first used (PEP 562): commands that need neither torch nor Ray start at once.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing's, which takes too long to import: Ctrl-C is not heard until odin.__main__ is there
if TYPE_CHECKING:
    from typing import Any

    from monitor.events import Event
    from monitor.pipeline_view import PipelineView
    from odin.errors import (
        DeadlineExceededError,
        ForkedProcessError,
        LayerFailedError,
        OdinError,
        PipelineClosedError,
        StageLostError,
    )
    from odin.pipeline import Pipeline
    from odin.sources import Source, load_source
    from odin.version import __version__
    from partitioner.chain import Chain, TraceError, build_chain
    from partitioner.plan import Plan
    from partitioner.policies import Decision, Observation, Policy, Setting, make_policy
    from stages.device import Device, DeviceError

__all__ = [
    "Chain",
    "DeadlineExceededError",
    "Decision",
    "Device",
    "DeviceError",
    "Event",
    "ForkedProcessError",
    "LayerFailedError",
    "Observation",
    "OdinError",
    "Pipeline",
    "PipelineClosedError",
    "PipelineView",
    "Plan",
    "Policy",
    "Setting",
    "Source",
    "StageLostError",
    "TraceError",
    "__version__",
    "build_chain",
    "load_source",
    "make_policy",
]

_HOMES = {
    "monitor.events": ("Event",),
    "monitor.pipeline_view": ("PipelineView",),
    "odin.errors": (
        "DeadlineExceededError",
        "ForkedProcessError",
        "LayerFailedError",
        "OdinError",
        "PipelineClosedError",
        "StageLostError",
    ),
    "odin.pipeline": ("Pipeline",),
    "odin.sources": ("Source", "load_source"),
    "odin.version": ("__version__",),
    "partitioner.chain": ("Chain", "TraceError", "build_chain"),
    "partitioner.plan": ("Plan",),
    "partitioner.policies": ("Decision", "Observation", "Policy", "Setting", "make_policy"),
    "stages.device": ("Device", "DeviceError"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'odin' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
