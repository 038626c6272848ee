"""A family of variants that is served under one name: requests say in their parameters what they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from odin.errors import DeadlineExceededError, PipelineClosedError
from odin.family.counts import WHYS
from odin.family.family import Family
from odin.family.variant import Variant
from odin.family.views import Answer, FamilyView
from odin.models.calibration import load_examples
from odin.models.sources import Source
from odin.monitor.events import Event
from odin.monitor.timing import RequestTimeline
from odin.monitor.view.pipeline_view import PipelineView
from odin.pipeline import Pipeline
from odin.server.config import ModelConfig
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, Parameter
from odin.server.served import ServedModel, outcome, whole_number
from odin.server.signature import Signature

__all__ = ["ServedFamily", "VariantFamilies", "variants_of"]

_MICROSECONDS = 1e-6


def variants_of(config: ModelConfig) -> list[Variant]:
    """The variants that a family's file names, with their reduced forms."""
    made: list[Variant] = []
    for one in config.variants:
        precision = one.precision or config.precision
        stages = one.stages if one.stages is None or isinstance(one.stages, str) else list(one.stages)
        variant = Variant(
            one.name,
            one.source,
            weights=one.weights,
            image_size=one.image_size or config.image_size,
            stages=stages,
            plan=one.plan,
            batch=one.batch or config.batch,
            engine=one.engine or config.engine,
            precision=precision,
            share=one.share,
            layers=one.layers,
            accuracy=one.accuracy,
            forms=one.forms,
            form=one.form,
            accuracy_lost=one.accuracy_lost,
            max_waiting=config.max_waiting,
        )
        forms = variant.with_forms()
        made += forms if one.calibration is None else [_calibrated(form, str(one.calibration)) for form in forms]
    return made


def _calibrated(variant: Variant, folder: str) -> Variant:
    source = variant.load()
    assert isinstance(source, Source)
    return variant.with_calibration(load_examples(folder, source))


class ServedFamily(ServedModel):
    """A family; ready once those of its variants that fit into the memory are loaded.

    Variants whose profiles are not kept are profiled first, without labelled data: ``odin profile`` does it with such.

    Parameters
    ----------
    config
        With variants.
    on_event
        Called with every event of the family.
    on_variant_event
        Called with a variant's name and every event of its pipeline.

    Raises
    ------
    ValueError, OSError, OdinError
        If it cannot be served; the message says why.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        on_event: Callable[[Event], None] | None = None,
        on_variant_event: Callable[[str, Event], None] | None = None,
    ) -> None:
        variants = variants_of(config)
        source = variants[0].load()
        assert isinstance(source, Source)  # which a name gives
        example = self._describe(config, source)
        del source
        self.family = Family(
            variants,
            name=config.name,
            stages=config.stages,
            memory_mib=config.memory_mib or math.inf,
            policy=config.choice,
            accuracy_budget=config.accuracy_budget,
            log=config.log,
            on_event=on_event,
            on_variant_event=on_variant_event,
        )
        self.pipeline: Any = _OfFamily(self.family)
        try:
            signatures: dict[str, Signature] = {}
            inputs, outputs = config.inputs, config.outputs
            for name, pipeline in self._loaded().items():
                signature = Signature.of(pipeline.chain, example, pipeline(*example), inputs=inputs, outputs=outputs)
                signatures[name] = signature
                # forms are exported programs, which name the same tensors otherwise than the model
                inputs, outputs = (tuple(one.name for one in part) for part in signature[:2])
                self.devices = tuple(map(str, pipeline.devices))
            (first, self.signature), *others = signatures.items()
            for name, signature in others:
                if (signature.inputs, signature.outputs) != (self.signature.inputs, self.signature.outputs):
                    raise ValueError(
                        f"variant {name!r} takes or returns other tensors than {first!r}: all variants of a family "
                        "have inputs and outputs of the same types and sizes"
                    )
        except BaseException:
            self.family.close(drain=False)
            raise

    def _loaded(self) -> dict[str, Pipeline]:
        found = {variant.name: self.family.pipeline(variant.name) for variant in self.family.variants}
        return {name: pipeline for name, pipeline in found.items() if pipeline is not None}

    def views(self) -> dict[str, PipelineView]:
        """Of each variant that is loaded."""
        return {name: pipeline.view() for name, pipeline in self._loaded().items()}

    async def _compute(
        self,
        request: InferRequest,
        arguments: tuple[Any, ...],
        timeout_s: float | None,
        timelines: list[RequestTimeline],
    ) -> tuple[Any, Mapping[str, Parameter]]:
        latency_us = whole_number(request.parameters, "latency")
        limits_s = [limit_s for limit_s in (timeout_s, latency_us * _MICROSECONDS or None) if limit_s is not None]
        work = self.family.asubmit(
            *arguments,
            accuracy=_share(request.parameters, "accuracy"),
            latency_s=min(limits_s, default=None),
            accuracy_budget=_share(request.parameters, "accuracy_budget", self.family.accuracy_budget),
            variant=self._named(request.parameters),
            timelines=timelines,
        )
        answer = await outcome(_refusals_told(work))
        return answer.value, {
            "variant": answer.variant,
            "form": answer.form,
            "accuracy_lost": answer.accuracy_lost,
            "step": answer.step,
            "predicted_us": round(answer.predicted_s / _MICROSECONDS),
            "actual_us": round(answer.actual_s / _MICROSECONDS),
            **({} if math.isnan(answer.accuracy) else {"accuracy": answer.accuracy}),
        }

    def _named(self, parameters: Mapping[str, Parameter]) -> str | None:
        """The variant that a request names; None if it names none."""
        name, names = parameters.get("variant"), [variant.name for variant in self.family.variants]
        if name is None:
            return None
        if name in names:
            return str(name)
        raise RequestError(
            FailureKind.INVALID, f"parameter 'variant' is {name!r}; there are {', '.join(map(repr, names))}"
        )

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """End the variants' stages."""
        self.family.close(drain=drain, timeout_s=timeout_s)


