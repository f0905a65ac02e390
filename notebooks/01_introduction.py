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
# # An introduction to jaxrl
#
# jaxrl is RLlib re-imagined as pure functions in JAX. Two ideas carry it:
#
# - **One loss function makes a policy.** You write the loss; networks, action distributions, sampling, minibatches
#   and gradients follow from it.
# - **One execution plan makes an algorithm.** A plan is a short chain of operators on streams of batches: gather
#   rollouts, concatenate, learn.
#
# The same policy runs inside this process, on [Ray](https://ray.io) actors across a cluster, or under `jit` and
# `vmap` like any other JAX function. This page walks through what you will use first: training from the shell and
# from Python, what a run leaves on disk, watching a policy, and the three things that everything else is built from:
# *policies*, *sample batches* and *trainers*.
#
# To install it, in a clone of the repository:
#
# ```shell
# pip install -e '.[notebook]'
# ```

# %%
import os
import sys
import tempfile
from pathlib import Path

# Everything that this page writes goes into a temporary directory.
scratch = tempfile.TemporaryDirectory()
os.chdir(scratch.name)

# `!jaxrl` below is the command that is installed beside this kernel.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# %% [markdown]
# ## jaxrl in 60 seconds
#
# The command line has five commands, each with its own `--help`:

# %%
# !jaxrl --help

# %% [markdown]
# Train PPO on CartPole for eight iterations, with a checkpoint at the end. Nothing is started but this one process:
# Ray comes in only when you ask for rollout workers (`--num-workers 2`), several samples or a cluster (`--ray-address
# auto`).
#
# Options keep RLlib's names and are checked before anything runs; `--config` takes JSON, or `key=value` as here.
# (`sed` only shortens the paths for this page.)

# %%
# !jaxrl train --run PPO --env CartPole-v1 --seed 1 \
#     --config num_envs_per_worker=8 --config model.fcnet_hiddens='[64,64]' --config lr=0.0003 \
#     --stop '{"training_iteration": 8}' --checkpoint-at-end --storage-path results | sed "s|$PWD/||"

# %% [markdown]
# ### Rollouts
#
# *Rollout* means running episodes with a trained policy. The checkpoint knows its algorithm, environment and options,
# so naming it is enough; given a directory of results, jaxrl takes the newest checkpoint in it. Where there is no
# display nothing is drawn, and `--video-dir` writes MP4 files instead.

# %%
# !jaxrl rollout results --episodes 5 --seed 3 --no-render 2>&1 | sed "s|$PWD/||"

# %% [markdown]
# ### The same from Python
#
# A trainer takes the same options as a dict. `fit` trains and keeps a learning curve up to date in the page while it
# runs; the stop button ends it after the iteration it is in, and you can go on from there. With smaller, more
# frequent updates CartPole is learned in far fewer steps:

# %%
from jaxrl.algorithms.ppo import PPOTrainer

config = {
    "env": "CartPole-v1",
    "num_envs_per_worker": 8,
    "train_batch_size": 512,
    "sgd_minibatch_size": 128,
    "num_sgd_iter": 10,
    "lr": 2e-3,
    "gamma": 0.98,
    "lambda": 0.95,
    "clip_param": 0.2,
    "vf_loss_coeff": 0.5,
    "vf_clip_param": float("inf"),
    "kl_coeff": 0.0,
    "grad_clip": 0.5,
    "model": {"fcnet_hiddens": [64, 64]},
    "seed": 1,
}
trainer = PPOTrainer(config, results_dir="results/from_python")
history = trainer.fit(80, stop={"episode_reward_mean": 300})

# %% [markdown]
# Here is one episode of what it has learned, played and recorded in the page:

# %%
from jaxrl.trainers.video import record_video

record_video(trainer, "episode.mp4", explore=False, seed=7, max_steps=300)

