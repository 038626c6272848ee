"""Measures every engine in every precision on one core, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from odin.cli.engine_report import EngineRow, Measured
from odin.control.engine_choice import make_form
from odin.control.local_profile import open_form, pinned
from odin.partitioner.chain import Chain
from odin.partitioner.engines.agreement import Comparison
from odin.partitioner.engines.cut_model import Array
from odin.partitioner.engines.form import Form
from odin.partitioner.engines.names import ENGINES, TORCH, missing_packages
from odin.stages.compute.precision import BFLOAT16, CPU_PRECISIONS, FLOAT32, why_not_on_cpu
from odin.stages.device import Device
from odin.stages.host import keep_freed_memory

__all__ = ["Opened", "measure_rounds", "measure_rows", "open_all"]

_WARMUP = 2


class Opened(NamedTuple):
    """An engine in a precision, ready to compute: from input tensors to output arrays."""

    run: Callable[[Sequence[torch.Tensor]], list[Array]]
    weight_nbytes: float


def open_all(
    chain_for: Callable[[str], Chain],
    device: Device,
    *,
    batch: int,
    calibration: Any,
    precisions: Sequence[str] = CPU_PRECISIONS,
    tell: Callable[[str], object] = lambda _: None,
) -> tuple[dict[tuple[str, str], Opened], dict[tuple[str, str], str]]:
    """Open what can be opened; returns that, and for everything else why it cannot."""
    opened: dict[tuple[str, str], Opened] = {}
    problems: dict[tuple[str, str], str] = {}
    for engine in ENGINES:
        missing = missing_packages(engine)
        for precision in precisions:
            problem = why_not_on_cpu(precision, engine)
            if not problem and missing:
                problem = f"{', '.join(missing)} not installed: pip install 'odin-pipeline[{engine}]'"
            if problem:
                problems[engine, precision] = problem
                continue
            tell(f"{engine} in {precision}")
            try:
                form = make_form(
                    chain_for(engine),
                    engine,
                    precision=precision,
                    calibration=None if precision == FLOAT32 else calibration,
                )
                with pinned(device):
                    opened[engine, precision] = _open(form, device, batch, precision)
            except ValueError as error:  # it cannot be exported, or computes something else
                problems[engine, precision] = str(error)
    return opened, problems


def _open(form: Form, device: Device, batch: int, precision: str) -> Opened:
    functions, nbytes = open_form(form, device, batch=batch)
    on_torch = form.engine == TORCH

    def run(inputs: Sequence[torch.Tensor]) -> list[Array]:
        values: Any = form.layout(inputs)
        if not on_torch:
            values = tuple(tensor.numpy() for tensor in values)
        for function in functions:
            values = function(values)
        return [value.contiguous().numpy() for value in values] if on_torch else list(values)

    return Opened(run, nbytes / 2 if precision == BFLOAT16 else nbytes)


def measure_rounds(
    opened: Mapping[tuple[str, str], Opened],
    inputs: Sequence[torch.Tensor],
    device: Device,
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[tuple[str, str], list[float]]:
    """Time one request on each in turn, so many times: what disturbs one round disturbs all."""
    times_s: dict[tuple[str, str], list[float]] = {key: [] for key in opened}
    keep_freed_memory()  # as in a stage
    with pinned(device), torch.inference_mode():
        for number in range(-_WARMUP, rounds):
            for key, engine in opened.items():
                begin_s = clock()
                engine.run(inputs)
                if number >= 0:
                    times_s[key].append(clock() - begin_s)
    return times_s


def measure_rows(
    opened: Mapping[tuple[str, str], Opened],
    problems: Mapping[tuple[str, str], str],
    batches: Sequence[Sequence[torch.Tensor]],
    device: Device,
    *,
    labels: Sequence[int] | None = None,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[EngineRow, ...]:
    """Compare outputs on all batches, and time the first one.

    Parameters
    ----------
    batches
        Inputs, all of the size of a request.
    labels
        The true class of every image.
    """
    with pinned(device), torch.inference_mode():
        reference = [opened[TORCH, FLOAT32].run(inputs) for inputs in batches]
        rows = []
        times_s = measure_rounds(opened, batches[0], device, rounds=rounds, clock=clock)
        for (engine, precision), one in opened.items():
            comparison, answers = Comparison(), list[int]()
            for inputs, wanted in zip(batches, reference, strict=True):
                found = one.run(inputs)
                comparison.add(found, wanted)
                if found[0].ndim == 2:
                    answers += found[0].argmax(1).tolist()
            agreement = comparison.agreement
            rows.append(
                EngineRow(
                    engine,
                    precision,
                    _measured(
                        [seconds / len(batches[0][0]) for seconds in times_s[engine, precision]],
                        weight_nbytes=one.weight_nbytes,
                        largest_error=agreement.largest_error,
                        same_top=agreement.same_top if agreement.images else None,
                        right=None if labels is None else sum(a == b for a, b in zip(answers, labels, strict=True)),
                    ),
                )
            )
    rows += [EngineRow(engine, precision, problem=problem) for (engine, precision), problem in problems.items()]
    return tuple(rows)


def _measured(times_s: Sequence[float], **others: Any) -> Measured:
    first, _, third = statistics.quantiles(times_s, n=4) if len(times_s) > 1 else (times_s[0],) * 3
    return Measured(statistics.median(times_s), (third - first) / 2, min(times_s), **others)
