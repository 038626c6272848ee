"""What ``odin reduce`` does: make the forms, time them, write them into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from odin.fleet.packing import pack_source
from odin.models.labelled import Labelled
from odin.models.sources import Source
from odin.reduction.manifest import Manifest
from odin.reduction.programs import save_forms
from odin.reduction.reduced import reduce_model

__all__ = ["reduce_and_write"]


def reduce_and_write(
    source: Source,
    labelled: Labelled,
    folder: Path,
    *,
    budget: float,
    exits: int | Sequence[int],
    widths: Sequence[float],
    held_out: float,
    seed: int,
    packed: bool,
    console: Console,
) -> tuple[Manifest, tuple[str, ...]]:
    """Make what was asked for, with a progress bar; returns what was written, and notes."""
    training, judging = labelled.split(1 - held_out, seed=seed)
    number = exits if isinstance(exits, int) else len(exits)
    steps = 4 + (number > 0) + number + 2 * len(widths) + (1 + number + len(widths)) * (1 + packed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("begin", total=steps)

        def tell(text: str) -> None:
            progress.update(bar, description=text, advance=1)

        reduced = reduce_model(
            source.torch_model,
            training,
            judging,
            exits=exits,
            widths=widths,
            name=source.name,
            seed=seed,
            tell=tell,
        )
        manifest = save_forms(reduced, folder, name=source.name, budget=budget, example=judging.inputs[:1], tell=tell)
        for form in reduced.forms if packed else ():
            if form.judgement.lost.value <= budget:
                tell(f"pack {form.name}")
                name = f"{source.name}-{form.name}"
                one = Source(name, form.model, source.example_args, source.preprocess, source.labels, False)
                pack_source(one, folder, name=name)
    notes = [
        *reduced.notes,
        f"Accuracy is of {len(judging.classes)} images of {len(labelled.classes)}; {folder} has it all.",
    ]
    if budget * len(judging.classes) < 1:
        notes.append(
            f"{len(judging.classes)} images cannot tell a loss of {budget:.2%}: that is less than one of them. Look at "
            "the intervals, or give more images."
        )
    return manifest, tuple(notes)
