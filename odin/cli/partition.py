"""``odin partition``: a model's layers, their measured times and sizes, and the plan that balances them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console

from odin.cli.arguments import add_engine, add_precision, positive
from odin.control.local_devices import check_named
from odin.models.model_names import check_model_name, check_weights_file
from odin.options import check_calibration, check_precision_fits
from odin.partitioner.engines.names import AUTO
from odin.partitioner.plan import Plan
from odin.process.phases import tell_phases
from odin.process.signals import importing
from odin.stages.device import parse_devices

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin partition`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "partition",
        help="show a model's layers, their times and the balanced plan",
        description="Cut a model into layers, time them on the stages' devices (once, then kept on disk), and find the "
        "plan whose slowest stage is fastest. (The policy relay needs no plan: there a free stage takes the next "
        "request, and passes it on where another stage would finish it sooner.)",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="built-in name, torchvision:NAME, timm:NAME, an .onnx file, package.module:factory, or a .pt2 file; the "
        "last two are programs: use only what you trust",
    )
    parser.add_argument("--stages", default="auto", help="auto, or devices joined by commas: cpu:0,cpu:2-3,gpu:0")
    parser.add_argument("--batch", type=positive, metavar="N", help="images per request (default: the example's, 1)")
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="height and width of the model's input")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or .pth file; times do not depend on it")
    parser.add_argument("--plan", metavar="COUNTS", help="show this plan, such as 7|11, instead of the best one")
    add_engine(parser)
    add_precision(parser)
    parser.add_argument("--refresh", action="store_true", help="time the layers again even if their times are on disk")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    check_model_name(arguments.model)
    if arguments.weights is not None:
        check_weights_file(arguments.weights)
    devices = None if arguments.stages == "auto" else parse_devices(arguments.stages)
    plan = None if arguments.plan is None else Plan.parse(arguments.plan)
    if devices is not None:
        check_named(devices)
        if plan is not None:
            plan.check_fits(layer_count=plan.layer_count, stage_count=len(devices))
    with importing():  # here, so that --help and wrong usage need not wait for torch
        from odin.cli.partition_report import render_partition
        from odin.cli.partitioning import partition
        from odin.control.local_profile import check_local, local_devices
        from odin.models.calibration import load_examples
        from odin.models.chains import engine_for, to_chain
        from odin.models.sources import load_source
        from odin.partitioner.profile import ProfileCache

    if devices is not None:  # before the model is loaded, which takes long
        check_local(devices)
        check_precision_fits(arguments.precision, arguments.engine or AUTO, devices)
    check_calibration(arguments.precision, arguments.calibration)
    messages = Console(stderr=True, highlight=False)
    with messages.status(f"loading {arguments.model}") as status:
        source = load_source(arguments.model, weights=arguments.weights, image_size=arguments.image_size)
        engine = engine_for(source, arguments.engine)
        with tell_phases(status.update):
            chain = to_chain(source, engine=engine, stage_count=len(devices or ()))
    calibration = None if arguments.calibration is None else load_examples(arguments.calibration, source)
    devices = local_devices(len(chain.layers)) if devices is None else devices
    with messages.status(f"profiling {len(chain.layers)} layers"):
        report = partition(
            chain,
            devices,
            batch=arguments.batch,
            plan=plan,
            precision=arguments.precision,
            engine=engine,
            calibration=calibration,
            cache=ProfileCache(),
            refresh=arguments.refresh,
        )
    if arguments.json:
        json.dump(report.to_json(), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        Console(highlight=False).print(render_partition(report))
    return 0