# %% [markdown]
# ### The same with Ray Tune
#
# The trainer class is a Tune trainable as it stands, so grids, schedulers and clusters work as you know them (a trial
# starts Ray's processes, which is why this page only shows it):
#
# ```python
# from ray import tune
#
# tune.run(
#     PPOTrainer,
#     config={"env": "CartPole-v1", "num_workers": 2},
#     stop={"training_iteration": 20},
#     checkpoint_at_end=True,
# )
# ```

# %% [markdown]
# ## What a run leaves on disk
#
# Each run has a directory of its own: under `~/ray_results` unless you say otherwise, with the files that RLlib users
# expect.

# %%
for file in sorted(Path("results").rglob("*")):
    if file.is_file() and not file.name.startswith("."):
        print(file.relative_to("results"))

# %% [markdown]
# | file | holds |
# | --- | --- |
# | `params.json` | every option of the run |
# | `result.json` | one line of JSON per iteration |
# | `progress.csv` | the same as a table |
# | `events.out.tfevents.*` | the same for TensorBoard: `tensorboard --logdir results` |
# | `checkpoint_*/` | arrays as safetensors, the rest as JSON; no pickles anywhere |
#
# `fit` has returned those results as a `History`, and `History.load` reads them back from any run's directory,
# running or long finished. Any number in a result can be drawn:

# %%
from jaxrl.trainers.history import History

shell_run = next(Path("results/default").iterdir())
History.load(shell_run).plot("info/learner/default_policy/entropy")

# %% [markdown]
# `history.to_pandas()` makes a DataFrame of the results, and `jaxrl plot results` draws every run below a directory,
# with a band for those that differ only in their seed.

# %%
columns = ["timesteps_total", "episode_reward_mean", "info/learner/default_policy/vf_explained_var"]
history.to_pandas().set_index("training_iteration")[columns].iloc[::10].round(2)

# %% [markdown]
# ## Policies
#
# In RLlib a policy is an object with a session, a model and a `learn_on_batch` method. Here it is a *tuple of pure
# functions*, and all that learning changes is a value beside it, the `TrainState`. What defines it is a loss:
#
# ```python
# def policy_gradient_loss(params, batch, ctx):
#     out = ctx.forward(params, batch)
#     return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"])
#
# MyPolicy = build_policy("MyPolicy", loss_fn=policy_gradient_loss)
# ```
#
# The [next notebook](02_write_a_loss.ipynb) trains that one. Here, look at the policy that PPO's trainer holds.

# %%
import gymnasium as gym
import jax
import jax.numpy as jnp

from jaxrl.types import ActInputs

policy = trainer.get_policy()
print("functions:", ", ".join(policy._fields[1:]))
print("the loss reads:", ", ".join(sorted(policy.spec.reads)))

# %% [markdown]
# `init` makes a fresh state from a PRNG key: parameters, the optimiser's state, and the *coeffs*, numbers such as the
# learning rate that may change while training without a recompile.

# %%
state = policy.init(jax.random.key(0))
jax.tree.map(jnp.shape, state.params)

# %%
{name: round(float(value), 5) for name, value in sorted(state.coeffs.items())}

# %% [markdown]
# `act` chooses actions. It is given all that it needs: weights, observations, the carry (the state of a recurrent
# model and of the exploration, empty here), a key, and whether to explore. The same inputs always give the same
# actions.

# %%
env = gym.make("CartPole-v1")
obs, _ = env.reset(seed=0)
carry = policy.initial_carry(1)

out = policy.act(state.weights, ActInputs(obs=obs[None], t=0), carry, jax.random.key(1), True)
out.actions

# %% [markdown]
# And because these are pure functions, JAX's transformations apply: here are four freshly initialised policies by
# `vmap`, and what each thinks the first observation is worth.

# %%
states = jax.vmap(policy.init)(jax.random.split(jax.random.key(0), 4))
jax.vmap(policy.value, in_axes=(0, None, None))(states.weights, obs[None], ()).round(3)

# %% [markdown]
# ## Sample batches
#
# All experience travels as sample batches: named columns, immutable, a pytree like any other. The rollout worker in
# this process gives one fragment, `T` steps of `B` environments, with everything that the loss reads filled in. It
# prints the way RLlib's summary did:

