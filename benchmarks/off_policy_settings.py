"""What the contestants of the off-policy throughput rows have in common, whatever they are called there."""

from __future__ import annotations

# A gradient step per env step, in one environment. Exploration is in its last phase from the start, so that the share
# of greedy steps, which cost an act, is that of a long run.
DQN = {
    "env": "CartPole-v1",
    "hiddens": (64, 64),
    "batch_size": 64,
    "buffer_size": 50_000,
    "learning_starts": 1000,
    "lr": 5e-4,
    "gamma": 0.99,
    "target_update_freq": 500,
    "epsilon": 0.05,
    "fused": 16,  # env steps, then as many gradient steps in one call, where a library has that
}
SAC = {
    "env": "Pendulum-v1",
    "hiddens": (256, 256),
    "batch_size": 256,
    "buffer_size": 100_000,
    "learning_starts": 300,
    "lr": 3e-4,
    "gamma": 0.99,
    "tau": 0.005,
    "fused": 8,
}
