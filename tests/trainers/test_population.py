"""Populations: each member is the single run of its seed; tables, evolution, the best member's checkpoint."""

import json
import math
import os
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxrl.algorithms.dqn import DQNTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.execution.population import Population
from jaxrl.trainers.evolution import PopulationBasedTraining
from jaxrl.types import ConfigError, NonFiniteError

PPO = {
    "env": "jax/CartPole-v1",
    "num_envs_per_worker": 4,
    "train_batch_size": 64,
    "sgd_minibatch_size": 16,
    "num_sgd_iter": 2,
    "lr": 1e-2,
    "seed": 3,
    "model": {"fcnet_hiddens": [8]},
}
DQN = {
    "env": "jax/CartPole-v1",
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 4,
    "train_batch_size": 8,
    "buffer_size": 400,
    "learning_starts": 32,
    "timesteps_per_iteration": 40,
    "seed": 0,
    "prioritized_replay": True,
    "model": {"fcnet_hiddens": [8]},
    "hiddens": [8],
}


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (PPOTrainer, PPO),
        (DQNTrainer, DQN),
        pytest.param(DQNTrainer, {**DQN, "seed": 4, "training_intensity": 2.5}, marks=pytest.mark.slow),
    ],
)
def test_a_member_is_the_single_run_of_its_seed(tmp_path, cls, config):
    with cls(config=config, results_dir=tmp_path / "all") as trainer:
        population = trainer.fit(2, seeds=3, coeffs={"lr": [1e-2, 1e-3]}, verbose=False)
    assert [(m.seed, m.coeffs["lr"]) for m in population.members] == [
        (config["seed"] + i, lr) for lr in (1e-2, 1e-3) for i in range(3)
    ]
    best = population.best_index
    for index in {best, 4}:  # the fifth has another seed than the trainer
        member = population.members[index]
        own = {**config, "seed": member.seed, **member.coeffs}
        with cls(config=own, results_dir=tmp_path / str(index)) as single:
            result = [single.train() for _ in range(2)][-1]
            assert result["episode_reward_mean"] == pytest.approx(member.reward)
            metrics = result["info"]["learner"]["default_policy"]
            told = {name: member.history[-1][name] for name in metrics}
            assert told == pytest.approx(metrics, rel=1e-4, abs=1e-5)
            if index == best:  # the trainer went on as its best member
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5),
                    trainer.learners["default_policy"].state.params,
                    single.learners["default_policy"].state.params,
                )
                assert trainer.context.counters.save() == single.context.counters.save()


def test_results_table_curves_and_the_best_members_checkpoint(tmp_path, capsys):
    with PPOTrainer(config=PPO, results_dir=tmp_path) as trainer:
        population = trainer.fit(3, seeds=[5, 9], coeffs={"lr": [1e-2, 1e-3], "clip_param": [0.1, 0.3]})
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith(
            "A population of 8 members, 3 iterations of 64 env steps each: 1,536 env steps in all."
        )
        assert re.match(r"The first iteration took \d+ s, \d+ s of it compiling; the other 2 about \d+ s\.", said[1])
        assert len(population) == 8 and len(population.settings()) == 4
        rows = population.rows()
        assert [sorted(row) for row in rows] == [sorted(["lr", "clip_param", "seeds", "mean", "std", "min", "max"])] * 4
        assert [row["mean"] for row in rows] == sorted((row["mean"] for row in rows), reverse=True)
        assert rows[0]["seeds"] == 2
        best = population.best
        assert best.reward == max(member.reward for member in population.members)
        assert population.plot().axes[0].get_legend() is not None
        frame = population.to_pandas()
        assert len(frame) == 8 * 3 and {"member", "seed", "lr", "episode_reward_mean"} <= set(frame.columns)
        assert "Population of PPO on jax/CartPole-v1: 8 members, 3 iterations" in repr(population)
        assert "<table>" in population._repr_html_() and "data:image/png" in population._repr_html_()
        assert set(population.programs) == {"init", "iteration"}
        state = trainer.learners["default_policy"].state
        assert float(state.coeffs["lr"]) == pytest.approx(best.coeffs["lr"])
        assert trainer.iteration == 3 and trainer.train()["timesteps_total"] == 4 * 64
    lines = [json.loads(line) for line in (tmp_path / "result.json").read_text().splitlines()]
    assert lines[0]["members"] == 8 and len(lines[0]["member_rewards"]) == 8
    assert lines[2]["timesteps_total"] == 8 * 3 * 64 and lines[2]["timesteps_per_member"] == 3 * 64
    with PPOTrainer.from_checkpoint(population.checkpoint, {"env": "CartPole-v1"}, results_dir=tmp_path / "b") as again:
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
            again.learners["default_policy"].state.params,
            state.params,
        )


