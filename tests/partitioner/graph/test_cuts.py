"""Exact cuts for small sequences of steps."""

from __future__ import annotations

import pytest

from odin.partitioner.graph.cuts import Crossing, choose_cuts


def one(nbytes: int) -> Crossing:
    return Crossing(True, 1, nbytes)


def several(nbytes: int, tensors: int = 2) -> Crossing:
    return Crossing(True, tensors, nbytes)


NEVER = Crossing(False, 1, 1)
FINE = {"coarse_share": 1.0, "minimum_share": 0.0}


def test_no_step_no_cut():
    assert choose_cuts([], [], []) == ()


def test_nothing_heavy_no_cut():
    assert choose_cuts([1, 1], [False, False], [one(8)] * 2) == ()


def test_between_heavy_steps_where_fewest_bytes_cross():
    # conv, relu, pool | conv, relu
    costs, heavy = [5, 1, 1, 5, 1], [True, False, False, True, False]
    assert choose_cuts(costs, heavy, [one(9), one(9), one(4), one(9), one(9)], **FINE) == (2,)
    assert choose_cuts(costs, heavy, [one(3), one(9), one(4), one(9), one(9)], **FINE) == (0,)


def test_of_equal_places_the_latest():
    assert choose_cuts([5, 1, 1, 5], [True, False, False, True], [one(9)] * 4, **FINE) == (2,)


def test_leading_and_trailing_trivial_steps_stay_with_their_neighbours():
    heavy = [False, True, False, True, False]
    assert choose_cuts([0, 5, 0, 5, 0], heavy, [one(1)] * 5, **FINE) == (2,)


def test_illegal_places_are_avoided():
    assert choose_cuts([5, 1, 5], [True, False, True], [one(9), NEVER, NEVER], **FINE) == (0,)
    assert choose_cuts([5, 1, 5], [True, False, True], [NEVER, NEVER, NEVER], **FINE) == ()


def test_several_tensors_only_where_a_layer_is_coarse():
    costs, heavy = [10, 10, 10, 10], [True] * 4
    crossings = [one(8), several(16), one(8), one(8)]
    assert choose_cuts(costs, heavy, crossings, coarse_share=0.5, minimum_share=0.0) == (0, 2)
    assert choose_cuts(costs, heavy, crossings, coarse_share=0.4, minimum_share=0.0) == (0, 1, 2)


def test_wide_cuts_only_where_narrow_ones_do_not_suffice():
    heavy = [True] * 6
    crossings = [one(8), several(17), several(16), several(17), one(8), one(8)]
    # the layer of steps 1 to 4 falls into halves of 2/6, not coarse at 0.35
    assert choose_cuts([10] * 6, heavy, crossings, coarse_share=0.35, minimum_share=0.0) == (0, 2, 4)
    # at 0.3 they are: up to four times the bytes
    assert choose_cuts([10] * 6, heavy, crossings, coarse_share=0.30, minimum_share=0.0) == (0, 1, 2, 3, 4)


def test_without_any_single_tensor_cut_the_largest_is_the_unit():
    assert choose_cuts([1, 1, 1], [True] * 3, [several(5), several(9), one(1)], minimum_share=0.0) == (0, 1)


def test_pieces_of_a_coarse_layer_are_not_splinters():
    # ten steps of 1 in a layer of 10 of 20; coarse above 20%, so splinters are below 5% = 1
    costs = [10] + [0.5] * 20
    crossings = [one(8)] + [several(9 + i) for i in range(19)] + [one(8)]
    cuts = choose_cuts(costs, [True] * 21, crossings, coarse_share=0.2, minimum_share=0.0)
    pieces = [b - a for a, b in zip((0, *cuts), (*cuts, 20), strict=True)]
    assert all(piece * 0.5 >= 1 for piece in pieces[1:])
    assert len(pieces) > 4


def test_small_layers_join_over_the_cut_with_more_bytes():
    costs, heavy = [100, 0.1, 100], [True] * 3
    assert choose_cuts(costs, heavy, [one(8), one(9), one(1)], coarse_share=1.0) == (0,)
    assert choose_cuts(costs, heavy, [one(9), one(8), one(1)], coarse_share=1.0) == (1,)


def test_small_layers_join_until_none_is_small():
    cuts = choose_cuts([1] * 100, [True] * 100, [one(8)] * 100, coarse_share=1.0, minimum_share=0.1)
    starts = [0, *(cut + 1 for cut in cuts)]
    sizes = [end - start for start, end in zip(starts, [*starts[1:], 100], strict=True)]
    assert min(sizes) >= 10
    assert max(sizes) <= 20


@pytest.mark.parametrize("shares", [(0.0, 0.0), (1.0, 1.0)])
def test_extreme_shares(shares):
    coarse_share, minimum_share = shares
    cuts = choose_cuts([1, 1], [True, True], [one(8)] * 2, coarse_share=coarse_share, minimum_share=minimum_share)
    assert cuts == ((0,) if minimum_share == 0 else ())
