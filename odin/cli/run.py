"""``odin run``: stream image files through a model cut into stages, one JSON line of results per image.

Exit status: 0 if every image has a result; 1 if any failed (it has a line with the reason, and the others have theirs)
or the pipeline broke down; 2 for wrong usage; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. The first signal
stops feeding and lets what is in flight finish, a second one drops it; either way the results so far are whole lines
and the summary is printed. Results that ``--output`` has already stay there: ``--resume`` does what is missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from odin.cli.arguments import add_engine, add_precision, positive, positive_number
from odin.cli.run_output import RunSettings, check_output, count_missing, open_output, remaining
from odin.cli.starting_loads import StartingLoads
from odin.control.detectors import detector_names
from odin.models.image_files import find_images
from odin.models.model_names import check_model_name, check_weights_file
from odin.monitor.view.terminal import live_panel
from odin.options import BatchSizeError, check_options
from odin.partitioner.files import check_different, check_writable
from odin.partitioner.policies import policy_names
from odin.process.phases import tell_phases
from odin.process.signals import draining, importing
from odin.requests.admission import NONE, PREDICT

if TYPE_CHECKING:  # they import torch
    from odin.cli.run_report import Ending, RunReport
    from odin.models.sources import Source
    from odin.pipeline import Pipeline
    from odin.requests.stream import Submits

__all__ = ["add_parser", "run", "run_images"]

FAILURES_SHOWN = 20


def add_parser(subparsers: Any) -> None:
    """Add ``odin run`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="run image files through a pipeline",
        description="Stream image files through a model cut into stages; one JSON line of results per image.",
        epilog="Exit status: 0 all images done, 1 some failed or the pipeline broke, 2 wrong usage, 130 after Ctrl-C, "
        "143 after SIGTERM, 129 after SIGHUP.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="built-in name, torchvision:NAME, timm:NAME, an .onnx file, package.module:factory, or a .pt2 file; the "
        "last two are programs: use only what you trust",
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="image files, or folders to search")
    parser.add_argument(
        "--output", default="-", metavar="FILE", help="file for the JSON lines (default: -, standard output)"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="keep the results already in --output, and compute only the missing ones"
    )
    existing.add_argument("--overwrite", action="store_true", help="replace the results already in --output")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or .pth file (default: random weights)")
    parser.add_argument("--stages", default="auto", help="auto, or devices joined by commas: cpu:0,cpu:2-3,gpu:0")
    parser.add_argument("--plan", metavar="COUNTS", help="layers per stage, such as 7|11 (default: the fastest)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images per request (default 1)")
    parser.add_argument(
        "--max-in-flight",
        type=positive,
        metavar="N",
        help="most requests in flight (default: two per stage, one and a half with the relay)",
    )
    parser.add_argument(
        "--deadline-ms",
        type=positive_number,
        metavar="MS",
        help="time that a request may take from its submission; one that takes longer fails (default: any time)",
    )
    parser.add_argument(
        "--admission",
        choices=(PREDICT, NONE),
        default=PREDICT,
        help="predict: with --deadline-ms, refuse requests that would be late; none: accept all (default %(default)s)",
    )
    add_engine(parser)
    add_precision(parser, default=None, checked=False)
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="height and width of the model's input")
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="classes to report per image (default 5)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images found")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="passes over the images (default 1)")
    parser.add_argument(
        "--loaders", type=positive, default=2, metavar="N", help="threads that decode images (default 2)"
    )
    parser.add_argument(
        "--policy",
        default="auto",
        help=f"decides where requests pass from stage to stage: auto, {', '.join(policy_names())}, with parameters as "
        "in odin:alpha=10, or module:Class of your own (default: %(default)s)",
    )
    parser.add_argument(
        "--detector",
        default="cusum",
        help=f"detects that a stage has become slower or faster: {', '.join(detector_names())}, with parameters as "
        "in threshold:ratio=0.3, or module:Class of your own (default: %(default)s)",
    )
    parser.add_argument("--live", action="store_true", help="show stages and events while running, as odin top does")
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="record every event in FILE, for odin replay; at 256 MiB it is renamed FILE.1; four older files are kept",
    )
    parser.add_argument(
        "--address", help="HOST:PORT of the Ray cluster to use (default: start one, and stop it at the end)"
    )
    parser.add_argument(
        "--refresh-profile", action="store_true", help="time the layers again even if their times are on disk"
    )
    parser.add_argument(
        "--share-devices",
        action="store_true",
        help="allow devices that other pipelines use (started with this option, too)",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        metavar="PART",
        help="largest part of each device's time to use, such as 0.5 (default: all)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    check_output(arguments.output, resume=arguments.resume, overwrite=arguments.overwrite)
    paths = _check_usage(arguments)
    with importing():  # here, so that --help and wrong usage need not wait for torch and Ray
        import torch

        import odin.pipeline
        from odin.cli.run_report import render_report
        from odin.models.calibration import load_examples
        from odin.models.chains import engine_for
        from odin.models.sources import load_source

    torch.set_num_threads(1)  # this process feeds; the cores are the stages'

    to_stdout = arguments.output == "-"
    console = Console(stderr=to_stdout)
    source = load_source(arguments.model, weights=arguments.weights, image_size=arguments.image_size)
    if source.preprocess is None:
        raise ValueError(
            f"{source.name}: how to turn image files into its input is not known (it takes "
            f"{', '.join(f'{tensor.dtype} {tuple(tensor.shape)}' for tensor in source.example_args)}; image files "
            "become one float32 tensor, batch x 3 x height x width); prepare tensors yourself and use odin.Pipeline"
        )
    if source.random_weights:
        console.print(
            f"[yellow]{escape(source.name)} has random weights: speed is real, results mean nothing. "
            "Give trained ones by --weights FILE.[/]"
        )
    arguments.engine = engine_for(source, arguments.engine)
    options: dict[str, Any] = {"engine": arguments.engine}
    if arguments.precision is not None:
        options["precision"] = arguments.precision
    if arguments.calibration is not None:
        options["calibration"] = load_examples(arguments.calibration, source)
    with open_output(arguments.output, resume=arguments.resume, overwrite=arguments.overwrite) as place:
        settings = run_settings(arguments, source) if place.keeps_settings else None
        if settings is not None:
            place.read(settings)
        if place.done:
            missing, in_all = count_missing(paths, arguments.repeat, place.done), len(paths) * arguments.repeat
            console.print(f"{escape(arguments.output)} has {in_all - missing} of {in_all} results already")
            if not missing:
                return 0
        with (
            starting(console, source.name, batch=arguments.batch) as started,
            odin.pipeline.Pipeline(
                source,
                stages=arguments.stages if arguments.stages == "auto" else arguments.stages.split(","),
                plan=arguments.plan,
                policy=arguments.policy,
                detector=arguments.detector,
                log=arguments.log,
                batch=arguments.batch,
                max_in_flight=arguments.max_in_flight,
                admission=arguments.admission,
                address=arguments.address,
                share_devices=arguments.share_devices,
                share=arguments.share,
                refresh_profile=arguments.refresh_profile,
                on_event=None
                if arguments.live
                else StartingLoads(lambda text: console.print(f"[yellow]already loaded:[/] {escape(text)}")),
                **options,
            ) as pipe,
        ):
            started()
            output = place.begin(settings)
            with live_panel(pipe.view, console) if arguments.live else nullcontext():
                report, error = run_images(
                    pipe if arguments.deadline_ms is None else WithDeadline(pipe, arguments.deadline_ms / 1e3),
                    paths,
                    source,
                    output,
                    console,
                    done=place.done,
                    repeat=arguments.repeat,
                    top=arguments.top,
                    window=pipe.max_in_flight,
                    batch=arguments.batch,
                    loaders=arguments.loaders,
                    show_progress=not arguments.live and not (to_stdout and sys.stdout.isatty()),
                )
            names = [layer.name for layer in pipe.chain.layers]
            console.print(render_report(report, pipe.view(), names, deadline_ms=arguments.deadline_ms))
            if not to_stdout:
                console.print(f"results: {escape(arguments.output)}", highlight=False, soft_wrap=True)
            if arguments.log is not None:
                again = f"odin replay {shlex.quote(arguments.log)}"
                console.print(f"to see it again: {escape(again)}", highlight=False, soft_wrap=True)
            if report.ending != "done":
                pipe.close(drain=False)  # what is still in flight is to be dropped
    if error is not None:
        if isinstance(error, BrokenPipeError) and to_stdout:
            raise error  # who read the results has gone
        console.print(f"[bold red]broken off:[/] {escape(f'{type(error).__name__}: {error}')}")
        if isinstance(error, ValueError):
            raise error
    if report.ending == "interrupted":
        return 130
    return 1 if report.failed or error is not None else 0


class WithDeadline:
    """A pipeline whose requests have a deadline."""

    def __init__(self, pipe: Pipeline, timeout_s: float) -> None:
        self._pipe, self._timeout_s = pipe, timeout_s

    def submit(self, *inputs: Any) -> Future[Any]:
        """See :meth:`odin.Pipeline.submit`."""
        return self._pipe.submit(*inputs, timeout_s=self._timeout_s)


@contextmanager
def starting(console: Console, name: str, *, batch: int) -> Iterator[Callable[[], None]]:
    """Show the phases of starting a pipeline until the function that this gives is called."""
    begin_s = time.perf_counter()
    with ExitStack() as telling:
        console.print(f"starting {escape(name)}:", style="dim", highlight=False)
        telling.enter_context(tell_phases(lambda text: console.print(escape(text), style="dim", highlight=False)))

        def started() -> None:
            telling.close()
            console.print(f"{time.perf_counter() - begin_s:6.2f} s  until it serves", style="dim", highlight=False)

        try:
            yield started
        except BatchSizeError as error:
            number = "1 image" if error.needed == 1 else f"{error.needed} images"
            remedy = "leave it out" if error.needed == 1 else f"give --batch {error.needed}"
            raise ValueError(
                f"--batch {batch}: {name} takes {number} at a time, no more and no less; {remedy}"
            ) from error


def _check_usage(arguments: argparse.Namespace) -> list[Path]:
    """Return the image files; ``ValueError`` or ``ConnectionError`` if the command cannot be carried out as asked."""
    check_model_name(arguments.model)
    if arguments.weights is not None:
        check_weights_file(arguments.weights)
    output = None if arguments.output == "-" else arguments.output
    if output is not None:
        check_writable(output, "--output")
    check_different(output=output, log=arguments.log)
    check_options(
        stages=arguments.stages,
        plan=arguments.plan,
        policy=arguments.policy,
        detector=arguments.detector,
        log=arguments.log,
        batch=arguments.batch,
        max_in_flight=arguments.max_in_flight,
        address=arguments.address,
        share_devices=arguments.share_devices,
        share=arguments.share,
        precision=arguments.precision or "float32",
        engine=arguments.engine,
        calibration=arguments.calibration,
    )
    return find_images(arguments.input)[: arguments.limit]


def run_settings(arguments: argparse.Namespace, source: Source) -> RunSettings:
    """What the results depend on: model, weights, options."""
    from odin.models.weight_files import model_digest

    return RunSettings(
        model=arguments.model,
        weights=arguments.weights,
        state=model_digest(source.model),
        image_size=arguments.image_size,
        precision=arguments.precision,
        batch=arguments.batch,
        top=arguments.top,
        repeat=arguments.repeat,
        folder=os.getcwd(),
        engine=arguments.engine,
        calibration=arguments.calibration,
    )


def run_images(
    pipe: Submits,
    paths: Sequence[Path],
    source: Source,
    output: TextIO,
    console: Console,
    *,
    done: Mapping[tuple[str, int], int] | None = None,
    repeat: int = 1,
    top: int = 5,
    window: int,
    batch: int = 1,
    loaders: int = 2,
    show_progress: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[RunReport, Exception | None]:
    """Stream images through ``pipe`` and write a line for each as its result comes, but for those that are ``done``.

    Returns
    -------
    RunReport
        What was done.
    Exception or None
        What ended the stream early: the pipeline took no more requests, or the results cannot be written.
    """
    from odin.cli.result_lines import json_line
    from odin.cli.run_report import RunTally
    from odin.models.images import Preprocess, load_image
    from odin.requests.stream import stream

    preprocess = source.preprocess or Preprocess()
    keys = remaining(paths, repeat=repeat, batch=batch, done=done)
    tally = RunTally()
    error: Exception | None = None
    told = False
    with draining() as interrupted, progress_bar(console, show_progress) as progress:
        task = progress.add_task(source.name, total=count_missing(paths, repeat, done or {}))
        started_s = clock()
        outcomes = stream(
            pipe,
            keys,
            lambda key: load_image(key.path, preprocess),
            window=window,
            batch=batch,
            loaders=loaders,
            stop=interrupted.is_set,
            clock=clock,
        )
        try:
            for outcome in outcomes:
                if outcome.key.written:
                    continue  # it is here only to complete its request
                number = outcome.key.repeat if repeat > 1 else None
                line = json_line(outcome, image=outcome.key.path, labels=source.labels, top=top, repeat=number)
                output.write(line + "\n")
                output.flush()
                tally.add(outcome)
                progress.advance(task)
                if interrupted.is_set() and not told:
                    told = True
                    progress.console.print(
                        "[yellow]interrupted:[/] finishing what is in flight; a second Ctrl-C drops it"
                    )
                if outcome.error is not None and outcome.key.repeat == 0 and tally.failed <= FAILURES_SHOWN:
                    more = " (further failures only in the results)" if tally.failed == FAILURES_SHOWN else ""
                    progress.console.print(f"[red]failed:[/] {escape(f'{outcome.error}')}{more}")
        except KeyboardInterrupt:  # the second one
            interrupted.set()
        except Exception as broken:  # the pipeline takes no more requests: report what it did before
            error = broken
        finally:
            outcomes.close()
        elapsed_s = clock() - started_s
    ending: Ending = "broken off" if error is not None else "interrupted" if interrupted.is_set() else "done"
    return tally.report(elapsed_s=elapsed_s, ending=ending), error


class RateColumn(ProgressColumn):
    """A progress bar's column: images per second in the last seconds."""

    def render(self, task: Task) -> Text:
        """Render one bar's rate."""
        speed = task.finished_speed or task.speed
        return Text("- images/s" if speed is None else f"{speed:.1f} images/s", style="progress.data.speed")


def progress_bar(console: Console, show: bool) -> Progress:
    """Count, rate, time gone and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not show,
    )
