"""From when on the benchmark of reaction takes a load to be felt."""

from benchmarks.reaction import felt, since
from odin.monitor.timing import RequestTimeline, StageTiming


def request(*waited):
    """A request whose stages waited for their cores for these parts of their time."""
    stages = [
        StageTiming(stage, stage, stage + 1, 0.0, 0.1, 0.1 * (1 - part), 0.1 * part, 0.0, (0.1,))
        for stage, part in enumerate(waited)
    ]
    return RequestTimeline(1, 0, 0.0, 1.0, tuple(stages))


def test_felt_is_the_first_of_two_in_a_row_that_wait_for_one_core():
    calm, once, loaded = request(0.0, 0.02), request(0.0, 0.5), request(0.1, 0.6)
    assert felt([calm, calm, once, calm, loaded, loaded]) == 4
    assert felt([loaded, loaded]) == 0


def test_one_slice_or_two_cores_in_turn_are_not_felt():
    calm, here, there = request(0.0, 0.0), request(0.5, 0.0), request(0.0, 0.5)
    assert felt([calm, here, calm, here, there, here, calm]) is None
    assert felt([]) is None


def test_requests_from_a_beginning_are_unknown_without_it():
    assert since([5, None, 7, None], [2, 3, None, None]) == [3, None, None, None]
