"""MultiAgentSampler: rows against what each agent went through, told by the environment itself."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms.ppo import PPOPolicy, PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.envs import MultiAgentEnv
from jaxrl.rollout import RolloutWorker, make_worker_env
from jaxrl.types import ActInputs, EnvError

LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 200}


_ENDS = {"before a cut": ("truncated", "")}


class Story(MultiAgentEnv):
    """Four agents: `every` acts at each step, `odd` at odd ones, `late` joins at step 4, `early` ends at step 5.

    Observations are numbers that never come twice; each agent is paid at every step, whether it acts or not. It keeps
    all transitions as they should be: observation, action, sum of rewards until the next observation, that one, end.
    A transition that is cut without a next observation is none; `before a cut` is the end of the one before it.
    """

    possible_agents = ["every", "odd", "late", "early"]
    observation_spaces = dict.fromkeys(possible_agents, spaces.Box(0, np.inf, (1,), np.float32))
    action_spaces = dict.fromkeys(possible_agents, spaces.Discrete(3))

    def __init__(self, config: Any) -> None:
        self.length = config.get("length", 8)
        self.cut = config.get("cut", False)
        self.bad = config.get("bad")
        self.number = 0
        self.told: dict[str, list[tuple[float, int, float, float, str]]] = defaultdict(list)

    def _new(self) -> np.ndarray:
        self.number += 1
        return np.array([self.number], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed_random(seed)
        self.t = 0
        self.gone: set[str] = set()
        self.open: dict[str, list[Any]] = {}
        self.now = {"every": self._new(), "early": self._new()}
        return dict(self.now), {}

    def step(self, action_dict: Any) -> Any:
        assert set(action_dict) == set(self.now)
        for agent, action in action_dict.items():
            self.open[agent] = [float(self.now[agent][0]), int(action), 0.0]
        self.t += 1
        over = self.t == self.length
        ends = {"early"} if self.t == 5 else set()
        seen = {"every"} | ({"odd"} if self.t % 2 else set()) | ({"late"} if self.t >= 4 else set())
        seen |= set() if self.t > 5 else {"early"}
        seen = {"every", "odd"} if over else seen
        obs = {agent: self._new() for agent in self.possible_agents if agent in seen - self.gone}
        rewards = {}
        for agent in self.possible_agents:
            if agent in self.open and agent not in self.gone:
                rewards[agent] = float(self.t) + self.possible_agents.index(agent) / 4
                self.open[agent][2] += rewards[agent]
        for agent in list(self.open):
            if agent in obs or agent in ends or over:
                end = "terminated" if agent in ends else ("truncated" if self.cut else "terminated") if over else ""
                new = float(obs[agent][0]) if agent in obs else self.open[agent][0]
                first, action, reward = self.open.pop(agent)
                if end == "truncated" and agent not in obs:
                    if self.told[agent] and self.told[agent][-1][3] == first:
                        self.told[agent][-1] = (*self.told[agent][-1][:4], "before a cut")
                else:
                    self.told[agent].append((first, action, reward, new, end))
        self.gone |= ends
        self.now = {agent: o for agent, o in obs.items() if agent not in self.gone}
        if self.bad == "nan" and self.number > 300:
            obs["every"] = np.array([np.nan], np.float32)
        flags = dict.fromkeys(ends, True) | {"__all__": over and not self.cut}
        return obs, rewards, flags, {"__all__": over and self.cut}, {}


def make_worker(env: Any = Story, mapping: Any = None, model: Any = None, **options: Any) -> RolloutWorker:
    defaults = {
        "env": env,
        "num_envs_per_worker": 2,
        "rollout_fragment_length": 11,
        "train_batch_size": 22,
        "sgd_minibatch_size": 0,
        "seed": 4,
        "model": {"fcnet_hiddens": [8], "vf_share_layers": True, **(model or {})},
    }
    names = ["shared"] if mapping is None else sorted({mapping(a) for a in Story.possible_agents})
    multiagent = {"policies": dict.fromkeys(names), "policy_mapping_fn": mapping or (lambda agent: "shared")}
    config = PPOTrainer.resolve_config({**defaults, "multiagent": multiagent, **options})
    runners = make_worker_env(config, 0, 0)
    policy = PPOPolicy(runners[0].observation_spaces["odd"], runners[0].action_spaces["odd"], config)
    worker = RolloutWorker(config, dict.fromkeys(names, policy), env=runners)
    weights = policy.init(jax.random.key(1)).weights
    worker.set_weights(1, dict.fromkeys(names, weights))
    return worker


def told(worker: RolloutWorker) -> dict[tuple[int, str], list[tuple[float, int, float, float, str]]]:
    return {
        (e, agent): list(runner.env.told[agent])
        for e, runner in enumerate(worker.env)
        for agent in Story.possible_agents
    }


def transitions(worker: RolloutWorker, parts: list[Any], pid: str) -> dict[tuple[int, str], list[Any]]:
    """The rows of one policy's raw fragments as `Story` tells them."""
    got: dict[tuple[int, str], list[Any]] = defaultdict(list)
    for part in parts:
        batch = part[pid]
        new = np.asarray(batch["new_obs"])
        for b, slot in enumerate(worker.sampler.rows[pid].slots):
            for i in np.flatnonzero(batch["mask"][:, b]):
                end = "terminated" if batch["terminateds"][i, b] else "truncated" if batch["truncateds"][i, b] else ""
                row = (batch["obs"][i, b, 0], batch["actions"][i, b], batch["rewards"][i, b], new[i, b, 0], end)
                got[slot.env_index, slot.agent_id].append(tuple(x if isinstance(x, str) else x.item() for x in row))
    return got


