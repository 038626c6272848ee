"""The benchmark of tenants: its rows."""

from __future__ import annotations

from benchmarks.tenants import COLUMNS, Served, rows, sums


def turn(*rates_hz: float, p99_s: float = 0.2) -> list[Served]:
    return [Served(rate_hz, [0.1] * 99 + [p99_s] * 5, f"{index}|9") for index, rate_hz in enumerate(rates_hz)]


def test_throughputs_are_divided_by_those_alone_in_the_same_round():
    turns = {
        "alone 0": [turn(10.0), turn(20.0)],
        "alone 1": [turn(100.0), turn(50.0)],
        "together": [turn(5.0, 60.0), turn(10.0, 30.0, p99_s=0.4)],
    }
    assert sums(turns, "together") == [1.1, 1.1]
    table = rows(turns)
    assert [len(row) for row in table] == [len(COLUMNS)] * 3
    assert [row[0] for row in table] == ["alone 0", "alone 1", "together"]
    assert table[0][1] == ""
    assert table[2][1].startswith("1.100 ")
    assert table[2][2] == "7.5 + 45.0"
    assert table[2][4].startswith("300.0 ")
    assert table[2][5] == "0|9 + 1|9"
