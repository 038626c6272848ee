"""Engines and precisions on one core: a model trained here read on held-out digits, and how fast each is.

The model of ``examples/digits.py`` is trained on three quarters of scikit-learn's digits; int8 is quantised by 128 of
these. Accuracy is on the other quarter, and exact whatever else runs. Beside ODIN's layers, each a call of its own, are
OpenVINO and ONNX Runtime with the same model whole. Larger models, with random weights, show speed alone.
``python -m benchmarks.precision``
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from odin.cli.engine_rows import Opened, open_all
from odin.models.calibration import calibration_batches
from odin.models.chains import to_chain
from odin.models.sources import Source, load_source
from odin.partitioner.chain import Chain
from odin.partitioner.engines.agreement import Comparison
from odin.partitioner.engines.cut_model import Array
from odin.partitioner.engines.export import export
from odin.partitioner.engines.names import TORCH, missing_packages
from odin.partitioner.engines.processor import BFLOAT16, INT8, has_feature
from odin.partitioner.engines.quantize import quantize
from odin.partitioner.engines.runtimes import compile_openvino
from odin.stages.compute.precision import FLOAT32
from odin.stages.device import Device, cpu_model
from odin.stages.host import keep_freed_memory

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"
CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Row:
    """One engine in one precision.

    Attributes
    ----------
    whole
        Whether the runtime has the model whole, rather than in ODIN's layers.
    images, right, same_top
        Of so many held-out images, how many are read right, and as PyTorch reads them in float32; 0 without labels.
    largest_error
        Of the largest output of PyTorch in float32.
    image_s, to_float32
        Seconds per image, and its ratio to PyTorch in float32 within each round.
    """

    model: str
    engine: str
    precision: str
    whole: bool
    images: int
    right: int
    same_top: int
    largest_error: float
    weight_nbytes: float
    image_s: Figure
    to_float32: Figure


@dataclass(frozen=True)
class Result:
    """All rows, what could not be run and why, and whether the times are for the record."""

    processor: str
    times_for_the_record: bool
    rows: tuple[Row, ...]
    missing: tuple[tuple[str, str, str], ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, print the table, and write the file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=40)
    parser.add_argument("--models", nargs="*", default=["resnet50"], metavar="MODEL", help="for speed alone")
    parser.add_argument("--width", type=int, default=16, help="channels of the digits model's first block")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="default: the last one")
    arguments = parser.parse_args(argv)
    rounds = 5 if arguments.quick else arguments.rounds
    environment = Environment.collect(("torch", "onnx", "onnxruntime", "openvino", "numpy", "scikit-learn"))
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    keep_freed_memory()
    device = Device("cpu", (arguments.core,))

    rows, missing = digits_rows(device, width=arguments.width, rounds=rounds, seed=arguments.seed)
    for model in arguments.models:
        rows += speed_rows(load_source(model), device, rounds=rounds, seed=arguments.seed)
    noted = "; times not for the record" if arguments.quick else ""
    report(
        f"One core, batch 1; median of {rounds} interleaved rounds (quartiles){noted}",
        [
            "model",
            "engine",
            "precision",
            "right",
            "as in float32",
            "largest error",
            "ms per image",
            "of float32's time",
        ],
        [
            (
                row.model,
                f"{row.engine} whole" if row.whole else row.engine,
                row.precision,
                f"{row.right / row.images:.2%}" if row.images else "-",
                f"{row.same_top}/{row.images}" if row.images else "-",
                f"{row.largest_error:.1e}",
                with_quartiles(row.image_s, milliseconds),
                with_quartiles(row.to_float32, "{:.3f}".format),
            )
            for row in rows
        ],
        environment,
    )
    parameters = {"rounds": rounds, "core": arguments.core, "seed": arguments.seed, "width": arguments.width}
    result = Result(cpu_model(), not arguments.quick, tuple(rows), tuple(missing))
    write_result(arguments.output, environment=environment, parameters=parameters, results=result)
    return 0


def digits_rows(device: Device, *, width: int, rounds: int, seed: int) -> tuple[list[Row], list[tuple[str, str, str]]]:
    """Train the example's model, and judge every engine and precision on held-out digits."""
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    digits = example.load_images()
    module = example.train(digits, width=width, epochs=8, seed=seed)
    source = load_source(module, example_input=digits.test_images[:1])
    examples = digits.train_images[:CALIBRATION_IMAGES]
    opened, problems = open_everything(source, device, examples)
    return (
        judged(
            "digits",
            opened,
            list(digits.test_images.split(1)),
            digits.test_labels.tolist(),
            rounds=rounds,
            seed=seed,
        ),
        [(engine, precision, text) for (engine, precision), text in problems.items()],
    )


