"""Schedules: hand-worked values, ends, and bad endpoints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl.schedules import (
    ConstantSchedule,
    ExponentialSchedule,
    LinearSchedule,
    PiecewiseSchedule,
    PolynomialSchedule,
    make_schedule,
)
from jaxrl.types import ConfigError


def test_hand_worked_values():
    linear = LinearSchedule(schedule_timesteps=100, final_p=0.0, initial_p=2.0)
    assert [linear(t) for t in (0, 25, 50, 100, 1000)] == [2.0, 1.5, 1.0, 0.0, 0.0]
    squared = PolynomialSchedule(schedule_timesteps=100, final_p=1.0, initial_p=3.0, power=2.0)
    assert [squared(t) for t in (0, 50, 100, 200)] == [3.0, 1.5, 1.0, 1.0]
    decay = ExponentialSchedule(schedule_timesteps=100, initial_p=1.0, decay_rate=0.1)
    assert decay(0) == 1.0
    assert decay(100) == pytest.approx(0.1)
    assert decay(200) == pytest.approx(0.01)
    assert ConstantSchedule(3.0)(7) == 3.0


def test_piecewise_holds_outside_and_jumps():
    schedule = PiecewiseSchedule(((10, 1.0), (20, 0.0), (20, 5.0), (40, 7.0)))
    assert [schedule(t) for t in (0, 10, 15, 19, 20, 30, 40, 99)] == pytest.approx([1, 1, 0.5, 0.1, 5, 6, 7, 7])
    outside = PiecewiseSchedule(((10, 1.0), (20, 0.0)), outside_value=-1.0)
    assert [outside(t) for t in (9, 10, 20, 21)] == [-1.0, 1.0, 0.0, -1.0]
    assert PiecewiseSchedule(((5, 2.0),))(0) == 2.0


def test_make_schedule_takes_every_form():
    assert make_schedule(3)(0) == 3.0
    assert make_schedule([[0, 1], [10, 0]])(5) == 0.5
    assert make_schedule({"type": "LinearSchedule", "schedule_timesteps": 10, "final_p": 0})(5) == 0.5
    assert make_schedule({"type": "PiecewiseSchedule", "endpoints": [[0, 1], [10, 0]]})(5) == 0.5
    schedule = LinearSchedule(10, 0.0)
    assert make_schedule(schedule) is schedule


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "at least one"),
        ([[10, 1.0], [0, 0.0]], r"sorted by t, got t = \[10.0, 0.0\]"),
        ([[0, float("inf")]], "finite"),
        ([[0, 1, 2]], r"\[0\]"),
        ("linear", "expected float, got 'linear'"),
        (True, "expected float, got True"),
        ({"type": "Linear"}, "expected 'type' to be one of ConstantSchedule, LinearSchedule"),
        ({}, "expected 'type'"),
        ({"type": "LinearSchedule", "final_p": 0}, "needs a value for schedule_timesteps"),
        ({"type": "LinearSchedule", "schedule_timesteps": 0, "final_p": 0}, "expected an int >= 1, got 0"),
        ({"type": "LinearSchedule", "schedule_timestep": 5, "final_p": 0}, "did you mean 'schedule_timesteps'"),
        ({"type": "ExponentialSchedule", "schedule_timesteps": 5, "decay_rate": 0}, "expected a number > 0"),
    ],
)
def test_bad_specs_say_where_and_what(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(spec, "config: key 'lr'")


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.floats(-1e6, 1e6)), min_size=1, max_size=6), st.integers(-5, 2 * 10**9)
)
def test_piecewise_stays_between_its_endpoints(endpoints, t):
    endpoints = sorted(endpoints, key=lambda endpoint: endpoint[0])
    values = [value for _, value in endpoints]
    slack = 1e-9 * max(abs(value) for value in values)
    assert min(values) - slack <= make_schedule(endpoints)(t) <= max(values) + slack
