"""Checkpoints: whole or refused, written atomically, read without running anything."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from jaxrl import storage, trees
from jaxrl.algorithms.a2c import A2CTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.trainers import checkpoint
from jaxrl.types import CheckpointError, ConfigError

TINY: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 10,
    "train_batch_size": 20,
    "sgd_minibatch_size": 0,
    "num_sgd_iter": 1,
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
    "compile_cache": False,
}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = PPOTrainer(config=TINY, results_dir=tmp_path_factory.mktemp("run"))
    made.train()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def saved(trainer: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return pathlib.Path(trainer.save(str(tmp_path_factory.mktemp("saved") / "checkpoint_000001")))


@pytest.fixture
def copy(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def standing(trainer: Any) -> Any:
    """All of a trainer that a restore could change, as leaves."""
    structure, arrays = trees.encode(checkpoint._state(trainer))
    return json.dumps(structure), {
        name: np.asarray(jax.random.key_data(x) if trees.is_key(x) else x) for name, x in arrays.items()
    }


def refused(trainer: Any, path: pathlib.Path, match: str) -> None:
    before = standing(trainer)
    with pytest.raises(CheckpointError, match=match):
        trainer.restore(str(path))
    after = standing(trainer)
    assert before[0] == after[0]
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])


def reseal(path: pathlib.Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Makes the checksums of a changed checkpoint right again, as somebody with bad intent would."""
    metadata = json.loads((path / "metadata.json").read_text())
    metadata.pop("checksum")
    if change is not None:
        change(metadata)
    metadata["sha256"] = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in metadata["sha256"]}
    metadata["checksum"] = storage.checksum(metadata)
    (path / "metadata.json").write_text(json.dumps(metadata))


FILES = ("metadata.json", "config.json", "state.json", "arrays.safetensors")


def test_the_path_is_under_the_results_directory(trainer: Any) -> None:
    path = pathlib.Path(trainer.save())
    assert path == trainer.results_dir / "checkpoint_000001"
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    trainer.restore(path)
    assert trainer.iteration == 1


@pytest.mark.parametrize("name", FILES)
def test_cut_files(trainer: Any, copy: pathlib.Path, name: str) -> None:
    content = (copy / name).read_bytes()
    for size in (0, len(content) // 2, len(content) - 1):
        (copy / name).write_bytes(content[:size])
        refused(trainer, copy, "damaged|cannot be read")


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(trainer: Any, copy: pathlib.Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    rng = random.Random(0)
    for _ in range(12):
        at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        content[at] ^= bit
        (copy / name).write_bytes(content)
        refused(trainer, copy, "damaged|cannot be read|format")
        content[at] ^= bit


@pytest.mark.parametrize("name", FILES)
def test_missing_files_and_links(trainer: Any, copy: pathlib.Path, name: str) -> None:
    moved = copy.parent / name
    (copy / name).rename(moved)
    refused(trainer, copy, f"lacks {name}")
    (copy / name).symlink_to(moved)
    refused(trainer, copy, "a link|no regular file")
    (copy / name).unlink()
    os.mkfifo(copy / name)
    refused(trainer, copy, "a pipe|no regular file")


def test_what_is_no_checkpoint(trainer: Any, tmp_path: pathlib.Path) -> None:
    refused(trainer, tmp_path / "nowhere", "does not exist")
    (tmp_path / "file").write_text("x")
    refused(trainer, tmp_path / "file", "is a file")
    refused(trainer, tmp_path, "no jaxrl checkpoint")


class Bomb:
    def __init__(self, canary: pathlib.Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return (pathlib.Path.touch, (self.canary,))


def test_pickles_are_never_opened(trainer: Any, copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Bomb(canary))
    pickle.loads(bomb)
    assert canary.exists()  # the bomb works
    canary.unlink()
    (tmp_path / "checkpoint-1").write_bytes(bomb)
    refused(trainer, tmp_path / "checkpoint-1", "is a file")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "checkpoint-1").write_bytes(bomb)
    (foreign / "params.pkl").write_bytes(bomb)
    refused(trainer, foreign, "never reads")
    for name in FILES[1:]:
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(bomb)
        reseal(copy)
        with pytest.raises(CheckpointError, match="cannot be read|no array file"):
            PPOTrainer.from_checkpoint(copy)
        (copy / name).write_bytes(kept)
    (copy / ".tune_metadata").write_bytes(bomb)
    reseal(copy)
    trainer.restore(copy)
    (copy / "params.pkl").write_bytes(bomb)
    refused(trainer, copy, "holds 'params.pkl'")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "./config.json", "a//b", "x\x1b", "", "y" * 300])
def test_names_in_the_metadata_that_are_no_names_of_files(trainer: Any, copy: pathlib.Path, name: str) -> None:
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata.pop("checksum")
    metadata["sha256"][name] = "0" * 64
    metadata["checksum"] = storage.checksum(metadata)
    (copy / "metadata.json").write_text(json.dumps(metadata))
    refused(trainer, copy, "no name of a file")


