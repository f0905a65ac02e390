"""Options of policies: a coeff changes the next update of one compiled program, another option the program itself."""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import option_rows as options
import pytest

from jaxrl import registry, trees
from jaxrl.coercion import specs_of
from jaxrl.policies.requirements import example_batch
from jaxrl.trainers.policy_options import options_of_policies

TINY: dict[str, Any] = {"env": "CartPole-v1", "seed": 1, "model": {"fcnet_hiddens": [2]}}
WIDTHS = {"hiddens": (2,), "actor_hiddens": (2,), "critic_hiddens": (2,)}
OBS = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
CHOSEN = tuple(name for name in options.ALGORITHMS if name not in options.POLICIES_OF)
CONTINUOUS = ("DDPG", "TD3", "APEX_DDPG")


def policy_of(name: str, **given: Any) -> Any:
    trainer = registry.resolve("algorithm", name)
    known = specs_of(trainer.config_class)
    widths = {key: value for key, value in WIDTHS.items() if key in known}
    config = {**TINY, **widths, **{key: value for key, value in given.items() if key in known}}
    if name == "R2D2":
        config = {**config, "model": {**TINY["model"], "lstm_cell_size": 2, **given.get("model", {})}}
    space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32) if name in CONTINUOUS else gym.spaces.Discrete(2)
    return trainer.policy_factory(OBS, space, trainer.resolve_config(config))


def batch_of(policy: Any, *, produced: bool = True, time_major: bool | None = None) -> Any:
    """An abstract batch as the policy's loss takes it."""
    spec = policy.spec
    major = spec.recurrent or "discounts" not in spec.reads if time_major is None else time_major
    state = jax.eval_shape(lambda: spec.model.initial_state(2))
    return example_batch(OBS, spec.action_space, state, spec.dist_class.input_size, time_major=major, produced=produced)


def concrete(path: Any, x: Any) -> Any:
    rng = np.random.default_rng(zlib.crc32(trees.path_string(path).encode()))
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.asarray(rng.uniform(-1.0, 1.0, x.shape), x.dtype)
    return jnp.zeros(x.shape, x.dtype)


# ---- coeffs


@functools.cache
def built(name: str, beside: tuple[tuple[str, Any], ...]) -> Any:
    policy = policy_of(name, **dict(beside))
    state = policy.init(jax.random.key(0))
    # Targets that are the parameters themselves have no divergence from them.
    state = state.replace(target_params=jax.tree.map(lambda x: 0.5 * x + 0.125, state.target_params))
    return policy, state, jax.tree_util.tree_map_with_path(concrete, batch_of(policy))


def learned(name: str, beside: dict[str, Any], coeffs: dict[str, float]) -> list[np.ndarray]:
    policy, state, batch = built(name, tuple(beside.items()))
    state = state.replace(coeffs={**state.coeffs, **{k: jnp.float32(v) for k, v in coeffs.items()}})
    state, out = policy.learn(state, batch)
    return [np.asarray(x) for x in jax.tree.leaves((state.params, dict(out.metrics)))]


@pytest.mark.parametrize("name", CHOSEN)
def test_each_coeff_acts_in_the_next_update(name: str) -> None:
    cls = registry.resolve("algorithm", name).config_class
    for key in [key for key, spec in specs_of(cls).items() if spec.traced]:
        beside = options.BESIDE.get(key, {})
        policy = built(name, tuple(beside.items()))[0]
        coeff = key if key in policy.spec.coeffs else None
        assert coeff is not None, f"{name}: {key} is no coeff"
        if key == "lr" and {"actor_lr", "critic_lr"} & set(policy.spec.coeffs):
            assert policy_of(name, lr=0.125).spec.coeffs["actor_lr"] == 0.125  # what the groups' rates stand for
            continue
        before = learned(name, beside, {})
        # Ratios are 1 and targets are what they were in a first update: a bound below counts.
        values = (0.0, 0.25, 4.0)
        changes = [learned(name, beside, {key: value}) for value in values]
        assert any(
            not all(np.array_equal(x, y, equal_nan=True) for x, y in zip(before, after, strict=True))
            for after in changes
        ), f"{name}: {key}"
        assert policy_of(name, **{**beside, key: 0.125}).spec.coeffs[key] == 0.125


