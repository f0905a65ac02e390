"""The command itself: help without heavy imports, tables, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxrl.cli.experiments import Experiment, grids, needs_tune, variants, with_seeds
from jaxrl.types import ConfigError

HEAVY = ("jax", "ray", "numpy", "matplotlib", "gymnasium", "flax", "optax")
COMMAND = [sys.executable, "-m", "jaxrl"]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["rollout", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words):
    code = (
        f"import atexit, sys; sys.argv = ['jaxrl', *{words!r}]\n"
        f"atexit.register(lambda: print('loaded', [name for name in {HEAVY!r} if name in sys.modules]))\n"
        "from jaxrl.cli.main import main\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.splitlines()[-1] == "loaded []"


def test_the_list_of_algorithms(jaxrl):
    lines = jaxrl("list").output.splitlines()
    assert lines[0].split()[:5] == ["algorithm", "discrete", "continuous", "multi-agent", "recurrent"]
    (ppo,) = [line for line in lines if line.startswith("PPO ")]
    assert "jaxrl/algorithms/ppo.py" in ppo and "https://arxiv.org/abs/1707.06347" in ppo and "?" not in ppo


def test_the_list_of_environments(jaxrl):
    assert "RepeatAfterMe" in jaxrl("list", "--envs").output


def test_the_options_of_an_algorithm(jaxrl):
    text = jaxrl("config", "PPO").output
    assert "clip_param*" in text and "model.fcnet_hiddens" in text
    assert "lambda" not in jaxrl("config", "PPO", "--search", "clip").output
    defaults = json.loads(jaxrl("config", "PPO", "--json").output)
    assert defaults["num_workers"] == 0 and defaults["model"]["vf_share_layers"] is False
    assert "did you mean 'PPO'" in jaxrl("config", "PPOO", code=2).output


def test_the_version(jaxrl):
    assert jaxrl("--version").output.startswith("jaxrl 0.")


def test_grids_are_found_and_expanded():
    config = {"lr": {"grid_search": [1, 2]}, "model": {"dim": {"grid_search": [3, 4]}, "x": 5}}
    assert grids(config) == [(("lr",), [1, 2]), (("model", "dim"), [3, 4])]
    found = [(variant["lr"], variant["model"]["dim"], variant["model"]["x"]) for variant in variants(config)]
    assert found == [(1, 3, 5), (1, 4, 5), (2, 3, 5), (2, 4, 5)]
    assert config["lr"] == {"grid_search": [1, 2]}
    with pytest.raises(ConfigError, match=r"model\.dim"):
        grids({"model": {"dim": {"grid_search": 3}}})


def test_what_goes_through_tune():
    assert not needs_tune(Experiment(config={"num_workers": 2}), None)
    assert needs_tune(Experiment(), "auto")
    assert needs_tune(Experiment(num_samples=2), None)
    assert needs_tune(Experiment(env={"grid_search": ["a", "b"]}), None)


def test_samples_with_a_seed_get_seeds_of_their_own():
    seeded = with_seeds(Experiment(num_samples=3, config={"seed": 7}))
    assert seeded.num_samples == 1 and seeded.config["seed"] == {"grid_search": [7, 8, 9]}
    assert with_seeds(Experiment(num_samples=3)).num_samples == 3


def start(tmp_path: Path, *words: str, signal_at: str, number: int) -> tuple[int, str]:
    """Runs the command in a process of its own and signals it when a line of its output begins with a text."""
    env = {**os.environ, "JAXRL_RESULTS_DIR": str(tmp_path / "results"), "PYTHONUNBUFFERED": "1"}
    output, sent = [], False
    with subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if not sent and signal_at in line:
                process.send_signal(number)
                sent = True
        return process.wait(timeout=120), "".join(output)


SMALL = [
    "--set",
    "train_batch_size=64",
    "--set",
    "rollout_fragment_length=auto",
    "--set",
    "batch_mode=truncate_episodes",
    "--set",
    "model.fcnet_hiddens=[8]",
]
PG = ["train", "--run", "PG", "--env", "CartPole-v1", *SMALL]


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    code, output = start(tmp_path, *PG, signal_at="iter ", number=signal.SIGINT)
    assert code == 130, output
    assert "No --stop was given" in output and "Ending after this iteration" in output
    assert list(tmp_path.glob("results/default/PG_CartPole-v1_*/checkpoint_*/metadata.json"))
    assert "Traceback" not in output and "INFO" not in output and "WARNING" not in output


@pytest.mark.slow
@pytest.mark.ray
def test_workers_are_driven_directly_and_end(tmp_path):
    words = [*PG, "--num-workers", "1", "--stop", "training_iteration=2", "--checkpoint-at-end"]
    code, output = start(tmp_path, *words, signal_at="never", number=0)
    assert code == 0, output
    (run,) = tmp_path.glob("results/default/PG_CartPole-v1_*")
    assert (run / "checkpoint_000002").is_dir() and not list(tmp_path.rglob("*.pkl"))
    assert "Traceback" not in output and "INFO" not in output and "WARNING" not in output


@pytest.mark.slow
@pytest.mark.ray
def test_a_grid_runs_on_tune_is_interrupted_and_resumes(tmp_path):
    words = [*PG, "--config", '{"lr": {"grid_search": [0.001, 0.01]}}', "--experiment-name", "grid"]
    words += ["--set", "num_cpus_for_driver=0.2", "--stop", "training_iteration=100000"]
    code, output = start(tmp_path, *words, signal_at="iter 1", number=signal.SIGINT)
    assert code == 130, output
    directory = tmp_path / "results" / "grid"
    record = json.loads((directory / "run.json").read_text())
    assert record["tune"] is True and record["status"] == "interrupted"
    before = trials(directory)
    assert before and all(checkpoints for _, checkpoints in before.values())
    resumed = ["train", "--resume", "--experiment-name", "grid"]
    begun = time.monotonic()
    code, output = start(tmp_path, *resumed, signal_at=": iter ", number=signal.SIGINT)
    assert code == 130 and "Resuming" in output, output
    after = trials(directory)
    assert set(before) <= set(after) and time.monotonic() - begun < 120
    for name, (iterations, _) in before.items():
        assert after[name][0][: len(iterations)] == iterations
        assert sorted(set(after[name][0])) == list(range(1, after[name][0][-1] + 1))


def trials(directory: Path) -> dict[str, tuple[list[int], list[str]]]:
    """Iterations reported and checkpoints left, by trial that has reported."""
    found = {}
    for file in directory.glob("*/result.json"):
        iterations = [json.loads(line)["training_iteration"] for line in file.read_text().splitlines()]
        if iterations:
            found[file.parent.name] = (iterations, [path.name for path in file.parent.glob("checkpoint_*")])
    return found
