"""Save, restore in a new process, continue: equal, bit for bit, to never having stopped."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from jaxrl import registry

SMALL: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 20,
    "train_batch_size": 40,
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
    "compile_cache": False,
}
PPO = {"sgd_minibatch_size": 20, "num_sgd_iter": 2}
LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 10, "fcnet_hiddens": [8]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": (
        "PPO",
        {**PPO, "lr_schedule": [[0, 0.01], [200, 0.001]], "evaluation_interval": 2, "evaluation_num_episodes": 2},
    ),
    "lstm": ("PPO", {**PPO, "env": "StatelessCartPole", "model": LSTM, "observation_filter": "MeanStdFilter"}),
    "agents": (
        "PPO",
        {
            **PPO,
            "env": "MultiAgentCartPole",
            "env_config": {"num_agents": 3},
            "num_envs_per_worker": 1,
            "rollout_fragment_length": 40,
            "multiagent": {"policies": {"a": None, "b": None}, "policy_mapping_fn": {"$ref": "two"}},
            "observation_filter": "MeanStdFilter",
        },
    ),
    "microbatches": ("A2C", {"microbatch_size": 40, "train_batch_size": 80, "env": "Pendulum-v1"}),
    "episodes": ("PG", {"train_batch_size": 60}),
}

RUN = """
import json, sys, hashlib, pathlib
import numpy as np, jax
from jaxrl import registry

def two(agent, **_):
    return "a" if agent == 0 else "b"

spec = json.loads(sys.argv[1])
cls = registry.resolve("algorithm", spec["algorithm"])
config = spec["config"]
if "policy_mapping_fn" in config.get("multiagent", {}):
    config["multiagent"]["policy_mapping_fn"] = two
given = {"multiagent": config["multiagent"]} if "multiagent" in config else {}
if spec["restore"]:
    trainer = cls.from_checkpoint(spec["restore"], given, results_dir=spec["directory"])
else:
    trainer = cls(config=config, results_dir=spec["directory"])
out = []
for i in range(spec["iterations"]):
    result = trainer.train()
    names = ("info", "hist_stats", "custom_metrics", "evaluation", "episode", "policy_", "training_", "timesteps")
    kept = {k: v for k, v in result.items() if k.startswith(names) and k != "timesteps_since_restore"}
    weights = jax.tree.leaves(jax.tree.map(np.asarray, trainer.get_weights()))
    digest = hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()
    out.append({"result": kept, "weights": digest})
    if spec["save_at"] == trainer.iteration:
        out[-1]["path"] = trainer.save()
trainer.stop()
print(json.dumps(out, default=float))
"""


def run(directory: pathlib.Path, algorithm: str, config: Any, iterations: int, **options: Any) -> list[Any]:
    spec = {"algorithm": algorithm, "config": config, "iterations": iterations, "directory": str(directory)}
    spec |= {"restore": None, "save_at": 0, **options}
    command = [sys.executable, "-W", "error", "-W", "default::DeprecationWarning", "-c", RUN, json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_continuing_equals_never_having_stopped(name: str, tmp_path: pathlib.Path) -> None:
    algorithm, options = CASES[name]
    config = {**SMALL, **options}
    whole = run(tmp_path / "whole", algorithm, config, 5, save_at=2)
    rest = run(tmp_path / "rest", algorithm, config, 3, restore=whole[1].pop("path"))
    assert json.dumps(rest) == json.dumps(whole[2:])
    assert len({part["weights"] for part in whole}) == 5  # it did learn something each time


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_rollout_actors_continue_too(cluster: None, tmp_path: pathlib.Path) -> None:
    cls = registry.resolve("algorithm", "PPO")
    config = {**SMALL, **PPO, "num_workers": 2, "num_envs_per_worker": 1, "observation_filter": "MeanStdFilter"}

    def outcome(trainer: Any) -> Any:
        result = trainer.train()
        kept = {k: v for k, v in result.items() if k in ("info", "hist_stats", "timesteps_total", "episodes_total")}
        return json.dumps([kept, {k: str(v) for k, v in trainer.get_weights().items()}], default=float)

    with cls(config=config, results_dir=tmp_path / "one") as trainer:
        trainer.train()
        path = trainer.save()
        want = [outcome(trainer) for _ in range(2)]
    with cls.from_checkpoint(path, results_dir=tmp_path / "two") as back:
        assert [outcome(back) for _ in range(2)] == want
    # The same checkpoint serves a process without actors.
    with cls.from_checkpoint(
        path, {"num_workers": 0, "num_envs_per_worker": 2}, results_dir=tmp_path / "three"
    ) as alone:
        assert alone.iteration == 1
        assert alone.train()["timesteps_total"] == 80
