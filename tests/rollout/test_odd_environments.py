"""Samplers over environments that reuse arrays, end in NaN, never end, or are cut at a soft horizon; what hooks see."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms.ppo import PPOPolicy, PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.config import parse
from jaxrl.envs import MultiAgentEnv
from jaxrl.envs.jax_native import JaxEnv, JaxStep
from jaxrl.rollout import RolloutWorker, make_worker_env, policy_for
from jaxrl.rollout.compiled_rollouts import compiled_rollouts
from jaxrl.rollout.config import RolloutConfig
from jaxrl.rollout.filters import make_filter
from jaxrl.types import DEFAULT_POLICY_ID, ActInputs, CallbackError, ConfigError, EnvError

LSTM = {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 20}
OPEN = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Count(gym.Env):
    """Observations (episode, step), written into one array again and again; episodes of `length` steps.

    `end` replaces the observation after the last step of every episode from the third on.
    """

    observation_space, action_space = OPEN, spaces.Discrete(2)

    def __init__(self, config: Any) -> None:
        self.length, self.end, self.terminated = config["length"], config.get("end"), config.get("terminated", True)
        self.array, self.episode, self.t = np.zeros(2, np.float32), 0, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.episode, self.t = self.episode + 1, 0
        self.array[:] = self.episode, 0
        return self.array, {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.array[:] = self.episode, self.t
        over = self.length is not None and self.t == self.length
        if over and self.end is not None and self.episode > 2:
            self.array[:] = self.end
        return self.array, 1.0, over and self.terminated, over and not self.terminated, {}

    def get_state(self) -> Any:
        return {"at": [self.episode, self.t]}

    def set_state(self, state: Any) -> None:
        self.episode, self.t = state["at"]


class Several(MultiAgentEnv):
    """Agents a and b, each with the observations of Count, in one array for both; b acts in even steps only."""

    possible_agents = ["a", "b"]
    observation_spaces = dict.fromkeys(possible_agents, OPEN)
    action_spaces = dict.fromkeys(possible_agents, spaces.Discrete(2))

    def __init__(self, config: Any) -> None:
        self.count = Count(config)
        self.alone = config.get("alone", False)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        obs, _ = self.count.reset()
        return dict.fromkeys("ab", obs), {}

    def step(self, action_dict: Any) -> Any:
        obs, reward, terminated, truncated, _ = self.count.step(0)
        seen = "ab" if (self.count.t % 2 == 0 or terminated or truncated) and not self.alone else "a"
        flags = {"__all__": terminated}, {"__all__": truncated}
        return dict.fromkeys(seen, obs), dict.fromkeys(seen, reward), *flags, {}


def make_worker(env: Any = Count, model: Any = None, **options: Any) -> RolloutWorker:
    size = options.get("num_envs_per_worker", 1) * options.get("rollout_fragment_length", 24)
    defaults = {"env": env, "rollout_fragment_length": 24, "train_batch_size": size, "sgd_minibatch_size": 0, "seed": 1}
    defaults |= {"model": {"fcnet_hiddens": [4], "vf_share_layers": True, **(model or {})}}
    if env is Several:
        defaults["multiagent"] = {"policies": {"p": None}, "policy_mapping_fn": lambda agent: "p"}
    config = PPOTrainer.resolve_config({**defaults, **options})
    made = make_worker_env(config, 0, 0)
    space = made[0].observation_spaces["a"] if env is Several else made.observation_space
    policy = PPOPolicy(space, spaces.Discrete(2), config)
    pid = "p" if env is Several else DEFAULT_POLICY_ID
    worker = RolloutWorker(config, {pid: policy}, env=made)
    worker.set_weights(1, {pid: policy.init(jax.random.key(0)).weights})
    return worker


def collect(worker: RolloutWorker) -> Any:
    if isinstance(worker.env, list):
        return worker.sampler._collect(worker.weights)[0]["p"]
    return worker.sampler.collect(worker.weights)


def ends_of(batch: Any, b: int = 0) -> list[Any]:
    ended = (batch["terminateds"] | batch["truncateds"])[:, b]
    return np.asarray(batch["new_obs"])[ended, b].tolist()


# ---- arrays that environments reuse


@pytest.mark.parametrize("env", [Count, Several])
@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
def test_the_successor_of_an_ended_row_is_the_episodes_own(env, mode):
    batch = collect(make_worker(env, env_config={"length": 6}, batch_mode=mode))
    for b in range(batch.B):
        assert ends_of(batch, b) == [[1, 6], [2, 6], [3, 6], [4, 6]]


# ---- NaN after the last step


@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
@pytest.mark.parametrize("observation_filter", ["NoFilter", "MeanStdFilter"])
@pytest.mark.parametrize("env", [Count, Several])
def test_what_follows_a_terminal_state_may_be_nan(env, mode, observation_filter):
    options = {"batch_mode": mode, "observation_filter": observation_filter}
    worker = make_worker(env, env_config={"length": 6, "end": [np.nan, 5]}, **options)
    batch = None
    for _ in range(2):
        batch = collect(worker)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(dict(batch.items())))
        assert np.isfinite(batch["new_obs"]).all()
    if observation_filter == "NoFilter":
        assert ends_of(batch) == [[0, 5]] * 4


@pytest.mark.parametrize("env", [Count, Several])
@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
def test_what_follows_a_cut_may_not(env, mode):
    config = {"length": 6, "end": [np.nan, 5], "terminated": False}
    with pytest.raises(
        EnvError, match=rf"{env.__name__}.*(worker 0, env 0, episode step \d+).*expected finite num.*nan"
    ):
        collect(make_worker(env, env_config=config, batch_mode=mode))


def test_a_nan_is_named_before_the_step_that_failed_because_of_it():
    class Fragile(Count):
        def step(self, action: Any) -> Any:
            if self.t == 20:
                raise RuntimeError("simulator")
            obs, *rest = super().step(action)
            return (np.full(2, np.nan, np.float32) if self.t == 18 else obs), *rest

    with pytest.raises(EnvError, match=r"Fragile \(worker 0, env 0, episode step 17\): step: obs: expected finite"):
        collect(make_worker(Fragile, env_config={"length": 30}))


def test_an_environment_that_fails_at_once():
    class Broken(Count):
        def step(self, action: Any) -> Any:
            raise RuntimeError("simulator")

    with pytest.raises(EnvError, match=r"Broken \(worker 0, env 0, episode step 0\): step raised RuntimeError: simul"):
        collect(make_worker(Broken, env_config={"length": 30}))


def jax_env() -> JaxEnv:
    """Ends after three steps in a terminal state, with NaN."""

    def observe(t: Any) -> Any:
        return jax.numpy.where(t == 3, jax.numpy.nan, t.astype(jax.numpy.float32))[None]

    def reset(key: Any) -> Any:
        return jax.numpy.int32(0), observe(jax.numpy.int32(0))

    def step(key: Any, state: Any, action: Any) -> JaxStep:
        t = state + 1
        return JaxStep(t, observe(t), jax.numpy.float32(1), t == 3, jax.numpy.bool_(False))

    return JaxEnv("Nan", reset, step, spaces.Box(-np.inf, np.inf, (1,), np.float32), spaces.Discrete(2))


def test_compiled_rollouts_have_no_nan_of_a_terminal_state():
    from jaxrl.algorithms.dqn import DQNPolicy, DQNTrainer

    env = jax_env()
    options = {
        "env": env,
        "rollout_fragment_length": 7,
        "train_batch_size": 8,
        "seed": 1,
        "model": {"fcnet_hiddens": [4]},
    }
    config = DQNTrainer.resolve_config(options)
    policy = DQNPolicy(env.observation_space, env.action_space, config)
    rollouts = compiled_rollouts(env, policy, config)
    weights, key = policy.init(jax.random.key(0)).weights, jax.random.key(0)
    _, batch, _ = rollouts.sample(weights, rollouts.init(key), key, jax.numpy.int32(0))
    assert np.asarray(batch["new_obs"])[:, 0, 0].tolist() == [1, 2, 0, 1, 2, 0, 1]


# ---- episodes that never end


@pytest.mark.parametrize("env", [Count, Several])
def test_whole_episodes_have_a_limit(env, caplog):
    worker = make_worker(env, env_config={"length": None}, batch_mode="complete_episodes", max_whole_episode_steps=300)
    with (
        caplog.at_level(logging.WARNING, "jaxrl.workers"),
        pytest.raises(EnvError, match=r"has not ended after 300 steps.*set `horizon`.*max_whole_episode_steps"),
    ):
        collect(worker)
    (record,) = caplog.records
    assert "has not ended after 30 steps" in record.getMessage() and "`horizon` cuts episodes" in record.getMessage()


def test_an_episode_shorter_than_the_limit_is_fine(caplog):
    options = {"batch_mode": "complete_episodes", "rollout_fragment_length": 100}
    for limit in (51, None):
        batch = collect(make_worker(env_config={"length": 50}, max_whole_episode_steps=limit, **options))
        assert batch.count == 100
    assert "`horizon`" in caplog.text  # the first one was warned of


def test_evaluation_ends_with_an_error():
    config = {"env": Count, "env_config": {"length": None}, "rollout_fragment_length": 8, "train_batch_size": 8}
    config |= {"sgd_minibatch_size": 0, "model": {"fcnet_hiddens": [4]}, "compile_cache": False}
    with PPOTrainer(config={**config, "max_whole_episode_steps": 50}) as trainer:
        with pytest.raises(EnvError, match="whole ones are sampled"):
            trainer.evaluate()
        assert trainer.train()["timesteps_total"] == 8


# ---- soft horizons


@pytest.mark.parametrize("model", [None, LSTM])
def test_a_soft_horizon_cuts_without_a_reset_and_a_models_state_goes_on(model):
    worker = make_worker(model=model, env_config={"length": 14}, horizon=4, soft_horizon=True)
    parts = [collect(worker) for _ in range(2)]

    def column(name: str) -> np.ndarray:
        return np.concatenate([part[name][:, 0] for part in parts])

    step = np.arange(48) % 14
    np.testing.assert_array_equal(column("obs")[:, 1], step)
    np.testing.assert_array_equal(column("new_obs")[:, 1], step + 1)
    cut = (step % 4 == 3) & (step != 13)
    np.testing.assert_array_equal(column("truncateds"), cut)
    np.testing.assert_array_equal(column("terminateds"), step == 13)
    number = np.concatenate([[0], np.cumsum(cut | (step == 13))])[:-1]
    assert len(np.unique(column("eps_id"))) == number[-1] + 1
    np.testing.assert_array_equal(np.diff(column("eps_id")) != 0, np.diff(number) != 0)
    # A recurrent model's state is reset where t is 0.
    np.testing.assert_array_equal(column("t"), step if model else np.where(step >= 12, step - 12, step % 4))
    assert [record.length for record in worker.pop_episodes()][:4] == [4, 4, 4, 2]
    if model:
        kept, again = parts[1]["state_in"], replayed(worker, parts[0])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), kept, again)


def replayed(worker: RolloutWorker, part: Any) -> Any:
    """The model's state after a fragment, stepped through once more: reset at the environment's resets alone."""
    policy = worker.policies[DEFAULT_POLICY_ID]
    carry = policy.initial_carry(1)
    for i in range(part.T):
        inputs = ActInputs(part["obs"][i], 0, reset=part["obs"][i, :, 1] == 0)
        carry = policy.act(worker.weights[DEFAULT_POLICY_ID], inputs, carry, jax.random.key(0), False).carry
    return jax.tree.map(np.asarray, carry[0])


def test_a_soft_horizon_survives_a_checkpoint():
    options = {"model": LSTM, "env_config": {"length": 14}, "horizon": 4, "soft_horizon": True}
    one, two = (make_worker(rollout_fragment_length=10, **options) for _ in range(2))
    collect(one)
    two.set_state(one.get_state())
    jax.tree.map(np.testing.assert_array_equal, dict(collect(one).items()), dict(collect(two).items()))


@pytest.mark.parametrize("model", [None, LSTM])
def test_a_soft_horizon_of_several_agents(model):
    worker = make_worker(Several, model=model, env_config={"length": 14}, horizon=4, soft_horizon=True)
    batch = collect(worker)
    step = np.arange(24) % 14
    np.testing.assert_array_equal(batch["obs"][:, 0, 1], step)
    np.testing.assert_array_equal(batch["new_obs"][:, 0, 1], step + 1)
    np.testing.assert_array_equal(batch["truncateds"][:, 0], (step % 4 == 3) & (step != 13))
    np.testing.assert_array_equal(batch["t"][:, 0], step if model else np.where(step >= 12, step - 12, step % 4))
    on = batch["mask"][:, 1]
    np.testing.assert_array_equal(batch["obs"][on, 1, 1], step[on] - 1)
    np.testing.assert_array_equal(batch["truncateds"][on, 1], (step[on] % 4 == 3) & (step[on] != 13))
    assert [record.length for record in worker.pop_episodes()] == [4, 4, 4, 2, 4, 4]


def test_a_cut_agent_without_a_last_observation_has_no_last_transition():
    """b acts once, and never sees what comes of it: the cut leaves nothing to bootstrap from."""
    batch = collect(make_worker(Several, env_config={"length": 6, "alone": True, "terminated": False}))
    assert batch["mask"][:, 0].all() and not batch["mask"][:, 1].any()
    over = collect(make_worker(Several, env_config={"length": 6, "alone": True}))
    assert over["mask"][:, 1].sum() == 4 and over["terminateds"][over["mask"][:, 1], 1].all()


# ---- hooks


@pytest.mark.parametrize("options", [{}, {"horizon": 4}, {"horizon": 4, "soft_horizon": True}])
@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
@pytest.mark.parametrize("env", [Count, Several])
def test_hooks_see_the_environment_where_the_episode_stands(env, mode, options):
    seen: list[Any] = []

    def hook(name: str) -> Any:
        def call(*, worker: Any, env_index: int, episode: Any) -> None:
            base = worker.foreach_env(lambda env: env)[env_index]
            count = base.count if env is Several else base
            seen.append((name, env_index, count.t, episode.length))

        return call

    callbacks = Callbacks(**{f"on_episode_{name}": hook(name) for name in ("start", "step", "end")})
    worker = make_worker(
        env, num_envs_per_worker=2, env_config={"length": 6}, batch_mode=mode, callbacks=callbacks, **options
    )
    collect(worker)
    records = worker.pop_episodes()
    length, soft = options.get("horizon", 6), "soft_horizon" in options
    for b in (0, 1):
        own = [(name, t, n) for name, index, t, n in seen if index == b]
        episodes: list[Any] = []
        for name, t, n in own:
            episodes += [[]] if name == "start" else []
            episodes[-1].append((name, t, n))
        begin = 0
        for episode in [e for e in episodes if e[-1][0] == "end"]:
            size = min(length, 6 - begin) if soft else length
            steps = [("step", begin + n, n) for n in range(1, size + 1)]
            assert episode == [("start", begin, 0), *steps, ("end", begin + size, size)]
            begin = (begin + size) % 6 if soft else 0
    assert sum(name == "end" for name, *_ in seen) == len(records)


@pytest.mark.parametrize("env", [Count, Several])
@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda e: e.custom_metrics.update(x=None), r"custom_metrics\['x'\]: expected a number, got NoneType None"),
        (lambda e: e.custom_metrics.update(x="long"), r"custom_metrics\['x'\]: expected a number, got str 'long'"),
        (lambda e: e.custom_metrics.update(x=[1, 2]), r"custom_metrics\['x'\]: expected a number, got list"),
        (lambda e: e.hist_data.update(x=3), r"hist_data\['x'\]: expected a list of numbers, got int 3"),
        (lambda e: e.hist_data.update(x=["a"]), r"hist_data\['x'\]: expected a list of numbers, got str 'a'"),
    ],
)
def test_hooks_write_numbers(env, write, text):
    def end(*, worker: Any, env_index: int, episode: Any) -> None:
        write(episode)

    worker = make_worker(env, env_config={"length": 6}, callbacks=Callbacks(on_episode_end=end))
    with pytest.raises(CallbackError, match=rf"^callbacks: episode.{text}"):
        collect(worker)


def test_numbers_of_any_kind_are_written():
    def end(*, episode: Any, **_: Any) -> None:
        episode.custom_metrics.update(a=np.float32(1.5), b=jax.numpy.int32(2), c=True, d=np.array(3))
        episode.hist_data["h"] = np.arange(2)

    worker = make_worker(env_config={"length": 12}, callbacks=Callbacks(on_episode_end=end))
    collect(worker)
    (first, _) = worker.pop_episodes()
    assert {name: float(value) for name, value in first.custom_metrics.items()} == {"a": 1.5, "b": 2, "c": 1, "d": 3}


# ---- options and filters


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        (
            lambda agent: agent.missing,
            "for agent 'a' it raised AttributeError: 'str' object has no attr",
        ),
        (lambda agent: [agent], r"agent 'a' maps to \['a'\], but the policies are \['p'\]"),
        (lambda agent: None, "agent 'a' maps to None"),
    ],
)
def test_a_mapping_that_names_no_policy(mapping, text):
    with pytest.raises(ConfigError, match=rf"multiagent.policy_mapping_fn: {text}"):
        policy_for("a", {"p": None}, mapping)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes(seed):
    with pytest.raises(ConfigError, match="seed"):
        parse(RolloutConfig, {"seed": seed})


@pytest.mark.parametrize("rule", [(1.0, -1.0), -1.0, (2.0, 2.0), 0.0])
def test_rewards_clipped_to_nothing(rule):
    with pytest.raises(ConfigError, match="clip_rewards: expected .* with low < high, or a number above 0"):
        make_worker(env_config={"length": 6}, clip_rewards=rule)


def test_the_largest_seed_is_taken():
    assert collect(make_worker(env_config={"length": 6}, seed=2**63 - 1)).count == 24


def test_a_number_that_was_constant_so_far_is_no_huge_one():
    space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    filter = make_filter("MeanStdFilter", space)
    seen = np.zeros((100, 3), np.float32)
    seen[:, 1] = np.arange(100) % 2
    state = filter.update(filter.init(), seen)
    got = filter.apply(state, np.array([[1.0, 1.0, 0.0], [-1e-3, 0.0, 1e30]], np.float32))
    half = 0.5 / np.sqrt(25 / 99)
    np.testing.assert_allclose(got, [[10, half, 0], [-10, -half, 10]], rtol=1e-6)
