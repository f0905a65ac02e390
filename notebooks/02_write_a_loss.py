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
# # Write a loss
#
# In jaxrl a policy *is* its loss: a pure function of parameters, a batch and a context. This page starts from the
# three lines of a policy gradient, asks what jaxrl found out about them, composes a better loss from terms, adds a
# term from a recent paper and an auxiliary loss, gives parts of the network losses and learning rates of their own,
# and compares the results in one plot.

# %%
import os
import tempfile

scratch = tempfile.TemporaryDirectory()
os.environ["JAXRL_RESULTS_DIR"] = scratch.name  # where results go; ~/ray_results otherwise

import jax
import jax.numpy as jnp
import optax

from jaxrl import LearnOutput, build_policy, build_trainer, losses
from jaxrl.trainers.curves import draw, new_figure
from jaxrl.trainers.history import History

config = {
    "env": "CartPole-v1",
    "num_envs_per_worker": 8,
    "rollout_fragment_length": 64,
    "train_batch_size": 512,
    "lr": 3e-3,
    "lambda": 0.95,
    "model": {"fcnet_hiddens": [64, 64], "vf_share_layers": False},
    "seed": 0,
}

# %% [markdown]
# ## From a loss to a policy
#
# `ctx.forward` runs the model on the batch and gives the action distribution and the values. `batch.mean` is the mean
# over valid rows; batches may hold padding, and it never counts.


# %%
def policy_gradient_loss(params, batch, ctx):
    out = ctx.forward(params, batch)
    return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"])


PolicyGradient = build_policy("PolicyGradient", loss_fn=policy_gradient_loss)
PolicyGradientTrainer = build_trainer("PolicyGradientTrainer", default_policy=PolicyGradient)

with PolicyGradientTrainer(config) as trainer:
    policy, state = trainer.get_policy(), trainer.learners["default_policy"].state
    batch = trainer.workers.local.sample()
    history = trainer.fit(20, verbose=False)

history

# %% [markdown]
# That is the whole algorithm. A network was made for the spaces of the environment, a categorical distribution for
# its actions, and what the loss reads was found by tracing it once, on shapes alone:

# %%
print("reads:", sorted(policy.spec.reads))
print("coeffs:", dict(policy.spec.coeffs))

# %% [markdown]
# `advantages` is a column that jaxrl knows how to produce. What it holds depends on the loss: as long as nothing
# reads `value_targets` there is no critic to speak of, and advantages are discounted returns. A loss that reads
# `value_targets` gets generalised advantage estimates instead.
#
# The loss remains an ordinary function. `policy.context` gives the context that it needs, and `jax.grad` works as
# always; the policy's own gradients are the same numbers.

# %%
ctx = policy.context(state)
grads = jax.grad(policy_gradient_loss)(state.params, batch, ctx)
policy_grads, _ = policy.gradients(state, batch)

print("gradient norm:", optax.tree.norm(grads).round(4))
print("equal to the policy's:", all(jax.tree.leaves(jax.tree.map(jnp.allclose, grads, policy_grads))))

# %% [markdown]
# ## When something is wrong
#
# Mistakes surface when the policy is built, before anything is sampled. A column that nothing produces:

# %%
from jaxrl.types import JaxrlError


def reads_a_typo(params, batch, ctx):
    return -batch.mean(ctx.forward(params, batch).dist.log_prob(batch["actions"]) * batch["advantage"])


try:
    build_trainer("TypoTrainer", default_policy=build_policy("Typo", loss_fn=reads_a_typo))(config)
except JaxrlError as error:
    print(f"{type(error).__name__}: {error}")


# %% [markdown]
# A loss that is not a scalar:


# %%
def forgets_to_reduce(params, batch, ctx):
    return -ctx.forward(params, batch).dist.log_prob(batch["actions"]) * batch["advantages"]


try:
    build_trainer("VectorTrainer", default_policy=build_policy("Vector", loss_fn=forgets_to_reduce))(config)
