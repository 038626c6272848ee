"""The report as files: it is whole, opens without anything else, and fakes nothing."""

from __future__ import annotations

import io
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from synthetic_results import POLICIES, synthetic_cell, synthetic_grid, synthetic_live, synthetic_timeline

from odin.cli.main import main
from odin_lab.report.figures import NARROW, WIDE, svg
from odin_lab.report.html import html
from odin_lab.report.markdown import markdown, origin
from odin_lab.report.plots_measured import axis_end_hz, beyond, mean_hz, thinned
from odin_lab.report.results import Results, ResultsError
from odin_lab.report.sections import make_report
from odin_lab.report.style import DARK, DEVICES, INK, looks

pytestmark = pytest.mark.slow  # figures

SMALL = Results(
    command="odin simulate paper --quick",
    created="2026-01-01",
    environment={"cpu": "none <made up>"},
    cells=tuple(synthetic_cell("grid", "m", policy, quality=0.9) for policy in ("filter", "lls", "mine:Policy")),
    notes=("reconstructed & `so`",),
)
VOID = {"meta", "path", "use", "rect", "line", "circle", "br"}


class Checker(HTMLParser):
    """Collects what a page is made of, and sees that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def full() -> str:
    return html(
        make_report(
            [synthetic_grid(("filter", "lls", "oracle"), repeats=1), synthetic_live(repeats=2)],
            title="Full & <whole>",
        )
    )


def test_page_needs_nothing_else(full) -> None:
    found = check(full)
    assert not {"script", "link", "img", "image", "iframe", "object"} & set(found.tags)
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert not re.search(r"url\((?!#)", full)
    assert all(name in found.ids for name in re.findall(r"url\(#([^)]+)\)", full))
    assert "<title>Full &amp; &lt;whole&gt;</title>" in full


def test_page_has_every_section_and_says_how_it_was_made(full) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", full)
    assert titles == [
        "Summary",
        "Misses",
        "Throughput over time",
        "Live runs",
        "Every period and duration",
        "Latency distributions",
        "Service levels",
        "Scaling with devices",
        "What finding plans costs",
        "Detection delay",
        "Simulated against live",
        "Notes",
        "How it was made",
    ]
    figures = re.findall(r"<figure id=.*?</figure>", full, flags=re.DOTALL)
    assert len(figures) == 11
    assert all(figure.count("<svg ") == 2 and "Made by <code>odin " in figure for figure in figures)
    assert all("SYNTHETIC" in figure for figure in figures)  # the environment
    assert "odin bench live" in next(figure for figure in figures if "figure-live-" in figure)


def test_what_there_is_no_data_for_is_left_out() -> None:
    page = html(make_report([replace(SMALL, cells=tuple(replace(c, study="single") for c in SMALL.cells))]))
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Summary", "Misses", "Latency distributions", "Service levels", "What finding plans costs", "Notes",
        "How it was made",
    ]  # fmt: skip
    check(page)
    bare = replace(SMALL.cells[0], latency_quantiles_s=(), below_peak=())
    report = make_report([replace(SMALL, cells=(bare,), notes=())])
    assert [section.slug for section in report.sections] == ["summary", "misses", "grid", "costs"]


def test_text_and_yardsticks_take_the_color_of_the_page() -> None:
    plot = make_report([SMALL]).plots[0]
    text = svg(plot, WIDE)
    assert "currentColor" in text
    assert INK not in text
    assert "<metadata" not in text
    assert svg(plot, WIDE) == text  # the same again: nothing random, no date
    wide, narrow = (float(re.search(r'viewBox="0 0 ([0-9.]+)', svg(plot, size))[1]) for size in (WIDE, NARROW))
    assert wide > narrow


def test_policies_keep_their_look_and_look_different() -> None:
    many = looks([*POLICIES, "mine:Policy", "odin:alpha=5", "odin:alpha=2 (serial)", "ray-serve"])
    assert len({look.marker for look in many.values()}) == len(many)
    assert len({str(look.dash) + look.color for look in many.values()}) == len(many)
    few = looks(["lls", "filter"])
    assert few == {policy: many[policy] for policy in few}
    assert max(many, key=lambda policy: many[policy].width) == "filter"


def test_legends_fit() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grids = [
        synthetic_grid(POLICIES, repeats=1),
        synthetic_grid(("odin:alpha=2 (serial)", "lls (serial)", *POLICIES), repeats=1),
    ]
    for plot in (next(p for p in make_report([grid]).plots if p.slug == "latency-grid") for grid in grids):
        for layout in (WIDE, NARROW):
            drawn: list[Figure] = []
            keep = replace(plot, draw=lambda size, draw=plot.draw, drawn=drawn: drawn.append(draw(size)) or drawn[0])
            svg(keep, layout)
            box = drawn[0].legends[0].get_window_extent(FigureCanvasAgg(drawn[0]).get_renderer())
            assert 0 <= box.x0 < box.x1 <= drawn[0].bbox.x1


def test_lines_are_thinned_to_means() -> None:
    x, y = thinned([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 3.0, float("nan"), 5.0, float("inf")], points=2)
    assert (list(x), list(y)) == ([0.0, 2.0], [1.0, 4.0])
    x, _ = thinned(range(10_000), range(10_000))
    assert x.size == 500


def test_mean_throughput_is_over_time() -> None:
    line = synthetic_timeline("grid", "lls", devices=2)
    # 10 requests in the first second, 10 in the next ten
    assert mean_hz(replace(line, at_s=(1.0, 11.0), throughput_hz=(10.0, 1.0), latency_s=(0.0, 0.0))) == pytest.approx(
        20 / 11
    )
    assert mean_hz(replace(line, at_s=(0.0, 2.0), throughput_hz=(float("inf"), 3.0), latency_s=(0.0, 0.0))) == 3.0


def test_busy_timelines_are_drawn() -> None:
    line = synthetic_timeline("grid", "lls", devices=2)
    events = tuple((float(at), at + 1.5, at % 52, "cpu-25") for at in range(60))
    busy = replace(line, interference=events, changes=tuple((at / 7, "1|2") for at in range(400)))
    calm = replace(line, policy="static", interference=(), changes=())
    empty = replace(line, policy="mine", at_s=(), throughput_hz=(), latency_s=(), peak_hz=float("nan"))
    plot = make_report([replace(SMALL, cells=(), timelines=(busy, calm, empty))]).plots[0]
    assert "400 plan changes" not in plot.caption
    assert plot.caption.count("/s") == 2
    assert svg(plot, WIDE).startswith("<svg ")
    assert svg(plot, NARROW).startswith("<svg ")


def spiked(*, spikes, count=60, policy="lls", usual_hz=10.0, peak_hz=12.0):
    """A timeline of ``usual_hz`` but at the seconds of ``spikes``."""
    line = synthetic_timeline("grid", policy, devices=2)
    rates = tuple(spikes.get(at, usual_hz) for at in range(count))
    at_s = tuple(float(at) for at in range(count))
    return replace(line, at_s=at_s, throughput_hz=rates, latency_s=(0.1,) * count, peak_hz=peak_hz, changes=())


@pytest.mark.parametrize(
    ("lines", "end_hz"),
    [
        ([spiked(spikes={})], 12.0),
        ([spiked(spikes={7: 17.0})], 17.0),  # no spike: somewhat more than usual
        ([spiked(spikes={7: 400.0})], 18.0),
        ([spiked(spikes={0: 400.0, 1: math.inf, 59: 90.0})], 18.0),
        ([spiked(spikes={7: 400.0}), spiked(spikes={}, policy="static", usual_hz=20.0)], 30.0),
        ([spiked(spikes=dict.fromkeys(range(20, 30), 400.0))], 400.0),  # a level of its own
        ([spiked(spikes={7: 400.0}, peak_hz=math.nan)], 15.0),
        ([spiked(spikes={7: 5.0}, usual_hz=0.0, peak_hz=math.nan)], 5.0),
        ([spiked(spikes={}, count=0, peak_hz=math.nan)], 1.0),
    ],
)
def test_one_spike_does_not_set_the_axis(lines, end_hz) -> None:
    """The axis ended at the highest point of all: one of 400/s pressed every line onto the ground."""
    assert axis_end_hz(lines) == pytest.approx(1.28 * end_hz)


def test_a_spike_is_told_where_it_is_not_drawn() -> None:
    lines = (spiked(spikes={7: 400.0, 50: 90.0}), spiked(spikes={}, policy="static"))
    plot = make_report([replace(SMALL, cells=(), timelines=lines)]).plots[0]
    assert plot.caption.endswith("Beyond the axis (arrows): lls 400/s at 7 s (2 points).")
    for layout in (WIDE, NARROW):
        figure = plot.draw(layout)
        assert [axes.get_ylim() for axes in figure.axes[::2]] == [(0, pytest.approx(1.28 * 18))] * 2
        assert [text.get_text() for text in figure.axes[0].texts] == ["400/s"]
    assert beyond(lines[0], 50.0) == [(7.0, 400.0), (50.0, 90.0)]
    calm = make_report([replace(SMALL, cells=(), timelines=(lines[1],))]).plots[0]
    assert "Beyond" not in calm.caption


def test_one_strange_repeat_does_not_shrink_the_bars() -> None:
    cells = [
        replace(cell, latency_p99_s=9.0 if cell.policy == "lls" and cell.repeat == 1 else 0.2)
        for cell in synthetic_live(repeats=3).cells
    ]
    live = next(p for p in make_report([replace(SMALL, cells=tuple(cells))]).plots if p.slug.startswith("live"))
    [axes] = [axes for axes in live.draw(WIDE).axes if axes.get_title() == "p99 latency, ms"]
    assert axes.get_xlim()[1] < 500
    assert "200 (to 9000)" in [text.get_text() for text in axes.texts]


def test_each_figure_is_laid_out_and_drawn_once() -> None:
    """Matplotlib's search for margins drew each twice and measured it many times; events had two artists each."""
    line = synthetic_timeline("grid", "lls", devices=2)
    events = tuple((float(at), at + 0.5, at % 4, "cpu-25") for at in range(2000))
    plots = make_report([replace(SMALL, cells=(*SMALL.cells, *synthetic_live(repeats=1).cells))]).plots
    busy = make_report([replace(SMALL, cells=(), timelines=(replace(line, interference=events),))]).plots[0]
    for plot in (*plots, busy):
        figure = plot.draw(WIDE)
        assert figure.get_layout_engine() is None
        assert all(len(axes.patches) + len(axes.collections) < 100 for axes in figure.axes)