def test_another_algorithm(trainer: Any, saved: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="is a checkpoint of PPO, not of A2C"):
        A2CTrainer.from_checkpoint(saved)


def test_a_newer_format(trainer: Any, copy: pathlib.Path) -> None:
    reseal(copy, lambda metadata: metadata.update(format_version=99))
    refused(trainer, copy, "format 99.*Upgrade jaxrl")


def test_other_shapes(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with PPOTrainer(config={**TINY, "model": {"fcnet_hiddens": [9]}}) as other:
        refused(other, saved, "do not fit")


def test_another_environment(saved: pathlib.Path) -> None:
    with PPOTrainer(config={**TINY, "env": "Acrobot-v1"}) as other:
        refused(other, saved, "trained in env 'CartPole-v1' with obs_space")
    with pytest.raises(CheckpointError, match="Use the environment"):
        PPOTrainer.from_checkpoint(saved, {"env": "Acrobot-v1"})


def test_a_state_that_does_not_fit_changes_nothing(trainer: Any, copy: pathlib.Path) -> None:
    state = json.loads((copy / "state.json").read_text())
    kept = json.dumps(state)
    for path in (("counters",), ("progress", "iteration"), ("workers", "workers"), ("plan", "nodes"), ("learners",)):
        state = json.loads(kept)
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = {"$tuple": ["nonsense"]}
        (copy / "state.json").write_text(json.dumps(state))
        reseal(copy)
        refused(trainer, copy, "does not fit|lacks|plan|node")


def test_other_workers_take_what_fits(saved: pathlib.Path, trainer: Any) -> None:
    config = {"num_envs_per_worker": 1, "rollout_fragment_length": 20}
    with PPOTrainer.from_checkpoint(saved, config) as other:
        assert other.iteration == 1
        jax.tree.map(np.testing.assert_array_equal, other.get_weights(), trainer.get_weights())
        assert other.train()["timesteps_total"] == 40


def test_functions_come_from_the_user(trainer: Any, tmp_path: pathlib.Path) -> None:
    import gymnasium

    def make(context: Any) -> Any:
        return gymnasium.make("CartPole-v1")

    with PPOTrainer(config={**TINY, "env": make}) as own:
        path = own.save(str(tmp_path / "own"))
    with pytest.raises((ConfigError, CheckpointError), match="env"):
        PPOTrainer.from_checkpoint(path)
    with PPOTrainer.from_checkpoint(path, {"env": make}) as back:
        assert back.iteration == 0


def test_keep_the_newest(tmp_path: pathlib.Path) -> None:
    with PPOTrainer(config={**TINY, "keep_checkpoints_num": 2}, results_dir=tmp_path) as trainer:
        for _ in range(4):
            trainer.train()
            trainer.save()
        trainer.save()
    names = sorted(p.name for p in tmp_path.iterdir() if "checkpoint" in p.name)
    assert names == ["checkpoint_000003", "checkpoint_000004"]


def test_a_write_that_fails_leaves_the_old_checkpoint(trainer: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    path = tmp_path / "checkpoint_000001"
    trainer.save(str(path))
    before = {p.name: p.read_bytes() for p in path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("os.fsync", "jaxrl.storage.directory._exchange", "jaxrl.storage.directory.encode_json"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(OSError, match="No space"):
                trainer.save(str(path))
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
    checkpoint.read_metadata(path)
    assert before.keys() == {p.name for p in path.iterdir()}
    trainer.save(str(path))
    trainer.restore(path)


def test_a_foreign_directory_is_not_replaced(trainer: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not written by jaxrl"):
        trainer.save(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


SAVER = """
import tempfile
from jaxrl.algorithms.ppo import PPOTrainer
trainer = PPOTrainer(config={config!r}, results_dir=tempfile.mkdtemp())
trainer.train()
trainer.save({directory!r} + "/checkpoint_000001")
print("ready", flush=True)
while True:
    for _ in range(3):
        trainer.save({directory!r} + f"/checkpoint_{{trainer.iteration:06d}}")
    trainer._iteration += 1
"""


@pytest.mark.slow
def test_killed_while_saving_the_newest_still_loads(tmp_path: pathlib.Path) -> None:
    code = SAVER.format(config={**TINY, "keep_checkpoints_num": 2}, directory=str(tmp_path))
    rng = random.Random(1)
    found: list[pathlib.Path] = []
    for _ in range(8):
        # One process for all kills would be cheaper; but only SIGKILL leaves what SIGKILL leaves.
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = sorted(tmp_path.glob("checkpoint_*"))
        assert found
        for path in found:
            checkpoint.read_metadata(path, "PPO")
    with PPOTrainer.from_checkpoint(found[-1], results_dir=tmp_path / "next") as back:
        back.train()
