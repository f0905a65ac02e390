"""The compiled engine learns as the in-process one does: the same curves over ten seeds, single and as a population."""

import pathlib
import statistics

import numpy as np
import pytest

from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.config import load_yaml

EXAMPLE = pathlib.Path(__file__).parents[2] / "tuned_examples" / "ppo" / "cartpole-ppo.yaml"
ITERATIONS, STEPS, SEEDS = 20, 2048, 10


def config(**options):
    (example,) = load_yaml(EXAMPLE.read_text(), where="cartpole-ppo").values()
    return {**example["config"], "timesteps_per_iteration": STEPS, "metrics_smoothing_episodes": 20, **options}


def curve(results):
    return [result["episode_reward_mean"] for result in results]


def single_runs(results_dir, **options):
    curves = []
    for seed in range(SEEDS):
        with PPOTrainer(config=config(seed=seed, **options), results_dir=results_dir / str(seed)) as trainer:
            curves.append(curve([trainer.train() for _ in range(ITERATIONS)]))
    return np.array(curves)


@pytest.mark.learning
def test_three_ways_to_run_ten_seeds_give_the_same_curves(tmp_path):
    with PPOTrainer(config=config(env="jax/CartPole-v1", seed=0), results_dir=tmp_path / "population") as trainer:
        population = trainer.fit(ITERATIONS, seeds=SEEDS, verbose=False)
    curves = {
        "in-process": single_runs(tmp_path / "in-process", env="CartPole-v1"),
        "compiled": single_runs(tmp_path / "compiled", env="jax/CartPole-v1", engine="compiled"),
        "population": np.array([curve(member.history) for member in population.members]),
    }
    # The mean over a run's curve is one number a seed; that of other engines' seeds comes from the same distribution.
    areas = {name: runs.mean(axis=1) for name, runs in curves.items()}
    print({name: (float(a.mean().round(1)), float(a.std(ddof=1).round(1))) for name, a in areas.items()})
    for name in ("compiled", "population"):
        a, b = areas["in-process"], areas[name]
        t = (a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / SEEDS + b.var(ddof=1) / SEEDS)
        assert abs(t) < 2.9, (name, t)  # Welch's test at 1%
        assert statistics.median(b) > 150
