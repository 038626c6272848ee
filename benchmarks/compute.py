"""The chain on one core against ONNX Runtime and OpenVINO, 32-bit floats, batch 1, one thread each.

All of them sit in one process that is pinned to one core, and take turns within each round. Torch as it comes is a row
as well. Everyone gets the image as a plain NCHW array: what a runtime does to its layout is part of its time.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import (
    Environment,
    Figure,
    add_arguments,
    interleave,
    milliseconds,
    paired_ratio,
    report,
    summarize,
    timed,
    with_quartiles,
    write_result,
)

if TYPE_CHECKING:  # torch is imported only once its threads are limited
    from odin.models.sources import Source

Array = npt.NDArray[np.float32]
Runner = Callable[[], Array]
TOLERANCE = 1e-3  # of the largest output; the runtimes sum in other orders


@dataclass(frozen=True)
class Row:
    """One runtime on one model: seconds per image, its ratio to the chain within each round, and how far it is off.

    ``error`` is the largest difference from torch's eager output over the largest eager output.
    """

    model: str
    runtime: str
    image_s: Figure
    to_chain: Figure
    error: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, rounds=40)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vgg16"], metavar="MODEL")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="default: the last one")
    arguments = parser.parse_args(argv)
    rounds = 3 if arguments.quick else arguments.rounds
    packages = ("torch", "onnx", "onnxruntime", "openvino", "numpy")
    environment = Environment.collect(packages)
    # Before the first import of a runtime, each of which looks at both when it makes its threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {arguments.core})

    rows: list[Row] = []
    for model in arguments.models:
        rows += compare(model, rounds=rounds, seed=arguments.seed)
    report(
        f"One core, one thread, batch 1, float32; median of {rounds} interleaved rounds (quartiles)",
        ["model", "runtime", "ms per image", "of the chain's time", "largest error"],
        [
            (
                row.model,
                row.runtime,
                with_quartiles(row.image_s, milliseconds),
                with_quartiles(row.to_chain, "{:.3f}".format),
                f"{row.error:.1e}",
            )
            for row in rows
        ],
        environment,
    )
    parameters = {"rounds": rounds, "core": arguments.core, "seed": arguments.seed, "batch": 1}
    write_result(arguments.output, environment=environment, parameters=parameters, results=rows)
    return 0


def compare(model: str, *, rounds: int, seed: int) -> list[Row]:
    """Time every runtime on one model; RuntimeError if one computes something else."""
    import torch

    from odin.models.sources import load_source
    from odin.stages.host import keep_freed_memory

    keep_freed_memory()  # as every stage does
    torch.set_num_threads(1)
    source = load_source(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{model}.onnx"
        export_onnx(source, path)
        runners = {
            "ODIN chain": chain_runner(source),
            "torch eager": eager_runner(source),
            "ONNX Runtime": onnxruntime_runner(path, source),
            "OpenVINO": openvino_runner(path, source),
        }
        expected = runners["torch eager"]()
        errors = {name: relative_error(runner(), expected) for name, runner in runners.items()}
        wrong = {name: error for name, error in errors.items() if error > TOLERANCE}
        if wrong:
            raise RuntimeError(f"outputs for {model} differ from torch's eager ones: {wrong}")
        seconds = interleave({name: warmed(runner) for name, runner in runners.items()}, rounds=rounds, seed=seed)
    return [
        Row(model, name, summarize(values), paired_ratio(values, seconds["ODIN chain"]), errors[name])
        for name, values in seconds.items()
    ]


def warmed(runner: Runner) -> Callable[[], float]:
    """Seconds of one image, after one that brings this runtime's weights and code back into the caches."""
    measure = timed(runner)

    def run() -> float:
        runner()
        return measure()

    return run


def relative_error(output: Array, expected: Array) -> float:
    """Largest difference over the largest expected magnitude."""
    return float(np.abs(output - expected).max() / np.abs(expected).max())


def chain_runner(source: Source) -> Runner:
    """ODIN's prepared, unsplit model."""
    from odin.partitioner.chain import build_chain

    chain = build_chain(source.torch_model, source.example_args, name=source.name)
    return lambda: as_array(chain(*source.example_args))


def eager_runner(source: Source) -> Runner:
    """The model as it comes."""
    import torch

    assert isinstance(source.model, torch.nn.Module)
    model = source.model

    def run() -> Array:
        with torch.inference_mode():
            return as_array(model(*source.example_args))

    return run


def as_array(tensor: Any) -> Array:
    """A tensor's values without a copy."""
    array: Array = tensor.numpy()
    return array


def export_onnx(source: Source, path: Path) -> None:
    """Write the model, unprepared, for runtimes that prepare it in their own way."""
    import torch

    assert isinstance(source.model, torch.nn.Module)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of each library that is not installed
    torch.onnx.export(source.model, source.example_args, path, dynamo=True, external_data=False, verbose=False)


def onnxruntime_runner(path: Path, source: Source) -> Runner:
    """ONNX Runtime with all its graph optimisations on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = dict(zip((entry.name for entry in session.get_inputs()), map(as_array, source.example_args), strict=True))

    def run() -> Array:
        output: Array = session.run(None, inputs)[0]
        return output

    return run


def openvino_runner(path: Path, source: Source) -> Runner:
    """OpenVINO for least latency on one thread, held to 32-bit floats (it takes bfloat16 where the CPU has it)."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(path, "CPU", options)
    request = compiled.create_infer_request()
    inputs = [as_array(tensor) for tensor in source.example_args]

    def run() -> Array:
        output: Array = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return output

    return run


if __name__ == "__main__":
    sys.exit(main())
