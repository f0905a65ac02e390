# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batches and plans
#
# The loss says what is learned from a batch. This page is about everything before that: what a *sample batch* is, how
# *parallel iterators* move batches around, and how an *execution plan* chains them into an algorithm. A plan is data:
# it can be printed, drawn, traced item by item, saved and changed, and you will do each of these here.

# %%
import os
import tempfile

scratch = tempfile.TemporaryDirectory()
os.environ["JAXRL_RESULTS_DIR"] = scratch.name  # where results go; ~/ray_results otherwise

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import SampleBatch, build_trainer

# %% [markdown]
# ## A sample batch by hand
#
# Here is a walk along the integers, in one environment, five steps long. The episode ends with the third step, on
# reaching 3, and a new one starts from 0. Row columns are time-major, `[T, B, ...]`: step first, then environment.
#
# Three entries are not rows: `last_obs` is what each environment showed after the fragment, and `final_obs` holds the
# last observations of episodes that ended within it, at the (t, b) that `final_index` says. Every observation is
# stored once.


# %%
def column(values, dtype):
    return np.array(values, dtype).reshape(-1, 1)


batch = SampleBatch(
    {
        "obs": column([0, 1, 2, 0, 1], np.float32),
        "actions": column([1, 1, 1, 1, 1], np.int32),
        "rewards": column([0, 0, 1, 0, 0], np.float32),
        "terminateds": column([0, 0, 1, 0, 0], bool),
        "truncateds": column([0, 0, 0, 0, 0], bool),
        "eps_id": column([7, 7, 7, 8, 8], np.int32),
        "t": column([0, 1, 2, 0, 1], np.int32),
        "last_obs": np.array([2], np.float32),
        "final_obs": np.array([3], np.float32),
        "final_index": np.array([[2, 0]], np.int32),
    }
)
batch

# %% [markdown]
# `new_obs` is derived from these when you read it, and it is always the true successor: 3 after the third step, never
# the 0 of the reset that followed.

# %%
print("obs:    ", batch["obs"].ravel())
print("new_obs:", batch["new_obs"].ravel())
print("dones:  ", batch["dones"].ravel())

# %% [markdown]
# A batch is immutable; changing one makes another. Rows are never dropped, only masked: padding, and agents that were
# absent, are False in `mask`. Sums and means through the batch leave them out, so that padding can never change a
# loss.

# %%
padded = batch.pad_to(8)
print("rows:", padded.num_rows, " valid:", padded.count, " mask:", padded["mask"].ravel().astype(int))
print("mean reward:", batch.mean(batch["rewards"]), "=", padded.mean(padded["rewards"]))
print("a plain mean:", padded["rewards"].mean())

# %% [markdown]
# Batches split into episodes, concatenate along environments (shorter ones are padded), flatten to rows and divide
# into minibatches. Each piece knows its successors:

# %%
first, second = batch.split_by_episode()
print("episode 7:", first["obs"].ravel(), "->", first["new_obs"].ravel())
print("episode 8:", second["obs"].ravel(), "->", second["new_obs"].ravel())

joined = SampleBatch.concat([first, second])
print("joined:    T, B =", joined.shape, " valid:", joined.count)

for part in batch.flatten(["obs", "new_obs"]).minibatches(2, key=jax.random.key(0)):
    print("minibatch:", part["obs"], "->", part["new_obs"], " mask:", part["mask"].astype(int))


# %% [markdown]
# And a batch is a pytree, so that it goes through `jit`, `grad` and `vmap` as it is:


# %%
@jax.jit
def discounted(batch, gamma):
    """Return of each row, cut where an episode ends."""

    def step(following, row):
        value = row["rewards"] + gamma * (1 - row["dones"]) * following
        return value, value

    rows = batch.with_columns(dones=batch["dones"]).scan_columns()
    return jax.lax.scan(step, jnp.zeros(batch.B), rows, reverse=True)[1]


discounted(batch, 0.9).ravel()

# %% [markdown]
# ## Parallel iterators
#
# A `ParallelIterator` is a stream in several *shards*; operators apply on each shard, and nothing runs before an item
# is asked for. `gather_sync` takes one item of each shard in turn, `gather_async` whichever is ready,
# `batch_across_shards` one of each at once. The names and their meaning are those of `ray.util.iter`.

# %%
from jaxrl.execution.parallel import from_items

