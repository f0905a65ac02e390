"""The inputs of bootstrap values: what an agent did last, where its last rows are absent."""

from __future__ import annotations

import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.policies.fragments import bootstrap_inputs
from jaxrl.types import FINAL_PAD


def test_last_previous_action_is_that_of_the_last_row_that_is_there() -> None:
    steps, width = 4, 3
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 1, 0]], bool)
    actions = np.arange(steps * width, dtype=np.int32).reshape(steps, width)
    obs = np.zeros((steps, width, 1), np.float32)
    batch = SampleBatch(
        {
            "obs": obs,
            "actions": actions,
            "prev_actions": np.zeros_like(actions),
            "mask": mask,
            "last_obs": obs[0],
            "final_obs": obs[0, :1],
            "final_index": np.array([[FINAL_PAD, 0]], np.int32),
        }
    )
    _, last, _ = bootstrap_inputs(batch, frozenset({"prev_actions"}))
    assert np.asarray(last.prev_actions).tolist() == [actions[1, 0], actions[3, 1], actions[1, 2]]
    _, last, _ = bootstrap_inputs(batch.drop("mask"), frozenset({"prev_actions"}))
    assert np.asarray(last.prev_actions).tolist() == actions[3].tolist()
