"""VectorSampler: each column against a slow loop over the environments, one by one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms.ppo import PPOPolicy, PPOTrainer
from jaxrl.envs import EnvContext
from jaxrl.rollout import RolloutWorker, make_worker_env
from jaxrl.rollout.actions import policy_action_space
from jaxrl.rollout.fragment import padded_length
from jaxrl.types import DEFAULT_POLICY_ID, FINAL_PAD, ActInputs

SMALL = {"fcnet_hiddens": [8], "vf_share_layers": True}


def make_worker(env: Any = "CartPole-v1", worker_index: int = 0, model: Any = None, **options: Any) -> RolloutWorker:
    defaults = {"env": env, "num_envs_per_worker": 2, "rollout_fragment_length": 30, "seed": 3, "sgd_minibatch_size": 0}
    defaults |= {"model": SMALL | (model or {}), **options}
    columns = defaults["num_envs_per_worker"] * defaults["rollout_fragment_length"]
    config = PPOTrainer.resolve_config({"train_batch_size": columns, **defaults})
    vector = make_worker_env(config, worker_index, 0)
    acting = policy_action_space(vector.action_space, normalize=config.normalize_actions)
    policy = PPOPolicy(vector.observation_space, acting, config)
    worker = RolloutWorker(config, {DEFAULT_POLICY_ID: policy}, env=vector, worker_index=worker_index)
    worker.set_weights(1, {DEFAULT_POLICY_ID: policy.init(jax.random.key(1)).weights})
    return worker


def collect(worker: RolloutWorker) -> Any:
    """A raw fragment."""
    return worker.sampler.collect(worker.weights)


def seeds_of(worker: RolloutWorker) -> list[int]:
    return [
        int(seed)
        for seed in np.random.SeedSequence([worker.config.seed, worker.worker_index]).generate_state(
            worker.sampler.env.num_envs
        )
    ]


def reference(worker: RolloutWorker, make: Any, actions: np.ndarray, horizon: int | None = None) -> dict[str, Any]:
    """Rows `[T, B]` of environments stepped one by one with the given actions."""
    steps, width = actions.shape[:2]
    rows: dict[str, Any] = {
        name: [[None] * width for _ in range(steps)] for name in ("obs", "r", "term", "trunc", "t", "id", "new")
    }
    last, returns = [], []
    for b, seed in enumerate(seeds_of(worker)):
        env = make()
        obs, _ = env.reset(seed=seed)
        t, total, episode = 0, 0.0, 0
        for i in range(steps):
            new, reward, terminated, truncated, _ = env.step(actions[i, b])
            total += reward
            truncated = truncated or (horizon is not None and t + 1 >= horizon and not terminated)
            for name, value in zip(rows, (obs, reward, terminated, truncated, t, (b, episode), new), strict=True):
                rows[name][i][b] = value
            obs, t = new, t + 1
            if terminated or truncated:
                returns.append((i, b, t, total))
                obs, _ = env.reset()
                t, total, episode = 0, 0.0, episode + 1
        last.append(obs)
    return {**rows, "last": np.stack(last), "returns": sorted(returns)}


def check(batch: Any, want: dict[str, Any]) -> None:
    np.testing.assert_array_equal(batch["obs"], np.array(want["obs"], np.float32))
    np.testing.assert_array_equal(batch["rewards"], np.array(want["r"], np.float32))
    np.testing.assert_array_equal(batch["terminateds"], np.array(want["term"], bool))
    np.testing.assert_array_equal(batch["truncateds"], np.array(want["trunc"], bool))
    np.testing.assert_array_equal(batch["t"], np.array(want["t"], np.int32))
    np.testing.assert_array_equal(batch["last_obs"], want["last"].astype(np.float32))
    np.testing.assert_array_equal(batch["new_obs"], np.array(want["new"], np.float32))
    # Two rows have one number exactly where they are of one episode.
    numbers = {}
    for i in range(batch.T):
        for b in range(batch.B):
            numbers.setdefault(int(batch["eps_id"][i, b]), set()).add(want["id"][i][b])
    assert all(len(episodes) == 1 for episodes in numbers.values())
    assert len(numbers) == len({key for keys in numbers.values() for key in keys})


def short_cartpole() -> gym.Env:
    return gym.make("CartPole-v1", max_episode_steps=9, disable_env_checker=True)


@pytest.fixture(scope="module")
def cartpole() -> RolloutWorker:
    return make_worker(env_config={"max_episode_steps": 9})


def restarted(worker: RolloutWorker) -> RolloutWorker:
    worker.sampler.restart()
    worker.sampler.explore = True
    return worker


def test_columns_equal_those_of_a_plain_loop(cartpole: RolloutWorker) -> None:
    worker = restarted(cartpole)
    batch = collect(worker)
    want = reference(worker, short_cartpole, batch["actions"])
    check(batch, want)
    assert "mask" not in batch and (batch["agent_index"] == 0).all() and (batch["unroll_id"] == 0).all()
    records = worker.pop_episodes()
    assert [(r.length, r.reward) for r in records] == [(length, total) for _, _, length, total in want["returns"]]
    ended = [(i, b) for i, b, _, _ in want["returns"]]
    kept = [tuple(row) for row in batch["final_index"] if row[0] != FINAL_PAD]
    assert sorted(kept) == ended
    for k, (i, b) in enumerate(kept):
        np.testing.assert_array_equal(batch["final_obs"][k], np.asarray(want["new"][i][b], np.float32))


def test_fragments_follow_one_another(cartpole: RolloutWorker) -> None:
    worker = restarted(cartpole)
    parts = [collect(worker) for _ in range(3)]
    actions = np.concatenate([part["actions"] for part in parts])
    want = reference(worker, short_cartpole, actions)
    for name, column in (("obs", "obs"), ("t", "t"), ("r", "rewards")):
        got = np.concatenate([part[column] for part in parts])
        np.testing.assert_array_equal(got, np.array(want[name], got.dtype))
    np.testing.assert_array_equal(parts[-1]["last_obs"], want["last"].astype(np.float32))
    assert [int(part["unroll_id"][0, 0]) for part in parts] == [0, 1, 2]
    assert [(r.length, r.reward) for r in worker.pop_episodes()] == [row[2:] for row in want["returns"]]
    numbers = np.concatenate([part["eps_id"] for part in parts])
    assert len(np.unique(numbers)) == len({key for row in want["id"] for key in row})


def test_actions_are_those_of_the_policy(cartpole: RolloutWorker) -> None:
    worker = restarted(cartpole)
    batch, policy = collect(worker), worker.policies[DEFAULT_POLICY_ID]
    weights = worker.weights[DEFAULT_POLICY_ID]
    for i in range(0, 30, 7):
        inputs = ActInputs(batch["obs"][i], i)
        out = policy.act(weights, inputs, policy.initial_carry(2), worker.sampler.key, True)
        np.testing.assert_array_equal(batch["actions"][i], np.asarray(out.actions))
    worker.set_explore(False)
    greedy = collect(worker)
    out = policy.act(weights, ActInputs(greedy["obs"][4], 0), policy.initial_carry(2), worker.sampler.key, False)
    np.testing.assert_array_equal(greedy["actions"][4], np.asarray(out.actions))


def test_horizon_truncates_and_resets() -> None:
    worker = make_worker(horizon=5)
    batch = collect(worker)
    want = reference(worker, lambda: gym.make("CartPole-v1"), batch["actions"], horizon=5)
    check(batch, want)
    assert batch["truncateds"].any() and not batch["terminateds"].any()
    assert {record.length for record in worker.pop_episodes()} == {5}


def test_soft_horizon_cuts_without_resetting() -> None:
    worker = make_worker(horizon=5, soft_horizon=True)
    batch = collect(worker)
    env = gym.make("CartPole-v1")
    obs, _ = env.reset(seed=seeds_of(worker)[0])
    i = 0
    for i in range(30):
        np.testing.assert_array_equal(batch["obs"][i, 0], obs.astype(np.float32))
        obs, _, terminated, _, _ = env.step(int(batch["actions"][i, 0]))
        if terminated:
            break
    assert i >= 5
    np.testing.assert_array_equal(batch["truncateds"][:i, 0], np.arange(1, i + 1) % 5 == 0)
    np.testing.assert_array_equal(batch["t"][:i, 0], np.arange(i) % 5)
    np.testing.assert_array_equal(batch["new_obs"][: i - 1, 0], batch["obs"][1:i, 0])


def test_complete_episodes_are_whole_and_padded() -> None:
    worker = make_worker(batch_mode="complete_episodes", rollout_fragment_length=20)
    batch: Any = None
    for _ in range(2):
        worker.sampler.restart()
        batch = collect(worker)
        mask = batch["mask"]
        lengths = mask.sum(axis=0)
        assert batch.T == 20 - 1 + 500 and (lengths >= 20).all() and batch.count == lengths.sum()
        np.testing.assert_array_equal(mask, np.arange(batch.T)[:, None] < lengths)
        assert all(batch["terminateds"][n - 1, b] for b, n in enumerate(lengths))
        records = worker.pop_episodes()
        assert sum(record.length for record in records) == batch.count
    # Two fragments: each column's episodes follow one another as in a plain loop.
    second = collect(worker)
    for b, seed in enumerate(seeds_of(worker)):
        env = gym.make("CartPole-v1")
        obs, _ = env.reset(seed=seed)
        for part in (batch, second):
            for i in range(int(part["mask"][:, b].sum())):
                np.testing.assert_array_equal(part["obs"][i, b], obs.astype(np.float32))
                obs, _, terminated, truncated, _ = env.step(int(part["actions"][i, b]))
                assert terminated == part["terminateds"][i, b]
                if terminated or truncated:
                    obs, _ = env.reset()


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        (None, [3.5, -2.0, 0.0]),
        (False, [3.5, -2.0, 0.0]),
        (True, [1.0, -1.0, 0.0]),
        (1.5, [1.5, -1.5, 0.0]),
        ((0.0, 3.0), [3.0, 0.0, 0.0]),
    ],
)
def test_reward_clipping_rules(rule: Any, want: list[float]) -> None:
    from jaxrl.rollout.actions import clip_rewards

    got = clip_rewards(np.array([3.5, -2.0, 0.0]), rule)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array(want, np.float32))


class Recorder(gym.Env):
    """Continuous; keeps the actions that it was given. Rewards grow; episodes last 7 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(np.array([0.0, -3.0], np.float32), np.array([2.0, 1.0], np.float32))

    def __init__(self, config: EnvContext) -> None:
        self.given: list[np.ndarray] = []
        self.scale = config.get("scale", 1.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def _obs(self) -> np.ndarray:
        return (self.np_random.normal(size=2) * 3.0 * self.scale + 5.0).astype(np.float32)

    def step(self, action: Any) -> Any:
        self.given.append(np.array(action))
        self.t += 1
        return self._obs(), float(self.t), self.t == 7, False, {}


@pytest.mark.parametrize(("clip", "normalize"), [(True, False), (False, False), (True, True), (False, True)])
def test_actions_on_their_way_to_the_environment(clip: bool, normalize: bool) -> None:
    worker = make_worker(Recorder, clip_actions=clip, normalize_actions=normalize, clip_rewards=2.0)
    batch = collect(worker)
    low, high = np.array([0.0, -3.0], np.float32), np.array([2.0, 1.0], np.float32)
    want = batch["actions"]
    assert (np.abs(want) > 1).any()  # there is something to clip
    if normalize:
        want = low + (np.clip(want, -1, 1) + 1) * (high - low) / 2
    elif clip:
        want = np.clip(want, low, high)
    for b, given in enumerate(worker.foreach_env(lambda env: env.given)):
        np.testing.assert_allclose(np.stack(given), want[:, b], rtol=1e-6)
    np.testing.assert_array_equal(batch["rewards"], np.minimum(batch["t"] + 1.0, 2.0).astype(np.float32))
    assert all(record.reward == 28.0 for record in worker.pop_episodes())  # what the environment gave


def test_previous_actions_and_rewards() -> None:
    model = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 10, "lstm_use_prev_action_reward": True}
    worker = make_worker(Recorder, clip_rewards=3.0, model=model)
    first, second = collect(worker), collect(worker)
    actions = np.concatenate([first["actions"], second["actions"]])
    rewards = np.concatenate([first["rewards"], second["rewards"]])
    starts = np.concatenate([first["t"], second["t"]]) == 0
    for name, column in (("prev_actions", actions), ("prev_rewards", rewards)):
        got = np.concatenate([first[name], second[name]])
        assert (got[starts] == 0).all()
        for b in range(2):
            rows = np.flatnonzero(~starts[:, b])
            np.testing.assert_array_equal(got[rows, b], column[rows - 1, b])


