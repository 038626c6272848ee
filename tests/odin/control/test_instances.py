"""How many stages take requests: which ones, and what cannot be."""

from __future__ import annotations

import pytest

from odin.control.instances import check_instances, taking_part


@pytest.mark.parametrize(
    ("live", "asked", "taking"),
    [((0, 1, 2), 3, (0, 1, 2)), ((0, 1, 2), 1, (0,)), ((1, 2), 2, (1, 2)), ((2,), 2, (2,)), ((), 1, ())],
)
def test_the_first_ones_that_live_take_part(live, asked, taking):
    assert taking_part(live, asked) == taking


def check(asked, **options):
    given = {"stages": 3, "policy": "relay", "relays": True, "shares_queue": True, **options}
    return check_instances(asked, **given)


def test_one_to_all_stages():
    assert [check(count) for count in (1, 2, 3)] == [1, 2, 3]
    assert check(1, stages=1, relays=False, shares_queue=False) == 1


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (0, {}, r"instances=0 is not from 1 to 3, the number of stages; for more, start it with more stages"),
        (4, {}, r"instances=4 is not from 1 to 3"),
        (1.5, {}, r"instances=1.5 is no whole number; give one from 1 to 3"),
        (2, {"policy": "filter", "relays": False}, r"nothing under policy 'filter', .* pipe.policy = 'relay'"),
        (2, {"shares_queue": False}, r"only if all are on CPU cores of this machine"),
    ],
)
def test_errors_name_the_value_and_the_remedy(asked, options, message):
    with pytest.raises(ValueError, match=message):
        check(asked, **options)
