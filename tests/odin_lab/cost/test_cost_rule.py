"""Perseus's rule, exactly: no server, no clock."""

from __future__ import annotations

import math

import pytest

from odin_lab.cost.limits import by_model
from odin_lab.cost.rule import Machines, cost_per_million, machines, sharing
from odin_lab.cost.serving import names_of


def test_a_million_requests_take_a_million_by_the_rate():
    assert cost_per_million(3.6, 1.0) == 1000.0
    assert cost_per_million(0.09, 25.0) == 1.0


def test_full_dedicated_machines_whose_work_is_shared():
    """Half of each one's peak, at once: it does the work of one dedicated machine, and saves nothing."""
    found = sharing(0.09, dedicated_hz={"a": 25.0, "b": 100.0}, shared_hz={"a": 12.5, "b": 50.0})
    assert (found.work, found.gain) == (1.0, 0.0)
    assert found.dedicated == found.shared == {"a": 1.0, "b": 0.25}


def test_the_gain_is_the_same_for_each_model_whatever_the_proportion():
    found = sharing(0.09, dedicated_hz={"a": 25.0, "b": 100.0}, shared_hz={"a": 20.0, "b": 45.0})
    assert found.work == pytest.approx(1.25)
    assert found.gain == pytest.approx(0.2)
    assert found.shared == {"a": pytest.approx(0.8), "b": pytest.approx(0.2)}
    an_hour = 3600 * (20.0 * found.shared["a"] + 45.0 * found.shared["b"]) / 1e6
    assert an_hour == pytest.approx(0.09)  # what is charged is the shared machine's price


def test_interference_makes_sharing_cost_more():
    found = sharing(1.0, dedicated_hz={"a": 10.0, "b": 10.0}, shared_hz={"a": 4.0, "b": 4.0})
    assert found.gain == pytest.approx(-0.25)
    assert found.shared["a"] == pytest.approx(1.25 * found.dedicated["a"])


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        ({"a": 1.0, "b": 1.0}, Machines(2, 1)),
        ({"a": 6.0, "b": 6.0}, Machines(2, 1)),
        ({"a": 6.1, "b": 6.1}, Machines(2, 2)),
        ({"a": 30.0, "b": 30.0}, Machines(6, 5)),
        ({"a": 6.0, "b": 13.0}, Machines(3, 3)),
    ],
)
def test_whole_machines(asked, needed):
    peaks = {"dedicated_hz": {"a": 10.0, "b": 10.0}, "shared_hz": {"a": 6.0, "b": 6.0}}
    assert machines(asked, **peaks) == needed


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_rate(rate_hz):
    with pytest.raises(ValueError, match="must be a number above 0"):
        cost_per_million(1.0, rate_hz)
    with pytest.raises(ValueError, match="must be a number above 0"):
        cost_per_million(rate_hz, 1.0)
    with pytest.raises(ValueError, match="must be a number above 0"):
        sharing(1.0, dedicated_hz={"a": 1.0}, shared_hz={"a": rate_hz})


def test_other_models_in_one_than_in_the_other():
    with pytest.raises(ValueError, match=r"rates of \['a'\] and of \['b'\]"):
        sharing(1.0, dedicated_hz={"a": 1.0}, shared_hz={"b": 1.0})
    with pytest.raises(ValueError, match=r"rates of \[\] and of \[\]"):
        sharing(1.0, dedicated_hz={}, shared_hz={})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "'0' is no number above 0"),
        ("5,c=3", "no model is called 'c'; there are a, b"),
        ("a=5", "no number for b; add one for all models, or b=NUMBER"),
        ("5,6", "two numbers for all models"),
        ("a=x,3", "'a=x' is no number above 0, nor NAME=NUMBER"),
    ],
)
def test_numbers_of_models_that_are_none(text, says):
    with pytest.raises(ValueError, match=says):
        by_model(text, ["a", "b"], option="--p95-ms")


def test_numbers_of_models():
    assert by_model("5, b=7", ["a", "b"], option="--p95-ms") == {"a": 5.0, "b": 7.0}
    assert by_model("a=1e2,b=7", ["a", "b"], option="--p95-ms") == {"a": 100.0, "b": 7.0}


def test_two_models_of_one_name():
    with pytest.raises(ValueError, match="vgg16 and torchvision:vgg16 are both called 'vgg16'"):
        names_of(["vgg16", "torchvision:vgg16"])
