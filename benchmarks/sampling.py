"""Row 5: our worker's fragment, all columns filled and postprocessed, against a bare loop of `env.step` and `act`."""

from __future__ import annotations

import sys
from typing import Any

from measuring import Child, Options, Row, alternate, median_ratio, medians, rounded, script, timed

TARGET = 1.25


def measure(options: Options) -> Row:
    with Child(script("sampling.py", options.choose(31, 3), 2 if options.quick else 10)) as child:
        results = child.report()
    fragments = medians(results)
    ours, bare = fragments["worker.sample()"], fragments["bare loop"]
    ratio = median_ratio(results["worker.sample()"], results["bare loop"])
    parts = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in fragments.items() if name[0] == "+")
    return Row(
        work="sampling alone: a fragment of 8 x 128, all columns filled, against env.step + the cheapest jitted act",
        target=f"<= {TARGET:g} x",
        measured=f"{ratio:.2f} x ({1e3 * ours:.1f} against {1e3 * bare:.1f} ms; of the difference, ms: {parts})",
        met=ratio <= TARGET,
        figures={"ratio": ratio, "seconds": {name: rounded(values, 5) for name, values in results.items()}},
    )


def child(rounds: int, fragments: int) -> dict[str, list[float]]:
    """Seconds of a fragment, round by round; fragments of ours and bare ones alternate in one process."""
    import gymnasium as gym
    import jax
    import numpy as np
    from contestant_jaxrl import CONFIG, ENVS, STEPS
    from plain_ppo import POLICY, act

    from jaxrl.algorithms.ppo import PPOTrainer

    trainer = PPOTrainer(config=CONFIG)
    worker = trainer.workers.shards[0]
    policy_params = POLICY.init(jax.random.key(0), np.zeros((1, 4), np.float32))
    envs = [gym.make("CartPole-v1", disable_env_checker=True) for _ in range(ENVS)]
    obs = np.stack([env.reset(seed=i)[0] for i, env in enumerate(envs)])
    key, t = jax.random.key(1), 0

    def bare() -> None:
        nonlocal t
        for _ in range(STEPS):
            actions = np.asarray(act(policy_params, obs, t, key))
            for b, action in enumerate(actions.tolist()):
                obs[b], _, terminated, truncated, _ = envs[b].step(action)
                if terminated or truncated:
                    obs[b], _ = envs[b].reset()
            t += 1

    def collected() -> None:
        worker.sampler.collect(worker.weights)

    def several(work: Any) -> Any:
        def run() -> float:
            seconds = timed(lambda: [work() for _ in range(fragments)]) / fragments
            worker.pop_episodes()
            return seconds

        return run

    work = {"worker.sample()": several(worker.sample), "bare loop": several(bare), "collect()": several(collected)}
    alternate(work, 2)
    results = alternate(work, rounds)
    trainer.stop()
    pairs = list(zip(results["worker.sample()"], results["bare loop"], results.pop("collect()"), strict=True))
    return {
        **results,
        "+ recording and statistics": [collect - bare_ for _, bare_, collect in pairs],
        "+ postprocessing": [ours - collect for ours, _, collect in pairs],
    }


if __name__ == "__main__":
    from child import Reports

    reports = Reports()
    reports.send(**child(int(sys.argv[1]), int(sys.argv[2])))