def test_criteria_end_it_and_wrong_ones_are_named(tmp_path):
    with PPOTrainer(config=PPO, results_dir=tmp_path) as trainer:
        population = trainer.fit(9, seeds=2, stop={"timesteps_per_member": 3 * 64}, verbose=False)
        assert len(population.results) == 3 and population.note.startswith("Stopped: timesteps_per_member is 192")
    with (
        PPOTrainer(config=PPO, results_dir=tmp_path) as trainer,
        pytest.raises(ConfigError, match=r"stop: results have no 'episode_reward_men'.*episode_reward_mean"),
    ):
        trainer.fit(9, seeds=2, stop={"episode_reward_men": 100}, verbose=False)


def test_an_interruption_within_an_iteration_keeps_what_there_is(tmp_path, monkeypatch):
    whole = Population.run

    def breaking(self):
        if self.rounds == 2 * self.engine.rounds:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(Population, "run", breaking)
    with PPOTrainer(config=PPO, results_dir=tmp_path) as trainer:
        population = trainer.fit(9, seeds=2, verbose=False)
        assert len(population.results) == 2 and "within an iteration, after 2 iterations in full" in population.note
        assert trainer.iteration == 2 and population.checkpoint is not None

    def broken(self):
        if self.rounds == 2 * self.engine.rounds:
            jax.tree.map(lambda leaf: leaf.delete(), self.world)  # as an iteration gives its world up
        return breaking(self)

    monkeypatch.setattr(Population, "run", broken)
    with PPOTrainer(config=PPO, results_dir=tmp_path / "b") as trainer:
        population = trainer.fit(9, seeds=2, verbose=False)
        assert len(population.results) == 2 and population.note.endswith("No member could be saved.")
        assert population.checkpoint is None and trainer.iteration == 0


def test_evolution_replaces_the_worst_by_the_best():
    evolve = PopulationBasedTraining(bounds={"lr": (1e-4, 1e-2)}, quantile=0.25, factors=(0.5, 2.0))
    rewards = np.array([5.0, 1.0, math.nan, 8.0, 7.0, 2.0, 3.0, 4.0])
    coeffs = {"lr": np.full(8, 1e-2, np.float32), "clip_param": np.arange(8, dtype=np.float32)}
    parents, new = evolve.next_generation(rewards, coeffs)
    assert set(parents[[1, 2]]) <= {3, 4}
    stay = [0, 3, 4, 5, 6, 7]
    assert parents[stay].tolist() == stay
    assert np.allclose(new["lr"][stay], 1e-2) and set(new["lr"][[1, 2]].astype(float).round(4).tolist()) <= {
        0.005,
        0.01,
    }
    assert (new["clip_param"] == coeffs["clip_param"][parents]).all()
    with pytest.raises(ConfigError, match=r"no coeffs \['rate'\]"):
        PopulationBasedTraining(bounds={"rate": (0.1, 1.0)}).next_generation(rewards, coeffs)
    for wrong in ({"interval": 0}, {"quantile": 0.6}, {"factors": (0.0,)}, {"bounds": {"lr": (1.0, 0.1)}}):
        with pytest.raises(ConfigError, match="PopulationBasedTraining"):
            PopulationBasedTraining(**{"bounds": {}, **wrong})


