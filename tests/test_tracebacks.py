"""Errors of the user's code: one message with file, line and error; tracebacks that end in the user's code."""

import pathlib
import traceback

import gymnasium as gym
import numpy as np
import pytest
import typer

from jaxrl import build_policy, build_trainer
from jaxrl.algorithms.pg import PGTrainer
from jaxrl.callbacks import Callbacks, named
from jaxrl.cli.reporting import reported
from jaxrl.envs import EnvContext, make_env_creator, make_vector_env
from jaxrl.rollout.failures import describe
from jaxrl.tracebacks import place_of, raised
from jaxrl.types import CallbackError, EnvError, LossError

HERE = pathlib.Path(__file__).name
TINY = {"train_batch_size": 16, "rollout_fragment_length": 16, "model": {"fcnet_hiddens": [4]}}


class Episodes(gym.Env):
    """Episodes of four steps; from the tenth step on it looks for what is not there."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, sound=False):
        self.steps, self.sound = 0, sound

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = 1.0 if self.sound or self.steps < 10 else self.look_up()
        return np.zeros(1, np.float32), reward, self.steps % 4 == 0, False, {}

    def look_up(self):
        return {}["speed"]  # env line


class Unmade(Episodes):
    def __init__(self):
        raise ValueError("no licence")  # constructor line


def line_of(text):
    """The number of the line of this file that ends with a comment."""
    lines = pathlib.Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {text}"))


def last_frame(error):
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return pathlib.Path(frame.filename).name, frame.lineno


def test_an_environments_error_is_one_message_and_its_line_the_tracebacks_last(tmp_path):
    line = line_of("env line")
    with PGTrainer(TINY | {"env": Episodes}, results_dir=tmp_path) as trainer, pytest.raises(EnvError) as caught:
        trainer.train()
    assert f"step raised KeyError: 'speed' (at tests/{HERE}:{line}, in look_up: return" in str(caught.value)
    assert last_frame(caught.value) == (HERE, line)
    assert isinstance(caught.value.__cause__, KeyError)
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) < 35


def test_a_constructors_error_names_its_line(tmp_path):
    with pytest.raises(EnvError, match="ValueError: no licence") as caught:
        PGTrainer(TINY | {"env": Unmade}, results_dir=tmp_path)
    assert last_frame(caught.value) == (HERE, line_of("constructor line"))


def test_an_error_in_an_environments_process_names_its_line():
    vector = make_vector_env(make_env_creator(Episodes), 1, EnvContext(), stepping="async")
    try:
        vector.reset([1])
        rows, numbers, flags = np.zeros((1, 1), np.float32), np.zeros(1), np.zeros(1, bool)
        with pytest.raises(EnvError) as caught:
            for _ in range(12):
                vector.step(np.zeros(1, np.int64), rows, numbers, flags, flags.copy())
    finally:
        vector.close()
    assert f"{HERE}:{line_of('env line')}, in look_up" in str(caught.value)
    assert "Traceback" not in str(caught.value) and "Traceback" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", Callbacks._fields)
def test_a_hook_that_raises_is_named(name):
    def hook(**given):
        raise RuntimeError("not today")  # hook line

    hooks = named(Callbacks(**{name: hook}))
    assert hooks is not None and sum(each is not None for each in hooks) == 1
    with pytest.raises(CallbackError, match=rf"callbacks\.{name} raised RuntimeError: not today") as caught:
        getattr(hooks, name)(worker=None)
    assert f"{HERE}:{line_of('hook line')}, in hook" in str(caught.value)


def test_training_names_the_hook_and_not_the_shard(tmp_path):
    def on_episode_end(*, worker, env_index, episode):
        episode.custom_metrics["x"] = episode.nothing  # ending line

    config = TINY | {"env": lambda: Episodes(sound=True), "callbacks": Callbacks(on_episode_end=on_episode_end)}
    with PGTrainer(config, results_dir=tmp_path) as trainer, pytest.raises(CallbackError) as caught:
        trainer.train()
    assert str(caught.value).startswith("callbacks.on_episode_end raised AttributeError")
    assert last_frame(caught.value) == (HERE, line_of("ending line"))


def with_if(params, batch, ctx):
    out = ctx.forward(params, batch)
    return out.value.mean() if out.value.sum() > 0 else -out.value.mean()  # if line


def with_float(params, batch, ctx):
    return ctx.forward(params, batch).value.mean() * float(batch.mean(batch["rewards"]))  # float line


def with_numpy(params, batch, ctx):
    return np.square(ctx.forward(params, batch).value).mean()  # array line


def with_int(params, batch, ctx):
    return batch.mean(ctx.forward(params, batch).value) * [1.0, 2.0][batch["actions"][0, 0]]  # index line


@pytest.mark.parametrize(
    ("loss", "line"), [(with_if, "if"), (with_float, "float"), (with_numpy, "array"), (with_int, "index")]
)
def test_a_loss_that_looks_at_traced_values_is_told_so(loss, line):
    policy = build_policy("Looking", loss_fn=loss)
    with pytest.raises(LossError, match="losses are traced.*use jnp.where") as caught:
        policy(Episodes.observation_space, Episodes.action_space, {"model": TINY["model"]})
    assert f"{HERE}:{line_of(line + ' line')}, in {loss.__name__}" in str(caught.value)


def test_a_loss_that_raises_keeps_its_error_and_its_line_is_last(tmp_path):
    def unwritten(params, batch, ctx):
        raise NotImplementedError("later")  # loss line

    trainer = build_trainer("Unwritten", default_policy=build_policy("Unwritten", loss_fn=unwritten))
    with pytest.raises(NotImplementedError, match="later") as caught:
        trainer({"env": lambda: Episodes(sound=True)}, results_dir=tmp_path)
    assert last_frame(caught.value) == (HERE, line_of("loss line"))


def test_the_line_is_read_from_the_text_of_another_processs_traceback():
    text = (
        "ray::RolloutActor.sample() (pid=1)\n"
        '  File "/home/me/project/envs.py", line 12, in step\n    return table[key]\n'
        f'  File "{pathlib.Path(typer.__file__)}", line 3, in inner\n    pass\nKeyError: 7'
    )
    place = place_of(RuntimeError(text))
    assert place is not None and place[:3] == ("/home/me/project/envs.py", 12, "step")
    assert describe(RuntimeError(text)) == "KeyError: 7 (at /home/me/project/envs.py:12, in step: return table[key])"


def test_a_file_with_a_syntax_error_is_the_place():
    with pytest.raises(SyntaxError) as caught:
        compile("x = (", "/home/me/loss.py", "exec")
    assert "/home/me/loss.py:1" in raised(caught.value)


def fail_in_users_code():
    raise KeyError("speed")  # command line


def test_the_shell_prints_one_message_and_names_v(capsys):
    with pytest.raises(typer.Exit) as ended, reported():
        fail_in_users_code()
    assert ended.value.exit_code == 1
    line = line_of("command line")
    expected = f"Error: KeyError: 'speed' (at tests/{HERE}:{line}, in fail_in_users_code: raise KeyError"
    said = capsys.readouterr().err
    assert said.startswith(expected) and said.rstrip().endswith("[-v shows the traceback]") and said.count("\n") == 1
    with pytest.raises(typer.Exit), reported(1):
        fail_in_users_code()
    said = capsys.readouterr().err
    assert "Traceback" in said and "[-v" not in said
