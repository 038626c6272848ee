"""What ``odin top``, the page and metrics show of a server's models."""

from __future__ import annotations

from collections.abc import Mapping

from odin.monitor.view.pipeline_view import PipelineView
from odin.server.served import ServedModel
from odin.server.served_family import ServedFamily
from odin.server.served_fleet import FleetModel

__all__ = ["views_of"]


def views_of(served: Mapping[str, ServedModel]) -> dict[str, PipelineView]:
    """The views of models that have a pipeline of their own, and as ``FAMILY/VARIANT`` of variants that are loaded."""
    views: dict[str, PipelineView] = {}
    for name, model in served.items():
        if isinstance(model, ServedFamily):
            views |= {f"{name}/{variant}": view for variant, view in model.views().items()}
        elif not isinstance(model, FleetModel):
            views[name] = model.pipeline.view()
    return views
