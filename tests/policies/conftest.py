"""A linear policy on four numbers and two actions, and random fragments for it: everything compiles in no time."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.data import SampleBatch
from jaxrl.models import Model
from jaxrl.types import FINAL_PAD, ModelOutput

OBS = spaces.Box(-1.0, 1.0, (4,), np.float32)
ACTIONS = spaces.Discrete(2)


def linear_model(obs_space, action_space, num_outputs, config):
    def init(key):
        keys = jax.random.split(key)
        return {"policy": jax.random.normal(keys[0], (4, num_outputs)), "value": jax.random.normal(keys[1], (4,))}

    def apply(params, inputs, state=()):
        return ModelOutput(inputs.obs @ params["policy"], inputs.obs @ params["value"], ())

    return Model(init, apply, lambda batch_size: (), frozenset({"obs"}))


def random_fragment(steps=6, columns=3, *, seed=0, end=0.25, mask=None, state=None):
    """What a sampler gives: rows with ends of both kinds, and the observations to bootstrap from."""
    rng = np.random.default_rng(seed)
    shape = (steps, columns)
    ended = rng.random(shape) < end
    if mask is not None:
        ended &= mask
    terminated = ended & (rng.random(shape) < 0.5)
    places = np.argwhere(ended).astype(np.int32)
    index = np.full((len(places) + 2, 2), (FINAL_PAD, 0), np.int32)
    index[: len(places)] = places
    t = np.zeros(shape, np.int32)
    for row in range(1, steps):
        t[row] = np.where(ended[row - 1], 0, t[row - 1] + 1)
    actions = rng.integers(0, 2, shape).astype(np.int32)
    columns_ = {
        "obs": rng.normal(size=(*shape, 4)).astype(np.float32),
        "actions": actions,
        "prev_actions": np.where(t == 0, 0, np.roll(actions, 1, axis=0)).astype(np.int32),
        "rewards": rng.normal(size=shape).astype(np.float32),
        "prev_rewards": np.zeros(shape, np.float32),
        "terminateds": terminated,
        "truncateds": ended & ~terminated,
        "eps_id": np.cumsum(t == 0, axis=0).astype(np.int32) + 100 * np.arange(columns, dtype=np.int32),
        "t": t,
        "agent_index": np.zeros(shape, np.int32),
        "unroll_id": np.zeros(shape, np.int32),
        "last_obs": rng.normal(size=(columns, 4)).astype(np.float32),
        "final_obs": rng.normal(size=(len(index), 4)).astype(np.float32),
        "final_index": index,
    }
    if mask is not None:
        columns_["mask"] = mask
    if state is not None:
        columns_["state_in"] = jax.tree.map(np.asarray, state)
    return SampleBatch(columns_)


def train_columns(batch, *, seed=1):
    """`batch` with the columns of postprocessing, random."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*batch.shape, 2)).astype(np.float32)
    made = {
        name: rng.normal(size=batch.shape).astype(np.float32) for name in ("advantages", "value_targets", "vf_preds")
    }
    logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(batch["actions"])[..., None], -1)[
        ..., 0
    ]
    return batch.with_columns(action_dist_inputs=logits, action_logp=logp, **made)


def assert_equal(a, b, tolerance=0.0):
    """Asserts that two pytrees have equal leaves."""

    def check(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)

    jax.tree.map(check, a, b)


@pytest.fixture(scope="session")
def kit():
    """Spaces, the linear model and makers of batches."""
    return SimpleNamespace(
        obs=OBS,
        actions=ACTIONS,
        model=linear_model,
        fragment=random_fragment,
        train_batch=lambda *args, **options: train_columns(random_fragment(*args, **options)),
        leaves=lambda tree: [np.asarray(leaf) for leaf in jax.tree.leaves(tree)],
        equal=assert_equal,
        pg_loss=_pg_loss,
    )


def _pg_loss(params, batch, ctx):
    out = ctx.forward(params, batch)
    return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"]) + 0.1 * batch.mean(
        jnp.square(out.value - batch["value_targets"])
    )