# %%
batch = trainer.workers.local.sample()
print(batch.flatten(["action_logp", "actions", "dones", "new_obs", "obs", "rewards", "t"]))

# %% [markdown]
# A notebook shows the whole of it as a table. `terminateds` and `truncateds` are kept apart (a time limit is no
# terminal state); `dones` and `new_obs` are derived from what is stored when you read them, so observations travel
# once.

# %%
batch

# %% [markdown]
# `learn` takes a state and a batch and returns a new state and metrics: all of PPO's epochs and minibatches as one
# compiled program. Here it takes the state that the trainer's learner has reached. The old one stays what it was, and
# the trainer knows nothing of the new one.

# %%
state = trainer.learners["default_policy"].state
new_state, out = policy.learn(state, batch)
print("gradient steps:", state.step, "->", new_state.step)
{name: round(float(value), 3) for name, value in sorted(out.metrics.items())}

# %% [markdown]
# ## Trainers
#
# A trainer is the thin shell around all this: it owns the workers, the learner and the plan. `train()` runs one
# iteration and returns RLlib's result dict:

# %%
result = trainer.train()
{key: result[key] for key in ("training_iteration", "timesteps_total", "episode_reward_mean")}

# %% [markdown]
# `config_help()` lists every option with its type, default and meaning, and can be searched. A mistyped option is an
# error that names the nearest one, before anything starts:

# %%
PPOTrainer.config_help().search("clip")

# %%
from jaxrl import ConfigError

try:
    PPOTrainer({"env": "CartPole-v1", "clip_parm": 0.1})
except ConfigError as error:
    print(error)

# %% [markdown]
# `evaluate` plays whole episodes in environments of their own, and `compute_action` gives the action for one
# observation, for use anywhere else:

# %%
evaluation = trainer.evaluate()
print(f"{evaluation['episodes_this_iter']} episodes, mean reward {evaluation['episode_reward_mean']:.1f}")
print("action:", trainer.compute_action(obs, explore=False))

# %% [markdown]
# A checkpoint holds parameters, optimiser, random keys, counters, even where each environment stands in its episode.
# Continuing from it is the same as never having stopped, bit for bit:

# %%
path = trainer.save()
trainer.train()

restored = PPOTrainer.from_checkpoint(path, results_dir="results/restored")
restored.train()

ours, theirs = trainer.get_weights(), restored.get_weights()
same = jax.tree.map(lambda a, b: bool((a == b).all()), ours, theirs)
print(Path(path).name, "and one more iteration: all parameters equal:", all(jax.tree.leaves(same)))

# %% [markdown]
# What a trainer runs is its execution plan, and a plan draws itself, with counts and rates. This is all of PPO; the
# [third notebook](03_batches_and_plans.ipynb) takes one apart and changes it.

# %%
trainer.plan

# %%
trainer.stop()
restored.stop()

# %% [markdown]
# ## Algorithms
#
# Each algorithm is one file: its paper, its options, its loss and its plan. `jaxrl list` prints this table in a
# shell.

# %%
import importlib

import pandas as pd

from jaxrl import registry

names = registry.names("algorithm")
modules = {name: importlib.import_module(registry.resolve("algorithm", name).__module__) for name in names}
table = pd.DataFrame({name: module.SUPPORT._asdict() for name, module in modules.items()}).T
table.replace({True: "yes", False: "no"})

# %% [markdown]
# ## Where to go next
#
# - [02_write_a_loss](02_write_a_loss.ipynb): a policy from a loss of your own, composed losses, several learning
#   rates.
# - [03_batches_and_plans](03_batches_and_plans.ipynb): sample batches, parallel iterators, and execution plans,
#   printed, traced and changed.
# - `tuned_examples/` has configurations that solve their environments: `jaxrl train -f
#   tuned_examples/ppo/cartpole-ppo.yaml`.
# - `PPOTrainer(config={..., "num_workers": 4})` samples on four Ray actors; the policy, the plan and the results stay
#   the same.