squares = from_items(range(8), num_shards=2).for_each(lambda x: x * x)
print(squares)
print(squares.gather_sync().take(8))

# %% [markdown]
# The shards here are plain objects in this process. With `from_items(..., remote=True)` they are Ray actors, and the
# rest of the line stays as it is; PPO's rollout workers are shards of just this kind.
#
# Gathering gives a `LocalIterator`, with operators of its own. It is a small plan already, and prints as one:

# %%
pairs = from_items(range(8), num_shards=2).gather_sync().filter(lambda x: x != 3).batch(2)
print(pairs.take(2))
print(pairs)

# %% [markdown]
# Instead of a function, an operator may be given an `Operator`: a function `(state, item) -> (state, item)`. Its
# state is held by the plan, never hidden in a closure, so it can be saved. Here the second half of a stream is run by
# another iterator, which takes over where the first one stood:

# %%
from jaxrl.execution.iterators import LocalIterator, Operator


def running_mean():
    def apply(state, x):
        count, total = state[0] + 1, state[1] + x
        return (count, total), total / count

    mean = Operator("RunningMean", apply, init=lambda: (0, 0.0))
    return LocalIterator.from_items([4.0, 6.0, 8.0, 2.0]).for_each(mean)


one, other = running_mean(), running_mean()
print(one.take(2))

other.set_state(one.get_state())
print(other.take(2))

# %% [markdown]
# ## PPO's plan
#
# An algorithm is such a chain over batches. This is all of PPO's:
#
# ```python
# def execution_plan(ctx):
#     rollouts = ParallelRollouts(ctx, mode="bulk_sync").for_each(SelectExperiences(ctx.policies_to_train))
#     batches = rollouts.combine(ConcatBatches(ctx.config.train_batch_size))
#     batches = batches.for_each(StandardizeFields(["advantages"]))
#     return StandardMetricsReporting(ctx, batches.for_each(TrainOneStep(ctx)))
# ```
#
# `ctx` is what operators share: the config, the workers, the learners, counters and timers. Each `train()` pulls one
# item from the end of the plan, and every operator pulls what it needs from the one before.

# %%
from jaxrl.algorithms.ppo import PPOTrainer

config = {
    "env": "CartPole-v1",
    "num_envs_per_worker": 8,
    "rollout_fragment_length": 32,
    "train_batch_size": 512,
    "sgd_minibatch_size": 128,
    "num_sgd_iter": 6,
    "lr": 2e-3,
    "lambda": 0.95,
    "model": {"fcnet_hiddens": [64, 64]},
    "seed": 0,
}
trainer = PPOTrainer(config)
trainer.train()
print(trainer.plan)

# %% [markdown]
# Two rounds of 8 x 32 steps made one train batch, as the counts show. Nodes marked *host* touch workers, queues or
# clocks; the others are pure functions of batches. In a notebook the plan draws itself:

# %%
trainer.plan

# %% [markdown]
# `trace` runs the plan for one more result and shows each step of each item: what went into a node, what came out,
# and how long the node took itself. `(kept)` marks an item that stayed inside. (In a script, loop over it: it yields
# one step at a time.)

# %%
trainer.plan.trace()

# %%
trainer.stop()

# %% [markdown]
# ## A plan of your own
#
# ### One more operator, with a state
#
# PPO standardises the advantages of each batch by themselves. Suppose that you would rather divide by a running
# scale, which a single odd batch cannot move much. That is one operator, whose state is one number:


# %%
def ScaleAdvantages(decay=0.9):
    """Divides advantages by a running root mean square."""

    def apply(square, batch):
        now = float(batch.mean(batch["advantages"] ** 2))
        square = now if square is None else decay * square + (1 - decay) * now
        return square, batch.with_columns(advantages=batch["advantages"] / (square**0.5 + 1e-4))

    return Operator("ScaleAdvantages", apply, init=lambda: None)


# %% [markdown]
# The plan is the one above with this in the place of `StandardizeFields`, and `with_updates` gives PPO the new plan:

# %%
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts
from jaxrl.execution.train_ops import TrainOneStep


def scaled_plan(ctx):
    rollouts = ParallelRollouts(ctx, mode="bulk_sync")
    batches = rollouts.combine(ConcatBatches(ctx.config.train_batch_size)).for_each(ScaleAdvantages())
    return StandardMetricsReporting(ctx, batches.for_each(TrainOneStep(ctx)))


