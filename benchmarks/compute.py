"""ODIN's chain, by each of its engines, against ONNX Runtime and OpenVINO with the whole model; 32-bit floats.

Each sits in a process of its own on the same ``--threads`` cores, and has its turn within each round while all others
sleep. Torch as it comes is a row as well. The runtimes get the user's model as it is exported, not what ODIN makes of
it, and everyone gets the images as a plain NCHW array: what a runtime does to its layout is part of its time. What
counts is the time of ODIN's fastest engine over that of the better runtime.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
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
    with_quartiles,
    write_result,
)
from benchmarks.contender import Contender, Runner
from benchmarks.exported import export, read_form
from benchmarks.runtimes import RUNTIMES, check_runtimes, open_runtime
from odin.partitioner.engines.runtimes import keeping_signal_stack

if TYPE_CHECKING:  # torch is imported only once its threads are limited
    import torch

    from odin.models.sources import Source

Array = npt.NDArray[np.float32]
MODELS = ("resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0", "densenet121", "convnext_tiny")
ODIN, EAGER = "ODIN, ", "torch eager"
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
TOLERANCE = 1e-3  # of the largest output; the runtimes sum in other orders


def offered_engines() -> tuple[str, ...]:
    """What ODIN's chain can be computed with here, without importing any of it."""
    if importlib.util.find_spec("odin.partitioner.engines") is None:
        return ("torch",)
    names: Any = importlib.import_module("odin.partitioner.engines.names")
    return tuple(names.available_engines())


ENGINES = offered_engines()
"""A row for each."""


@dataclass(frozen=True)
class Row:
    """One runtime on one model.

    Attributes
    ----------
    model, runtime
        Names.
    batch_s
        Seconds of a call with one batch.
    to_better
        Ratio to the better runtime's within each round.
    error
        Largest difference from torch's eager output over the largest eager output.
    """

    model: str
    runtime: str
    batch_s: Figure
    to_better: Figure
    error: float


@dataclass(frozen=True)
class Comparison:
    """What counts for one model: ODIN's fastest engine, the better runtime, and the ratio of their times."""

    model: str
    engine: str
    runtime: str
    ratio: Figure


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and write the file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=40)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), metavar="ENGINE", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=1, help="images of one call (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="on as many cores, from the first (default %(default)s)")
    parser.add_argument("--busy", action="store_true", help="with an endless loop on the last of the cores")
    arguments = parser.parse_args(argv)
    rounds = 3 if arguments.quick else arguments.rounds
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    if not 1 <= arguments.threads == len(cores):
        parser.error(f"--threads {arguments.threads}: this machine lets us use {len(os.sched_getaffinity(0))} cores")
    if arguments.batch < 1:
        parser.error(f"--batch {arguments.batch}: at least one image")
    try:
        check_runtimes(RUNTIMES)
    except ValueError as error:
        parser.error(str(error))
    environment = Environment.collect(("torch", "onnx", "onnxruntime", "openvino", "numpy"))
    # Contenders inherit both, before their first import of a runtime, which looks at them when it makes its threads.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.sched_setaffinity(0, set(cores))

    rows: list[Row] = []
    comparisons: list[Comparison] = []
    for model in arguments.models:
        own, comparison = compare(
            model,
            engines=arguments.engines,
            batch=arguments.batch,
            threads=arguments.threads,
            rounds=rounds,
            seed=arguments.seed,
            busy_core=cores[-1] if arguments.busy else None,
        )
        rows += own
        comparisons.append(comparison)
        print(f"{model}: done", file=sys.stderr)
    setting = f"{arguments.threads} threads on as many cores, batch {arguments.batch}, float32"
    if arguments.busy:
        setting += f", a loop on core {cores[-1]}"
    report(
        f"{setting}; median of {rounds} interleaved rounds (quartiles)",
        ["model", "runtime", "ms per batch", "of the better runtime's time", "largest error"],
        [
            (
                row.model,
                row.runtime,
                with_quartiles(row.batch_s, milliseconds),
                with_quartiles(row.to_better, "{:.3f}".format),
                f"{row.error:.1e}",
            )
            for row in rows
        ],
        environment,
    )
    report(
        f"{setting}; time of ODIN's fastest engine / time of the better runtime",
        ["model", "engine", "better runtime", "ratio"],
        [(one.model, one.engine, one.runtime, with_quartiles(one.ratio, "{:.3f}".format)) for one in comparisons],
        environment,
    )
    parameters = {**vars(arguments), "rounds": rounds, "cores": cores}
    results = {"rows": rows, "comparisons": comparisons}
    write_result(arguments.output, environment=environment, parameters=parameters, results=results)
    return 0


