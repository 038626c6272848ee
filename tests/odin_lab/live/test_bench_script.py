"""Who runs when, and which loads come: drawn from seeds, with room for an undisturbed beginning."""

from __future__ import annotations

import pytest

from odin.stages.device import Device
from odin_lab.inject.load import LoadError
from odin_lab.live.script import Script, Turn, describe, file_script, random_script, turns

DEVICES = (Device.parse("cpu:0"), Device.parse("cpu:1"))


def test_turns_are_everybody_once_a_repeat_in_an_order_that_repeats():
    order = turns(["a", "b", "c"], repeats=3, seed=0)
    assert order == turns(["a", "b", "c"], repeats=3, seed=0)
    assert [turn.repeat for turn in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert ["".join(turn.name for turn in order if turn.repeat == repeat) for repeat in range(3)] == [
        "cba",
        "acb",
        "bca",
    ]
    assert turns(["a", "b", "c"], repeats=1, seed=1) == (Turn(0, "a"), Turn(0, "c"), Turn(0, "b"))


@pytest.mark.parametrize(
    ("names", "repeats", "match"),
    [((), 1, "0 contenders"), (("a",), 0, "0 repeats"), (("a", "b", "a"), 1, "a is named")],
)
def test_turns_refuse(names, repeats, match):
    with pytest.raises(ValueError, match=match):
        turns(names, repeats=repeats, seed=0)


def test_a_random_script_has_its_first_event_after_a_period():
    script = random_script(DEVICES, seconds=60, period_s=20, duration_s=10, seed=0)
    assert describe(script) == "membw-100 on cpu:1 20..30 s; cpu-100 on cpu:0 40..50 s"
    assert (script.lead_s, script.quiet_s) == (20.0, 17.5)
    assert describe(random_script(DEVICES, seconds=60, period_s=20, duration_s=10, seed=1)) != describe(script)


def test_short_periods_begin_later_so_that_there_is_an_undisturbed_time():
    script = random_script(DEVICES, ["cpu-50"], seconds=30, period_s=2, duration_s=1, seed=0)
    assert script.lead_s == 8.0
    assert [step.start_s for step in script.scenario.steps] == [8.0 + 2 * i for i in range(11)]
    assert script.scenario.end_s <= 30
    assert random_script(DEVICES, ["cpu-50"], seconds=6, period_s=1, duration_s=1, seed=0).lead_s == 2.0


def test_no_room_for_an_event():
    with pytest.raises(LoadError, match=r"no event begins within 15 s.* after 20 s: lengthen --seconds"):
        random_script(DEVICES, seconds=15, period_s=20, duration_s=10, seed=0)
    with pytest.raises(LoadError, match="period of -1 s"):
        random_script(DEVICES, seconds=15, period_s=-1, duration_s=10, seed=0)


def test_a_file_is_put_off_and_broken_off(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(
        '[[load]]\nkind = "cpu"\non = "cpu:1"\nstart_s = 2\n\n[[load]]\nkind = "membw"\non = "cpu:0"\n'
        "start_s = 12\nduration_s = 4\nintensity = 0.5\n"
    )
    script = file_script(path, seconds=30)
    assert describe(script) == "cpu on cpu:1 8..30 s; membw on cpu:0 18..22 s"
    assert (script.period_s, script.duration_s) == (10.0, 13.0)
    assert Script.from_plain(script.to_plain()) == script
    assert describe(file_script(path, seconds=5)) == "cpu on cpu:1 2..5 s"


def test_a_file_that_begins_too_late(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text('[[load]]\nkind = "cpu"\non = "cpu:1"\nstart_s = 40\n')
    with pytest.raises(LoadError, match=r"scenario.toml: .*starts at 40 s.*lengthen --seconds"):
        file_script(path, seconds=30)
    with pytest.raises(LoadError, match="0 s leave no time"):
        file_script(path, seconds=0)
