"""Board games and MinAtar of pgx (Koyamada et al., 2023, https://arxiv.org/abs/2303.17503)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep
from jaxrl.envs.jax_native.foreign import as_space_says, form_of, raw_key, settle
from jaxrl.types import Array, ConfigError, PyTree

Opponent = Callable[[Array, Any], Array]


def from_pgx(env: Any, *, opponent: Opponent | None = None, seat: int = 0, name: str | None = None) -> JaxEnv:
    """Makes a pgx game a JaxEnv of one player: observations are `{"action_mask", "obs"}`.

    In games of several players the others move within `step` until it is our turn again or the game is over. An illegal
    action ends the game with pgx's penalty; policies of discrete actions take no masked one.

    Args:
        env: as `pgx.make(name)` gives it.
        opponent: `opponent(key, pgx_state) -> action` of every other player; None: random legal actions.
        seat: the number of our player.
        name: what results call it; None: `pgx/` and its own id.

    Returns:
        The JaxEnv.

    Raises:
        ConfigError: a seat that the game does not have.

    Example:
        >>> from_pgx(pgx.make("tic_tac_toe"))                                     # doctest: +SKIP
    """
    name = name or f"pgx/{env.id}"
    if not 0 <= seat < env.num_players:
        raise ConfigError(f"{name}: seat: expected 0 to {env.num_players - 1}, got {seat}")
    play = random_legal_action if opponent is None else opponent
    form = form_of(env.init, np.zeros(2, np.uint32))
    board = form.observation
    is_bool = board.dtype == np.bool_
    low, high = (0, 1) if is_bool else (-np.inf, np.inf)
    kind: Any = np.bool_ if is_bool else np.float32
    observation_space = gym.spaces.Dict(
        {
            "action_mask": gym.spaces.Box(0, 1, form.legal_action_mask.shape, np.int8),
            "obs": gym.spaces.Box(low, high, board.shape, kind),
        }
    )

    def over(state: Any) -> Array:
        return state.terminated | state.truncated

    def others(key: Array, state: Any) -> tuple[Any, Array]:
        """Lets the others move until it is our turn: the state, and what we got meanwhile."""

        def move(carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
            key, state, reward = carry
            key, choice, chance = jax.random.split(key, 3)
            state = settle(env.step(state, play(choice, state), raw_key(chance)), form)
            return key, state, reward + state.rewards[seat]

        def waiting(carry: tuple[Array, Any, Array]) -> Array:
            return (carry[1].current_player != seat) & ~over(carry[1])

        _, state, reward = jax.lax.while_loop(waiting, move, (key, state, jnp.float32(0.0)))
        return state, reward

    def observe(state: Any) -> PyTree:
        # Always as our player sees it: at a game's end it may be another one's turn.
        state = state.replace(current_player=jnp.full_like(state.current_player, seat))
        seen = {"action_mask": state.legal_action_mask, "obs": env.observe(state)}
        return as_space_says(observation_space, seen)

    def reset(key: Array) -> tuple[PyTree, PyTree]:
        begin, rest = jax.random.split(key)
        state = settle(env.init(raw_key(begin)), form)
        if env.num_players > 1:
            state, _ = others(rest, state)
        return state, observe(state)

    def step(key: Array, state: Any, action: Array) -> JaxStep:
        chance, rest = jax.random.split(key)
        state = settle(env.step(state, action, raw_key(chance)), form)
        reward = jnp.asarray(state.rewards[seat], jnp.float32)
        if env.num_players > 1:
            state, more = others(rest, state)
            reward = reward + more
        return JaxStep(state, observe(state), reward, state.terminated, state.truncated & ~state.terminated)

    return JaxEnv(name, reset, step, observation_space, gym.spaces.Discrete(int(env.num_actions)))


def random_legal_action(key: Array, state: Any) -> Array:
    """A player who takes any legal action."""
    return jax.random.categorical(key, jnp.where(state.legal_action_mask, 0.0, -jnp.inf)).astype(jnp.int32)