def speed_rows(source: Source, device: Device, *, rounds: int, seed: int) -> list[Row]:
    """Time every engine and precision on a model with random weights; its int8 is quantised by noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((8, *source.example_args[0].shape[1:]), generator=generator)
    opened, _ = open_everything(source, device, noise)
    return judged(source.name, opened, list(noise[:1].split(1)), None, rounds=rounds, seed=seed)


def open_everything(
    source: Source, device: Device, examples: torch.Tensor
) -> tuple[dict[tuple[str, str, bool], Opened], dict[tuple[str, str], str]]:
    """Open ODIN's layers in every engine and precision, and whole models in the runtimes."""
    fine, coarse = to_chain(source), to_chain(source, engine="onnxruntime")
    parts, problems = open_all(
        lambda engine: fine if engine == TORCH else coarse, device, batch=1, calibration=examples
    )
    opened = {(engine, precision, False): one for (engine, precision), one in parts.items()}
    for key, one in open_whole(coarse, examples).items():
        opened[(*key, True)] = one
    return opened, problems


def open_whole(chain: Chain, examples: torch.Tensor) -> dict[tuple[str, str], Opened]:
    """The same exported model, and the same quantised one, uncut in the runtimes that are installed."""
    opened: dict[tuple[str, str], Opened] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, apart = Path(folder, "float32.onnx"), Path(folder, "int8")
        apart.mkdir()
        export(chain, plain)
        export(chain, apart / "model.onnx")
        batches = calibration_batches(chain, examples)
        _, quantized = quantize(apart / "model.onnx", batches, narrow_weights=not has_feature(INT8))
        for precision, path in ((FLOAT32, plain), (INT8, quantized)):
            if not missing_packages("onnxruntime"):
                opened["onnxruntime", precision] = whole_onnxruntime(path)
        hints = [(FLOAT32, plain, "f32"), (INT8, quantized, "f32")]
        hints += [(BFLOAT16, plain, "bf16")] if has_feature(BFLOAT16) else []
        for precision, path, hint in hints:
            if not missing_packages("openvino"):
                opened["openvino", precision] = whole_openvino(path, hint)
    return opened


def whole_onnxruntime(path: Path) -> Opened:
    """ONNX Runtime, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Sequence[torch.Tensor]) -> list[Array]:
        return list(session.run(None, {name: inputs[0].contiguous().numpy()}))

    return Opened(run, 0)


def whole_openvino(path: Path, hint: str) -> Opened:
    """OpenVINO, one thread."""
    import openvino

    request = compile_openvino(openvino.Core(), str(path), hint=hint).create_infer_request()

    def run(inputs: Sequence[torch.Tensor]) -> list[Array]:
        return list(request.infer([inputs[0].contiguous().numpy()], share_inputs=True).values())

    return Opened(run, 0)


def judged(
    model: str,
    opened: dict[tuple[str, str, bool], Opened],
    images: Sequence[torch.Tensor],
    labels: Sequence[int] | None,
    *,
    rounds: int,
    seed: int,
) -> list[Row]:
    """Run every image through everything, then time one image on each in turn."""
    with torch.inference_mode():
        reference = [opened[TORCH, FLOAT32, False].run((image,)) for image in images]
        names = {" ".join(map(str, key)): key for key in opened}
        seconds = interleave(
            {name: timed(bound(opened[key], images[0])) for name, key in names.items()},
            rounds=rounds,
            warmup=2,
            seed=seed,
        )
        rows = []
        for name, (engine, precision, whole) in names.items():
            comparison, right = Comparison(), 0
            for number, (image, wanted) in enumerate(zip(images, reference, strict=True)):
                found = opened[engine, precision, whole].run((image,))
                comparison.add(found, wanted)
                right += labels is not None and int(np.argmax(found[0])) == labels[number]
            agreement = comparison.agreement
            known = labels is not None
            rows.append(
                Row(
                    model,
                    engine,
                    precision,
                    whole,
                    agreement.images if known else 0,
                    right,
                    agreement.same_top if known else 0,
                    agreement.largest_error,
                    opened[engine, precision, whole].weight_nbytes,
                    summarize(seconds[name]),
                    paired_ratio(seconds[name], seconds[f"{TORCH} {FLOAT32} False"]),
                )
            )
    return rows


def bound(one: Opened, image: torch.Tensor) -> Any:
    """One image on one engine, without arguments."""
    return lambda: one.run((image,))


if __name__ == "__main__":
    sys.exit(main())
