"""``odin pack``: a model as one file that a fleet maps into memory when it is asked for."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from odin.cli.arguments import positive
from odin.fleet.packed import PackedFolder, PackedModelError, check_folder_owner, check_name
from odin.models.model_names import check_model_name, check_weights_file
from odin.partitioner.files import check_folder
from odin.process.signals import importing

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin pack`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "pack",
        help="pack a model into a file that a fleet (odin serve FOLDER, odin.Fleet) loads on demand",
        description="Write a model into a file of a folder, with its weights in the memory layout that this processor "
        "computes with. 'odin serve FOLDER' and odin.Fleet map such files into memory when requests for them come.",
        epilog="Run times are measured while packing, so nothing else should run. See docs/fleet.md.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="as for odin run: a built-in name, torchvision:NAME, timm:NAME, a .pt2 file, package.module:factory; the "
        "last two are programs: use only what you trust",
    )
    parser.add_argument(
        "--into", metavar="FOLDER", required=True, help="folder of packed models; created if it does not exist"
    )
    parser.add_argument("--name", help="name that clients ask for (default: the model's own)")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or .pth file (default: random weights)")
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="height and width of the model's input")
    parser.add_argument(
        "--portable",
        action="store_true",
        help="store weights in a layout that any processor reads: loading takes longer, and each executor has a copy",
    )
    parser.add_argument(
        "--verify", action="store_true", help="check the checksums of all models in the folder; takes no MODEL"
    )
    parser.add_argument("--json", action="store_true", help="print what was packed as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    if arguments.verify:
        return _verify(Path(arguments.into), arguments.model)
    if arguments.model is None:
        raise ValueError("name the MODEL to be packed, or check what is there (--verify)")
    check_model_name(arguments.model)
    into = Path(arguments.into)
    check_folder(into, "--into")
    check_folder_owner(into)
    if arguments.name is not None:
        check_name(arguments.name)
    if arguments.weights is not None:
        check_weights_file(arguments.weights)
    with importing():
        from odin.fleet.packing import pack_source
        from odin.models.sources import load_source

    console = Console(stderr=True, highlight=False)
    with console.status(f"packing {arguments.model}"):
        source = load_source(arguments.model, weights=arguments.weights, image_size=arguments.image_size)
        name = arguments.name or source.name
        path = pack_source(source, into, name=name, portable=arguments.portable)
        folder = PackedFolder(into)
        head = folder.head(name)
        folder.close()
    if source.random_weights:
        console.print("[yellow]random weights[/]: its answers mean nothing; give trained ones by --weights")
    if arguments.json:
        told = {"file": str(path), "name": name, "nbytes": head.nbytes, "baseline_s": dict(head.baseline_s)}
        print(json.dumps(told))
        return 0
    alone = ", ".join(f"{seconds * 1e3:.3g} ms for {samples}" for samples, seconds in head.baseline_s)
    print(f"{path}: {head.nbytes / 2**20:.1f} MiB; alone on a core {alone}")
    return 0


def _verify(path: Path, model: str | None) -> int:
    if model is not None:
        raise ValueError(f"--verify checks all models of the folder: leave out {model!r}")
    folder, wrong = PackedFolder(path), 0
    names = folder.names()
    for name in names:
        try:
            folder.verify(name)
        except (PackedModelError, OSError) as error:
            wrong += 1
            print(error, file=sys.stderr)
    print(f"{len(names) - wrong} packed models are as they were packed, {wrong} are not")
    return 1 if wrong else 0
