"""The cost model of a hop."""

import itertools

import pytest

from odin.partitioner.transfer import TransferCost, measure_transfer


def test_sender_copies_and_both_ends_wake_up():
    cost = TransferCost(hop_s=0.5, copy_s_per_byte=0.125)
    assert cost.send_s([0, 8, 80]).tolist() == [0.25, 1.25, 10.25]
    assert cost.receive_s([0, 8, 80]).tolist() == [0.25, 0.25, 0.25]


def test_measured_copy_is_the_fastest():
    # Readings in pairs: copies take 5, 2 and 3 seconds.
    readings = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    assert measure_transfer(nbytes=1000, repeats=3, hop_s=0.25, clock=lambda: next(readings)) == (0.25, 0.002)


def test_real_clock_gives_a_plausible_cost():
    cost = measure_transfer(nbytes=100_000, repeats=3)
    assert 0 <= cost.copy_s_per_byte < 1e-3


def test_bad_arguments():
    for nbytes, repeats in itertools.product((0, 1), (0, 1)):
        if nbytes and repeats:
            continue
        with pytest.raises(ValueError, match="both must be at least 1"):
            measure_transfer(nbytes=nbytes, repeats=repeats)
