"""jaxrl train, in this process."""

from __future__ import annotations

import json

import pytest
import ray

from jaxrl import registry
from jaxrl.cli.runs import RunLock, read_record
from jaxrl.trainers.history import History

PG = ["train", "--run", "PG"]
TWO_EXPERIMENTS = """
one:
  run: PG
  env: CartPole-v1
  stop: {training_iteration: 9}
  config: &small
    train_batch_size: 64
    rollout_fragment_length: auto
    batch_mode: truncate_episodes
    model: {fcnet_hiddens: [8]}
two:
  run: PG
  config: {<<: *small, env: Acrobot-v1, lr: 1e-3}
"""


@pytest.fixture(autouse=True)
def no_ray():
    yield
    assert not ray.is_initialized()


def runs(tmp_path, experiment="default"):
    return sorted((tmp_path / "results" / experiment).iterdir())


def test_it_trains_and_leaves_results_and_checkpoints(train, tmp_path):
    result = train("--stop", '{"training_iteration": 3}', "--checkpoint-freq", 2, "--checkpoint-at-end")
    (run,) = runs(tmp_path)
    assert run.name.startswith("PG_CartPole-v1_")
    files = {path.name for path in run.iterdir()}
    assert {"params.json", "result.json", "progress.csv", "run.json", "checkpoint_000002", "checkpoint_000003"} <= files
    history = History.load(run)
    assert [r["training_iteration"] for r in history] == [1, 2, 3]
    assert json.loads((run / "params.json").read_text())["seed"] == 3
    assert read_record(run / "run.json").status == "done"
    assert f"Results:    {run}" in result.output
    assert f"Checkpoint: {run / 'checkpoint_000003'}" in result.output
    assert "iteration 3, 192 env steps" in result.output
    assert "Stopped: training_iteration is 3, at least 3." in result.output