# ---- what is static


def consts_of(program: Any) -> list[Any]:
    """Arrays that a program holds, those of the programs within it too: its text does not show them."""
    found = list(getattr(program, "consts", []))
    for equation in getattr(program, "jaxpr", program).eqns:
        for value in equation.params.values():
            inner = value if isinstance(value, (list, tuple)) else [value]
            found += [c for x in inner if hasattr(x, "eqns") or hasattr(x, "jaxpr") for c in consts_of(x)]
    return found


def fingerprint(policy: Any) -> str:
    """Of the policy's programs: how it begins, acts, fills a fragment and learns."""
    spec = policy.spec
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(policy.init, key)
    programs = [jax.make_jaxpr(policy.init)(key), jax.make_jaxpr(policy.learn)(state, batch_of(policy))]
    rows = batch_of(policy, produced=False, time_major=True)
    inputs = {name: rows[name] for name in ("obs", "prev_actions", "prev_rewards")}

    def act(weights: Any, rows: Any, key: Any) -> Any:
        from jaxrl.types import ActInputs

        first = jax.tree.map(lambda x: x[0], rows)
        flags = jnp.zeros(2, bool) if spec.recurrent else None
        reads = {name: first[name] if name in spec.act_reads else None for name in ("prev_actions", "prev_rewards")}
        asked = ActInputs(first["obs"], jnp.int32(0), **reads, reset=flags)
        return policy.act(weights, asked, policy.initial_carry(2), key, True).actions

    programs.append(jax.make_jaxpr(act)(state.weights, inputs, key))
    programs.append(jax.make_jaxpr(lambda w, b, k: dict(policy.postprocess(w, b, None, k)))(state.weights, rows, key))
    constants = [np.asarray(c).tobytes() for program in programs for c in consts_of(program) if not trees.is_key(c)]
    text = re.sub(r"0x[0-9a-f]+", "", "\n".join(map(str, programs)))
    schedules = {name: str(schedule) for name, schedule in sorted(spec.schedules.items())}
    return hashlib.sha256(repr((text, constants, schedules)).encode()).hexdigest()


# Where an option acts on more than the programs of a policy: on its replay memory (`test_run_options`).
OF_MEMORY = {"gamma", "n_step", "buffer_size", "prioritized_replay_alpha", "priority_eta"}


def static_options(name: str) -> list[str]:
    cls = registry.resolve("algorithm", name).config_class
    of_policy = options_of_policies(cls) - {key for key, spec in specs_of(cls).items() if spec.traced}
    return sorted(of_policy - (OF_MEMORY if hasattr(cls, "buffer_size") else set()))


@functools.cache
def plain(name: str, beside: tuple[tuple[str, Any], ...]) -> str:
    return fingerprint(policy_of(name, **dict(beside)))


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in CHOSEN for key in static_options(name)])
def test_each_other_option_changes_the_programs(name: str, key: str) -> None:
    value, beside = options.STATIC[key]
    if key == "model" and "use_state_preprocessor" in static_options(name):
        beside = {"use_state_preprocessor": True}  # without it actor and critics see the observation itself
    default = specs_of(registry.resolve("algorithm", name).config_class)[key].default
    value = not default if value is None else value
    assert fingerprint(policy_of(name, **{**beside, key: value})) != plain(name, tuple(beside.items()))


@pytest.mark.parametrize(("name", "like"), options.POLICIES_OF.items())
def test_algorithms_that_share_their_policy(name: str, like: str) -> None:
    ours, theirs = (registry.resolve("algorithm", n).policy_factory for n in (name, like))
    assert (ours.loss_fn, ours.make_model, ours.optimizer_fn, ours.coeffs_fn) == (
        (theirs.loss_fn, theirs.make_model, theirs.optimizer_fn, theirs.coeffs_fn)
    )
