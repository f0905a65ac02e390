"""Tuned examples reach their thresholds within their env steps, the median of three seeds: `make test-learning`."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import statistics
from typing import Any

import pytest

from jaxrl import registry
from jaxrl.config import load_yaml

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "tuned_examples"
HELD_TO = [
    "ppo/cartpole-ppo",
    "ppo/cartpole-ppo-rllib",
    "ppo/pendulum-ppo",
    "ppo/repeatafterme-ppo-lstm",
    "ppo/stateless-cartpole-ppo-lstm",
    "ppo/multi-agent-cartpole-ppo",
    "ppo/two-policy-cartpole-ppo",
    "ddppo/cartpole-ddppo",
    "a2c/cartpole-a2c",
    "a2c/cartpole-a2c-microbatch",
    "a3c/cartpole-a3c",
    "apex/cartpole-apex",
    "apex/pendulum-apex-ddpg",
    "impala/cartpole-impala",
    "impala/pendulum-impala",
    "impala/stateless-cartpole-impala-lstm",
    "impala/two-policy-cartpole-impala",
    "appo/cartpole-appo",
    "appo/cartpole-appo-vtrace",
    "appo/pendulum-appo",
    "pg/cartpole-pg",
    "simple_q/cartpole-simpleq",
    "dqn/cartpole-dqn-softq",
    "dqn/cartpole-dqn-noisy",
    "dqn/cartpole-dqn-param-noise",
    "dqn/cartpole-rainbow",
    "dqn/parametric-cartpole-dqn",
    "dqn/two-policy-cartpole-dqn",
    "iqn/cartpole-iqn",
    "r2d2/stateless-cartpole-r2d2",
    "r2d2/repeatafterme-r2d2",
    "ddpg/pendulum-ddpg",
    "td3/pendulum-td3",
    "sac/pendulum-sac",
    "sac/cartpole-sac",
    "compiled/cartpole-ppo-compiled",
    "compiled/cartpole-dqn-compiled",
    "compiled/pendulum-sac-compiled",
]
SEEDS = (0, 1, 2)


def benchmark() -> Any:
    """`benchmarks/tuned_examples.py`, which trains the same examples on other seeds."""
    spec = importlib.util.spec_from_file_location("tuned_examples", ROOT / "benchmarks" / "tuned_examples.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.learning
@pytest.mark.parametrize("name", HELD_TO)
def test_tuned_example_reaches_its_threshold(name: str) -> None:
    examples = benchmark()
    experiment = examples.load(name)
    runs = [examples.train(experiment, seed) for seed in SEEDS]
    print(f"{name}: {runs}")
    assert statistics.median(run["best"] for run in runs) >= experiment["stop"]["episode_reward_mean"]
    if experiment["env"] == "MultiAgentCartPole":
        for run in runs:
            assert len(run["agents"]) == experiment["config"]["env_config"]["num_agents"]
            assert min(run["agents"].values()) >= 150, run["agents"]


def test_every_tuned_example_parses() -> None:
    files = sorted(EXAMPLES.glob("*/*.yaml"))
    assert len(files) >= len(HELD_TO)
    for path in files:
        assert re.search(r"^# (Tuned on seeds? \d|Not tuned on any seed)", path.read_text(), re.MULTILINE), path
        for name, experiment in load_yaml(path.read_text(), where=str(path)).items():
            assert {"run", "env", "stop", "config"} <= experiment.keys(), name
            trainer_class = registry.resolve("algorithm", experiment["run"])
            if "grid_search" not in path.read_text():
                trainer_class.resolve_config({**experiment["config"], "env": experiment["env"]})
