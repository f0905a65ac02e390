"""The first 100 000 env steps of SAC and TD3 on HalfCheetah-v5: `benchmarks/halfcheetah.json` and `.png`.

`python benchmarks/halfcheetah.py [sac] [td3]` trains the tuned example with one seed (15 to 30 minutes each on
two CPU cores) and evaluates the policy without noise every 5000 steps, as the papers do. It needs the mujoco extra.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from jaxrl import registry
from jaxrl.config import load_yaml

HERE = pathlib.Path(__file__).parent
EXAMPLES = {"sac": "sac/halfcheetah-sac.yaml", "td3": "td3/mujoco-td3.yaml"}
STEPS, EVERY, EPISODES = 100_000, 5000, 5


def curve(name: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Evaluated and training rewards over env steps, after each evaluation."""
    path = HERE.parent / "tuned_examples" / EXAMPLES[name]
    experiment = load_yaml(path.read_text(), where=str(path))[f"halfcheetah-{name}"]
    config = {
        **experiment["config"],
        "env": experiment["env"],
        "seed": seed,
        "timesteps_per_iteration": EVERY,
        "evaluation_interval": 1,
        "evaluation_num_episodes": EPISODES,
        "evaluation_config": {"explore": False},
    }
    found: dict[str, Any] = {"seed": seed, "steps": [], "evaluated": [], "training": []}
    with registry.resolve("algorithm", experiment["run"])(config) as trainer:
        while not found["steps"] or found["steps"][-1] < STEPS:
            result = trainer.train()
            found["steps"].append(result["timesteps_total"])
            found["evaluated"].append(round(result["evaluation"]["episode_reward_mean"], 1))
            found["training"].append(round(result["episode_reward_mean"], 1))
            print(name, found["steps"][-1], found["evaluated"][-1], flush=True)
            yield found


def plot(curves: dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, one in curves.items():
        (line,) = axes.plot(one["steps"], one["evaluated"], label=f"{name.upper()}, evaluated without noise")
        axes.plot(one["steps"], one["training"], color=line.get_color(), alpha=0.4, linestyle="--")
    axes.set(
        xlabel="env steps", ylabel="reward of an episode", title="HalfCheetah-v5, one seed (dashed: training episodes)"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(names: list[str]) -> None:
    path = HERE / "halfcheetah.json"
    curves = json.loads(path.read_text()) if path.exists() else {}
    for name in names or list(EXAMPLES):
        for found in curve(name):  # what an interrupted run has found is kept
            curves[name] = found
            path.write_text(json.dumps(curves, indent=1) + "\n")
            plot(curves, HERE / "halfcheetah.png")


if __name__ == "__main__":
    main(sys.argv[1:])
