"""Trains tuned examples on seeds that they were not tuned on: `python benchmarks/tuned_examples.py [NAMES]`.

Every run is a process of its own and is recorded in `tuned_examples.json` when it ends. A second call does only the
runs that are missing. The table goes to `docs/tuned_examples.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "tuned_examples"
RECORDS = HERE / "tuned_examples.json"
PAGE = HERE.parent / "docs" / "tuned_examples.md"
FRESH = range(100, 105)
# Hours each, or packages that are no dependency.
_LONG = ("breakout", "pong", "halfcheetah", "humanoid", "mujoco", "invertedpendulum", "grid-search")
_SEVERAL = "MultiAgentCartPole"


def record_agents(*, worker: Any, env_index: int, episode: Any) -> None:
    """Reports each agent's reward: `custom_metrics` has its mean."""
    for agent, reward in episode.agent_rewards.items():
        episode.custom_metrics[f"agent_{agent}"] = reward


def train(experiment: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Trains to the example's threshold, or for as many steps as its `stop` allows.

    Args:
        experiment: as in a YAML file.
        seed: of the run.

    Returns:
        `reached` (bool), the `best` mean reward, the `env_steps` and `seconds` of its result, and, with several agents,
        the best result's mean reward of each. With several agents the threshold is reached when the weakest has 150.
    """
    from jaxrl import registry
    from jaxrl.callbacks import Callbacks

    config = {**experiment["config"], "env": experiment["env"], "seed": seed}
    if experiment["env"] == _SEVERAL:
        config["callbacks"] = Callbacks(on_episode_end=record_agents)
    best: dict[str, Any] = {"best": -math.inf}
    with registry.resolve("algorithm", experiment["run"])(config) as trainer:
        while True:
            result = trainer.train()
            mean, steps = result["episode_reward_mean"], result["timesteps_total"]
            agents = {
                k: v for k, v in result["custom_metrics"].items() if k.startswith("agent_") and k.endswith("_mean")
            }
            if mean > best["best"]:
                best = {"best": mean, "env_steps": steps, "seconds": result["time_total_s"], "agents": agents}
            weakest = math.inf if experiment["env"] != _SEVERAL else min(best["agents"].values(), default=-math.inf)
            best["reached"] = best["best"] >= experiment["stop"]["episode_reward_mean"] and weakest >= 150
            if best["reached"] or steps >= experiment["stop"]["timesteps_total"]:
                return best


def load(name: str) -> dict[str, Any]:
    """The experiment of `tuned_examples/<name>.yaml`."""
    from jaxrl.config import load_yaml

    (experiment,) = load_yaml((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"), where=name).values()
    return experiment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="like dqn/cartpole-dqn; none: all that train in minutes"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(FRESH))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train(load(arguments.names[0]), arguments.seeds[0])), flush=True)
        return
    names = [path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in sorted(EXAMPLES.glob("*/*.yaml"))]
    names = arguments.names or [name for name in names if not any(word in name for word in _LONG)]
    records: dict[str, dict[str, Any]] = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    for name in names:
        for seed in arguments.seeds:
            fingerprint = {"config": load(name)["config"], "stop": load(name)["stop"]}
            record = records.get(name, {})
            if record.get("experiment") != fingerprint:  # another example than the one recorded
                record = records[name] = {"experiment": fingerprint, "seeds": {}}
            if str(seed) in record["seeds"]:
                continue
            command = [sys.executable, __file__, name, "--seeds", str(seed), "--one"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
            record["seeds"][str(seed)] = outcome = json.loads(done.stdout.splitlines()[-1])
            record["date"] = time.strftime("%Y-%m-%d")
            outcome["best"] = round(outcome["best"], 1) if math.isfinite(outcome["best"]) else None
            outcome["seconds"] = round(outcome["seconds"], 1)
            RECORDS.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page(records), encoding="utf-8")
            print(f"{name} seed {seed}: {outcome}", flush=True)


def page(records: Mapping[str, Any]) -> str:
    """The records in Markdown."""
    lines = [
        "# Tuned examples on fresh seeds",
        "",
        "Written by `benchmarks/tuned_examples.py`: each example of `tuned_examples/` that trains in minutes, on seeds",
        "that were not used in tuning it (its file names those), and how many of them reach its threshold.",
        "",
        "| example | threshold | within | reached | env steps | those that fell short | date |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, record in sorted(records.items()):
        stop, runs = record["experiment"]["stop"], record["seeds"].values()
        reached = sorted(run["env_steps"] for run in runs if run["reached"])
        short = ", ".join(str(run["best"]) for run in runs if not run["reached"]) or "none"
        spread = f"{reached[0]:,} to {reached[-1]:,}" if reached else "-"
        lines.append(
            f"| {name} | {stop['episode_reward_mean']} | {stop['timesteps_total']:,} | {len(reached)} of {len(runs)} | "
            f"{spread} | {short} | {record['date']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