except JaxrlError as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## Composing a loss from terms
#
# `jaxrl.losses` holds the usual terms, and `weighted_sum` adds them up. A term is itself a loss function, with its
# numbers as named defaults. An actor-critic is three of them:

# %%
actor_critic_loss = losses.weighted_sum(
    policy_loss=(1.0, losses.advantage_policy_gradient()),
    vf_loss=(0.5, losses.value_error()),
    entropy=(0.01, losses.entropy_bonus()),
)
ActorCritic = build_policy("ActorCritic", loss_fn=actor_critic_loss)
ActorCriticTrainer = build_trainer("ActorCriticTrainer", default_policy=ActorCritic)
actor_critic_loss

# %% [markdown]
# Each weight and each number has become an option of the trainer, under its name; in the result each term's value is
# a metric of that name. (Three terms call `ctx.forward` here. The network runs once.)

# %%
ActorCriticTrainer.config_help().search("coefficient")

# %%
trainer = ActorCriticTrainer({**config, "entropy_coeff": 0.02})
result = trainer.train()
{name: round(value, 4) for name, value in sorted(result["info"]["learner"]["default_policy"].items())}

# %% [markdown]
# ### Changing a number while training
#
# These numbers are *coeffs*: traced values in the train state, not constants in compiled code. Change one between
# iterations and nothing recompiles, as the compile time of each iteration shows. In a config, a coeff may be a
# schedule over env steps, `"entropy_coeff": [[0, 0.02], [100_000, 0.0]]`, and Tune may change it half-way (population
# based training).

# %%
for entropy_coeff in (1.0, 0.1, 0.01):
    trainer.set_coeffs(entropy_coeff=entropy_coeff)
    history = trainer.fit(10, verbose=False)
    entropy = history[-1]["info"]["learner"]["default_policy"]["entropy"]
    compiling = sum(history.column("compile_time_s"))
    print(f"entropy_coeff {entropy_coeff}: entropy {entropy:.3f}, {compiling:.1f} s of compiling")
trainer.stop()


# %% [markdown]
# ## A term of your own
#
# Simple Policy Optimization ([Xie et al. 2025](https://arxiv.org/abs/2401.16025)) replaces PPO's clipping by a
# quadratic penalty, which puts the maximum for each row exactly where PPO would clip:
#
# $$ J = \mathbb{E}\left[ r_t A_t - \frac{|A_t|}{2 \epsilon} (r_t - 1)^2 \right], \qquad
# r_t = \frac{\pi(a_t \mid s_t)}{\pi_\text{old}(a_t \mid s_t)} $$
#
# As a term it reads like the equation. `losses.term` gives it the coeff `epsilon`, and a `LearnOutput` adds metrics:


# %%
def simple_surrogate(epsilon=0.2):
    def loss_fn(params, batch, ctx):
        ratio = jnp.exp(ctx.forward(params, batch).dist.log_prob(batch["actions"]) - batch["action_logp"])
        advantages = batch["advantages"]
        penalty = jnp.abs(advantages) / (2 * losses.coeff(ctx, "epsilon")) * (ratio - 1) ** 2
        metrics = {"ratio_error": batch.mean(jnp.abs(ratio - 1))}
        return -batch.mean(ratio * advantages - penalty), LearnOutput(metrics)

    return losses.term(loss_fn, epsilon=epsilon)


simple_loss = losses.weighted_sum(
    policy_loss=(1.0, simple_surrogate()),
    vf_loss=(0.5, losses.value_error()),
    entropy=(0.01, losses.entropy_bonus()),
)
SimplePolicy = build_policy("SimplePolicy", loss_fn=simple_loss)
simple_loss

# %% [markdown]
# Such a loss allows several epochs over a batch, so this trainer starts from PPO's: same options, same plan (which
# standardises advantages), another policy.

# %%
from jaxrl.algorithms.ppo import PPOTrainer

SimpleTrainer = PPOTrainer.with_updates(name="SimpleTrainer", default_policy=SimplePolicy)
epochs = {"num_sgd_iter": 6, "sgd_minibatch_size": 128, "lr": 2e-3}


