"""Spaces as JSON: the same space comes back, and what has no form or makes no sense is refused."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.space_json import decode_space, encode_space
from jaxrl.types import ConfigError

SPACES = [
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(-np.inf, np.inf, (2, 2)),
    spaces.Box(np.array([-4.8, -np.inf], np.float32), np.array([4.8, np.finfo(np.float32).max], np.float32)),
    spaces.Box(0, 255, (84, 84, 4), np.uint8),
    spaces.Box(0.0, 1.0, ()),
    spaces.Discrete(4),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary([2, 3]),
    spaces.MultiBinary(4),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(0.0, 1.0, (1,))]),
    spaces.Dict(
        {
            "obs": spaces.Box(0.0, 1.0, (1,)),
            "mask": spaces.MultiBinary(3),
            "deep": spaces.Dict({"x": spaces.Discrete(2)}),
        }
    ),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_come_back_equal(space):
    text = json.dumps(encode_space(space), allow_nan=False)
    assert len(text) < 400
    again = decode_space(json.loads(text))
    assert again == space
    assert again.dtype == space.dtype


def test_spaces_without_a_form():
    class Special(spaces.Discrete):
        pass

    assert encode_space(spaces.Text(3)) is None
    assert encode_space(Special(3)) is None
    assert encode_space(spaces.Tuple([spaces.Text(3)])) is None
    assert encode_space(spaces.Dict({"a": spaces.Text(3)})) is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        {},
        {"type": "os.system"},
        {"type": "Discrete", "n": -1, "start": 0},
        {"type": "Discrete", "n": "x", "start": 0},
        {"type": "Box", "low": 0, "high": 1, "shape": [2], "dtype": "no such type"},
        {"type": "Box", "low": [0, 0, 0], "high": 1, "shape": [2], "dtype": "float32"},
        {"type": "Box", "low": "minus", "high": 1, "shape": [2], "dtype": "float32"},
        {"type": "Dict", "spaces": []},
        {"type": "Tuple", "spaces": [3]},
    ],
)
def test_data_that_is_no_space_is_refused(data):
    with pytest.raises(ConfigError, match="expected a space written by jaxrl"):
        decode_space(data)
