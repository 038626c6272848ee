"""``odin reduce``: early exits and narrower copies of a trained model, and what each costs in accuracy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from odin.cli.arguments import positive
from odin.models.model_names import check_model_name, check_weights_file
from odin.process.signals import importing
from odin.reduction.budget import check_budget

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin reduce`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "reduce",
        help="make a model's early exits and narrower copies, and measure their accuracy",
        description="Put early exits into a trained classifier, and narrow it, by images whose classes are known; "
        "measure on others how much accuracy each loses and how much time it saves; write each as a .pt2 file. What "
        "they answer is not what the full model answers: nothing uses them unless it is told to.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="built-in name, torchvision:NAME, timm:NAME, package.module:factory, or a .pt2 file; the last two are "
        "programs: use only what you trust",
    )
    parser.add_argument(
        "--labelled",
        metavar="FOLDER",
        required=True,
        help="images that the model was not trained on, in a folder per class, named like the model's classes or "
        "numbered; or an .npz file with the arrays inputs (as the model takes them) and classes",
    )
    parser.add_argument("--output", metavar="FOLDER", required=True, help="for the models, reduced.json and a figure")
    parser.add_argument(
        "--budget", type=_share, default=0.003, metavar="SHARE", help="accuracy that may be lost (default 0.3%%)"
    )
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or .pth file of the trained weights")
    parser.add_argument("--labels", metavar="FILE", help="the model's class names, one a line, in its order")
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="height and width of the model's input")
    parser.add_argument(
        "--exits",
        type=_exits,
        default=4,
        metavar="N",
        help="how many early exits (default %(default)s; 0 for none), or after which layers of 'odin partition', each "
        "with a comma behind it: 3, or 3,7",
    )
    parser.add_argument(
        "--widths",
        type=_widths,
        default=(),
        metavar="SHARES",
        help="also narrow the model to these shares of its channels, such as 0.75,0.5; without training, which costs "
        "much accuracy",
    )
    parser.add_argument(
        "--held-out",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="of the images, on which accuracy is measured; the others train exits (default 50%%)",
    )
    parser.add_argument(
        "--images", type=positive, default=4096, metavar="N", help="most of these images (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the division of the images (default %(default)s)")
    parser.add_argument(
        "--packed", action="store_true", help="also pack each form within the budget, as 'odin pack' does, for a fleet"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    check_model_name(arguments.model)
    if arguments.model.endswith(".onnx"):
        raise ValueError(f"{arguments.model}: an ONNX file cannot be reduced: give the model in PyTorch")
    check_budget(arguments.budget)
    if not 0.0 < arguments.held_out < 1.0:
        raise ValueError(f"--held-out {arguments.held_out:g}: both parts need images; give a share between 0 and 1")
    if arguments.weights is not None:
        check_weights_file(arguments.weights)
    if not Path(arguments.labelled).exists():
        raise ValueError(f"--labelled {arguments.labelled}: no such folder or file")
    if arguments.exits == 0 and not arguments.widths:
        raise ValueError("--exits 0 without --widths makes nothing: ask for one of them")
    with importing():  # here, so that --help and wrong usage need not wait for torch
        from odin.cli.labelled_data import load_labelled
        from odin.cli.reduce_work import reduce_and_write
        from odin.models.sources import load_source

    console = Console(stderr=True, highlight=False)
    with console.status(f"loading {arguments.model}"):
        source = load_source(arguments.model, weights=arguments.weights, image_size=arguments.image_size)
        if source.random_weights:
            raise ValueError(
                f"{source.name} has random weights, which cannot be reduced: give trained ones by --weights"
            )
        labelled = load_labelled(source, arguments.labelled, labels=arguments.labels, count=arguments.images)
    from odin.cli.reduce_report import plot_manifest, render_manifest

    manifest, notes = reduce_and_write(
        source,
        labelled,
        Path(arguments.output),
        budget=arguments.budget,
        exits=arguments.exits,
        widths=arguments.widths,
        held_out=arguments.held_out,
        seed=arguments.seed,
        packed=arguments.packed,
        console=console,
    )
    notes = (*notes, plot_manifest(manifest, Path(arguments.output)))
    if arguments.json:
        import msgspec

        json.dump(msgspec.to_builtins(manifest), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        Console(highlight=False).print(render_manifest(manifest))
    for note in notes:
        console.print(note, style="dim", markup=False, soft_wrap=True)
    return 0


def _share(text: str) -> float:
    """Parse ``0.3%`` or ``0.003``."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 0.3% or 0.003") from None


def _exits(text: str) -> int | tuple[int, ...]:
    """Parse ``4``, how many, or ``3,7`` or ``3,``, at which cuts."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of exits; write 4, or cuts as 3,7") from None
    if not numbers or min(numbers) < ("," in text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of exits; write 4, or cuts as 3,7")
    return tuple(numbers) if "," in text else numbers[0]


def _widths(text: str) -> Sequence[float]:
    """Parse ``0.75,0.5``."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0.0 < width < 1.0 for width in found):
        raise argparse.ArgumentTypeError(f"{text!r} are no shares of channels between 0 and 1; write 0.75,0.5")
    return found