ScaledPPOTrainer = PPOTrainer.with_updates(name="ScaledPPOTrainer", execution_plan=scaled_plan)

trainer = ScaledPPOTrainer(config)
history = trainer.fit(20, verbose=False)
print("mean reward:", round(history[-1]["episode_reward_mean"], 1))
print("running scale:", round(trainer.plan.find("ScaleAdvantages").state ** 0.5, 2))

# %% [markdown]
# Because the plan holds that number, a checkpoint does too, and a restored trainer goes on with it:

# %%
restored = ScaledPPOTrainer.from_checkpoint(trainer.save())
print("restored scale:", round(restored.plan.find("ScaleAdvantages").state ** 0.5, 2))

same = trainer.train()["episode_reward_mean"] == restored.train()["episode_reward_mean"]
print("the next iteration is the same:", same)
trainer.stop()
restored.stop()

# %% [markdown]
# ### Microbatches
#
# Gradients can be computed, averaged and applied in separate steps. This is how A2C trains on batches larger than
# what one pass should hold; the result is the gradient of the whole batch.

# %%
from jaxrl.algorithms.a2c import A2CPolicy
from jaxrl.execution.train_ops import ApplyGradients, AverageGradients, ComputeGradients


def microbatch_plan(ctx):
    rollouts = ParallelRollouts(ctx, mode="bulk_sync")
    gradients = rollouts.combine(ConcatBatches(256)).for_each(ComputeGradients(ctx))
    averages = gradients.batch(ctx.config.train_batch_size // 256).for_each(AverageGradients)
    return StandardMetricsReporting(ctx, averages.for_each(ApplyGradients(ctx)))


MicrobatchTrainer = build_trainer("MicrobatchTrainer", default_policy=A2CPolicy, execution_plan=microbatch_plan)

with MicrobatchTrainer({**config, "sgd_minibatch_size": 0, "num_sgd_iter": 1}) as trainer:
    trainer.fit(5, verbose=False)
    print(trainer.plan)

# %% [markdown]
# ### Two branches
#
# A stream has one consumer; `duplicate` makes more of it, and `Concurrently` runs plans side by side. Here one branch
# learns from each batch, while the other keeps a histogram of where the cart has been. Its counts are state again, of
# a branch whose items nobody needs: only those of the first come out.

# %%
from jaxrl.execution.concurrency_ops import Concurrently

EDGES = np.linspace(-2.4, 2.4, 49)


def CountPositions():
    def apply(counts, batch):
        return counts + np.histogram(batch["obs"][..., 0], EDGES)[0].astype(np.int32), batch

    return Operator("CountPositions", apply, init=lambda: np.zeros(len(EDGES) - 1, np.int32))


def observed_plan(ctx):
    rollouts = ParallelRollouts(ctx, mode="bulk_sync").combine(ConcatBatches(ctx.config.train_batch_size))
    to_learn, to_count = rollouts.duplicate(2)
    train_op = to_learn.for_each(ScaleAdvantages()).for_each(TrainOneStep(ctx))
    count_op = to_count.for_each(CountPositions())
    both = Concurrently([train_op, count_op], mode="round_robin", output_indexes=[0])
    return StandardMetricsReporting(ctx, both)


ObservedTrainer = PPOTrainer.with_updates(name="ObservedTrainer", execution_plan=observed_plan)
trainer = ObservedTrainer(config)
trainer.fit(1, verbose=False)
trainer.plan

# %% [markdown]
# Train on, and compare where the cart was in the first twenty iterations with the next twenty:

# %%
from jaxrl.trainers.curves import new_figure

figure, axes = new_figure(height=3)
before = 0
for label in ("iterations 1 to 20", "iterations 21 to 40"):
    trainer.fit(20, verbose=False)
    counts = trainer.plan.find("CountPositions").state
    axes.stairs((counts - before) / (counts - before).sum(), EDGES, label=label, linewidth=1.8)
    before = counts
trainer.stop()

axes.set(xlabel="cart position", ylabel="share of steps")
axes.legend(frameon=False)
figure

# %% [markdown]
# ## Where to go next
#
# Replay buffers, learner threads and asynchronous sampling are more operators of the same kind. The docstrings in
# `jaxrl/execution/` show for each what goes in, what comes out and which counters it changes, and each file in
# `jaxrl/algorithms/` holds its plan in a few lines.
