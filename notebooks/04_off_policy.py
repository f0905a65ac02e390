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
# # Learning off-policy
#
# On-policy algorithms throw a batch away once they have learned from it. Off-policy ones keep it in a replay memory
# and draw from it again and again. This page writes Q-learning as a loss, builds DQN up to Rainbow term by term,
# looks into the replay memory, and ends with soft actor-critic on a pendulum.

# %%
import os
import tempfile

scratch = tempfile.TemporaryDirectory()
os.environ["JAXRL_RESULTS_DIR"] = scratch.name  # where results go; ~/ray_results otherwise

import jax
import numpy as np

from jaxrl import LearnOutput, losses
from jaxrl.algorithms.dqn import DQNPolicy, DQNTrainer
from jaxrl.algorithms.sac import SACTrainer
from jaxrl.trainers.curves import draw, new_figure

config = {
    "env": "CartPole-v1",
    "rollout_fragment_length": 32,  # steps in the environment, then ...
    "train_batch_size": 64,
    "training_intensity": 32,  # ... half a gradient step of 64 rows for each, all in one program
    "learning_starts": 500,
    "buffer_size": 20_000,
    "timesteps_per_iteration": 500,
    "target_network_update_freq": 250,
    "lr": 1e-3,
    "model": {"fcnet_hiddens": [64, 64], "fcnet_activation": "relu"},
    "hiddens": [],
    "exploration_config": {"type": "EpsilonGreedy", "final_epsilon": 0.02, "epsilon_timesteps": 4000},
    "seed": 0,
}
plain = {**config, "double_q": False, "dueling": False, "prioritized_replay": False}

# %% [markdown]
# ## Q-learning is a loss
#
# $$ L = \mathbb{E}\left[ \left( r + \gamma \max_{a'} Q_\text{target}(s', a') - Q(s, a) \right)^2 \right] $$
#
# A policy's outputs can be read as action values as well as logits: `dist_inputs` are $Q(s, \cdot)$, and the greedy
# action is the distribution's mode. `ctx.target_params` are the target network's parameters. Replayed rows come with
# `new_obs`, the true successor, and with `discounts`, which is $\gamma^n$ and zero where the episode terminated. What
# the loss returns for each row, here `td_error`, may become its priority.


# %%
def q_loss(params, batch, ctx):
    successors = batch.with_columns(obs=batch["new_obs"])
    next_q = ctx.forward(ctx.target_params, successors).dist_inputs.max(axis=-1)
    target = losses.td_target(batch["rewards"], batch["discounts"], jax.lax.stop_gradient(next_q))
    q = losses.q_of_actions(ctx.forward(params, batch).dist_inputs, batch["actions"])
    return batch.mean((target - q) ** 2), LearnOutput({"mean_q": batch.mean(q)}, {"td_error": target - q})


QPolicy = DQNPolicy.with_updates(name="QPolicy", loss_fn=q_loss)
QTrainer = DQNTrainer.with_updates(name="QTrainer", default_policy=QPolicy)

with QTrainer(plain) as trainer:
    plan = trainer.plan
    history = trainer.fit(20, verbose=False)
history

# %% [markdown]
# ## The plan: two chains in turn
#
# One chain samples and stores; the other one draws, learns, and moves the target network. `Concurrently` takes an
# item of each in turn. Here a round of 32 steps is followed by 16 gradient steps, on 16 batches that are drawn
# together and learned from in one compiled loop.

# %%
print(plan)

# %% [markdown]
# ## From DQN to Rainbow, term by term
#
# Each line adds one idea to those above it; together they are [Rainbow](https://arxiv.org/abs/1710.02298). Every one
# is an option of `DQNTrainer`.

