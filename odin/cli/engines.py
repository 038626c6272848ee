"""``odin engines``: what computes a model fastest on one core, in which precision, and how far off it is."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console

from odin.cli.arguments import positive
from odin.models.model_names import check_model_name, check_weights_file
from odin.process.signals import importing
from odin.stages.device import Device, DeviceError, cpu_model, parse_devices, usable_cores

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin engines`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "engines",
        help="compare engines and precisions for a model on one core",
        description="Run a model on one core with each engine that is installed, in each precision that the processor "
        "has, in turn: time per image, weights, and how far the outputs are from PyTorch's in float32.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="built-in name, torchvision:NAME, timm:NAME, package.module:factory, or a .pt2 file; the last two are "
        "programs: use only what you trust",
    )
    parser.add_argument("--device", metavar="cpu:N", help="the core (default: the first usable one)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images per request (default 1)")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or .pth file (default: random weights)")
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="height and width of the model's input")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="images to compare outputs on; with a folder per class, named like the model's classes or numbered, "
        "accuracy is told too (default: noise)",
    )
    parser.add_argument("--labels", metavar="FILE", help="the model's class names, one a line, in its order")
    parser.add_argument("--calibration", metavar="FOLDER", help="images by which int8 is quantised (default: --data)")
    parser.add_argument(
        "--images", type=positive, default=128, metavar="N", help="most images of each folder (default %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=15, metavar="N", help="timed requests of each engine (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    check_model_name(arguments.model)
    if arguments.weights is not None:
        check_weights_file(arguments.weights)
    device = _core(arguments.device)
    with importing():  # here, so that --help and wrong usage need not wait for torch
        from odin.cli.engine_data import engine_data
        from odin.cli.engine_report import EngineReport, render_engines
        from odin.cli.engine_rows import measure_rows, open_all
        from odin.control.local_profile import check_local
        from odin.models.chains import to_chain
        from odin.models.sources import load_source
        from odin.options import check_batch
        from odin.partitioner.engines.names import TORCH

    check_local([device])
    messages = Console(stderr=True, highlight=False)
    with messages.status(f"loading {arguments.model}") as status:
        source = load_source(arguments.model, weights=arguments.weights, image_size=arguments.image_size)
        data = engine_data(
            source,
            data=arguments.data,
            labels=arguments.labels,
            calibration=arguments.calibration,
            count=arguments.images,
        )
        fine = to_chain(source)
        batch = check_batch(fine, arguments.batch)
        coarse = to_chain(source, engine="onnxruntime")  # layers that are worth a call of a runtime
        opened, problems = open_all(
            lambda engine: fine if engine == TORCH else coarse,
            device,
            batch=batch,
            calibration=data.calibration,
            tell=lambda text: status.update(f"making ready {text}"),
        )
        status.update(f"measuring {len(opened)} engines")
        batches = data.batches(batch)
        rows = measure_rows(opened, problems, batches, device, labels=data.labels_of(batches), rounds=arguments.rounds)
    report = EngineReport(
        model=source.name,
        device=str(device),
        processor=cpu_model(),
        batch=batch,
        rounds=arguments.rounds,
        images=sum(len(inputs[0]) for inputs in batches),
        rows=rows,
        notes=data.notes,
    )
    if arguments.json:
        json.dump(report.to_json(), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        Console(highlight=False).print(render_engines(report))
    return 0


def _core(text: str | None) -> Device:
    devices = (Device("cpu", usable_cores()[:1]),) if text is None else parse_devices(text)
    if len(devices) != 1 or devices[0].kind != "cpu" or devices[0].threads != 1:
        raise DeviceError(f"--device {text}: engines are compared on one core, such as cpu:0")
    return devices[0]
