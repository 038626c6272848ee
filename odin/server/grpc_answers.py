"""What gRPC says of the server and its models: metadata, configuration, statistics and the repository's index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from odin.server.config import ModelConfig
from odin.server.dataplane import ServerMetadata
from odin.server.datatypes import Datatype
from odin.server.described import describe_batches
from odin.server.grpc_messages import inference
from odin.server.messages import ModelMetadata, ModelState
from odin.server.statistics import Totals

__all__ = ["config_answer", "index_answer", "metadata_answer", "server_answer", "statistics_answer"]


def server_answer(metadata: ServerMetadata) -> Any:
    """``ServerMetadataResponse``."""
    return inference.ServerMetadataResponse(
        name=metadata.name, version=metadata.version, extensions=metadata.extensions
    )


def metadata_answer(metadata: ModelMetadata) -> Any:
    """``ModelMetadataResponse``."""
    answer = inference.ModelMetadataResponse(name=metadata.name, versions=metadata.versions, platform=metadata.platform)
    for known, said in ((metadata.inputs, answer.inputs), (metadata.outputs, answer.outputs)):
        for tensor in known:
            said.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
    return answer


def config_answer(metadata: ModelMetadata, config: ModelConfig, *, request_nbytes: int) -> Any:
    """``ModelConfigResponse``; see :mod:`odin.server.described`."""
    described = describe_batches(metadata, config, request_nbytes=request_nbytes)
    answer = inference.ModelConfig(
        name=metadata.name, platform=metadata.platform, max_batch_size=described.max_batch_size
    )
    for known, said in ((metadata.inputs, answer.input), (metadata.outputs, answer.output)):
        for tensor in known:
            said.add(name=tensor.name, data_type=_number(tensor.datatype), dims=described.dims(tensor))
    return inference.ModelConfigResponse(config=answer)


def _number(datatype: Datatype) -> int:
    name = "STRING" if datatype.name == "BYTES" else datatype.name
    return int(inference.DataType[f"TYPE_{name}"])


def statistics_answer(counted: Iterable[tuple[ModelConfig, Totals]]) -> Any:
    """``ModelStatisticsResponse``; the time in the pipeline, waiting included, is ``compute_infer``."""
    answer = inference.ModelStatisticsResponse()
    for config, totals in counted:
        said = answer.model_stats.add(
            name=config.name,
            version=config.version,
            last_inference=round(totals.last_unix_s * 1e3),
            inference_count=totals.samples,
            execution_count=totals.executed,
        )
        for field, count, seconds in (
            ("success", totals.succeeded, totals.request_s),
            ("fail", totals.failed, totals.failed_s),
            ("compute_input", totals.succeeded, totals.input_s),
            ("compute_infer", totals.succeeded, totals.compute_s),
            ("compute_output", totals.succeeded, totals.output_s),
        ):
            duration = getattr(said.inference_stats, field)
            duration.count, duration.ns = count, round(seconds * 1e9)
        for size, (count, seconds) in sorted(totals.batches.items()):
            infer = said.batch_stats.add(batch_size=size).compute_infer
            infer.count, infer.ns = count, round(seconds * 1e9)
    return answer


def index_answer(states: Sequence[ModelState]) -> Any:
    """``RepositoryIndexResponse``."""
    answer = inference.RepositoryIndexResponse()
    for state in states:
        answer.models.add(name=state.name, version=state.version, state=state.state, reason=state.reason)
    return answer
