"""What the report computes: ratios, worst cases, bold numbers, misses; and how tables are written."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic_results import synthetic_cell

from odin_lab.report.comparison import Place, is_ours, is_yardstick, order_policies, pooled_quantiles, scores
from odin_lab.report.measured import live_table, order_table, validation_table
from odin_lab.report.results import QUANTILES, Validation
from odin_lab.report.summary import cells_table, headline_table, misses_table, misses_text, scaling_table
from odin_lab.report.tables import Table, Value, html_table, markdown_table

NAN = math.nan


def repeated(number, form=".3f"):
    """The same in each of six repeats."""
    return Value.of(number, form, by_repeat=dict.fromkeys(range(6), number))


def cell(policy, quality, **options):
    return synthetic_cell("grid", "m", policy, quality=quality, **options)


def test_ours_comes_first_and_yardsticks_last() -> None:
    given = ("delayed-oracle", "mine:Policy", "odin:alpha=10", "oracle", "lls", "odin:alpha=2", "static", "filter")
    given = (*given, "relay")
    expected = (
        "relay",
        "filter",
        "odin:alpha=2",
        "odin:alpha=10",
        "lls",
        "static",
        "mine:Policy",
        "oracle",
        "delayed-oracle",
    )
    assert order_policies([*given, *given]) == expected
    assert [policy for policy in expected if is_ours(policy)] == ["relay", "filter"]
    assert is_ours("filter:horizon=2 (serial)")


def test_remarks_do_not_make_another_policy() -> None:
    given = (
        "lls",
        "odin:alpha=10 (serial)",
        "odin:alpha=2 (serial)",
        "odin:alpha=10",
        "lls (serial)",
        "oracle (serial)",
    )
    assert order_policies(given) == (
        "odin:alpha=10", "odin:alpha=2 (serial)", "odin:alpha=10 (serial)", "lls", "lls (serial)", "oracle (serial)",
    )  # fmt: skip
    assert is_yardstick("oracle (serial)")


def test_ratios_are_paired_by_repeat() -> None:
    cells = [cell("lls", 0.5, repeat=0), cell("lls", 0.8, repeat=1), cell("static", 0.4, repeat=1)]
    cells += [cell("filter", 1.0, repeat=0), cell("filter", 0.8, repeat=1)]
    cells = [replace(c, of_oracle=NAN, of_static=NAN) for c in cells]
    ours = scores(cells)[Place("grid", "m", 4, 10.0, 10.0)]["filter"]
    assert ours.of_lls == pytest.approx((1.0 / 0.5 + 0.8 / 0.8) / 2)
    assert ours.of_static == pytest.approx(2.0)  # only repeat 1 has a partner
    assert math.isnan(ours.of_oracle)
    assert ours.repeats == 2


def test_a_told_ratio_is_believed_and_live_studies_take_medians() -> None:
    values = (0.2, 0.5, 0.6)
    cells = [cell("filter", 1.0, repeat=at) for at in range(3)]
    cells = [replace(c, of_oracle=value) for c, value in zip(cells, values, strict=True)]
    (place,) = scores(cells).values()
    assert place["filter"].of_oracle == pytest.approx(np.mean(values))
    (place,) = scores(replace(c, study="live") for c in cells).values()
    assert place["filter"].of_oracle == 0.5


def test_headline_tells_mean_and_worst() -> None:
    cells = []
    for repeat in range(6):
        for period, ours, lls in ((2.0, 0.9, 0.9), (10.0, 0.8, 0.4)):
            cells += [
                cell("filter", ours, period=period, repeat=repeat),
                cell("lls", lls, period=period, repeat=repeat),
                cell("oracle", 1.0, period=period, repeat=repeat),
            ]
    table = headline_table(cells, "t")
    assert table.columns[:2] == ("policy", "throughput / oracle")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["filter"][0] == Value(pytest.approx(0.85), "0.850", "(0.800)")
    at = table.columns.index("throughput / lls") - 1
    assert (rows["filter"][at].text, rows["filter"][at].extra) == ("1.50", "(1.00)")
    at = table.columns.index("p99 latency / lls") - 1
    assert rows["filter"][at].extra == "(1.00)"  # the worst of a latency is the highest
    best = {(table.rows[row][0], table.columns[column]) for row, column in table.best()}
    assert ("filter", "throughput / oracle") in best
    assert not any(policy == "oracle" for policy, _ in best)


def test_headline_leaves_out_what_nobody_knows() -> None:
    table = headline_table([replace(cell("mine", 0.5), of_oracle=NAN, of_delayed=NAN, of_static=NAN)], "t")
    assert table.columns == ("policy", "requests at 80% of peak", "changes per event")


def test_misses_are_counted_and_told_worst_first() -> None:
    cells = []
    for period, of_delayed, of_static, changes in (
        (2.0, 0.95, 0.98, 1.0),
        (10.0, 0.90, 1.2, 2.5),
        (100.0, 0.97, 0.99, 2.0),
    ):
        ours = cell("filter", 0.9, period=period)
        cells.append(replace(ours, of_delayed=of_delayed, of_static=of_static, changes_per_event=changes))
        cells.append(cell("lls", 0.95 if period == 2.0 else 0.5, period=period))
    found = scores(cells)
    text = misses_text(found, "filter")
    assert (
        "below 0.97 of the delayed oracle's throughput in 2 of 3 settings: m, 4 devices, period 10, duration 10 (0.900)"
        in text
    )
    assert "period 2, duration 10 (0.950)" in text
    assert "below 0.99 of static's throughput in 1 of 3 settings: m, 4 devices, period 2, duration 10 (0.980)" in text
    assert "more than 2 plan changes per interference event in 1 of 3 settings" in text
    row = next(row for row in misses_table(found, "t").rows if row[0] == "filter")
    assert [value.text for value in row[2:]] == ["2", "2", "1", "1"]


def test_no_misses_and_nothing_known_read_differently() -> None:
    found = scores([replace(cell("filter", 0.99), of_delayed=1.0, of_static=NAN)])
    text = misses_text(found, "filter")
    assert "below 0.97 of the delayed oracle's throughput in none of 1 settings" in text
    assert "static's throughput: not known" in text


def test_long_lists_of_misses_are_cut() -> None:
    cells = [replace(cell("filter", 0.5, period=float(at)), of_delayed=at / 100) for at in range(1, 16)]
    assert "; and 9 more." in misses_text(scores(cells), "filter")


def test_cells_table_has_who_is_ahead_of_all_others_in_each_row_bold() -> None:
    cells = [cell(p, q, repeat=at) for at in range(6) for p, q in (("filter", 0.9), ("lls", 0.95), ("oracle", 1.0))]
    table = cells_table(cells, "of_oracle", "t")
    assert table.columns == ("model", "devices", "period", "duration", "filter", "lls", "oracle")
    assert table.best() == {(0, 5)}
    assert cells_table([cell for cell in cells if cell.repeat < 5], "of_oracle", "t").best() == frozenset()


def test_a_median_above_1_is_not_bold_where_static_is_ahead_in_as_many_repeats() -> None:
    """The live table had 1.07 of static in bold, of three repeats, in one of which static was ahead."""
    cells = [
        synthetic_cell("live", "m", policy, quality=quality, repeat=at)
        for at, ratio in enumerate((0.94, 1.07, 1.09))
        for policy, quality in (("filter", 0.6 * ratio), ("static", 0.6))
    ]
    cells = [replace(c, of_static=c.throughput_hz / cells[2 * c.repeat + 1].throughput_hz) for c in cells]
    table = live_table(cells, "t")
    assert table.best() == frozenset()
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["throughput / static"].text == "1.070"
    assert row["throughput beside static's"] == "no difference seen"
    assert "nothing is bold" in markdown_table(table)


def test_scaling_table_has_a_column_for_each_number_of_devices() -> None:
    cells = [
        synthetic_cell("scaling", "m", p, quality=q, devices=n, repeat=at)
        for at in range(6)
        for n in (52, 4)
        for p, q in (("lls", 0.5), ("static", 0.6))
    ]
    table = scaling_table(cells, "t")
    assert table.columns == ("policy", "4 devices", "52 devices")
    assert [row[0] for row in table.rows] == ["lls", "static"]
    assert table.best() == {(1, 1), (1, 2)}


def test_yardsticks_stay_yardsticks_when_columns_are_left_out() -> None:
    table = Table("t", "", ("r", "gone", "a", "b", "oracle"), (("1", *map(repeated, (NAN, 0.1, 0.2, 0.9))),), ("high",))
    table = replace(table, best_by="row", yardsticks=frozenset({4})).without_empty()
    assert table.columns == ("r", "a", "b", "oracle")
    assert table.best() == {(0, 2)}


@pytest.mark.parametrize("better", ["high", "low"])
def test_bold_is_ahead_of_all_others_and_equals_are_not(better) -> None:
    rows = tuple((str(at), repeated(value)) for at, value in enumerate((0.5, 0.5, 0.4, 0.6, NAN)))
    wanted = {"high": {(3, 1)}, "low": {(2, 1)}}[better]
    assert Table("t", "", ("p", "v"), rows, (better,)).best() == wanted
    assert Table("t", "", ("p", "v"), rows[:3], ("high",)).best() == frozenset()
    assert Table("t", "", ("p", "v"), rows[:1], (better,)).best() == frozenset()
    once = tuple((str(at), Value.of(value, by_repeat={0: value})) for at, value in enumerate((0.5, 0.4)))
    assert Table("t", "", ("p", "v"), once, (better,)).best() == frozenset()


def test_markdown_escapes_and_marks() -> None:
    ours = replace(repeated(1.0, ".1f"), extra="(0.5)")
    table = Table("t", "read it.", ("p", "v"), (("7|11", ours), ("b", Value.of(NAN))), ("high",))
    table = replace(
        table,
        rows=(*table.rows, ("oracle", repeated(2.0, ".1f")), ("c", repeated(0.5, ".1f"))),
        yardsticks=frozenset({2}),
    )
    assert markdown_table(table).splitlines() == [
        "**t**",
        "",
        "| p | v |",
        "| --- | ---: |",
        "| 7\\|11 | **1.0 (0.5)** |",
        "| b | - |",
        "| *oracle* | 2.0 |",
        "| c | 0.5 |",
        "",
        "read it. Bold is what is ahead of each of the others in the same repeats (95% interval of the median "
        "difference).",
    ]


def test_html_escapes_and_marks() -> None:
    table = Table(
        "a<b",
        "see `x<y`",
        ("p", "v"),
        (("<i>", repeated(1.0)), ("filter", replace(repeated(2.0), extra="[1, 3]"))),
        ("high",),
    )
    text = html_table(table)
    assert "<i>" not in text
    assert "a&lt;b" in text
    assert "<code>x&lt;y</code>" in text
    assert (
        '<tr class="ours"><th scope="row">filter</th><td><b>2.000</b> <small class="below">[1, 3]</small></td>' in text
    )


def test_pooled_quantiles_weigh_cells_by_their_requests() -> None:
    few = replace(cell("lls", 1.0), requests=100, latency_quantiles_s=tuple(1.0 for _ in QUANTILES))
    many = replace(cell("lls", 1.0), requests=300, latency_quantiles_s=tuple(2.0 for _ in QUANTILES))
    pooled = pooled_quantiles([few, many])
    assert (pooled[20], pooled[30]) == (1.0, 2.0)
    assert np.isnan(pooled_quantiles([replace(few, latency_quantiles_s=())])).all()


def test_pooling_a_single_cell_keeps_its_quantiles() -> None:
    one = replace(cell("lls", 1.0), latency_quantiles_s=QUANTILES)
    assert pooled_quantiles([one])[1:-1] == pytest.approx(QUANTILES[1:-1])


def test_live_table_tells_median_interval_and_all_that_was_lost() -> None:
    cells = [
        replace(synthetic_cell("live", "m", "lls", quality=1.0, repeat=at), throughput_hz=rate, lost=at)
        for at, rate in enumerate((10.0, 12.0, 11.0))
    ]
    table = live_table([*cells, synthetic_cell("live", "m", "static", quality=0.5)], "t")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["policy"], row["throughput, /s"].text, row["throughput, /s"].extra) == (
        "lls",
        "11.00",
        "[10.00, 12.00]",
    )
    assert row["lost in all"].text == "3"
    of_static = dict(zip(table.columns, table.rows[1], strict=True))
    assert of_static["throughput, /s"].extra == ""  # it ran once
    assert table.caption == "Median, and the range of 3 repeats, which holds the true median with 75%."


def test_validation_marks_what_is_too_far_off() -> None:
    table = validation_table(
        [Validation("calm", "lls", 10.0, 10.4, 0.1, 0.12), Validation("calm", "x", 10.0, 9.0, 0.1, 0.1)], "t"
    )
    off = [(row[4].text, row[4].extra, row[7].text, row[7].extra) for row in table.rows]
    assert off == [("+4.0", "", "+20.0", "(missed)"), ("-10.0", "(missed)", "+0.0", "")]


def test_order_counts_pairs_that_agree() -> None:
    rows = [("a", 3.0, 3.0), ("b", 2.0, 1.0), ("c", 1.0, 2.0)]
    table = order_table([Validation("run", p, live, simulated, 1.0, 1.0) for p, live, simulated in rows], "t")
    assert table.rows == (("run", "a > b > c", "a > c > b", "2 of 3"),)
    assert order_table([Validation("run", "a", 1.0, 1.0, 1.0, 1.0)], "t").rows == ()