def test_recurrent_state_goes_on_between_fragments() -> None:
    worker = make_worker(Recorder, model={"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 10})
    policy, weights = worker.policies[DEFAULT_POLICY_ID], worker.weights[DEFAULT_POLICY_ID]
    parts, carry = [collect(worker) for _ in range(2)], policy.initial_carry(2)
    step = 0
    for part in parts:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), part["state_in"], carry[0])
        for i in range(part.T):
            inputs = ActInputs(part["obs"][i], step, reset=part["t"][i] == 0)
            out = policy.act(weights, inputs, carry, worker.sampler.key, True)
            np.testing.assert_array_equal(np.asarray(out.actions), part["actions"][i])
            carry, step = out.carry, step + 1


def test_mean_std_filter_uses_the_statistics_of_the_fragments_start() -> None:
    worker = make_worker(Recorder, observation_filter="MeanStdFilter")
    plain = make_worker(Recorder)
    seen: list[np.ndarray] = []
    for number in range(3):
        batch, raw = collect(worker), collect(plain)
        if number == 0:
            want = raw["obs"]
        else:
            rows = np.concatenate(seen)
            want = (raw["obs"] - rows.mean(axis=0)) / (rows.std(axis=0, ddof=1) + 1e-8)
        np.testing.assert_allclose(batch["obs"], want, rtol=1e-4, atol=1e-5)
        seen.append(raw["obs"].reshape(-1, 2).astype(np.float64))
    state = worker.get_filters()[DEFAULT_POLICY_ID]
    rows = np.concatenate(seen)
    assert state.rows == len(rows)
    np.testing.assert_allclose(state.mean, rows.mean(axis=0))
    np.testing.assert_allclose(state.m2 / len(rows), rows.var(axis=0))


