"""``odin report``: results of simulated and live evaluations as one HTML page, Markdown tables, figures.

Exit status: 0; 1 if a file cannot be read or written; 2 for wrong usage, files that hold no results, no matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from odin.partitioner.files import check_different, check_folder, check_writable
from odin.process.signals import importing

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin report`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "report",
        help="make tables and figures of results",
        description="Make a report of what odin simulate and odin bench found (--output): one HTML file that needs "
        "nothing else, Markdown tables, single figures. Figures need matplotlib: pip install 'odin-pipeline[report]'.",
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="files written by odin simulate and odin bench; event logs (FILE.jsonl): throughput over time, "
        "decisions, expected and actual completion",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="HTML file (default: report.html, without the other options)"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="Markdown file with texts, tables, and links to --figures"
    )
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="folder for each figure as SVG and PNG")
    parser.add_argument(
        "--title", default="Evaluation of ODIN", metavar="TEXT", help="title of the report (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    output = arguments.output
    if output is None and arguments.markdown is None and arguments.figures is None:
        output = Path("report.html")
    _check_usage(arguments, output)
    with importing():
        from odin.partitioner.files import write_whole
        from odin_lab.report.run_log import read_log_or_results
        from odin_lab.report.sections import make_report

    try:
        report = make_report([read_log_or_results(path) for path in arguments.results], title=arguments.title)
        written, figures = [], {}
        drawings = 2 * len(report.plots) * sum(place is not None for place in (output, arguments.figures))
        with _progress(drawings) as advance:
            if output is not None:
                from odin_lab.report.html import html

                write_whole(output, html(report, on_drawn=advance).encode())
                written.append(output)
            if arguments.figures is not None:
                from odin_lab.report.figures import save

                for plot in report.plots:
                    paths = save(plot, arguments.figures, on_drawn=advance)
                    written += paths
                    figures[plot.slug] = paths[0]
        if arguments.markdown is not None:
            from odin_lab.report.markdown import markdown

            text = markdown(report, figures=figures, beside=arguments.markdown.parent)
            write_whole(arguments.markdown, text.encode())
            written.append(arguments.markdown)
    except OSError as error:
        print(f"odin report: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


def _check_usage(arguments: argparse.Namespace, output: Path | None) -> None:
    """Find what cannot be before anything is read."""
    for path in arguments.results:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name the files of odin simulate and odin bench in it")
    for option, file in (("--output", output), ("--markdown", arguments.markdown)):
        if file is not None:
            check_writable(file, option, makes_folder=True)
    check_different(output=output, markdown=arguments.markdown)
    if arguments.figures is not None:
        check_folder(arguments.figures, "--figures")


@contextmanager
def _progress(drawings: int) -> Iterator[Callable[[], None]]:
    """A bar on the terminal while figures are drawn; gives what counts one as drawn."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing", total=drawings)
        yield lambda: progress.advance(task)