# %%
quiet = {"type": "EpsilonGreedy", "initial_epsilon": 0.0, "final_epsilon": 0.0}
terms = {
    "DQN": {},
    "+ double": {"double_q": True},
    "+ dueling": {"dueling": True, "hiddens": [64]},
    "+ prioritised": {"prioritized_replay": True},
    "+ 3 steps": {"n_step": 3},
    "+ distribution": {"num_atoms": 51, "v_min": 0.0, "v_max": 100.0},
    "+ noisy layers": {
        "noisy": True,
        "exploration_config": {"type": "EpsilonGreedy", "initial_epsilon": 0.0, "final_epsilon": 0.0},
    },
}

results, options = {}, dict(plain)
for name, added in terms.items():
    options.update(added)
    with DQNTrainer(options) as trainer:
        results[name] = trainer.fit(20, verbose=False)
        rainbow = trainer

figure, axes = new_figure()
draw(axes, results)
figure

# %% [markdown]
# One seed and ten thousand steps of a small task say little about which term pays (the paper needed 57 games and 200
# million frames for that). That they compose without a line of new code is the point here.

# %% [markdown]
# ## Inside the replay memory
#
# The memory belongs to the plan's context. Rows are drawn in proportion to their priority, the size of their last TD
# error (or for distributions their loss) to the power 0.6; a row that has never been learned from has the largest one
# so far.

# %%
memory = rainbow.context.memory
memory.stats()

# %%
batch = memory.sample(np.random.default_rng(0), 512, 0.4)["default_policy"]
batch

# %%
import matplotlib.pyplot as plt

state = memory.states["default_policy"]
priorities = state.tree.sums[0][: state.size]  # the leaves of the sum tree
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
left.plot(priorities, ".", markersize=1.5)
left.set(xlabel="row, oldest first", ylabel="priority", yscale="log", title="Priorities of the rows")
right.plot(batch["t"], batch["weights"], ".", markersize=3)
right.set(xlabel="step within its episode", ylabel="importance weight", title="Weights of 512 drawn rows")
plt.show()

# %% [markdown]
# An observation is stored once. `new_obs` is found by following a pointer to the successor's row, and the returns of
# three steps were summed when the rows were stored. So a row costs little more than what it holds:

# %%
size, capacity = memory.stats()["default_policy"]["size_bytes"], state.spec.capacity
print(f"{size / capacity:.0f} bytes for each of {capacity} rows")

# %% [markdown]
# A checkpoint holds the memory if `store_buffer_in_checkpoints` says so, and a run restored from it goes on bit for
# bit.

# %% [markdown]
# ## Soft actor-critic
#
# For continuous actions a policy has parts with losses of their own: `policy`, the critics `q`, and the temperature
# `log_alpha`. SAC is a mapping from those to three functions; see `jaxrl/algorithms/sac.py`.

# %%
with SACTrainer(
    {
        "env": "Pendulum-v1",
        "actor_hiddens": [64, 64],
        "critic_hiddens": [64, 64],
        "train_batch_size": 128,
        "lr": 1e-3,
        "rollout_fragment_length": 16,
        "learning_starts": 500,
        "exploration_config": {"type": "StochasticSampling", "random_timesteps": 500},
        "buffer_size": 20_000,
        "timesteps_per_iteration": 400,
        "metrics_smoothing_episodes": 10,
        "seed": 0,
    }
) as trainer:
    history = trainer.fit(20, verbose=False)
    evaluation = trainer.evaluate()

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
draw(left, {"SAC": history})
steps = history.column("timesteps_total")
right.plot(steps, history.column("info/learner/default_policy/log_alpha/alpha"))
right.set(xlabel="env steps", ylabel="temperature", title="The weight of entropy adapts")
plt.show()

# %%
print(f"evaluation: {evaluation['episode_reward_mean']:.0f} over {evaluation['episodes_this_iter']} episodes")

# %% [markdown]
# To write an algorithm of your own, start from `jaxrl/algorithms/dqn.py` or `sac.py`: a loss, a model, and the plan
# that they share in `jaxrl/trainers/off_policy.py`.
