"""One version of a model that is served: its pipeline, its signature, and its requests' counts."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from odin.errors import (
    DeadlineExceededError,
    OdinError,
    PipelineClosedError,
    QueueFullError,
    StageLostError,
)
from odin.models.calibration import load_examples
from odin.models.chains import engine_for
from odin.models.images import to_rgb
from odin.models.sources import Source, load_source
from odin.monitor.events import Event
from odin.monitor.timing import RequestTimeline
from odin.partitioner.engines.onnx_chain import OnnxChain
from odin.pipeline import Pipeline
from odin.server.classification import classified
from odin.server.config import ModelConfig
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, InferResponse, ModelMetadata, Parameter, RequestedOutput, Tensor
from odin.server.signature import Signature
from odin.server.statistics import Statistics
from odin.tuning.tuner import Tuner

__all__ = ["ServedModel", "outcome", "read_labels", "whole_number"]

_Result = TypeVar("_Result")

_MICROSECONDS = 1e-6
_MOST_DIGITS, _MOST_TOLD = 19, 40


class ServedModel:
    """A model with its stages; made in some seconds, ready once one inference went through.

    Parameters
    ----------
    config
        What it is.
    on_event
        Called with every event of its pipeline, see :mod:`odin.monitor.events`.

    Attributes
    ----------
    config, pipeline, signature, statistics
        Its parts.
    devices
        Of its stages.
    under_way
        Requests that it has; changed by the event loop's thread only.

    Raises
    ------
    ValueError, OSError, OdinError
        If it cannot be served; the message says why.
    """

    def __init__(self, config: ModelConfig, *, on_event: Callable[[Event], None] | None = None) -> None:
        source = load_source(config.source, weights=config.weights, image_size=config.image_size)
        source = dataclasses.replace(source, name=config.name)  # as clients, and other models' views, know it
        example = self._describe(config, source)
        self.pipeline = Pipeline(source, on_event=on_event, **_options(config, source))
        del source
        try:
            for _ in range(2 * len(self.pipeline.devices)):  # the first ones take longer than those to come
                result = self.pipeline(*example)
            own = self.pipeline.chain
            names = config.inputs or (tuple(one.name for one in own.file.inputs) if isinstance(own, OnnxChain) else ())
            outputs = config.outputs or (
                tuple(one.name for one in own.file.outputs) if isinstance(own, OnnxChain) else ()
            )
            self.devices = tuple(map(str, self.pipeline.devices))
            self.signature = Signature.of(own, example, result, inputs=names, outputs=outputs)
            self._tuner = _tuner(config, self.pipeline)
        except BaseException:
            self.pipeline.close(drain=False)
            raise

    def _describe(self, config: ModelConfig, source: Source) -> tuple[Any, ...]:
        """Keep what is known of a model before it is served; returns an example of its inputs."""
        self.config, self.statistics = config, Statistics()
        self.under_way = 0
        self.labels = source.labels if config.labels is None else read_labels(config.labels)
        self.preprocess, self.random_weights = source.preprocess, source.random_weights
        return source.example_args

    @property
    def metadata(self) -> ModelMetadata:
        """What it says of itself."""
        platform = f"odin_{self.pipeline.engine}"
        config = self.config
        return ModelMetadata(config.name, (config.version,), platform, self.signature.inputs, self.signature.outputs)

    async def infer(
        self, request: InferRequest, begin_s: float, timelines: list[RequestTimeline] | None = None
    ) -> InferResponse:
        """Answer a request.

        Parameters
        ----------
        request
            Its inputs may be views of what was received.
        begin_s
            When it had been received, on ``time.perf_counter``.
        timelines
            To which the timings of its micro-batches are added.

        Raises
        ------
        RequestError
            If it cannot be answered.
        """
        try:
            wanted = self._wanted(request.outputs)
            arguments = self.signature.call(request.inputs)
            samples = self.samples(request)
            self._check_samples(samples)
            timeout_s = self._timeout_s(request, begin_s)
            asked_s, before = time.perf_counter(), 0 if timelines is None else len(timelines)
            timelines = [] if timelines is None else timelines
            result, told = await self._compute(request, arguments, timeout_s, timelines)
            answered_s = time.perf_counter()
            outputs = self._outputs(self.signature.name_outputs(result), wanted)
        except RequestError as error:
            self.statistics.add_failure(error.kind, request_s=time.perf_counter() - begin_s)
            raise
        except asyncio.CancelledError:
            self.statistics.add_failure(FailureKind.GONE, request_s=time.perf_counter() - begin_s)
            raise
        self.statistics.add(
            samples=samples,
            input_s=asked_s - begin_s,
            compute_s=answered_s - asked_s,
            output_s=time.perf_counter() - answered_s,
            timelines=timelines[before:],
        )
        return InferResponse(self.config.name, self.config.version, request.id, outputs, told)

    async def _compute(
        self,
        request: InferRequest,
        arguments: tuple[Any, ...],
        timeout_s: float | None,
        timelines: list[RequestTimeline],
    ) -> tuple[Any, Mapping[str, Parameter]]:
        """The result of a request, and what its answer says besides."""
        return await outcome(self.pipeline.asubmit(*arguments, timeout_s=timeout_s, timelines=timelines)), {}

    @property
    def takes_images(self) -> bool:
        """Whether it is known how an image becomes its only input."""
        return self.preprocess is not None and len(self.signature.inputs) == 1

    def to_input(self, data: bytes) -> Tensor:
        """Turn an image file into the model's input; takes milliseconds.

        Raises
        ------
        RequestError
            If it is no image, or how images become the model's input is not known.
        """
        if self.preprocess is None or not self.takes_images:
            raise RequestError(
                FailureKind.UNKNOWN_MEDIA,
                f"model {self.config.name!r} takes tensors: how an image becomes its input is not known",
            )
        try:
            with Image.open(io.BytesIO(data)) as image:
                values = self.preprocess(to_rgb(image))
        except UnidentifiedImageError as error:
            raise RequestError(
                FailureKind.INVALID,
                "no image that can be read: its format is not known; send a JPEG or PNG file",
            ) from error
        except Exception as error:  # PIL's decoders raise whatever a broken file makes them stumble over
            raise RequestError(FailureKind.INVALID, f"no image that can be read: {error}") from error
        (known,) = self.signature.inputs
        return Tensor(known.name, known.datatype, values.numpy())

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """End the stages; see :meth:`odin.Pipeline.close`."""
        if self._tuner is not None:
            self._tuner.close()
        self.pipeline.close(drain=drain, timeout_s=timeout_s)

    def samples(self, request: InferRequest) -> int:
        """Samples in a request that fits."""
        known = self.signature.inputs[0]
        if known.shape[:1] != (-1,):
            return 1
        return next(int(tensor.array.shape[0]) for tensor in request.inputs if tensor.name == known.name)

    def _check_samples(self, samples: int) -> None:
        """Raise if a request can never find as many places as it needs."""
        config = self.config
        most = config.batch * config.max_waiting
        if samples > config.batch and samples > most:
            raise RequestError(
                FailureKind.INVALID,
                f"{samples} samples, of which {most} may wait at a time (max_waiting = {config.max_waiting}, batch = "
                f"{config.batch}): send them in several requests",
            )

    def _wanted(self, outputs: tuple[RequestedOutput, ...]) -> tuple[RequestedOutput, ...]:
        known = [output.name for output in self.signature.outputs]
        for number, output in enumerate(outputs):
            if output.name not in known:
                raise RequestError(
                    FailureKind.INVALID,
                    f"there is no output {output.name!r}; there are {', '.join(map(repr, known))}",
                )
            if any(output.name == before.name for before in outputs[:number]):
                raise RequestError(FailureKind.INVALID, f"output {output.name!r} is asked for twice")
        return outputs or tuple(RequestedOutput(name) for name in known)

    def _outputs(self, tensors: tuple[Tensor, ...], wanted: tuple[RequestedOutput, ...]) -> tuple[Tensor, ...]:
        by_name = {tensor.name: tensor for tensor in tensors}
        return tuple(
            classified(by_name[output.name], output.classification, self.labels)
            if output.classification
            else by_name[output.name]._replace(parameters=output.parameters)
            for output in wanted
        )

    def _timeout_s(self, request: InferRequest, begin_s: float) -> float | None:
        """Seconds from now that a request may take: the least of what its client says, or else what the model has."""
        config = self.config
        given = [request.timeout_s]
        timeout = whole_number(request.parameters, "timeout")
        if timeout:
            given.append(timeout * _MICROSECONDS)
        limits = [limit_s for limit_s in given if limit_s is not None]
        if not limits:
            priority = whole_number(request.parameters, "priority")
            by_priority = config.priority_deadlines_ms
            if priority and by_priority:
                limits.append(by_priority[min(priority, len(by_priority)) - 1] / 1e3)
            elif config.deadline_ms is not None:
                limits.append(config.deadline_ms / 1e3)
        return min(limits) - (time.perf_counter() - begin_s) if limits else None


def _options(config: ModelConfig, source: Source) -> dict[str, Any]:
    options: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            "plan",
            "batch",
            "precision",
            "policy",
            "admission",
            "max_in_flight",
            "max_waiting",
            "log",
            "dynamic_batching",
            "batch_wait_ms",
            "share",
        )
    }
    if config.calibration is not None:
        options["calibration"] = load_examples(str(config.calibration), source)
    stages = config.stages if isinstance(config.stages, str) else list(config.stages)
    # Shared: several models of a server may have the same devices, and so have two versions while one takes over.
    return {**options, "engine": engine_for(source, config.engine), "stages": stages, "share_devices": True}


def _tuner(config: ModelConfig, pipeline: Pipeline) -> Tuner | None:
    """Turn the model's knob from now on, if there is a latency to keep."""
    if config.latency_ms is None:
        return None
    joins = bool(getattr(config, "dynamic_batching", False))
    tuner = Tuner(pipeline, latency_s=config.latency_ms / 1e3, knob="batch" if joins else "instances")
    tuner.start()
    return tuner


