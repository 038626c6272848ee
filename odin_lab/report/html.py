"""The report as one HTML file: no scripts, nothing loaded; light or dark, wide, narrow or on paper."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from odin_lab.report.figures import NARROW, WIDE, Plot, svg
from odin_lab.report.markdown import origin
from odin_lab.report.parts import Report, Section
from odin_lab.report.style import DARK
from odin_lab.report.tables import code, html_table

__all__ = ["html"]

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1d21; --faint: #5d656e; --grid: #d9dcdf; --tint: #f4f5f6;
  --accent: #b34f00; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e4e6e8; --faint: #9aa3ab;
  --grid: #363c42; --tint: #1d2125; --accent: #ff9a55; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.8rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--grid); }
nav { font-size: 0.9rem; line-height: 1.9; }
nav a { margin-right: 1.1em; white-space: nowrap; }
a { color: var(--accent); }
code { font: 0.86em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--tint); padding: 0.1em 0.3em; border-radius: 3px; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 2rem; }
figure svg { display: block; width: 100%; height: auto; }
figure .narrow { display: none; }
figcaption { font-size: 0.86rem; color: var(--faint); text-align: left; line-height: 1.45; }
figcaption b { color: var(--ink); }
figcaption { margin-top: 0.5rem; }
.origin { display: block; margin-top: 0.25rem; font-size: 0.93em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; min-width: 60%; }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); vertical-align: bottom;
  text-align: right; font-weight: 600; padding: 0.3rem 0.5rem; max-width: 9rem; }
thead th.label, tbody th { text-align: left; }
tbody th { font-weight: 400; white-space: nowrap; padding: 0.18rem 0.5rem; }
tbody td { text-align: right; white-space: nowrap; padding: 0.18rem 0.5rem; }
td small { font-size: 0.86em; color: var(--faint); }
td small.below { display: block; line-height: 1.2; }
tbody tr:last-child > * { border-bottom: 1.5px solid var(--ink); }
tbody tr:nth-child(even) { background: var(--tint); }
tr.ours th:first-child { font-weight: 600; color: var(--accent); }
tr.yardstick { font-style: italic; color: var(--faint); }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: 0.92rem; }
@media screen and (max-width: 47rem) {
  body { padding: 0.8rem 0.8rem 3rem; }
  h1 { font-size: 1.5rem; }
  figure .wide { display: none; }
  figure .narrow { display: block; }
}
@page { margin: 15mm; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  figure svg { max-height: 7.4in; margin: 0 auto; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  thead th, tbody th, tbody td { padding: 0.1rem 0.35rem; }
  a { color: inherit; }
}
"""


def html(report: Report, *, on_drawn: Callable[[], None] = lambda: None) -> str:
    """The whole page; ``on_drawn`` is called after each of its drawings, of which every figure has two."""
    dark = " ".join(f"--c{light[1:]}: {color};" for light, color in DARK.items())
    links = "".join(f'<a href="#{section.slug}">{escape(section.title)}</a> ' for section in report.sections)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(report.title)}</title>",
            f"<style>{_CSS.replace('DARK', dark)}</style></head><body>",
            f"<h1>{escape(report.title)}</h1>",
            f'<nav aria-label="Sections">{links}<a href="#made">How it was made</a></nav>',
            *(_section(section, on_drawn) for section in report.sections),
            '<section id="made"><h2>How it was made</h2><ul>',
            *(f"<li>{code(origin(source))}</li>" for source in report.sources),
            "</ul></section></body></html>",
            "",
        ]
    )


def _section(section: Section, on_drawn: Callable[[], None]) -> str:
    parts = [f'<section id="{section.slug}"><h2>{escape(section.title)}</h2>']
    if section.slug == "notes":
        parts.append(f"<ul>{''.join(f'<li>{code(text)}</li>' for text in section.texts)}</ul>")
    else:
        parts += [f"<p>{code(text)}</p>" for text in section.texts]
    parts += [html_table(table) for table in section.tables if not table.folded]
    parts += [_figure(plot, on_drawn) for plot in section.plots]
    parts += [html_table(table) for table in section.tables if table.folded]
    return "\n".join([*parts, "</section>"])


def _figure(plot: Plot, on_drawn: Callable[[], None]) -> str:
    """Twice: as wide screens and paper have it, and as a telephone has it; the style sheet shows one of them."""
    origins = "".join(f'<span class="origin">{code(origin(source))}</span>' for source in plot.sources)
    drawn = []
    for layout in (WIDE, NARROW):
        drawn.append(f'<div class="{layout.name}">{svg(plot, layout)}</div>')
        on_drawn()
    return (
        f'<figure id="figure-{plot.slug}">{"".join(drawn)}'
        f"<figcaption><b>{escape(plot.title)}.</b> {code(plot.caption)}{origins}</figcaption></figure>"
    )
