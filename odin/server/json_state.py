"""What a server and its models say of themselves, as JSON: metadata, configuration, statistics, the repository."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from odin.server.config import ModelConfig
from odin.server.dataplane import ServerMetadata
from odin.server.described import Described, describe_batches
from odin.server.messages import ModelMetadata, ModelState, TensorMetadata
from odin.server.statistics import Totals

__all__ = ["config_json", "index_json", "metadata_json", "server_json", "statistics_json"]

_TYPE_OF_BYTES = "TYPE_STRING"


def server_json(metadata: ServerMetadata) -> dict[str, Any]:
    """What the server says of itself."""
    return {"name": metadata.name, "version": metadata.version, "extensions": list(metadata.extensions)}


def metadata_json(metadata: ModelMetadata) -> dict[str, Any]:
    """What a model says of itself."""
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": [_tensor(one) for one in metadata.inputs],
        "outputs": [_tensor(one) for one in metadata.outputs],
    }


def _tensor(one: TensorMetadata) -> dict[str, Any]:
    return {"name": one.name, "datatype": one.datatype.name, "shape": list(one.shape)}


def config_json(metadata: ModelMetadata, config: ModelConfig, *, request_nbytes: int) -> dict[str, Any]:
    """A model's configuration, as Triton has it: what clients read of it, and our own as parameters.

    For ``max_batch_size`` and ``dims`` see :mod:`odin.server.described`.
    """
    described = describe_batches(metadata, config, request_nbytes=request_nbytes)
    own = config.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    return {
        "name": metadata.name,
        "platform": metadata.platform,
        "backend": "odin",
        "version_policy": {"specific": {"versions": list(metadata.versions)}},
        "max_batch_size": described.max_batch_size,
        "input": [_described(one, described) for one in metadata.inputs],
        "output": [_described(one, described) for one in metadata.outputs],
        "parameters": {
            name: {"string_value": value if isinstance(value, str) else json.dumps(value)}
            for name, value in own.items()
        },
    }


def _described(one: TensorMetadata, described: Described) -> dict[str, Any]:
    name = one.datatype.name
    data_type = _TYPE_OF_BYTES if name == "BYTES" else f"TYPE_{name}"
    return {"name": one.name, "data_type": data_type, "dims": list(described.dims(one))}


def statistics_json(models: Iterable[tuple[ModelConfig, Totals]]) -> dict[str, Any]:
    """Counts and times, as Triton has them; time in the queue is part of ``compute_infer``."""
    return {"model_stats": [_statistics(config, totals) for config, totals in models]}


def _statistics(config: ModelConfig, totals: Totals) -> dict[str, Any]:
    def of(count: int, duration_s: float) -> dict[str, int]:
        return {"count": count, "ns": round(duration_s * 1e9)}

    return {
        "name": config.name,
        "version": config.version,
        "last_inference": round(totals.last_unix_s * 1e3),
        "inference_count": totals.samples,
        "execution_count": totals.executed,
        "inference_stats": {
            "success": of(totals.succeeded, totals.request_s),
            "fail": of(totals.failed, totals.failed_s),
            "queue": of(0, 0.0),
            "compute_input": of(totals.succeeded, totals.input_s),
            "compute_infer": of(totals.succeeded, totals.compute_s),
            "compute_output": of(totals.succeeded, totals.output_s),
            "cache_hit": of(0, 0.0),
            "cache_miss": of(0, 0.0),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": of(0, 0.0),
                "compute_infer": of(count, seconds),
                "compute_output": of(0, 0.0),
            }
            for size, (count, seconds) in sorted(totals.batches.items())
        ],
        "memory_usage": [],
    }


def index_json(states: Iterable[ModelState]) -> list[dict[str, str]]:
    """The repository's models."""
    return [{"name": one.name, "version": one.version, "state": one.state, "reason": one.reason} for one in states]