def test_native_vector_env_has_its_filler_rows_masked() -> None:
    worker = make_worker(num_envs_per_worker=4, env_stepping="native", rollout_fragment_length=60)
    assert worker.sampler.env.filler_rows
    first, second = collect(worker), collect(worker)
    mask = np.concatenate([first["mask"], second["mask"]])
    dones = np.concatenate([first["dones"], second["dones"]])
    t = np.concatenate([first["t"], second["t"]])
    eps = np.concatenate([first["eps_id"], second["eps_id"]])
    assert not mask.all()
    # A filler follows each end, and an episode starts after it.
    np.testing.assert_array_equal(~mask[1:], dones[:-1])
    np.testing.assert_array_equal(t[2:][dones[:-2]], 0)
    assert not dones[~mask].any()
    for b in range(4):
        for number in np.unique(eps[mask[:, b], b]):
            rows = mask[:, b] & (eps[:, b] == number)
            np.testing.assert_array_equal(t[rows, b], np.arange(rows.sum()))
    lengths = sorted(record.length for record in worker.pop_episodes())
    assert len(lengths) == dones.sum() and first.count == first["mask"].sum()
    ends = np.argwhere(dones & mask)
    assert lengths == sorted(int(t[i, b]) + 1 for i, b in ends)


def test_horizon_of_a_native_vector_env_counts_no_fillers() -> None:
    worker = make_worker(num_envs_per_worker=2, env_stepping="native", horizon=6, rollout_fragment_length=40)
    batch = collect(worker)
    np.testing.assert_array_equal(batch["truncateds"], (batch["t"] == 5) & batch["mask"])
    assert {record.length for record in worker.pop_episodes()} == {6}
    soft = make_worker(num_envs_per_worker=2, env_stepping="native", horizon=6, soft_horizon=True)
    batch = collect(soft)
    rows = np.argmax(batch["terminateds"][:, 0]) if batch["terminateds"][:, 0].any() else 30
    np.testing.assert_array_equal(batch["t"][:rows, 0], np.arange(rows) % 6)
    assert batch["mask"][:rows, 0].all()


