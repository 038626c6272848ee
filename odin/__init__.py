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

    from odin.errors import (
        DeadlineExceededError,
        ForkedProcessError,
        LayerFailedError,
        OdinError,
        PipelineClosedError,
        PoisonRequestError,
        QueueFullError,
        StageLostError,
    )
    from odin.family.family import Family
    from odin.family.variant import Variant
    from odin.family.views import Answer
    from odin.fleet.fleet import Fleet
    from odin.models.sources import Source, load_source
    from odin.monitor.events import Event
    from odin.monitor.view.pipeline_view import PipelineView
    from odin.partitioner.chain import Chain, TraceError, build_chain
    from odin.partitioner.plan import Plan
    from odin.partitioner.policies import Decision, Observation, Policy, Setting, make_policy
    from odin.partitioner.relay import Windows
    from odin.pipeline import Pipeline
    from odin.stages.device import Device, DeviceError
    from odin.tuning.tuner import Tuner
    from odin.version import __version__

__all__ = [
    "Answer",
    "Chain",
    "DeadlineExceededError",
    "Decision",
    "Device",
    "DeviceError",
    "Event",
    "Family",
    "Fleet",
    "ForkedProcessError",
    "LayerFailedError",
    "Observation",
    "OdinError",
    "Pipeline",
    "PipelineClosedError",
    "PipelineView",
    "Plan",
    "PoisonRequestError",
    "Policy",
    "QueueFullError",
    "Setting",
    "Source",
    "StageLostError",
    "TraceError",
    "Tuner",
    "Variant",
    "Windows",
    "__version__",
    "build_chain",
    "load_source",
    "make_policy",
]

_HOMES = {
    "odin.monitor.events": ("Event",),
    "odin.monitor.view.pipeline_view": ("PipelineView",),
    "odin.errors": (
        "DeadlineExceededError",
        "ForkedProcessError",
        "LayerFailedError",
        "OdinError",
        "PipelineClosedError",
        "PoisonRequestError",
        "QueueFullError",
        "StageLostError",
    ),
    "odin.pipeline": ("Pipeline",),
    "odin.family.family": ("Family",),
    "odin.family.variant": ("Variant",),
    "odin.family.views": ("Answer",),
    "odin.fleet.fleet": ("Fleet",),
    "odin.models.sources": ("Source", "load_source"),
    "odin.version": ("__version__",),
    "odin.partitioner.chain": ("Chain", "TraceError", "build_chain"),
    "odin.partitioner.plan": ("Plan",),
    "odin.partitioner.policies": ("Decision", "Observation", "Policy", "Setting", "make_policy"),
    "odin.partitioner.relay": ("Windows",),
    "odin.stages.device": ("Device", "DeviceError"),
    "odin.tuning.tuner": ("Tuner",),
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
