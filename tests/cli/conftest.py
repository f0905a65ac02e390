"""The command line, run in this process; small experiments."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

SMALL = [
    *("--set", "train_batch_size=64", "--set", "rollout_fragment_length=16", "--set", "num_envs_per_worker=4"),
    *("--set", "model.fcnet_hiddens=[8]", "--set", "batch_mode=truncate_episodes", "--seed", "3"),
]


@pytest.fixture(autouse=True)
def results_below_the_tests_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXRL_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    # Not the terminal that the tests may run in.
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def jaxrl():
    """Runs `jaxrl ...` in this process; it must not start Ray."""
    from jaxrl.cli.app import app

    def run(*words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}"
        return result

    return run


@pytest.fixture
def train(jaxrl):
    """Runs `jaxrl train` for PG on CartPole with tiny settings."""

    def run(*words: object, code: int = 0) -> Result:
        return jaxrl("train", "--run", "PG", "--env", "CartPole-v1", *SMALL, *words, code=code)

    return run