def collect(worker: RolloutWorker) -> dict[str, Any]:
    return worker.sampler._collect(worker.weights)[0]


@pytest.mark.parametrize("options", [{}, {"env_config": {"cut": True}}, {"batch_mode": "complete_episodes"}])
@pytest.mark.parametrize("mapping", [None, lambda agent: "x" if agent in ("odd", "early") else "y"])
def test_every_transition_once_and_only_once(mapping: Any, options: dict[str, Any]) -> None:
    worker = make_worker(mapping=mapping, **options)
    parts = [collect(worker) for _ in range(4)]
    got: dict[Any, list[Any]] = {}
    for pid in worker.policies:
        got |= transitions(worker, parts, pid)
    want = told(worker)
    for key, rows in want.items():
        for i, row in enumerate(rows):
            # Where the row is the last one of its fragment, what follows it is known, and it needs no cut.
            assert got[key][i] in [(*row[:4], end) for end in _ENDS.get(row[4], (row[4],))], (key, i)
        assert len(got[key]) == len(rows)
    steps = sum(len(rows) for rows in want.values())
    assert steps == sum(part[pid].count for part in parts for pid in worker.policies)


def test_fragments_that_cut_a_waiting_agent() -> None:
    # Fragments of 1: the transitions of `odd` always begin in one and end in another.
    worker = make_worker(rollout_fragment_length=1, train_batch_size=2)
    parts = [collect(worker) for _ in range(20)]
    got = transitions(worker, parts, "shared")
    for key, rows in told(worker).items():
        assert got[key] == [tuple(row) for row in rows], key


def test_numbers_of_steps_and_episodes() -> None:
    worker = make_worker(rollout_fragment_length=16, train_batch_size=32)
    batch: Any = worker.sample()
    assert batch.env_steps == 32 and batch.agent_steps == batch["shared"].count
    records = worker.pop_episodes()
    assert [record.length for record in records] == [8] * 4
    for record in records:
        assert record.reward == pytest.approx(sum(record.agent_rewards.values()))
        assert record.agent_rewards["every", "shared"] == 36.0
        assert set(record.agent_rewards) == {(agent, "shared") for agent in Story.possible_agents}
    shared = batch["shared"]
    for b, slot in enumerate(worker.sampler.rows["shared"].slots):
        on = shared["mask"][:, b]
        ids = shared["eps_id"][on, b]
        for number in np.unique(ids):
            np.testing.assert_array_equal(shared["t"][on, b][ids == number], np.arange((ids == number).sum()))
        assert slot.agent_id == Story.possible_agents[int(shared["agent_index"][0, b])]
    assert np.isfinite(shared["advantages"][shared["mask"]]).all()


