"""Environments of other libraries as JaxEnvs, where they are installed (the extra `jaxenvs`, and playground)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import empty_rows, make_vector_env
from jaxrl.envs.jax_native import JaxEnv, cart_pole, draw_resets, from_brax, from_gymnax, from_jumanji, from_pgx
from jaxrl.types import ConfigError


def random_steps(env: JaxEnv, steps: int) -> int:
    """Steps it as a vector env by allowed random actions; returns how many episodes ended."""
    vector, random = make_vector_env(env, 2), np.random.default_rng(0)
    env.action_space.seed(0)
    obs = vector.reset(seeds=[0, 1])
    rewards, ends = np.zeros(2), np.zeros((2, 2), np.bool_)
    count = 0
    for _ in range(steps):
        actions: Any = [env.action_space.sample() for _ in range(2)]
        if isinstance(obs, dict) and "action_mask" in obs:
            actions = [random.choice(np.flatnonzero(mask)) for mask in obs["action_mask"]]
        obs = empty_rows(env.observation_space, 2)
        count += len(vector.step(np.array(actions), obs, rewards, ends[0], ends[1]))
        assert np.isfinite(rewards).all()
    return count


# What is installed may warn of its own age.
@pytest.mark.filterwarnings("default")
class TestReal:
    def test_gymnax_cart_pole_is_ours(self):
        gymnax: Any = pytest.importorskip("gymnax")
        theirs, ours = from_gymnax(*gymnax.make("CartPole-v1")), cart_pole()
        assert theirs.max_episode_steps == 500
        states, _ = draw_resets(ours, jax.random.key(0), (64,))
        cart = 4 * states.inner
        times = jnp.arange(64) * 10
        foreign, _ = draw_resets(theirs, jax.random.key(0), (64,))
        foreign = foreign.replace(x=cart[:, 0], x_dot=cart[:, 1], theta=cart[:, 2], theta_dot=cart[:, 3], time=times)
        keys, actions = jax.random.split(jax.random.key(1), 64), jnp.arange(64) % 2
        a = jax.vmap(theirs.step)(keys, foreign, actions)
        b = jax.vmap(ours.step)(keys, states._replace(inner=cart, t=times), actions)
        np.testing.assert_allclose(a.obs, b.obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(a.terminated, b.terminated)
        np.testing.assert_array_equal(a.truncated, b.truncated & ~b.terminated)
        assert b.truncated.sum() == 14

    @pytest.mark.parametrize("name", ["Pendulum-v1", "Breakout-MinAtar", "Catch-bsuite"])
    def test_gymnax(self, name):
        gymnax: Any = pytest.importorskip("gymnax")
        assert random_steps(from_gymnax(*gymnax.make(name)), 100) or name == "Pendulum-v1"

    @pytest.mark.slow
    def test_brax(self):
        envs: Any = pytest.importorskip("brax.envs")
        env = from_brax(envs.get_environment("inverted_pendulum", backend="generalized"), max_episode_steps=20)
        assert (env.name, env.max_episode_steps) == ("brax/InvertedPendulum", 20)
        assert random_steps(env, 45) >= 4
        with pytest.raises(ConfigError, match="AutoResetWrapper"):
            from_brax(envs.create("fast"))

    @pytest.mark.slow
    def test_mujoco_playground(self):
        playground: Any = pytest.importorskip("mujoco_playground")
        # The default of some versions runs on NVIDIA's GPUs alone.
        loaded = playground.registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
        env = from_brax(loaded, max_episode_steps=4)
        assert random_steps(env, 5) == 2

    @pytest.mark.parametrize("name", ["tic_tac_toe", "2048"])
    def test_pgx(self, name):
        pgx: Any = pytest.importorskip("pgx")
        assert random_steps(from_pgx(pgx.make(name)), 40) or name == "2048"

    def test_jumanji(self):
        jumanji: Any = pytest.importorskip("jumanji")
        assert random_steps(from_jumanji(jumanji.make("Snake-v1", time_limit=30)), 70) >= 4
        assert not random_steps(from_jumanji(jumanji.make("Game2048-v1")), 10)
