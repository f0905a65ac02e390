"""CleanRL's JAX DQN as a contestant: `contestant_cleanrl.py throughput|solve`.

The script that its package installs runs as it is, from its first to its last line (for throughput with layers of the
common sizes). It takes turns in `env.step`, where its environments wait for the next request, and sees the Gymnasium
that it was written for: environments that reset at once, and the last observation by its old name. Its log goes
nowhere, as the other libraries' does. Runs in the peers' environment, hence the imports by name.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import importlib.util
import json
import pathlib
import runpy
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from child import Reports
from off_policy_settings import DQN


class Done(Exception):
    """Leaves the script."""


class NoWriter:
    """Stands for TensorBoard's SummaryWriter."""

    def __init__(self, *_: Any) -> None:
        self.add_text = self.add_scalar = lambda *_: None


def run(options: dict[str, Any], after_step: Callable[[float, bool], None], hiddens: tuple[int, int] | None) -> None:
    """Runs the script until it ends, or `after_step(reward, ended)` raises Done.

    Args:
        options: on its command line.
        after_step: is called at the end of each env step.
        hiddens: sizes of the hidden layers, which are constants there; None: its own.
    """
    tensorboard: Any = types.ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = NoWriter
    sys.modules["torch.utils.tensorboard"] = tensorboard
    vector: Any = importlib.import_module("gymnasium.vector")
    linen: Any = importlib.import_module("flax.linen")
    same_step = vector.AutoresetMode.SAME_STEP

    class VectorEnv(vector.SyncVectorEnv):
        def __init__(self, env_fns: Any) -> None:
            super().__init__(env_fns, autoreset_mode=same_step)

        def step(self, actions: Any) -> Any:
            obs, rewards, terminated, truncated, infos = super().step(actions)
            if "final_obs" in infos:
                infos = {"final_observation": infos["final_obs"]}
            after_step(float(rewards[0]), bool(terminated[0] or truncated[0]))
            return obs, rewards, terminated, truncated, infos

    vector.SyncVectorEnv = VectorEnv
    if hiddens is not None:
        dense, sizes = linen.Dense, dict(zip((120, 84), hiddens, strict=True))
        linen.Dense = lambda features: dense(sizes.get(features, features))
    spec = importlib.util.find_spec("cleanrl")
    assert spec is not None and spec.submodule_search_locations
    script = pathlib.Path(next(iter(spec.submodule_search_locations))) / "dqn_jax.py"
    sys.argv = [str(script), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    with contextlib.suppress(Done):
        runpy.run_path(str(script), run_name="__main__")


def throughput(reports: Reports) -> None:
    steps = 10_000_000
    options = {
        "total-timesteps": steps,
        "learning-rate": DQN["lr"],
        "buffer-size": DQN["buffer_size"],
        "gamma": DQN["gamma"],
        "target-network-frequency": DQN["target_update_freq"],
        "batch-size": DQN["batch_size"],
        "start-e": DQN["epsilon"],
        "end-e": DQN["epsilon"],
        "learning-starts": DQN["learning_starts"],
        "train-frequency": 1,
    }
    left = wanted = 0
    started = 0.0

    def after_step(reward: float, ended: bool) -> None:
        nonlocal left, wanted, started
        if left == 0:
            if wanted:
                reports.send(steps_per_s=wanted / (time.perf_counter() - started))
            line = sys.stdin.readline()
            if not line:
                raise Done
            left = wanted = json.loads(line)["steps"]
            started = time.perf_counter()
        left -= 1

    reports.send(ready=True)
    run(options, after_step, DQN["hiddens"])


def solve(reports: Reports, arguments: argparse.Namespace) -> None:
    returns: collections.deque[float] = collections.deque(maxlen=arguments.episodes)
    steps, current, started, solved = 0, 0.0, time.perf_counter(), False

    def after_step(reward: float, ended: bool) -> None:
        nonlocal steps, current, solved
        steps, current = steps + 1, current + reward
        if not ended:
            return
        returns.append(current)
        current = 0.0
        solved = len(returns) == arguments.episodes and sum(returns) / len(returns) >= arguments.reward
        if solved or time.perf_counter() - started >= arguments.max_seconds:
            raise Done

    # Its own settings for CartPole-v1, which are its defaults: 500,000 steps.
    run({"seed": arguments.seed}, after_step, None)
    reports.send(solved=solved, seconds=time.perf_counter() - started, steps=steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("throughput", "solve"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--reward", type=float, default=475.0)
    parser.add_argument("--max-steps", type=int, default=500_000)
    parser.add_argument("--max-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    if arguments.mode == "throughput":
        throughput(Reports())
    else:
        solve(Reports(), arguments)