def compare(
    model: str,
    *,
    engines: Sequence[str],
    batch: int,
    threads: int,
    rounds: int,
    seed: int,
    busy_core: int | None = None,
) -> tuple[list[Row], Comparison]:
    """Time every runtime on one model; RuntimeError if one computes something else."""
    from odin.models.sources import load_source

    source = load_source(model)
    args = batched(source.example_args, batch)
    with tempfile.TemporaryDirectory(prefix="odin-benchmark-") as folder, ExitStack() as stack:
        export(source, Path(folder), RUNTIMES, args=args)
        arrays = [as_array(tensor.contiguous()) for tensor in args]
        makers: dict[str, Callable[[], Runner]] = {
            **{ODIN + name: partial(engine_runner, name, model, batch=batch, threads=threads) for name in engines},
            EAGER: partial(eager_runner, model, batch=batch, threads=threads),
            **{TITLES[name]: partial(runtime_runner, name, Path(folder), arrays, threads=threads) for name in RUNTIMES},
        }
        contenders = {name: stack.enter_context(Contender(name, make)) for name, make in makers.items()}
        expected = contenders[EAGER].output
        errors = {name: relative_error(contender.output, expected) for name, contender in contenders.items()}
        wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
        if wrong:
            raise RuntimeError(f"outputs for {model} differ from torch's eager ones: {wrong}")
        if busy_core is not None:
            stack.enter_context(busy_loop(busy_core))
        turns = {name: contender.seconds for name, contender in contenders.items()}
        seconds = interleave(turns, rounds=rounds, seed=seed)
    return evaluate(model, seconds, errors)


@contextmanager
def busy_loop(core: int) -> Iterator[None]:
    """Another program that computes on a core all the time, as a neighbour would."""
    program = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            yield
        finally:
            process.kill()


def evaluate(
    model: str, seconds: Mapping[str, Sequence[float]], errors: Mapping[str, float]
) -> tuple[list[Row], Comparison]:
    """The rows of one model, and ODIN's fastest engine beside the better runtime, paired round by round."""

    def fastest(names: Sequence[str]) -> str:
        return min(names, key=lambda name: summarize(seconds[name]).median)

    better = fastest([TITLES[name] for name in RUNTIMES])
    engine = fastest([name for name in seconds if name.startswith(ODIN)])
    rows = [
        Row(model, name, summarize(values), paired_ratio(values, seconds[better]), errors[name])
        for name, values in seconds.items()
    ]
    ratio = paired_ratio(seconds[engine], seconds[better])
    return rows, Comparison(model, engine.removeprefix(ODIN), better, ratio)


def batched(args: Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """Seeded noise in the shapes of the example, with ``batch`` images; the example itself for one."""
    import torch

    if batch == 1:
        return tuple(args)
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((batch, *tensor.shape[1:]), generator=generator) for tensor in args)


def relative_error(output: Array, expected: Array) -> float:
    """Largest difference over the largest expected magnitude."""
    return float(np.abs(output - expected).max() / np.abs(expected).max())


def engine_runner(engine: str, model: str, *, batch: int, threads: int) -> Runner:
    """ODIN's prepared, unsplit model, computed by one of its engines.

    Raises
    ------
    ValueError
        If ODIN has no such engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"ODIN has no engine {engine!r}: choose from {', '.join(ENGINES)}")
    source, args = load(model, batch=batch, threads=threads)
    if engine != "torch":
        return session_runner(engine, source, args, threads=threads)

    from odin.partitioner.chain import build_chain

    chain = build_chain(source.torch_model, args, name=source.name)
    return lambda: as_array(chain(*args))


def load(model: str, *, batch: int, threads: int) -> tuple[Source, tuple[torch.Tensor, ...]]:
    """A model and its inputs, in a process that computes as a stage does."""
    import torch

    from odin.models.sources import load_source
    from odin.stages.host import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    source = load_source(model)
    return source, batched(source.example_args, batch)


def session_runner(engine: str, source: Source, args: tuple[torch.Tensor, ...], *, threads: int) -> Runner:
    """All layers one after the other in the sessions that a stage opens, on weights that lie as they do there."""
    chains: Any = importlib.import_module("odin.models.chains")
    chain = chains.to_chain(replace(source, example_args=args), engine=engine)  # in layers that are worth a call each
    build: Any = importlib.import_module("odin.partitioner.engines.build")
    session: Any = importlib.import_module("odin.partitioner.engines.session")
    form = build.build_form(chain, engine=engine)
    weights = {name: aligned(array) for name, array in form.weights.items()}
    layers = session.open_layers(form.model, weights, threads=threads)
    inputs = tuple(as_array(tensor) for tensor in form.layout(args))

    def run() -> Array:
        output: Array = session.run_layers(layers, inputs)[0]
        return output

    return run


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that begins at a multiple of 64 bytes, as weights in shared memory do."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    there = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(there, array)
    return there


def eager_runner(model: str, *, batch: int, threads: int) -> Runner:
    """The model as it comes."""
    import torch

    source, args = load(model, batch=batch, threads=threads)
    assert isinstance(source.model, torch.nn.Module)
    module = source.model

    def run() -> Array:
        with torch.inference_mode():
            return as_array(module(*args))

    return run


def runtime_runner(name: str, folder: Path, inputs: Sequence[Array], *, threads: int) -> Runner:
    """A runtime with the exported model, which reads the images and writes its output where they are."""
    from odin.stages.host import keep_freed_memory

    keep_freed_memory()
    with keeping_signal_stack():
        bind = open_runtime(name, folder, threads=threads, spinning=threads > 1)
    (output,) = (np.empty(spec.shape, spec.dtype) for spec in read_form(folder, name).outputs)
    compute = bind(inputs, [output])

    def run() -> Array:
        compute()
        return output

    return run


def as_array(tensor: Any) -> Array:
    """A tensor's values without a copy."""
    array: Array = tensor.numpy()
    return array


if __name__ == "__main__":
    sys.exit(main())