def test_processes_give_what_the_loop_gives() -> None:
    loop, processes = make_worker(), make_worker(env_stepping="async")
    try:
        for _ in range(2):
            a, b = collect(loop), collect(processes)
            assert list(a) == list(b)
            jax.tree.map(np.testing.assert_array_equal, dict(a.items()), dict(b.items()))
    finally:
        processes.stop()


class Masked(gym.Env):
    """Dict observations with an action mask; fails on a masked action."""

    observation_space = spaces.Dict(
        {
            "action_mask": spaces.MultiBinary(4),
            "pair": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)]),
        }
    )
    action_space = spaces.Discrete(4)

    def __init__(self, config: Any) -> None:
        del config

    def _obs(self) -> Any:
        self.mask = np.zeros(4, np.int8)
        self.mask[self.np_random.choice(4, 2, replace=False)] = 1
        return {"action_mask": self.mask, "pair": (self.t % 3, np.full(2, self.t / 10, np.float32))}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        assert self.mask[action]
        self.t += 1
        return self._obs(), 1.0, self.t == 9, False, {}


def test_dict_observations_and_masks() -> None:
    worker = make_worker(Masked)
    batch: Any = worker.sample()
    taken = np.take_along_axis(batch["obs"]["action_mask"], batch["actions"][..., None], axis=-1)
    assert (taken == 1).all()
    np.testing.assert_array_equal(batch["obs"]["pair"][0], batch["t"] % 3)
    np.testing.assert_allclose(batch["new_obs"]["pair"][1][..., 0], (batch["t"] + 1) / 10, rtol=1e-6)
    assert np.isfinite(batch["advantages"]).all()


