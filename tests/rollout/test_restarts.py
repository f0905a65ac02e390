"""Samplers whose environments fail and are created anew: rows, masks, successors, records against a simulation."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms.ppo import PPOPolicy, PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.envs import EPISODE_CONTINUES, MultiAgentEnv
from jaxrl.execution.rollout_ops import batch_steps
from jaxrl.replay import uniform_replay
from jaxrl.rollout import RolloutWorker, make_worker_env
from jaxrl.rollout.ends import MAX_BROKEN_OFF
from jaxrl.types import DEFAULT_POLICY_ID, FINAL_PAD, ActInputs, ConfigError, EnvError

LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4}
LENGTH = 4
# (environment, how often it was created anew before, its step): of 0-based numbers, the steps that raise.
FAULTS = {(1, 0, 2), (1, 1, 9), (1, 2, 0), (1, 3, 4)}


def counter(faults: Any, length: int = LENGTH) -> Any:
    """A class of environments that see which they are, their episode and its step; episodes have `length` steps.

    Its observations are (index, how often created anew, episode, step), rewards the number of its step.
    """

    class Counter(gym.Env):
        observation_space = spaces.Box(0, 1000, (4,), np.float32)
        action_space = spaces.Discrete(3)
        created: defaultdict[int, int] = defaultdict(int)

        def __init__(self, config: Any) -> None:
            self.b = config.vector_index
            self.number = self.created[self.b]
            self.created[self.b] += 1
            self.calls, self.episode = 0, -1

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            if (self.b, self.number, "reset", self.episode) in faults:
                raise RuntimeError("broken in reset")
            self.episode, self.t = self.episode + 1, 0
            return self.obs(), {}

        def obs(self) -> np.ndarray:
            return np.array([self.b, self.number, self.episode, self.t], np.float32)

        def step(self, action: Any) -> Any:
            if (self.b, self.number, self.calls) in faults:
                raise RuntimeError("broken")
            self.calls += 1
            self.t += 1
            return self.obs(), float(self.calls), self.t == length, False, {}

    return Counter


def make_worker(env: Any, model: Any = None, **options: Any) -> RolloutWorker:
    defaults = {"env": env, "num_envs_per_worker": 2, "rollout_fragment_length": 6, "seed": 3, "sgd_minibatch_size": 0}
    defaults |= {"model": {"fcnet_hiddens": [8], "vf_share_layers": True, **(model or {})}}
    defaults |= {"restart_failed_sub_environments": True, **options}
    columns = defaults["num_envs_per_worker"] * defaults["rollout_fragment_length"]
    config = PPOTrainer.resolve_config({"train_batch_size": columns, **defaults})
    vector = make_worker_env(config, 0, 0)
    policy = PPOPolicy(vector.observation_space, vector.action_space, config)
    worker = RolloutWorker(config, {DEFAULT_POLICY_ID: policy}, env=vector)
    worker.set_weights(1, {DEFAULT_POLICY_ID: policy.init(jax.random.key(1)).weights})
    return worker


def collect(worker: RolloutWorker) -> Any:
    """A raw fragment."""
    return worker.sampler.collect(worker.weights)


def simulate(
    b: int, steps: int, fragment: int, faults: Any = FAULTS, horizon: int | None = None
) -> dict[str, list[Any]]:
    """What environment `b` goes through, row by row, and the (length, reward) of the episodes that have a record."""
    rows: dict[str, list[Any]] = defaultdict(list)
    number = episode = t = calls = learned = 0
    total = 0.0
    for i in range(steps):
        obs, failed = (b, number, episode, t), (b, number, calls) in faults
        if failed:
            if i % fragment and learned:
                rows["truncateds"][-1] = True
            number, episode, t, calls, learned, total, next_learned = number + 1, 0, 0, 0, -1, 0.0, 0
            terminated = cut = False
            new = obs
        else:
            calls, t = calls + 1, t + 1
            total += calls
            terminated, cut, new = t == LENGTH, t == horizon and t < LENGTH, (b, number, episode, t)
            next_learned = learned + 1
            if terminated or cut:
                rows["records"].append((t, total))
                episode, t, next_learned, total = episode + 1, 0, 0, 0.0
        row = {"obs": obs, "new_obs": new, "t": learned, "mask": not failed, "rewards": 0.0 if failed else float(calls)}
        for name, value in {**row, "terminateds": terminated, "truncateds": cut}.items():
            rows[name].append(value)
        rows["episode"].append((number - failed, episode - (terminated or cut)))
        learned = next_learned
    return rows


def check(parts: list[Any], b: int, want: dict[str, list[Any]]) -> None:
    mask = np.array(want["mask"])
    for name in ("obs", "t", "mask", "rewards", "terminateds", "truncateds"):
        got = np.concatenate([part[name][:, b] for part in parts])
        np.testing.assert_array_equal(got, np.array(want[name], got.dtype), err_msg=name)
    new = np.concatenate([np.asarray(part["new_obs"])[:, b] for part in parts])
    np.testing.assert_array_equal(new[mask], np.array(want["new_obs"], np.float32)[mask])
    ids = np.concatenate([part["eps_id"][:, b] for part in parts])
    episodes = {(int(number), want["episode"][i]) for i, number in enumerate(ids) if mask[i]}
    assert len(episodes) == len({number for number, _ in episodes}) == len({episode for _, episode in episodes})
    ends = np.logical_or(want["terminateds"], want["truncateds"])
    steps = parts[0].T
    for k, part in enumerate(parts):
        own = {
            int(i): part["final_obs"][j] for j, (i, c) in enumerate(part["final_index"]) if i != FINAL_PAD and c == b
        }
        assert sorted(own) == np.flatnonzero(ends[k * steps : (k + 1) * steps]).tolist()
        for i, final in own.items():
            np.testing.assert_array_equal(final, want["new_obs"][k * steps + i])


@pytest.mark.parametrize("options", [{}, {"env_stepping": "async"}, {"horizon": 3}])
def test_rows_with_failures_on_the_way(options: dict[str, Any]) -> None:
    # Of the fragments of six rows: failures in the middle of one, in a last row, in a first row right after that, and
    # in a first row whose episode began in the fragment before.
    worker = make_worker(counter(FAULTS), **options)
    parts = [collect(worker) for _ in range(5)]
    wants = [simulate(b, 30, 6, horizon=options.get("horizon")) for b in range(2)]
    failed = np.flatnonzero(~np.array(wants[1]["mask"]))
    assert failed.tolist() == [2, 12, 13, 18]
    for b, want in enumerate(wants):
        check(parts, b, want)
    assert sum(part.count for part in parts) == 60 - 4 and all(batch_steps(part) == 12 for part in parts)
    records = sorted((record.length, record.reward) for record in worker.pop_episodes())
    assert records == sorted(wants[0]["records"] + wants[1]["records"])
    assert worker.pop_metrics()[2] == 4 and worker.pop_metrics()[2] == 0
    worker.stop()


def test_a_mask_is_there_from_the_beginning_or_never() -> None:
    assert collect(make_worker(counter(()))).get("mask").all()
    assert "mask" not in collect(make_worker(counter(()), restart_failed_sub_environments=False))


def test_without_the_option_the_worker_fails() -> None:
    worker = make_worker(counter(FAULTS), restart_failed_sub_environments=False)
    with pytest.raises(
        EnvError, match=r"Counter \(worker 0, env 1, episode step 2\): step raised RuntimeError: broken"
    ):
        collect(worker)


def test_vector_environments_are_refused() -> None:
    with pytest.raises(ConfigError, match="restart_failed_sub_environments: env_stepping='native'"):
        make_worker("CartPole-v1", env_stepping="native")


def test_of_whole_episodes_those_that_failed_are_left_out() -> None:
    faults = {(1, 0, 2), (1, 1, 5), (1, 2, 0), (1, 3, 13), (0, 0, 17)}
    worker = make_worker(counter(faults), batch_mode="complete_episodes", rollout_fragment_length=6)
    parts = [collect(worker) for _ in range(3)]
    for part in parts:
        mask = part["mask"]
        np.testing.assert_array_equal(mask, np.tile(np.arange(part.T)[:, None] < 8, 2))  # two episodes each
        assert part.T == 8 and part.count == batch_steps(part) == 16
        np.testing.assert_array_equal(part["t"], np.tile(np.arange(4), 2)[:, None].repeat(2, 1))
        np.testing.assert_array_equal(part["obs"][..., 3], part["t"])
        np.testing.assert_array_equal(part["new_obs"][..., 3], part["t"] + 1)
        np.testing.assert_array_equal(part["terminateds"], part["t"] == 3)
        assert not part["truncateds"].any() and len(np.unique(part["eps_id"])) == 4
    # Which environment, episode: those that came to their end, in order.
    got = [tuple(int(x) for x in part["obs"][i, 1, 1:3]) for part in parts for i in (0, 4)]
    assert got == [(1, 0), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1)]
    got = [tuple(int(x) for x in part["obs"][i, 0, 1:3]) for part in parts for i in (0, 4)]
    assert got == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert sorted(record.length for record in worker.pop_episodes()) == [4] * 12


def test_whole_episodes_that_never_come_are_an_error() -> None:
    faults = {(1, number, 3) for number in range(1000)}
    worker = make_worker(counter(faults), batch_mode="complete_episodes")
    with pytest.raises(EnvError, match=rf"env 1\).*{MAX_BROKEN_OFF} episodes in a row.*complete_episodes"):
        collect(worker)


def test_filters_learn_nothing_from_failed_rows() -> None:
    worker = make_worker(counter(FAULTS), observation_filter="MeanStdFilter")
    parts = [collect(worker) for _ in range(3)]
    rows = np.concatenate(
        [np.array(want["obs"], np.float64)[want["mask"]] for want in (simulate(b, 18, 6) for b in range(2))]
    )
    assert sum(part.count for part in parts) == len(rows)
    state = worker.get_filters()[DEFAULT_POLICY_ID]
    assert state.rows == len(rows)
    np.testing.assert_allclose(state.mean, rows.mean(axis=0))
    np.testing.assert_allclose(state.m2 / len(rows), rows.var(axis=0), atol=1e-12)


def test_recurrent_policies_begin_anew_with_the_environment() -> None:
    model = {**LSTM, "lstm_use_prev_action_reward": True}
    worker = make_worker(counter(FAULTS), model=model)
    policy, weights = worker.policies[DEFAULT_POLICY_ID], worker.weights[DEFAULT_POLICY_ID]
    batches: list[Any] = []
    parts: list[Any] = []
    keep = Callbacks(on_postprocess_trajectory=lambda *, original_batch, **_: parts.append(original_batch))
    worker.sampler.callbacks = keep
    batches = [worker.sample() for _ in range(4)]
    for b in range(2):
        check(parts, b, simulate(b, 24, 6))
    carry: Any = policy.initial_carry(2)
    for step in range(24):
        part, i = parts[step // 6], step % 6
        # An episode starts right after a failure too, with a fresh state and nothing before it.
        start = np.array([simulate(b, 24, 6)["obs"][step][3] == 0 for b in range(2)])
        assert (part["prev_rewards"][i][start & part["mask"][i]] == 0).all()
        inputs = ActInputs(
            part["obs"][i], step, part["prev_actions"][i], part["prev_rewards"][i], start & part["mask"][i]
        )
        out = policy.act(weights, inputs, carry, worker.sampler.key, True)
        valid = part["mask"][i]
        np.testing.assert_array_equal(np.asarray(out.actions)[valid], part["actions"][i][valid])
        carry = out.carry
    # Sequences of four rows: 6 rows make 4 + 2 and padding; a train batch keeps its size, failures or not.
    for batch, part in zip(batches, parts, strict=True):
        assert batch.shape == (4, 4) and batch.count == part.count and batch_steps(batch) == 12
        assert np.isfinite(batch["advantages"]).all()


def test_advantages_stop_at_the_cut() -> None:
    worker = make_worker(counter({(1, 0, 2)}), gamma=0.5, **{"lambda": 1.0})
    batch: Any = worker.sample()
    policy, weights = worker.policies[DEFAULT_POLICY_ID], worker.weights[DEFAULT_POLICY_ID]
    value = float(policy.value(weights, np.array([[1, 0, 0, 2]], np.float32), ())[0])
    # Rewards 1 and 2, and the value of what the failing action was taken on.
    np.testing.assert_allclose(batch["value_targets"][:2, 1], [1 + 0.5 * (2 + 0.5 * value), 2 + 0.5 * value], rtol=1e-4)
    # The next episode is not touched by it: rewards 1, 2, 3, and what its last observation is worth.
    value = float(policy.value(weights, np.array([[1, 1, 0, 3]], np.float32), ())[0])
    np.testing.assert_allclose(batch["value_targets"][5, 1], 3 + 0.5 * value, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 3])
def test_replayed_steps_do_not_reach_over_a_failure(n: int) -> None:
    worker = make_worker(counter(FAULTS))
    parts = [collect(worker) for _ in range(5)]
    gamma = 0.5
    buffer = uniform_replay(1000, n_step=n, gamma=gamma)
    state: Any = buffer.init(parts[0])
    for part in parts:
        state = buffer.add(state, part)
    stored = buffer.take(state, np.arange(56))
    seen = 0
    for b in range(2):
        want = simulate(b, 30, 6)
        mask = np.array(want["mask"])
        # Runs of rows that follow one another: of one episode, which a failure ends whether it was told to or not.
        for i in np.flatnonzero(mask):
            total, k = 0.0, i
            while True:
                total += gamma ** (k - i) * want["rewards"][k]
                if k - i + 1 == n or want["terminateds"][k] or k == 29 or not mask[k + 1]:
                    break
                k += 1
            (row,) = np.flatnonzero((stored["obs"] == np.array(want["obs"][i], np.float32)).all(axis=1))
            np.testing.assert_array_equal(stored["new_obs"][row], np.array(want["new_obs"][k], np.float32))
            assert stored["rewards"][row] == pytest.approx(total)
            assert stored["discounts"][row] == pytest.approx(0.0 if want["terminateds"][k] else gamma ** (k - i + 1))
            seen += 1
    assert seen == 56


def lives(fault: tuple[str, int]) -> Any:
    """Games of three lives of two steps; the first environment raises at one call of a method."""

    class Lives(gym.Env):
        observation_space = spaces.Box(0, 100, (1,), np.float32)
        action_space = spaces.Discrete(2)
        broken = False

        def __init__(self) -> None:
            self.calls = {"reset": 0, "step": 0}
            self.t = self.lives = 0

        def call(self, method: str) -> None:
            self.calls[method] += 1
            if (method, self.calls[method]) == fault and not Lives.broken:
                Lives.broken = True
                raise RuntimeError("broken")

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.call("reset")
            going_on = seed is None and self.t == 2 and self.lives > 1
            self.t, self.lives = 0, self.lives - 1 if going_on else 3
            return np.zeros(1, np.float32), {EPISODE_CONTINUES: True} if going_on else {}

        def step(self, action: Any) -> Any:
            self.call("step")
            self.t += 1
            info = {EPISODE_CONTINUES: True} if self.t == 2 and self.lives > 1 else {}
            return np.full(1, self.t, np.float32), 1.0, self.t == 2, False, info

    return Lives


@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
@pytest.mark.parametrize(
    ("fault", "lost", "extra"), [(("step", 10), 3, 1), (("reset", 5), 2, 0), (("reset", 4), 0, 0), (("step", 7), 0, 1)]
)
def test_a_game_that_was_broken_off_has_no_record(mode: str, fault: Any, lost: int, extra: int) -> None:
    """`lost` steps of the second game, and the step that failed, are of no game that has a result."""
    seen: list[Any] = []
    started: list[int] = []
    callbacks = Callbacks(
        on_episode_start=lambda *, episode, **_: started.append(episode.episode_id),
        on_episode_end=lambda *, episode, **_: seen.append((episode.episode_id, episode.length)),
    )
    worker = make_worker(
        lives(fault), num_envs_per_worker=1, rollout_fragment_length=5, batch_mode=mode, callbacks=callbacks
    )
    parts = [collect(worker) for _ in range(6)]
    records = worker.pop_episodes()
    assert {record.length for record in records} == {6} == {length for _, length in seen}
    assert len(seen) == len(records)
    steps = 30 if mode == "truncate_episodes" else 36
    if mode == "truncate_episodes":
        assert len(records) == (30 - lost - extra) // 6 and sum(part.count for part in parts) == 30 - extra
        assert len(started) == len(records) + (lost + extra > 0) + 1
    else:
        # Lives that came to their end are whole episodes for learning.
        assert sum(part.count for part in parts) == steps
        ends = np.concatenate([part["terminateds"][part["mask"]] for part in parts])
        np.testing.assert_array_equal(ends, np.arange(36) % 2 == 1)


class Chatty(MultiAgentEnv):
    """`fast` acts at each step, `slow` at every third, `late` from step 2 on; tells all transitions that were whole."""

    possible_agents = ["fast", "slow", "late"]
    observation_spaces = dict.fromkeys(possible_agents, spaces.Box(0, np.inf, (1,), np.float32))
    action_spaces = dict.fromkeys(possible_agents, spaces.Discrete(3))
    # Shared by all of one class: what happened, by environment and agent, in order.
    told: defaultdict[Any, list[Any]]
    made: defaultdict[int, int]
    rows: defaultdict[int, int]
    faults: set[Any]

    def __init__(self, config: Any) -> None:
        self.e = config.vector_index
        self.number = self.made[self.e]
        self.made[self.e] += 1
        self.calls, self.episode = 0, -1

    def new(self, agent: str) -> np.ndarray:
        self.now[agent] = float(1000 * self.number + 100 * self.episode + 10 * self.t + len(agent))
        return np.array([self.now[agent]], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed_random(seed)
        self.episode, self.t, self.now, self.open = self.episode + 1, 0, {}, {}
        return {"fast": self.new("fast"), "slow": self.new("slow")}, {}

    def step(self, action_dict: Any) -> Any:
        row, self.rows[self.e] = self.rows[self.e], self.rows[self.e] + 1
        call, self.calls = self.calls, self.calls + 1
        if (self.e, self.number, call) in self.faults:
            # Of each agent's acts the last one that was answered is where it was cut.
            for agent in self.possible_agents:
                if agent in self.now:
                    self.told[self.e, agent].append(("failed", row, self.now[agent]))
            raise RuntimeError("broken")
        for agent in action_dict:
            self.open[agent] = [self.now[agent], 0.0]
        self.t += 1
        over = self.t == 7
        obs = {"fast": self.new("fast")}
        if self.t % 3 == 0:
            obs["slow"] = self.new("slow")
        if self.t >= 2:
            obs["late"] = self.new("late")
        rewards = dict.fromkeys(self.open, 1.0)
        for agent in list(self.open):
            self.open[agent][1] += 1.0
            if agent in obs or over:
                first, reward = self.open.pop(agent)
                self.told[self.e, agent].append((row, first, reward, self.now[agent], over))
        return obs, rewards, {"__all__": over}, {"__all__": False}, {}


def chatty(faults: Any) -> Any:
    own = {"told": defaultdict(list), "made": defaultdict(int), "rows": defaultdict(int), "faults": set(faults)}
    return type("Chatty", (Chatty,), own)


def make_multi_agent_worker(env: Any, model: Any = None, **options: Any) -> RolloutWorker:
    defaults = {"env": env, "num_envs_per_worker": 2, "rollout_fragment_length": 5, "train_batch_size": 10}
    defaults |= {"sgd_minibatch_size": 0, "seed": 4, "model": {"fcnet_hiddens": [8], **(model or {})}}
    defaults |= {"multiagent": {"policies": {"shared": None}, "policy_mapping_fn": lambda agent: "shared"}}
    config = PPOTrainer.resolve_config({**defaults, "restart_failed_sub_environments": True, **options})
    runners = make_worker_env(config, 0, 0)
    policy = PPOPolicy(runners[0].observation_spaces["fast"], runners[0].action_spaces["fast"], config)
    worker = RolloutWorker(config, {"shared": policy}, env=runners)
    worker.set_weights(1, {"shared": policy.init(jax.random.key(1)).weights})
    return worker


@pytest.mark.parametrize("model", [None, {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 5}])
def test_several_agents_of_an_environment_that_fails(model: Any) -> None:
    # In rows 3, 12, 13 and 20 (the first one of a fragment) of environment 1.
    env = chatty([(1, 0, 3), (1, 1, 8), (1, 2, 0), (1, 3, 6)])
    worker = make_multi_agent_worker(env, model)
    parts: list[Any] = []
    worker.sampler.callbacks = Callbacks(
        on_postprocess_trajectory=lambda *, original_batch, **_: parts.append(original_batch)
    )
    batches: list[Any] = [worker.sample() for _ in range(6)]
    assert all(batch.env_steps == 10 for batch in batches) and worker.pop_metrics()[2] == 4
    cut = given_away = 0
    for b, slot in enumerate(worker.sampler.rows["shared"].slots):
        got, want = [], []
        for k, part in enumerate(parts):
            new = np.asarray(part["new_obs"])
            for i in np.flatnonzero(part["mask"][:, b]):
                row = (part["obs"][i, b, 0], part["rewards"][i, b], new[i, b, 0], part["terminateds"][i, b])
                got.append((5 * k + int(i), *(x.item() for x in row), bool(part["truncateds"][i, b])))
        told = env.told[slot.env_index, slot.agent_id]
        for event, following in zip(told, [*told[1:], ("over", -1, None)], strict=True):
            if event[0] == "failed":
                continue
            # The agent's last row before a failure is cut, unless it was in a fragment that had been given away.
            broke = following[0] == "failed" and following[2] == event[3]
            here = broke and following[1] // 5 == event[0] // 5
            want.append((*event, here))
            cut, given_away = cut + here, given_away + (broke and not here)
        assert got == want, slot
    assert cut >= 4 and given_away >= 2
    for batch in batches:
        shared = batch["shared"]
        assert np.isfinite(shared["advantages"]).all() and shared.count > 0


def test_whole_episodes_of_several_agents() -> None:
    env = chatty([(1, 0, 3), (1, 1, 8), (1, 2, 0), (0, 0, 15)])
    worker = make_multi_agent_worker(env, batch_mode="complete_episodes", rollout_fragment_length=8)
    batches: list[Any] = [worker.sample() for _ in range(3)]
    records = worker.pop_episodes()
    assert [record.length for record in records] == [7] * 12 and worker.pop_metrics()[2] == 4
    assert all(batch.env_steps == 28 for batch in batches)
    for b, slot in enumerate(worker.sampler.rows["shared"].slots):
        rows = [batch["shared"]["mask"][:, b].sum() for batch in batches]
        assert rows == [2 * {"fast": 7, "slow": 3, "late": 5}[slot.agent_id]] * 3
        for batch in batches:
            shared = batch["shared"]
            assert shared["terminateds"][shared["mask"][:, b], b].sum() == 2
            assert not shared["truncateds"][:, b].any()


def test_an_environment_of_several_agents_that_cannot_be_had() -> None:
    worker = make_multi_agent_worker(chatty([(1, number, 0) for number in range(99)]))
    with pytest.raises(
        EnvError, match=r"Chatty \(worker 0, env 1, episode step 0\): step raised RuntimeError.*5 times"
    ):
        worker.sample()
    worker = make_multi_agent_worker(chatty([(1, 0, 3)]), restart_failed_sub_environments=False)
    with pytest.raises(EnvError, match=r"Chatty \(worker 0, env 1, episode step 3\): step raised RuntimeError"):
        worker.sample()


@pytest.mark.parametrize("options", [{}, {"env_stepping": "async"}, {"batch_mode": "complete_episodes"}])
def test_a_worker_continues_with_its_failures_from_a_checkpoint(options: dict[str, Any]) -> None:
    def cartpole() -> Any:
        class Fragile(gym.Wrapper):
            """CartPole whose engine breaks where the cart is far from the middle."""

            def __init__(self, config: Any) -> None:
                gym.Wrapper.__init__(self, gym.make("CartPole-v1"))

            def step(self, action: Any) -> Any:
                result = self.env.step(action)
                assert abs(result[0][0]) < 0.15
                return result

        return Fragile

    one, other = (make_worker(cartpole(), rollout_fragment_length=25, **options) for _ in range(2))
    for _ in range(4):
        collect(one)
    assert one.pop_metrics()[2] > 2
    other.set_state(one.get_state())
    for _ in range(6):
        a, b = collect(one), collect(other)
        jax.tree.map(np.testing.assert_array_equal, dict(a.items()), dict(b.items()))
    assert one.pop_metrics()[2] == other.pop_metrics()[2] > 2
    one.stop()
    other.stop()
