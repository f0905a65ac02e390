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
# # Compiled plans and populations
#
# A policy is pure functions, and so are environments written in JAX. Where both meet, a whole plan, sampling and
# learning, becomes one compiled program. This page runs the same policy on three engines, looks at what the compiled
# one costs, and then trains many runs in one program: 256 seeds, a sweep of learning rates, and population-based
# training.

# %%
import os
import tempfile

scratch = tempfile.TemporaryDirectory()
os.environ["JAXRL_RESULTS_DIR"] = scratch.name  # where results go; ~/ray_results otherwise
os.chdir(scratch.name)

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from jaxrl import build_policy, build_trainer, losses
from jaxrl.algorithms import ppo
from jaxrl.trainers.curves import COLORS, draw
from jaxrl.trainers.history import History

# %% [markdown]
# ## One policy, three engines
#
# The policy is a loss of three terms, and its trainer takes PPO's plan. Nothing in either says where it will run.

# %%
loss = losses.weighted_sum(
    policy_loss=(1.0, losses.clipped_surrogate(clip_param=0.2)),
    vf_loss=(0.5, losses.value_error()),
    entropy=(0.01, losses.entropy_bonus()),
)
Clipped = build_policy("Clipped", loss_fn=loss)
ClippedTrainer = build_trainer("ClippedTrainer", default_policy=Clipped, execution_plan=ppo.execution_plan)

config = {
    "num_envs_per_worker": 8,
    "rollout_fragment_length": 32,
    "train_batch_size": 256,
    "sgd_minibatch_size": 64,
    "num_sgd_iter": 4,
    "timesteps_per_iteration": 1024,  # four batches for each result
    "lr": 3e-3,
    "gamma": 0.98,
    "lambda": 0.95,
    "grad_clip": 0.5,
    "model": {"fcnet_hiddens": [32, 32], "vf_share_layers": False},
    "metrics_smoothing_episodes": 20,
    "seed": 2,
}

# %% [markdown]
# The engine follows from the options. `CartPole-v1` is Gymnasium's: Python steps it, in this process or on Ray
# actors. `jax/CartPole-v1` is the same task as pure functions, and its plan is compiled.

# %%
engines = {
    "in this process": {"env": "CartPole-v1"},
    "2 Ray workers": {"env": "CartPole-v1", "num_workers": 2, "num_envs_per_worker": 4},
    "compiled": {"env": "jax/CartPole-v1"},
}
histories, plans = {}, {}
for name, options in engines.items():
    with ClippedTrainer({**config, **options}) as trainer:
        histories[name] = trainer.fit(30, verbose=False)
        plans[name] = trainer.plan

# %% [markdown]
# Each first iteration compiles, so the clock of the right-hand picture starts after it.


# %%
def after_the_first(history):
    """A history with the seconds since its first result."""
    first = history[0]["time_total_s"]
    return History([{**result, "seconds": result["time_total_s"] - first} for result in history])


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
draw(left, histories)
draw(right, {name: after_the_first(history) for name, history in histories.items()}, x="seconds")
right.set(xlabel="seconds after the first iteration", ylabel=None)
right.legend().remove()
plt.show()

# %%
pd.DataFrame(
    {
        "first iteration [s]": [round(history[0]["time_total_s"], 1) for history in histories.values()],
        "env steps/s, later": [int(np.median(history.column("env_steps_per_s")[1:])) for history in histories.values()],
    },
    index=list(histories),
)

# %% [markdown]
# CartPole is so light that there is nothing for Ray workers to share out, and they cost more than they bring; they are
# for environments that take their time. The curves on the left differ by chance alone: each engine draws other random
# numbers. How much chance that is, 256 seeds will show below.
#
# ## The compiled plan
#
# This is the plan as workers run it:

# %%
print(plans["in this process"])

# %% [markdown]
# And this is what is left of it where it is compiled. All of it but the reporting is inside `CompiledRounds(4)`: one
# call of one program plays and learns four rounds, and the host only reads the results.

# %%
print(plans["compiled"])

# %% [markdown]
# Every result says what the programs cost: `init` makes the learner and the environments, `iteration` is the plan.
# Compiled programs are kept on disk, so that the next run with the same options finds them there and `compile_s`
# shrinks.

# %%
programs = pd.DataFrame(histories["compiled"][-1]["programs"]).T
programs.round(2).astype({"memory_bytes": int})

# %% [markdown]
# ## 256 seeds at once
#
# A run that is one pure function can be mapped over seeds. `fit(seeds=256)` trains 256 runs of the trainer in one
# program. Each is the run that its seed would give alone.

# %%
compiled = {**config, "env": "jax/CartPole-v1"}
with ClippedTrainer(compiled) as trainer:
    population = trainer.fit(30, seeds=256, verbose=False)

last = population.results[-1]
print(f"{last['timesteps_total']:,} env steps in {last['time_total_s']:.0f} s")
print(f"seconds for one run: {last['time_total_s'] / len(population):.2f}")