class _OfFamily:
    """What the rest of a server asks of a model's pipeline."""

    engine = "family"

    def __init__(self, family: Family) -> None:
        self.policy = family.policy.name


async def _refusals_told(work: Any) -> Answer:
    """Why a family refuses, told as it is: what is to be done is part of it."""
    try:
        answer: Answer = await work
    except DeadlineExceededError as error:
        if not error.refused:
            raise
        told = error.reason.replace("accuracy_budget=0.003", "parameter 'accuracy_budget'").replace(
            "variant=None", "no parameter 'variant'"
        )
        if math.isnan(error.predicted_s):
            raise RequestError(FailureKind.NOT_READY, told) from error
        if math.isinf(error.predicted_s):  # no variant is as accurate
            raise RequestError(FailureKind.INVALID, told) from error
        raise RequestError(FailureKind.REFUSED, told, retry_after_s=error.predicted_s) from error
    except PipelineClosedError as error:
        raise RequestError(FailureKind.NOT_READY, str(error)) from error
    return answer


def _share(parameters: Mapping[str, Parameter], name: str, default: float = 0.0) -> float:
    """A parameter that is a number from 0 to 1."""
    value = parameters.get(name, default)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise RequestError(FailureKind.INVALID, f"parameter {name!r} is {value!r:.40}, and no share from 0 to 1")
    return number


class VariantFamilies:
    """Metrics of families; labels are what their files name."""

    def __init__(self) -> None:
        both = ["model", "variant"]
        self.requests = CounterMetricFamily(
            "odin_variant_requests",
            "Requests that a variant was given; outcome is answered, late or failed; reduced is true or false.",
            labels=[*both, "reduced", "outcome"],
        )
        self.refused = CounterMetricFamily(
            "odin_family_refusals", "Requests that no variant of a family would have done as asked.", labels=["model"]
        )
        self.choices = CounterMetricFamily(
            "odin_variant_choices",
            "Answered requests; why they had this variant is asked, deadline, interference or unloaded.",
            labels=[*both, "why"],
        )
        self.seconds = CounterMetricFamily(
            "odin_variant_seconds",
            "Seconds of answered requests, as predicted when the variant was chosen and as they were.",
            labels=[*both, "time"],
        )
        self.loaded = GaugeMetricFamily("odin_variant_loaded", "1 for a variant that is loaded, else 0.", labels=both)
        self.memory = GaugeMetricFamily(
            "odin_family_memory_bytes", "Memory of the variants that are loaded.", labels=["model"]
        )

    def add(self, name: str, view: FamilyView) -> None:
        """Add a family's samples."""
        self.refused.add_metric([name], view.refused)
        self.memory.add_metric([name], view.loaded_mib * 2**20)
        for one in view.variants:
            both, counts = [name, one.facts.name], one.counts
            reduced = str(one.facts.reduced).lower()
            self.requests.add_metric([*both, reduced, "answered"], counts.answered)
            self.requests.add_metric([*both, reduced, "late"], counts.late)
            self.requests.add_metric([*both, reduced, "failed"], counts.failed)
            for why in WHYS:
                self.choices.add_metric([*both, why], getattr(counts, why))
            self.seconds.add_metric([*both, "predicted"], counts.predicted_s)
            self.seconds.add_metric([*both, "actual"], counts.actual_s)
            self.loaded.add_metric(both, float(one.state == "loaded"))

    def families(self) -> list[Metric]:
        """All, with the samples that were added."""
        return list(vars(self).values())