def test_progress_is_told(tmp_path, monkeypatch) -> None:
    told = []
    report = make_report([SMALL])
    html(report, on_drawn=lambda: told.append(1))
    assert len(told) == 2 * len(report.plots) > 0
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("odin_lab.commands.report.Console", lambda **_: terminal)
    path = SMALL.write(tmp_path / "r.json")
    assert main(["report", str(path), "--output", str(tmp_path / "r.html"), "--figures", str(tmp_path / "f")]) == 0
    total = 4 * len(report.plots)
    assert f"{total}/{total}" in terminal.file.getvalue()


def contrast(color: str, ground: str) -> float:
    """As the Web Content Accessibility Guidelines have it: 1 to 21."""

    def luminance(text: str) -> float:
        parts = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(color), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_are_read_on_white_and_on_the_dark_page() -> None:
    every = looks([*POLICIES, "mine:Policy", "odin:alpha=5", "odin:alpha=2 (serial)", "ray-serve", "a", "b", "c"])
    for color in {look.color for look in every.values()}:
        assert contrast(color, "#ffffff") >= 4.5, color
        assert color == INK or contrast(DARK[color], "#14171a") >= 4.5, color
    assert all(contrast(color, "#ffffff") >= 4.5 for color in DEVICES)


def test_captions_say_what_is_seen() -> None:
    cells = [
        synthetic_cell("grid", "m", policy, quality=quality, period=period)
        for period in (2.0, 10.0)
        for policy, quality in (("filter", 0.9 if period == 2.0 else 0.95), ("lls", 0.8), ("oracle", 1.0))
    ]
    plots = {plot.slug: plot.caption for plot in make_report([replace(SMALL, cells=tuple(cells))]).plots}
    assert "Worst cells: filter 0.900, lls 0.800." in plots["heat-of-oracle"]
    assert "all 2 settings together" in plots["latency-grid"]


