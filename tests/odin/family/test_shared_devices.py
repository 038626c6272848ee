"""What variants on the same devices are predicted to take, and what is learned of the devices."""

from __future__ import annotations

import pytest

from odin.family.devices import Begun, SharedDevices

BOTH = ("cpu:0", "cpu:1")


def begin(devices: SharedDevices, variant: int, seconds: float, now_s: float = 0.0, **options: float) -> Begun:
    return devices.begun(variant, seconds, seconds, now_s, **options)


def seconds(devices: SharedDevices, variant: int, latency_s: float, now_s: float = 0.0) -> float:
    return devices.predict(variant, latency_s, now_s).predicted_s


def test_what_others_have_on_the_same_devices_counts_at_most_as_much_again():
    devices = SharedDevices([BOTH, BOTH, ("cpu:1",), ("cpu:2",)])
    assert seconds(devices, 0, 0.01) == 0.01
    begin(devices, 1, 0.2)
    assert seconds(devices, 0, 0.01) == 0.01  # the other core is left to it
    begin(devices, 1, 0.2)
    assert seconds(devices, 0, 0.01) == pytest.approx(0.02)
    assert seconds(devices, 2, 0.01) == pytest.approx(0.02)
    assert seconds(devices, 3, 0.01) == 0.01


def test_little_that_others_have_counts_for_what_it_is():
    devices = SharedDevices([("cpu:0",), ("cpu:0",)])
    begin(devices, 1, 0.004)
    assert seconds(devices, 0, 0.01) == pytest.approx(0.014)
    assert seconds(devices, 0, 0.01, 0.003) == pytest.approx(0.011)  # three quarters of it are done


def test_it_waits_for_a_stage_of_its_own():
    devices = SharedDevices([BOTH])
    first = begin(devices, 0, 0.02)
    assert seconds(devices, 0, 0.01) == 0.01
    begin(devices, 0, 0.05)
    assert seconds(devices, 0, 0.01) == pytest.approx(0.03)
    assert seconds(devices, 0, 0.01, 0.015) == pytest.approx(0.015)
    assert seconds(devices, 0, 0.01, 0.025) == pytest.approx(0.015)  # late by 5 ms: as much later again
    devices.answered(first, 0.025)
    assert devices.under_way(0) == 1


def test_what_siblings_do_to_each_other_is_no_slowdown_of_the_device():
    devices = SharedDevices([("cpu:0",), ("cpu:0",)])
    one, other = begin(devices, 0, 0.1), begin(devices, 1, 0.1)
    devices.answered(one, 0.2)
    devices.answered(other, 0.2)
    assert devices.slowdown(0, 0.2, request_s=0.1) == pytest.approx(1.0)
    assert seconds(devices, 0, 0.1, 0.2) == pytest.approx(0.1)


def test_nor_is_one_that_has_come_later():
    devices = SharedDevices([("cpu:0",), ("cpu:0",)])
    one = begin(devices, 0, 0.1)
    begin(devices, 1, 0.5, 0.05)
    devices.answered(one, 0.15)  # half alone, and half in turns
    assert devices.slowdown(0, 0.15, request_s=0.1) == pytest.approx(1.0)


def test_a_slowdown_that_one_has_found_holds_for_all_on_the_device_and_fades():
    devices = SharedDevices([BOTH, ("cpu:0",), ("cpu:2",)])
    devices.answered(begin(devices, 0, 0.01, 10.0), 10.03)
    assert devices.slowdown(1, 10.03, request_s=0.01) == pytest.approx(1.6)  # 0.3 of the way to 3
    assert devices.slowdown(2, 10.03, request_s=0.01) == 1.0
    assert seconds(devices, 1, 0.01, 10.03) == pytest.approx(0.016)
    assert devices.slowdown(1, 10.13, request_s=0.01) == pytest.approx(1.3)  # half in ten requests' time
    assert devices.slowdown(1, 11.0, request_s=0.01) < 1.01  # else it could keep all out for ever


def test_one_that_is_late_tells_that_it_took_so_long_at_least():
    devices = SharedDevices([("cpu:0",)])
    devices.ended(begin(devices, 0, 0.01, deadline_s=0.04), 0.04, late=True)
    assert devices.slowdown(0, 0.04, request_s=0.01) == pytest.approx(1.9)
    devices = SharedDevices([("cpu:0",)])
    devices.ended(begin(devices, 0, 0.01, deadline_s=0.005), 0.005, late=True)
    devices.ended(begin(devices, 0, 0.01, 0.005), 0.02)  # cancelled
    assert devices.slowdown(0, 0.02, request_s=0.01) == 1.0
    assert devices.under_way(0) == 0


def test_the_margin_widens_when_a_promise_breaks_and_counts_for_little_with_nothing_to_do():
    devices = SharedDevices([("cpu:0",), ("cpu:1",)])
    begin(devices, 0, 0.01)
    before = devices.predict(0, 0.01, 0.0)
    devices.ended(begin(devices, 0, 0.01, deadline_s=0.04), 0.04, late=True)
    after = devices.predict(0, 0.01, 1.0)
    assert (after.latest_s - 1.0) / (after.expected_s - 1.0) > before.latest_s / before.expected_s
    alone = devices.predict(1, 0.01, 0.0)
    assert alone.latest_s == pytest.approx(1.25 * alone.expected_s)


def test_a_short_request_s_own_overhead_does_not_make_devices_look_slow():
    """Of one that takes 1 ms the program's 2 ms are two thirds; of one that takes 50 ms they are nothing."""
    devices = SharedDevices([["cpu:0"], ["cpu:0"]])
    now_s = 0.0
    for _ in range(20):
        for variant, latency_s in enumerate((0.05, 0.001)):
            took_s = latency_s + 0.002
            begun = devices.begun(variant, latency_s, latency_s, now_s)
            now_s += took_s
            devices.answered(begun, now_s)
    assert devices.slowdown(0, now_s, request_s=0.05) < 1.15