def test_a_population_evolves(tmp_path):
    evolve = PopulationBasedTraining(bounds={"lr": (1e-7, 1e-1)}, interval=2)
    with PPOTrainer(config=PPO, results_dir=tmp_path) as trainer:
        population = trainer.fit(5, seeds=4, coeffs={"lr": [1e-2, 1e-7]}, evolve=evolve, verbose=False)
    parents = [result.get("parents") for result in population.results]
    assert [each is not None for each in parents] == [False, False, True, False, True]
    assert sum(parent != i for i, parent in enumerate(parents[2])) == 2
    lines = [json.loads(line) for line in (tmp_path / "result.json").read_text().splitlines()]
    assert lines[2]["parents"] == parents[2] and "parents" not in lines[1]
    # Who was replaced goes on with other coeffs, and with its parent's record.
    (taker, *_) = (i for i, parent in enumerate(parents[2]) if parent != i)
    rates = [result["cur_lr"] for result in population.members[taker].history]
    assert rates[0] == rates[1] != rates[2] == rates[3]
    assert f"lr={population.best.history[-1]['cur_lr']:g}" in population.note


def test_what_no_population_can_be_made_of(tmp_path):
    with (
        PPOTrainer(config={**PPO, "env": "CartPole-v1"}) as trainer,
        pytest.raises(ConfigError, match="run by workers"),
    ):
        trainer.fit(1, seeds=2, verbose=False)
    with PPOTrainer(config=PPO, results_dir=tmp_path) as trainer:
        for wrong, said in (
            ({"seeds": 0}, "at least 1"),
            ({"seeds": [1, 1]}, "seeds that differ"),
            ({"coeffs": {"lr": []}}, r"coeffs\['lr'\] should be a list"),
            ({"coeffs": {"rate": [1.0]}}, "has no 'rate'"),
        ):
            with pytest.raises(ConfigError, match=said):
                trainer.fit(1, **wrong, verbose=False)
        with pytest.raises(ConfigError, match=r"a population of 100000000 members needs \d+.* GiB"):
            trainer.fit(1, seeds=range(100_000_000), verbose=False)
        trainer.train()
        with pytest.raises(ConfigError, match="has trained already"):
            trainer.fit(1, seeds=2, verbose=False)
    scheduled = {**PPO, "lr": [[0, 1e-2], [1000, 1e-3]]}
    with PPOTrainer(config=scheduled) as trainer, pytest.raises(ConfigError, match="a schedule sets 'lr'"):
        trainer.fit(1, coeffs={"lr": [1e-2]}, verbose=False)


def test_a_member_whose_numbers_are_not_finite_is_named(tmp_path):
    trainer = PPOTrainer(config=PPO, results_dir=tmp_path)
    with trainer, pytest.raises(NonFiniteError, match=r"member 2 \(seed 3, \{'lr': 1e\+30\}\).* as of 2 of 4 members"):
        trainer.fit(5, seeds=2, coeffs={"lr": [1e-3, 1e30]}, verbose=False)


@pytest.mark.slow
def test_members_are_shared_out_among_devices():
    script = """
        import jax, numpy as np, tempfile
        from jaxrl.algorithms.ppo import PPOTrainer
        config = {"env": "jax/CartPole-v1", "num_envs_per_worker": 2, "train_batch_size": 32, "num_sgd_iter": 1,
            "sgd_minibatch_size": 16, "seed": 0, "lr": 1e-3, "model": {"fcnet_hiddens": [8]}}
        with PPOTrainer(config=config, results_dir=tempfile.mkdtemp()) as trainer:
            population = trainer.fit(2, seeds=8, verbose=False)
        print(len(jax.devices()), [round(m.reward, 4) for m in population.members])
    """
    told = []
    for devices in (1, 4):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags}
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
        assert done.stdout.startswith(f"{devices} "), done.stderr
        told.append(done.stdout.split(" ", 1)[1])
    assert told[0] == told[1]