# %% [markdown]
# ### An auxiliary loss
#
# An auxiliary loss is one more term. This one asks that the policy act alike on observations that differ by a little
# noise (spatial smoothness, [Mysore et al. 2021](https://arxiv.org/abs/2012.06644)). It runs the model on a second,
# changed batch; `ctx.key` is a fresh key for each gradient step.


# %%
def smoothness(noise=0.05):
    def loss_fn(params, batch, ctx):
        shift = losses.coeff(ctx, "noise") * jax.random.normal(ctx.key, batch["obs"].shape)
        nearby = batch.replace(obs=batch["obs"] + shift)
        return batch.mean(ctx.forward(params, batch).dist.kl(ctx.forward(params, nearby).dist))

    return losses.term(loss_fn, noise=noise)


smooth_loss = losses.weighted_sum(spo=(1.0, simple_loss), smoothness=(1.0, smoothness()))
SmoothPolicy = build_policy("SmoothPolicy", loss_fn=smooth_loss)
SmoothTrainer = SimpleTrainer.with_updates(name="SmoothTrainer", default_policy=SmoothPolicy)

with SmoothTrainer({**config, **epochs}) as trainer:
    history = trainer.fit(10, verbose=False)
learner = history[-1]["info"]["learner"]["default_policy"]
{name: round(learner[name], 4) for name in ("total_loss", "spo", "policy_loss", "ratio_error", "vf_loss", "smoothness")}

# %% [markdown]
# ## A loss for each part of the network
#
# A mapping gives groups of parameters their own loss. Each is differentiated with respect to its own group only, all
# at the same parameters, so that a critic's error can never leak into an actor. The groups are the top level of the
# parameters: `policy` and `value` here, and `encoder` too where they share layers.
#
# `optimizer_fn` may then return an optax transform for each group, and `coeffs_fn` adds the coeffs that it needs.

# %%
TwoLosses = build_policy(
    "TwoLosses",
    loss_fn={
        "policy": losses.weighted_sum(
            policy_loss=(1.0, losses.advantage_policy_gradient()),
            entropy=(0.01, losses.entropy_bonus()),
        ),
        "value": losses.value_error(),
    },
    coeffs_fn=lambda config: {"vf_lr": 1e-2},
    optimizer_fn=lambda config, coeffs: {"policy": optax.adam(coeffs["lr"]), "value": optax.adam(coeffs["vf_lr"])},
)
TwoLossesTrainer = build_trainer("TwoLossesTrainer", default_policy=TwoLosses)

with TwoLossesTrainer(config) as trainer:
    learner = trainer.train()["info"]["learner"]["default_policy"]
{name: round(value, 4) for name, value in sorted(learner.items())}


# %% [markdown]
# ## Compared
#
# Three seeds of each. `History.join` makes runs of one experiment a band: the mean, and the range from the lowest run
# to the highest.


# %%
def train(trainer_class, **options):
    runs = []
    for seed in range(3):
        with trainer_class({**config, **options, "seed": seed}) as trainer:
            runs.append(trainer.fit(48, verbose=False))
    return History.join(*runs)


results = {
    "policy gradient": train(PolicyGradientTrainer),
    "actor-critic": train(ActorCriticTrainer),
    "two losses": train(TwoLossesTrainer),
    "simple policy optimization": train(SimpleTrainer, **epochs),
}
figure, axes = new_figure()
draw(axes, results)
figure

# %% [markdown]
# Over 25 thousand steps the first three are hard to tell apart with so few seeds. Going over each batch several times,
# which only the penalised ratio makes safe, is what pays.
#
# From here, `jaxrl/algorithms/ppo.py` is a good next read: its loss is a `weighted_sum` of four terms, and the whole
# file is about a hundred lines. The [next notebook](03_batches_and_plans.ipynb) looks at the other half of an
# algorithm: the plan that feeds the loss.
