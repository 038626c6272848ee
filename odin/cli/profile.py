"""``odin profile``: what each variant of a family takes, and how often it is right."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from odin.cli.arguments import positive
from odin.process.signals import importing

if TYPE_CHECKING:
    from odin.family.facts import Facts

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin profile`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "profile",
        help="measure the variants of a family: latency, loading, memory, accuracy",
        description="Load each variant that a family's file names, time it, and ask it about labelled data. What is "
        "found is kept, with the layers' times, and is what odin.Family and 'odin serve' choose variants by.",
        epilog="The file is described in docs/variants.md. Profiles that are kept are not measured again.",
    )
    parser.add_argument("family", metavar="FILE", help="NAME.toml with [[variants]], as of 'odin serve'")
    parser.add_argument(
        "--labelled",
        metavar="FOLDER",
        help="images, a folder for each class, named like the model's classes or numbered; or a .npz file with the "
        "arrays inputs (as the models take them) and classes (default: labelled = ... of the file)",
    )
    parser.add_argument("--labels", metavar="FILE", help="the model's class names, one a line, in its order")
    parser.add_argument(
        "--images", type=positive, default=1000, metavar="N", help="most of these images (default %(default)s)"
    )
    parser.add_argument("--refresh", action="store_true", help="measure anew although profiles are kept")
    parser.add_argument("--json", action="store_true", help="print the profiles as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    path = Path(arguments.family)
    with importing():
        try:
            from odin.server.config import read_model
            from odin.server.served_family import variants_of
        except ImportError as error:
            raise ValueError(
                f"what families' files need is not installed ({error.name}): pip install 'odin-pipeline[serve]'"
            ) from None
        from odin.cli.labelled_data import load_labelled
        from odin.control.supervision import EventRecorder
        from odin.family.loading import Loading
        from odin.family.policies import make_variant_policy
        from odin.family.profile import VariantProfiles
        from odin.models.sources import Source

    config = read_model(path)
    if not config.variants:
        raise ValueError(f"{path} names one model, and no [[variants]]: there is nothing to choose from")
    variants = variants_of(config)
    data = arguments.labelled or config.labelled
    labels = arguments.labels or config.labels
    labelled = None
    if data is not None:
        source = variants[0].load()
        assert isinstance(source, Source)
        labelled = load_labelled(source, data, labels=labels, count=arguments.images)
        del source
    console = Console(stderr=True, highlight=False)
    if labelled is None and any(variant.accuracy is None for variant in variants):
        console.print("[yellow]no labelled data[/]: accuracy is not measured; give such by --labelled")
    recorder = EventRecorder(None)
    policy = make_variant_policy(config.choice)
    loading = Loading(variants, config.stages, family=path.stem, policy=policy, emit=recorder.emit)
    try:
        with _progress(console) as progress:
            bars = {variant.name: progress.add_task(variant.name, total=1.0, what="") for variant in variants}

            def tell(name: str, what: str, part: float) -> None:
                progress.update(bars[name], completed=part, what=what)

            profiles = loading.profiles(
                VariantProfiles(), labelled, refresh=arguments.refresh, memory_mib=0.0, on_progress=tell
            )
            for bar in bars.values():
                progress.update(bar, completed=1.0, what="done")
    finally:
        loading.close(drain=True, timeout_s=10.0)
        recorder.close()
    facts = [profile.facts(variant) for variant, profile in zip(variants, profiles, strict=True)]
    if arguments.json:
        told = [{name: _plain(value) for name, value in one._asdict().items()} for one in facts]
        print(json.dumps({"family": path.stem, "variants": told}))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(_table(path.stem, facts))
    return 0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn(),
        console=console, transient=True,
    )  # fmt: skip


def _table(name: str, facts: Sequence[Facts]) -> Table:
    """One row for each variant, the least dear first."""
    table = Table(title=f"Family {name}", title_justify="left")
    table.add_column("variant")
    for column in (
        "accuracy", "ms, 1 sample", "+ ms each more", "device ms/sample", "samples/s", "load s", "MiB", "form", "lost"
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for one in sorted(facts, key=lambda one: one.cost_s):
        table.add_row(
            one.name,
            "-" if math.isnan(one.accuracy) else f"{one.accuracy:.2%}",
            f"{one.latency_s(1) * 1e3:.3g}",
            f"{one.slope_s * 1e3:.3g}",
            f"{one.cost_s * 1e3:.3g}",
            f"{one.capacity_hz:.3g}",
            f"{one.load_s:.1f}",
            f"{one.memory_mib:,.0f}",
            one.form,
            f"{one.lost:.2%}" if one.reduced else "-",
        )
    return table


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
