"""The report as Markdown: its texts and tables; figures as links, where they were written to files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from odin_lab.report.parts import Report
from odin_lab.report.results import Results
from odin_lab.report.tables import markdown_table

__all__ = ["markdown", "origin"]


def origin(source: Results, mark: str = "`") -> str:
    """One line on how results were made: command, date, environment."""
    commands = " and ".join(f"{mark}{command}{mark}" for command in source.command.splitlines())
    environment = ", ".join(f"{name} {value}" for name, value in source.environment.items())
    return f"Made by {commands}, {source.created}" + (f", on: {environment}." if environment else ".")


def markdown(report: Report, *, figures: Mapping[str, Path] | None = None, beside: Path | None = None) -> str:
    """The report; ``figures`` are files by the figure's slug, linked relative to the folder ``beside``."""
    lines = [f"# {report.title}", ""]
    for section in report.sections:
        lines += [f"## {section.title}", ""]
        if section.slug == "notes":
            lines += [*(f"- {text}" for text in section.texts), ""]
        else:
            lines += [line for text in section.texts for line in (text, "")]
        lines += [line for table in section.tables for line in (markdown_table(table), "")]
        for plot in section.plots if figures else ():
            path = os.path.relpath(figures[plot.slug], beside or Path.cwd()) if figures else ""
            lines += [f"![{plot.title}]({path})", "", f"{plot.caption} {' '.join(map(origin, plot.sources))}", ""]
    lines += ["## How it was made", "", *(f"- {origin(source)}" for source in report.sources)]
    text = "\n".join(lines) + "\n"
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text
