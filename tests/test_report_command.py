"""The report as files: it is whole, opens without anything else, and fakes nothing."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from synthetic_results import POLICIES, synthetic_cell, synthetic_grid, synthetic_live, synthetic_timeline

from odin.cli import main
from odin.evaluation.figures import NARROW, WIDE, svg
from odin.evaluation.html import html
from odin.evaluation.markdown import markdown, origin
from odin.evaluation.plots_measured import mean_hz, thinned
from odin.evaluation.results import Results, ResultsError
from odin.evaluation.sections import make_report
from odin.evaluation.style import INK, looks

SMALL = Results(
    command="odin simulate paper --quick",
    created="2026-01-01",
    environment={"cpu": "none <made up>"},
    cells=tuple(synthetic_cell("grid", "m", policy, quality=0.9) for policy in ("predictive", "lls", "mine:Policy")),
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
            [synthetic_grid(("predictive", "lls", "oracle"), repeats=1), synthetic_live(repeats=2)],
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
        "Wins and misses",
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
        "Summary", "Wins and misses", "Latency distributions", "Service levels", "What finding plans costs", "Notes",
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
    few = looks(["lls", "predictive"])
    assert few == {policy: many[policy] for policy in few}
    assert max(many, key=lambda policy: many[policy].width) == "predictive"


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


def test_captions_say_what_is_seen() -> None:
    cells = [
        synthetic_cell("grid", "m", policy, quality=quality, period=period)
        for period in (2.0, 10.0)
        for policy, quality in (("predictive", 0.9 if period == 2.0 else 0.95), ("lls", 0.8), ("oracle", 1.0))
    ]
    plots = {plot.slug: plot.caption for plot in make_report([replace(SMALL, cells=tuple(cells))]).plots}
    assert "Worst cells: predictive 0.900, lls 0.800." in plots["heat-of-oracle"]
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
