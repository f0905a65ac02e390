"""`jaxrl train` where its directory fills up, is moved away or made unreadable: one line, code 1, the checkpoint."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import time

import pytest

from jaxrl.algorithms.pg import PGTrainer
from jaxrl.trainers import appending


@pytest.fixture
def at_iteration(monkeypatch):
    """Does something within an iteration of a PG run."""
    step = PGTrainer.step

    def arrange(iteration, act):
        def step_and_act(self):
            if self.iteration == iteration - 1:
                act(self.results_dir)
            return step(self)

        monkeypatch.setattr(PGTrainer, "step", step_and_act)

    return arrange


@pytest.fixture
def size_limit():
    """Sets the largest size of a file: writes beyond it are cut short or fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_line(result) -> str:
    lines = [line for line in result.output.splitlines() if not line.startswith(("iter ", "Restoring", "Resuming"))]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.output
    return lines[0]


def test_a_full_disk_ends_a_run_with_one_line_and_it_resumes(train, jaxrl, tmp_path, at_iteration, size_limit):
    at_iteration(3, lambda directory: size_limit(2000))
    said = one_line(train("--stop", "training_iteration=5", "--checkpoint-freq", 1, code=1))
    (run,) = (tmp_path / "results" / "default").iterdir()
    assert said.startswith(f"Error: {run / 'result.json'}: File too large")
    assert said.endswith(f"The last checkpoint is whole: {run / 'checkpoint_000002'} (iteration 2)")
    size_limit(resource.RLIM_INFINITY)
    at_iteration(0, lambda directory: None)
    jaxrl("train", "--resume")
    assert iterations(run) == [1, 2, 3, 4, 5]


def iterations(run) -> list[int]:
    return [json.loads(line)["training_iteration"] for line in (run / "result.json").read_text().splitlines()]


def test_a_signal_while_a_run_waits_for_room_ends_it(train, at_iteration, size_limit, monkeypatch):
    monkeypatch.setattr(appending, "_FULL", (errno.EFBIG,))
    monkeypatch.setattr(appending, "PAUSE_S", 0.0)
    at_iteration(3, lambda directory: size_limit(2000))
    sleep = time.sleep
    monkeypatch.setattr(
        appending.time, "sleep", lambda seconds: (sleep(seconds), signal.raise_signal(signal.SIGTERM), None)[2]
    )
    words = ("--stop", "training_iteration=5", "--checkpoint-freq", 1, "--on-full-disk", "wait")
    said = train(*words, code=143).output
    assert said.count("Waiting for room") <= 1 and "checkpoint_000002 (iteration 2)" in said


@pytest.mark.parametrize("kind", ["moved", "removed"])
def test_a_directory_that_goes_away_ends_a_run_with_one_line(train, tmp_path, at_iteration, kind):
    def act(directory):
        if kind == "moved":
            directory.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(directory)

    at_iteration(3, act)
    said = one_line(train("--stop", "training_iteration=5", "--checkpoint-freq", 1, code=1))
    assert "No such file or directory; was it moved or deleted?" in said
    assert "checkpoint_000002, is out of reach too" in said


def test_a_run_without_a_checkpoint_says_so(train, tmp_path, at_iteration):
    at_iteration(2, shutil.rmtree)
    said = one_line(train("--stop", "training_iteration=5", code=1))
    assert said.endswith("There is no checkpoint yet")
    assert not list((tmp_path / "results" / "default").iterdir())


def test_a_results_directory_that_cannot_be_read_is_one_line(train, jaxrl, monkeypatch):
    train("--stop", "training_iteration=1")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "/results")

    monkeypatch.setattr("jaxrl.cli.session.find_interrupted", refused)
    assert one_line(jaxrl("train", "--resume", code=1)).startswith("Error: /results: Permission denied")


def test_the_flag_for_a_full_disk_is_checked_before_anything_starts(train, tmp_path):
    said = train("--stop", "training_iteration=1", "--on-full-disk", "weit", code=2).output
    assert "'on_full_disk'" in said and "'wait'" in said
    assert not (tmp_path / "results").exists()
