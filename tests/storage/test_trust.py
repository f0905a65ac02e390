"""What a checkpoint names is not imported, called or opened, and what it says of sizes is not believed."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import sys
from typing import Any

import jax
import numpy as np
import pytest

from jaxrl import storage
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.config import fill_holes
from jaxrl.envs import resume
from jaxrl.space_json import decode_space
from jaxrl.terminal import printable
from jaxrl.types import CheckpointError, ConfigError

TINY: dict[str, Any] = {
    "env": "CartPole-v1",
    "rollout_fragment_length": 10,
    "train_batch_size": 10,
    "sgd_minibatch_size": 0,
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    with PPOTrainer(config=TINY) as trainer:
        return pathlib.Path(trainer.save(str(tmp_path_factory.mktemp("saved") / "made")))


@pytest.fixture
def copy(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def change(path: pathlib.Path, name: str, **changes: Any) -> None:
    """Changes keys of a JSON file, and makes the checksums right again."""
    content = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({**content, **changes}))
    manifest = json.loads((path / "metadata.json").read_text())
    manifest.pop("checksum")
    manifest["sha256"] = {file: hashlib.sha256((path / file).read_bytes()).hexdigest() for file in manifest["sha256"]}
    (path / "metadata.json").write_text(json.dumps({**manifest, "checksum": storage.checksum(manifest)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"env": "canary:Env"},
        {"env": "canary:Id-v0"},
        {"env": {"$ref": "canary:Env"}},
        {"env": {"$ref": "jaxrl.envs.creation:_from_module"}, "env_config": {"module": "canary"}},
        {"env": {"$ref": "jaxrl.envs.creation:make_env_creator"}, "env_config": {"env": "canary:Env"}},
        {"evaluation_config": {"env": "canary:Env"}},
        {"env_config": {"of": ["canary:Env"]}},
        {"multiagent": {"policies": {"a": [{"$ref": "canary:f"}, None, None, {}]}}},
        {"model": {"custom_model": "canary:f"}},
    ],
)
def test_nothing_is_imported_because_a_file_names_it(
    copy: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    (tmp_path / "canary.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    change(copy, "config.json", **changes)
    with pytest.raises(ConfigError, match="refers to"):
        PPOTrainer.from_checkpoint(copy)
    assert "canary" not in sys.modules


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "~/x", "../x", "./x", "a/../../b", "file:///etc/passwd", "C:\\x", "\\\\h\\x"]
)
def test_paths_in_a_file_are_not_opened(text: str) -> None:
    with pytest.raises(ConfigError, match="env_config.xml_file"):
        fill_holes({"env_config": {"xml_file": text}})
    assert fill_holes({"env_config": {"xml_file": text}}, {"env_config": {"xml_file": text}})


@pytest.mark.parametrize(
    "text", ["CartPole-v1", "ALE/Pong-v5", "ale_py:ALE/Pong-v5", "a: b", "episode_reward_mean", ""]
)
def test_other_texts_are_taken(text: str) -> None:
    assert fill_holes({"env": text}) == {"env": text}


def test_all_that_is_named_is_said_at_once_and_again_when_it_is_trusted(caplog: pytest.LogCaptureFixture) -> None:
    data = {"env": "json:Nope", "callbacks": {"$ref": "os.path:join"}}
    with pytest.raises(ConfigError, match="'env' refers to 'json:Nope'.*'callbacks' refers to 'os.path:join'"):
        fill_holes(data)
    assert fill_holes(data, trust_imports=True)["env"] == "json:Nope"
    assert "imports, or opens, what it names" in caplog.text and "os.path:join" in caplog.text


def test_ids_of_agents_may_have_colons() -> None:
    data = {"multiagent": {"policy_mapping_fn": {"a": "team:red"}, "policies_to_train": ["team:red"]}}
    assert fill_holes(data) == data


def test_paths_of_options_are_dropped_unless_the_user_gives_them(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    change(copy, "config.json", compile_cache=str(tmp_path / "theirs"))
    with PPOTrainer.from_checkpoint(copy) as trainer:
        assert trainer.options.compile_cache is True
    with PPOTrainer.from_checkpoint(copy, {"compile_cache": False}) as trainer:
        assert trainer.options.compile_cache is False
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_envs_per_worker": 10**8},
        {"num_envs_per_worker": 65, "env_stepping": "async"},
        {"num_workers": 2},
        {"evaluation_num_workers": 10**6},
        {"rollout_fragment_length": 10**9},
        {"num_envs_per_worker": 1000, "rollout_fragment_length": 10**6},
        {"train_batch_size": 10**12},
        {"model": {"fcnet_hiddens": [30_000, 30_000]}},
        {"model": {"use_lstm": True, "lstm_cell_size": 30_000}},
    ],
)
def test_sizes_are_held_against_what_there_is(copy: pathlib.Path, changes: dict[str, Any]) -> None:
    change(copy, "config.json", **changes)
    before = jax.live_arrays()
    with pytest.raises(CheckpointError, match="out of proportion|fragments of|not those of its parameters"):
        PPOTrainer.from_checkpoint(copy)
    assert max((x.nbytes for x in jax.live_arrays()), default=0) <= max((x.nbytes for x in before), default=0) + 2**20


@pytest.mark.parametrize(
    "space",
    [
        {"type": "Box", "low": 0.0, "high": 1.0, "shape": [600_000_000], "dtype": "float32"},
        {"type": "Box", "low": 0.0, "high": 1.0, "shape": [2.0], "dtype": "float32"},
        {"type": "Box", "low": 0.0, "high": 1.0, "shape": [2], "dtype": "O"},
        {"type": "Discrete", "n": 10**12, "start": 0},
        {"type": "MultiDiscrete", "nvec": [10**9, 10**9], "start": [0, 0]},
        {"type": "MultiBinary", "n": [10**5, 10**5]},
        {"type": "Tuple", "spaces": [{"type": "MultiBinary", "n": 3 * 10**6}] * 2},
        {"type": "test"},
    ],
)
def test_spaces_of_a_file_are_small_and_of_known_dtypes(space: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected a space"):
        decode_space(space)


def test_random_generators_are_looked_up_in_a_closed_table() -> None:
    class Base:
        np_random = np.random.default_rng(0)

    for name in ("test", "seed", "Generator", "no_such"):
        with pytest.raises(KeyError):
            resume.set_random_state(Base(), {**Base.np_random.bit_generator.state, "bit_generator": name})
    state = np.random.Generator(np.random.SFC64(3)).bit_generator.state
    base = Base()
    resume.set_random_state(base, dict(state))
    assert base.np_random.bit_generator.state["bit_generator"] == "SFC64"


def test_metadata_are_checked_and_shown_without_what_a_terminal_obeys(copy: pathlib.Path) -> None:
    for name in ("env", "policies", "algorithm", "training_iteration", "jaxrl_version"):
        kept = json.loads((copy / "metadata.json").read_text())[name]
        for wrong in (None, [1], {"default_policy": {}} if name == "policies" else 1.5):
            change(copy, "metadata.json", **{name: wrong})
            with pytest.raises(CheckpointError, match=f"metadata.json is damaged.*({name}|policy)"):
                PPOTrainer.from_checkpoint(copy)
        change(copy, "metadata.json", **{name: kept})
    change(copy, "metadata.json", algorithm="PP\x1b]0;owned\x07O")
    with pytest.raises(CheckpointError, match="is a checkpoint of PP") as caught:
        PPOTrainer.from_checkpoint(copy)
    assert "\x1b" not in str(caught.value) and r"\x1b]0;owned\x07" in str(caught.value)
    assert printable("\u202eab\x9b\r\n\té") == "\\u202eab\\x9b\\r\n\té"