def test_a_seed_makes_a_run_repeatable(train, tmp_path):
    for name in ("a", "b"):
        train("--stop", "training_iteration=2", "--experiment-name", name)
    first, second = (History.load(runs(tmp_path, name)[0]) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert one["info"] == other["info"] and one["hist_stats"] == other["hist_stats"]


def test_old_checkpoints_are_dropped_and_the_storage_path_holds(train, tmp_path):
    train(
        *("--stop", "training_iteration=4", "--checkpoint-freq", 1, "--keep-checkpoints-num", 2),
        *("--storage-path", tmp_path / "elsewhere", "--experiment-name", "mine"),
    )
    (run,) = (tmp_path / "elsewhere" / "mine").iterdir()
    assert sorted(path.name for path in run.glob("checkpoint_*")) == ["checkpoint_000003", "checkpoint_000004"]
    assert not (tmp_path / "results").exists()


def test_a_new_run_starts_from_a_checkpoint(train, jaxrl, tmp_path):
    train("--stop", "training_iteration=2", "--checkpoint-at-end", "--experiment-name", "first")
    result = jaxrl(
        *("train", "--restore", tmp_path / "results" / "first", "--stop", "training_iteration=3"),
        *("--set", "lr=0.5", "--experiment-name", "second"),
    )
    (run,) = runs(tmp_path, "second")
    history = History.load(run)
    assert [r["training_iteration"] for r in history] == [3]
    assert history[0]["config"]["lr"] == 0.5
    assert history[0]["config"]["train_batch_size"] == 64
    assert "Restoring" in result.output


def interrupt_at(iteration: int, monkeypatch, number: int):
    import signal

    from jaxrl.algorithms.pg import PGTrainer

    step = PGTrainer.step

    def step_and_interrupt(self):
        if self.iteration == iteration - 1:
            signal.raise_signal(number)
        return step(self)

    monkeypatch.setattr(PGTrainer, "step", step_and_interrupt)


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_signal_leaves_a_checkpoint_and_the_run_resumes(train, jaxrl, tmp_path, monkeypatch, number, code):
    with monkeypatch.context() as patch:
        interrupt_at(2, patch, number)
        result = train("--stop", "training_iteration=4", code=code)
    (run,) = runs(tmp_path)
    assert "Interrupted after 2 iterations." in result.output
    assert "Go on with: jaxrl train --resume" in result.output
    assert (run / "checkpoint_000002").is_dir()
    assert read_record(run / "run.json").status == "interrupted"
    result = jaxrl("train", "--resume")
    assert f"Resuming {run} from checkpoint_000002" in result.output
    assert [r["training_iteration"] for r in History.load(run)] == [1, 2, 3, 4]
    assert len((run / "result.json").read_text().splitlines()) == 4
    assert read_record(run / "run.json").status == "done"
    assert "nothing to go on with" in jaxrl("train", "--resume", code=2).output


def test_a_resumed_run_equals_one_that_never_stopped(train, jaxrl, tmp_path, monkeypatch):
    train("--stop", "training_iteration=4", "--experiment-name", "whole")
    with monkeypatch.context() as patch:
        interrupt_at(2, patch, 2)
        train("--stop", "training_iteration=4", "--experiment-name", "parts", code=130)
    jaxrl("train", "--resume", "--experiment-name", "parts")
    whole, parts = (History.load(runs(tmp_path, name)[0]) for name in ("whole", "parts"))
    for one, other in zip(whole, parts, strict=True):
        assert one["info"] == other["info"] and one["hist_stats"] == other["hist_stats"]


def test_a_run_that_was_killed_resumes_but_a_running_one_does_not(train, jaxrl, tmp_path):
    train("--stop", "training_iteration=2", "--checkpoint-freq", 1)
    (run,) = runs(tmp_path)
    record = json.loads((run / "run.json").read_text())
    record |= {"status": "running"}
    record["experiment"]["stop"] = {"training_iteration": 3}
    (run / "run.json").write_text(json.dumps(record))
    lock = RunLock(run)
    lock.acquire()
    assert "another process is running it" in jaxrl("train", "--resume", code=2).output
    lock.release()
    jaxrl("train", "--resume")
    assert len(History.load(run)) == 3


def test_a_failed_run_goes_on_from_its_last_checkpoint(train, tmp_path, monkeypatch):
    from jaxrl.algorithms.pg import PGTrainer
    from jaxrl.types import WorkerError

    step, failures = PGTrainer.step, [1]

    def step_or_fail(self):
        if self.iteration == 2 and failures:
            failures.pop()
            raise WorkerError("worker 1 is gone")
        return step(self)

    monkeypatch.setattr(PGTrainer, "step", step_or_fail)
    result = train("--stop", "training_iteration=3", "--checkpoint-freq", 1, "--max-failures", 1)
    assert "Error: worker 1 is gone" in result.output and "Going on from" in result.output
    assert [r["training_iteration"] for r in History.load(runs(tmp_path)[0])] == [1, 2, 3]
    failures.append(1)
    result = train("--stop", "training_iteration=3", "--checkpoint-freq", 1, "--experiment-name", "b", code=1)
    assert result.output.count("Error: worker 1 is gone") == 1
    (run,) = runs(tmp_path, "b")
    assert read_record(run / "run.json").status == "failed"
    assert (run / "checkpoint_000002").is_dir()


def test_experiments_of_a_yaml_file_run_one_after_the_other(jaxrl, tmp_path):
    file = tmp_path / "experiments.yaml"
    file.write_text(TWO_EXPERIMENTS)
    jaxrl("train", "-f", file, "--stop", "training_iteration=1", "--set", "gamma=0.5")
    for name, env, lr in (("one", "CartPole-v1", 4e-4), ("two", "Acrobot-v1", 1e-3)):
        (run,) = runs(tmp_path, name)
        params = json.loads((run / "params.json").read_text())
        assert (params["env"], params["gamma"], params["lr"]) == (env, 0.5, lr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (PG, "experiment 'default': no environment; give --env"),
        (["train", "--env", "CartPole-v1"], "no algorithm; give --run"),
        (["train", "--run", "PPOO", "--env", "x"], "unknown algorithm 'PPOO'; did you mean 'PPO'"),
        ([*PG, "--env", "CartPole-v1", "--set", "lrr=1"], "unknown key 'lrr'; did you mean 'lr'"),
        ([*PG, "--env", "CartPole-v1", "--config", '{"lr": "high"}'], "'lr'"),
        (
            [*PG, "--env", "CartPole-v1", "--config", '{"lr": '],
            "--config: not valid JSON: Expecting value at line 1, column 8",
        ),
        ([*PG, "--env", "CartPole-v1", "--config", "lr"], "--config: expected a JSON object"),
        ([*PG, "--env", "CartPole-v1", "--set", "framework=torch"], "retired"),
        ([*PG, "--env", "CartPole-v1", "--stop", "training_iteration=soon"], "should be a number"),
        ([*PG, "--env", "Cartpole-v1", "--stop", "training_iteration=1"], "CartPole-v1"),
        ([*PG, "--env", "CartPole-v1", "--experiment-name", "a/b"], "the name of one directory"),
        (["train", "-f", "missing.yaml"], "missing.yaml: cannot be read"),
        (["train", "--resume"], "nothing to go on with"),
        (["train", "--resume", "--restore", "x"], "leave out --restore"),
        (["train", "--restore", "missing"], "missing: does not exist"),
        ([*PG, "--env", "CartPole-v1", "--config", '{"lr": {"grid_search": []}}'], "expected {grid_search"),
        ([*PG, "--env", "CartPole-v1", "--config", '{"lr": {"grid_search": [0.1, "x"]}}'], "'lr'"),
    ],
)
def test_bad_input_is_one_message_and_code_2(jaxrl, tmp_path, words, message):
    result = jaxrl(*words, code=2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "results").exists()


def test_a_stop_criterion_that_never_comes(train):
    assert "did you mean 'timesteps_total'" in train("--stop", "timestep_total=9", code=2).output


def test_verbose_shows_the_traceback(jaxrl):
    assert "missing: does not exist" in jaxrl("train", "--restore", "missing", "-v", code=2).output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected experiments by name"),
        ("one:\n  runn: PG\n", "one: unknown key 'runn'; did you mean 'run'"),
        ("one:\n  run: PG\n  local_dir: x\n", "--storage-path"),
        ("one: {run: PG, env: CartPole-v1, num_samples: 0}\n", "num_samples"),
        ("one: [\n", "not valid YAML"),
    ],
)
def test_bad_files(jaxrl, tmp_path, text, message):
    file = tmp_path / "experiments.yaml"
    file.write_text(text)
    assert message in jaxrl("train", "-f", file, code=2).output


def test_a_registered_trainer_is_found(jaxrl, monkeypatch):
    monkeypatch.setitem(registry._tables["algorithm"], "Mine", "jaxrl.algorithms.pg:PGTrainer")
    assert "unknown key 'x'" in jaxrl("train", "--run", "Mine", "--env", "CartPole-v1", "--set", "x=1", code=2).output