def test_nested_actions_reach_the_environment_in_their_structure() -> None:
    worker = make_worker("NestedSpaceRepeatAfterMe", num_envs_per_worker=2)
    batch: Any = worker.sample()
    space = worker.sampler.env.action_space
    leaves = jax.tree.leaves(batch["actions"])
    assert len(leaves) == len(jax.tree.leaves(space.sample())) and all(leaf.shape[:2] == (30, 2) for leaf in leaves)


def test_postprocessed_columns() -> None:
    worker = make_worker(env_config={"max_episode_steps": 9})
    batch: Any = worker.sample()
    for name in ("action_logp", "vf_preds", "advantages", "value_targets", "action_dist_inputs"):
        assert isinstance(batch[name], np.ndarray) and batch[name].dtype == np.float32, name
    logits = batch["action_dist_inputs"]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        batch["action_logp"], np.take_along_axis(logp, batch["actions"][..., None], -1)[..., 0], rtol=1e-4, atol=1e-5
    )


def test_seeds_keep_workers_apart_and_runs_together() -> None:
    one, same, other = make_worker(), make_worker(), make_worker(worker_index=1)
    a, b, c = (collect(worker) for worker in (one, same, other))
    np.testing.assert_array_equal(a["obs"], b["obs"])
    np.testing.assert_array_equal(a["actions"], b["actions"])
    assert (a["obs"][0] != c["obs"][0]).any()


def test_perf_is_per_vector_step(cartpole: RolloutWorker) -> None:
    worker = restarted(cartpole)
    worker.sampler.perf.pop()
    collect(worker)
    steps, env, act, total = worker.sampler.perf.pop()
    assert steps == 30 and env > 0 and act > 0 and env + act < total


def test_whole_episodes_are_padded_to_few_lengths() -> None:
    # CartPole-v1 ends after 500 steps: one length for all.
    assert {padded_length(steps, 20, 500, 128) for steps in (20, 33, 519)} == {519}
    # Unknown, or rows too large: the fragment's length, then powers of two.
    assert [padded_length(steps, 20, None, 128) for steps in (12, 20, 21, 33)] == [20, 20, 32, 64]
    assert padded_length(33, 20, 27_000, 4 * 84 * 84 * 4) == 64


class Pixels(gym.Env):
    """Random pictures; episodes are cut after 5 steps."""

    observation_space = spaces.Box(0, 255, (12, 12, 2), np.uint8)
    action_space = spaces.Discrete(3)

    def __init__(self, config: Any = None) -> None:
        self.rng, self.t = np.random.default_rng(0), 0

    def picture(self) -> np.ndarray:
        return self.rng.integers(0, 255, (12, 12, 2), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self.picture(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.picture(), float(action), False, self.t >= 5, {}


@pytest.mark.parametrize("shared", [True, False])
def test_shared_convolutions_keep_what_acting_computed(shared: bool) -> None:
    model = {"conv_filters": [[4, [3, 3], 2]], "vf_share_layers": shared}
    worker = make_worker(Pixels, rollout_fragment_length=12, model=model)
    raw = collect(worker)
    assert ("vf_preds" in raw, "action_dist_inputs" in raw) == (shared, shared)
    policy, weights = worker.policies[DEFAULT_POLICY_ID], worker.weights[DEFAULT_POLICY_ID]
    bare = raw.select([name for name in raw if name not in ("vf_preds", "action_dist_inputs")])
    kept, again = (policy.postprocess(weights, each, None, jax.random.key(0)) for each in (raw, bare))
    for name in ("vf_preds", "action_dist_inputs", "action_logp", "advantages", "value_targets"):
        np.testing.assert_allclose(np.asarray(kept[name]), np.asarray(again[name]), rtol=1e-4, atol=1e-5, err_msg=name)


def test_weights_are_handed_to_jax_when_they_are_first_needed(monkeypatch):
    """Of several versions sent between two fragments, the last one alone."""
    worker = make_worker()
    sent = jax.tree.map(np.asarray, worker.weights)
    placed = []
    monkeypatch.setattr(worker, "_placed", lambda weights: placed.append(weights) or weights)
    for version in (5, 6, 7):
        worker.set_weights(version, sent)
    assert not placed and worker.weights_version == 7
    worker.sample()
    worker.sample()
    assert len(placed) == len(sent)