def test_markdown_has_tables_and_links(tmp_path) -> None:
    report = make_report([SMALL], title="T")
    text = markdown(report)
    assert text.startswith("# T\n\n## Summary\n\n**Summary of the period x duration grid**\n\n| policy |")
    assert "![" not in text
    assert "- reconstructed & `so`" in text
    assert "Made by `odin simulate paper --quick`, 2026-01-01, on: cpu none <made up>." in text
    figures = {plot.slug: tmp_path / "figures" / f"{plot.slug}.svg" for plot in report.plots}
    assert "](figures/latency-grid.svg)" in markdown(report, figures=figures, beside=tmp_path)


def test_merged_results_name_all_their_commands() -> None:
    assert origin(replace(SMALL, command="a\nb", environment={})) == "Made by `a` and `b`, 2026-01-01."


def test_nothing_to_report_is_said() -> None:
    with pytest.raises(ResultsError, match="hold nothing to report"):
        make_report([replace(SMALL, cells=())])


def test_command_writes_what_is_asked_for(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    SMALL.write("r.json")
    assert main(["report", "r.json"]) == 0
    assert capsys.readouterr().out == "report.html\n"
    assert "<title>Evaluation of ODIN</title>" in (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert main(["report", "r.json", "--figures", "f", "--markdown", "docs/r.md", "--title", "T"]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written[-1] == "docs/r.md"
    assert (tmp_path / "f" / "latency-grid.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "f" / "latency-grid.svg").read_text().count("currentColor") == 0
    assert "](../f/latency-grid.svg)" in (tmp_path / "docs" / "r.md").read_text()
    assert not (tmp_path / "report.html").exists()


def test_command_says_what_is_wrong(tmp_path, capsys) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert main(["report", str(tmp_path / "other.json")]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err


def test_without_matplotlib_tables_work_and_figures_say_what_to_install(tmp_path, monkeypatch, capsys) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    path = SMALL.write(tmp_path / "r.json")
    assert main(["report", str(path), "--markdown", str(tmp_path / "r.md")]) == 0
    assert (tmp_path / "r.md").exists()
    assert main(["report", str(path), "--output", str(tmp_path / "r.html")]) == 2
    assert "pip install 'odin-pipeline[report]'" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
