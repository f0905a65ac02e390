"""Row 4: `policy.learn` against the same update written as one plain jitted function."""

from __future__ import annotations

import sys
from typing import Any

from measuring import Child, Options, Row, alternate, median_ratio, medians, rounded, script, timed

TARGET = 1.05


def measure(options: Options) -> Row:
    with Child(script("learner.py", options.choose(41, 3), 5 if options.quick else 20)) as child:
        report = child.report()
    results = report["seconds"]
    ratio, times = median_ratio(results["policy.learn"], results["plain"]), medians(results)
    learner_ratio = median_ratio(results["Learner.learn"], results["plain"])
    return Row(
        work="learner alone: policy.learn against the same update as one plain jitted function (1024 rows, 4 x 4)",
        target=f"<= {TARGET:g} x",
        measured=(
            f"{ratio:.3f} x ({1e3 * times['policy.learn']:.2f} against {1e3 * times['plain']:.2f} ms; "
            f"with the Learner's checks and metrics as floats {learner_ratio:.3f} x)"
        ),
        met=ratio <= TARGET,
        figures={
            "ratio": ratio,
            "learner_ratio": learner_ratio,
            "largest_difference_of_params": report["difference"],
            "seconds": {name: rounded(values, 6) for name, values in results.items()},
        },
        notes=[f"same maths: after one step on all rows, parameters differ by at most {report['difference']:.0e}"],
    )


def child(rounds: int, calls: int) -> dict[str, Any]:
    """Seconds of an update, round by round, alternating in one process; and how far the two disagree."""
    import jax
    import numpy as np
    import plain_ppo
    from contestant_jaxrl import CONFIG

    from jaxrl.algorithms.ppo import PPOTrainer  # first: it makes JAX's CPU backend dispatch synchronously

    with PPOTrainer(config=CONFIG) as trainer:
        trainer.train()
        batch, learner, policy = next(batches(trainer)), trainer.learners["default_policy"], trainer.get_policy()
    state = learner.state
    wanted = ("obs", "actions", "action_logp", "action_dist_inputs", "advantages", "value_targets", "vf_preds")
    rows = {name: np.asarray(batch[name]).reshape(-1, *np.shape(batch[name])[2:]) for name in wanted}

    plain = jax.jit(plain_ppo.sgd)
    learned = plain_ppo.init(jax.random.key(0))

    def ours() -> None:
        jax.block_until_ready(policy.learn(state, batch))

    def theirs() -> None:
        jax.block_until_ready(plain(learned, rows))

    def with_learner() -> None:
        learner.learn(batch)

    def several(work: Any) -> Any:
        return lambda: timed(lambda: [work() for _ in range(calls)]) / calls

    work = {"policy.learn": several(ours), "plain": several(theirs), "Learner.learn": several(with_learner)}
    alternate(work, 2)
    return {"seconds": alternate(work, rounds), "difference": difference(policy, state, rows)}


def batches(trainer: Any) -> Any:
    """Train batches as the trainer's plan makes them."""
    from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts, StandardizeFields

    rollouts = ParallelRollouts(trainer.context, mode="bulk_sync")
    size = trainer.context.config.train_batch_size
    joined = rollouts.combine(ConcatBatches(size)).for_each(StandardizeFields(["advantages"]))
    return (item["default_policy"] if hasattr(item, "policy_batches") else item for item in joined)


def difference(policy: Any, state: Any, rows: dict[str, Any]) -> float:
    """Largest difference of a parameter after one step on all rows, relative to its change."""
    import jax
    import numpy as np
    import optax
    import plain_ppo

    from jaxrl.data import SampleBatch

    model = policy.spec.model

    def loss(params: Any) -> Any:
        out = model.apply(params, _inputs(rows["obs"]), ())
        return plain_ppo.ppo_loss(out.dist_inputs, out.value, rows, state.coeffs["kl_coeff"])

    grads, _ = jax.jit(jax.grad(loss, has_aux=True))(state.params)
    updates, _ = plain_ppo.OPTIMIZER.update(grads, plain_ppo.OPTIMIZER.init(state.params), state.params)
    plain = optax.apply_updates(state.params, updates)
    fresh = state.replace(opt_state=jax.tree.map(np.zeros_like, state.opt_state))
    grads, _ = policy.gradients(fresh, SampleBatch(rows, time_major=False))
    ours = policy.apply_gradients(fresh, grads).params
    return max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True))


def _inputs(obs: Any) -> Any:
    from jaxrl.types import ModelInputs

    return ModelInputs(obs=obs)


if __name__ == "__main__":
    from child import Reports

    reports = Reports()
    reports.send(**child(int(sys.argv[1]), int(sys.argv[2])))