def test_horizon_truncates_everybody() -> None:
    worker = make_worker(horizon=3, rollout_fragment_length=12, train_batch_size=24)
    batch = collect(worker)["shared"]
    assert {record.length for record in worker.pop_episodes()} == {3}
    assert not batch["terminateds"].any()
    every = worker.sampler.rows["shared"].slots.index((0, "every"))
    np.testing.assert_array_equal(batch["truncateds"][:, every], np.arange(1, 13) % 3 == 0)


def test_absent_agents_hold_their_state() -> None:
    worker = make_worker(model=LSTM, mapping=lambda agent: agent)
    policy, weights = worker.policies["odd"], worker.weights["odd"]
    parts = [collect(worker) for _ in range(4)]
    for pid in ("every", "odd", "early"):
        rows = worker.sampler.rows[pid]
        for b in range(len(rows.slots)):
            carry = policy.initial_carry(1)
            for part in parts:
                batch = part[pid]
                on = np.flatnonzero(batch["mask"][:, b])
                first = on[0] if len(on) else None
                if first is not None and batch["t"][first, b] > 0:
                    kept = jax.tree.map(lambda x, b=b: x[b : b + 1], batch["state_in"])
                    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), kept, carry[0])
                for i in on:
                    inputs = ActInputs(batch["obs"][i, b : b + 1], 0, reset=batch["t"][i, b : b + 1] == 0)
                    carry = policy.act(weights, inputs, carry, jax.random.key(0), False).carry
    # One pass over the fragment gives what acting step by step gave: values of the rows, held over the steps between.
    filled = policy.postprocess(weights, parts[1]["odd"], None, jax.random.key(0))
    assert np.isfinite(np.asarray(filled["vf_preds"])).all()


def test_recurrent_values_equal_stepwise_ones() -> None:
    worker = make_worker(model=LSTM)
    policy, weights = worker.policies["shared"], worker.weights["shared"]
    collect(worker)
    raw = collect(worker)["shared"]
    filled: Any = policy.postprocess(weights, raw, None, jax.random.key(0)).to_numpy()
    assert filled["vf_preds"].shape == raw["t"].shape
    for b in range(raw.B):
        carry = (jax.tree.map(lambda x, b=b: x[b : b + 1], raw["state_in"]), policy.initial_carry(1)[1])
        for i in np.flatnonzero(raw["mask"][:, b]):
            reset = raw["t"][i, b : b + 1] == 0
            state = jax.tree.map(lambda x, r=reset: np.where(r, 0, x), carry[0])
            obs = raw["obs"][i, b : b + 1]
            want = policy.value(weights, obs, state)[0]
            np.testing.assert_allclose(filled["vf_preds"][i, b], want, atol=1e-5)
            carry = policy.act(weights, ActInputs(obs, 0, reset=reset), carry, jax.random.key(0), False).carry


def test_hooks_see_each_episode() -> None:
    calls: dict[str, int] = defaultdict(int)

    def end(*, episode: Any, **_: Any) -> None:
        calls["end"] += 1
        episode.custom_metrics["steps"] = float(episode.length)

    callbacks = Callbacks(
        on_episode_start=lambda **_: calls.__setitem__("start", calls["start"] + 1),
        on_episode_step=lambda **_: calls.__setitem__("step", calls["step"] + 1),
        on_episode_end=end,
    )
    worker = make_worker(rollout_fragment_length=16, train_batch_size=32, callbacks=callbacks)
    worker.sample()
    assert calls == {"start": 6, "step": 32, "end": 4}
    assert [record.custom_metrics for record in worker.pop_episodes()] == [{"steps": 8.0}] * 4


def test_observations_are_checked_in_every_fragment() -> None:
    worker = make_worker(env_config={"bad": "nan"})
    with pytest.raises(EnvError, match="agent 'every'.*finite"):
        for _ in range(12):
            collect(worker)