# %%
rewards = np.array([result["member_rewards"] for result in population.results])  # [iterations, members]
steps = population.results.column("timesteps_per_member")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, width_ratios=[3, 1], layout="constrained")
for share, shade in ((100, "0.92"), (90, "0.82"), (50, "0.68")):
    low, high = np.percentile(rewards, [50 - share / 2, 50 + share / 2], axis=1)
    left.fill_between(steps, low, high, color=shade, linewidth=0, label=f"{share} % of the seeds")
left.plot(steps, np.median(rewards, axis=1), color="black", linewidth=1.8, label="median")
draw(left, histories)
left.set(title="256 seeds, and the three runs from above")
left.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")
right.hist(rewards[-1], bins=25, orientation="horizontal", color="0.5")
right.set(xlabel="seeds", title="where they ended")
right.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The three engines' runs are draws from the same lot. And it is a wide one: from the same options one seed solves the
# task and another does not, which is why a comparison of single runs says little.

# %%
solved = (rewards >= 475).any(axis=0).mean()
print(f"{solved:.0%} of the seeds reach 475 at some time; in the end they have")
worst, median, best = np.percentile(rewards[-1], [0, 50, 100])
print(f"{worst:.0f} (the worst), {median:.0f} (the median), {best:.0f} (the best)")

# %% [markdown]
# ## A sweep of learning rates
#
# Coeffs, the numbers that may change while training, may also differ between the members of a population. This sweep
# is one program too: compiled once, for five learning rates with eight seeds each.

# %%
with ClippedTrainer(compiled) as trainer:
    sweep = trainer.fit(30, seeds=8, coeffs={"lr": [1e-4, 1e-3, 3e-3, 1e-2, 1e-1]}, verbose=False)

pd.DataFrame(sweep.rows()).round(4)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
for color, (label, members) in zip(COLORS, sweep.settings().items(), strict=False):
    curves = np.array([member.history.column("episode_reward_mean") for member in members])
    left.plot(members[0].history.column("timesteps_total"), curves.mean(axis=0), color=color, label=label)
    right.plot([members[0].coeffs["lr"]] * len(members), curves[:, -1], "o", color=color, alpha=0.6)
left.set(xlabel="env steps", ylabel="mean episode reward", title="mean over 8 seeds")
left.legend(frameon=False, fontsize="small")
for axes in (left, right):
    axes.grid(alpha=0.25)
right.set(xscale="log", xlabel="learning rate", title="each seed in the end")
plt.show()

# %% [markdown]
# `sweep` as a cell's value shows this table under curves with bands; `sweep.plot()` draws them,
# `sweep.best` is the best member, and `sweep.to_pandas()` has every number of every member.
#
# ## Population-based training
#
# Members need not stay apart. In [population-based training](https://arxiv.org/abs/1711.09846) the worst go on from
# what the best have learned, with learning rates that are changed a little. It is one more argument. To give it
# something to do, no member begins with a good learning rate. Members are ranked by their last ten episodes, since
# older ones tell of weights that are gone.

# %%
from jaxrl import PopulationBasedTraining

bad = {"lr": [3e-5, 1e-4]}
options = {**compiled, "metrics_smoothing_episodes": 10}
evolve = PopulationBasedTraining(bounds={"lr": (1e-5, 1e-1)}, interval=2, factors=(0.5, 2.0))

with ClippedTrainer(options) as trainer:
    apart = trainer.fit(40, seeds=8, coeffs=bad, verbose=False)
with ClippedTrainer(options) as trainer:
    evolved = trainer.fit(40, seeds=8, coeffs=bad, evolve=evolve, verbose=False)
    lr = trainer.learners["default_policy"].state.coeffs["lr"]

# %%
fits = {"apart": apart, "evolving": evolved}
runs = {name: [member.history for member in population.members] for name, population in fits.items()}
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
draw(axes, {name: first.join(*others) for name, (first, *others) in runs.items()})
plt.show()
print(f"learning rate of the best member: {min(bad['lr'])} or {max(bad['lr'])} at first, {float(lr):.2g} in the end")

# %% [markdown]
# ## The best member
#
# After `fit` the trainer goes on as the best member of its population, and has saved it. That is a checkpoint like any
# other, of a single run. It does not mind which engine loads it; here it plays in Gymnasium's CartPole, which it has
# never seen.

# %%
from jaxrl.trainers.video import record_video

with ClippedTrainer.from_checkpoint(evolved.checkpoint, {"env": "CartPole-v1"}) as trainer:
    evaluation = trainer.evaluate()
    video = record_video(trainer, "episode.mp4", explore=False, seed=7, max_steps=300)

print(f"{evaluation['episodes_this_iter']} episodes, mean reward {evaluation['episode_reward_mean']:.1f}")
video

# %% [markdown]
# Any environment that is a `JaxEnv` compiles: one of your own, or of Gymnax, Brax, MuJoCo Playground, Pgx and Jumanji
# through an adapter (see the README). On an accelerator the same lines hold, with more environments and more seeds.
