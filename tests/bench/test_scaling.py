"""What scaling.py says of seconds and memory."""

import pytest
import scaling

UNITS = [100, 200, 400, 800]
MB = 10**6


def measured(seconds, flat=None):
    return scaling.Measured("a thing", "units", UNITS, seconds, [500 * MB] * 4, flat)


def test_a_line_is_found_and_passes():
    found = measured([3 + 0.02 * units for units in UNITS])
    assert found.line == pytest.approx((3, 0.02))
    assert found.over_line == pytest.approx([0, 0, 0, 0])
    assert found.fine


def test_a_quadratic_time_fails():
    assert not measured([0.0001 * units**2 for units in UNITS]).fine


def test_what_grows_a_little_faster_than_the_units_fails_though_it_is_near_a_line():
    found = measured([units**1.1 for units in UNITS])
    assert max(map(abs, found.over_line)) < scaling.OFF_LINE
    assert found.over_proportional == pytest.approx(8**0.1 - 1)
    assert not found.fine


def test_memory_may_grow_by_the_rows_and_a_tenth():
    seconds = [0.02 * units for units in UNITS]
    memory = [500 * MB, 640 * MB]
    assert measured(seconds).fine  # not asked for
    assert not measured(seconds, (memory, [0, 0])).fine
    assert measured(seconds, (memory, [10 * MB, 110 * MB])).fine


@pytest.mark.parametrize("quantity", scaling.QUANTITIES, ids=lambda quantity: quantity.name)
def test_each_quantity_is_four_different_steps(quantity):
    steps = scaling.steps_of(quantity, 1.0)
    units = list(steps)
    assert [count / units[0] for count in units] == list(scaling.TIMES)
    assert len({step.fingerprint for step in steps.values()}) == len(scaling.TIMES)
    assert len({step.stage for step in steps.values()}) == 1