def read_labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"no text in UTF-8 ({error.reason})"
        raise ValueError(f"labels {path}: {why}; name a file with a line per class") from error


def whole_number(parameters: Any, name: str) -> int:
    """A parameter that is a whole number >= 0, and no larger than gRPC's are; 0 if it is not given."""
    value = parameters.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MOST_DIGITS:
        value = int(value)  # as some clients send it
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        told = repr(value)[:_MOST_TOLD]
        raise RequestError(FailureKind.INVALID, f"parameter {name!r} is {told}, and no whole number from 0 to 2^63 - 1")
    return value


async def outcome(work: Awaitable[_Result]) -> _Result:
    """Wait for what a pipeline makes of a request; what it raises becomes the protocol's failure."""
    try:
        return await work
    except DeadlineExceededError as error:
        if error.refused:
            after_s = error.predicted_s if math.isfinite(error.predicted_s) else None
            told = f"{error.reason}; send less at a time, or allow longer (timeout)"
            raise RequestError(FailureKind.REFUSED, told, retry_after_s=after_s) from error
        raise RequestError(FailureKind.LATE, str(error)) from error
    except QueueFullError as error:
        raise RequestError(FailureKind.BUSY, f"{error.reason}; send it again later", retry_after_s=1.0) from error
    except (PipelineClosedError, StageLostError) as error:
        raise RequestError(FailureKind.NOT_READY, str(error)) from error
    except OdinError as error:  # a layer raised, or the request's own input ends stages
        raise RequestError(FailureKind.INTERNAL, str(error)) from error
    except (ValueError, MemoryError) as error:
        raise RequestError(FailureKind.INVALID, str(error)) from error
