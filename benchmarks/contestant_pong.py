"""PPO on Pong by one library: `contestant_pong.py jaxrl|sb3|cleanrl`, the peers' in the peers' environment.

The same numbers for all, those of Schulman et al. 2017 for Atari (https://arxiv.org/abs/1707.06347, table 5) at a
constant rate; the Nature CNN with shared features; 8 environments in one process with DeepMind's preprocessing.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

from child import Reports, serve

GAME = "PongNoFrameskip-v4"
ENVS, STEPS, EPOCHS, MINIBATCH = 8, 128, 4, 256
BATCH = ENVS * STEPS
LR, CLIP, ENTROPY, GAMMA, LAMBDA, GRAD_CLIP = 2.5e-4, 0.1, 0.01, 0.99, 0.95, 0.5


def jaxrl(reports: Reports) -> None:
    ppo = importlib.import_module("jaxrl.algorithms.ppo")
    config = {
        "env": GAME,
        "num_envs_per_worker": ENVS,
        "train_batch_size": BATCH,
        "sgd_minibatch_size": MINIBATCH,
        "num_sgd_iter": EPOCHS,
        "lr": LR,
        "gamma": GAMMA,
        "lambda": LAMBDA,
        "clip_param": CLIP,
        "vf_clip_param": CLIP,
        "vf_loss_coeff": 0.5,
        "entropy_coeff": ENTROPY,
        "kl_coeff": 0.0,
        "grad_clip": GRAD_CLIP,
        "model": {"vf_share_layers": True},
        "seed": 0,
    }
    with ppo.PPOTrainer(config=config) as trainer:
        serve(reports, timed(lambda: trainer.train()["timesteps_this_iter"]))


def sb3(reports: Reports) -> None:
    library = importlib.import_module("stable_baselines3")
    importlib.import_module("ale_py")
    make = importlib.import_module("stable_baselines3.common.env_util").make_atari_env
    stack = importlib.import_module("stable_baselines3.common.vec_env").VecFrameStack
    model = library.PPO(
        "CnnPolicy",
        stack(make(GAME, n_envs=ENVS, seed=0), 4),
        n_steps=STEPS,
        batch_size=MINIBATCH,
        n_epochs=EPOCHS,
        learning_rate=LR,
        clip_range=CLIP,
        ent_coef=ENTROPY,
        seed=0,
        device="cpu",
    )

    def batch() -> int:
        before = model.num_timesteps
        model.learn(BATCH, reset_num_timesteps=False)
        return model.num_timesteps - before

    serve(reports, timed(batch))


def cleanrl(reports: Reports) -> None:
    """CleanRL is no library but single files: this is what its ppo_atari.py does, without its logging."""
    np, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    nn = torch.nn
    envs = cleanrl_envs()
    torch.manual_seed(0)

    def layer(module: Any, std: float = 2**0.5) -> Any:
        nn.init.orthogonal_(module.weight, std)
        nn.init.constant_(module.bias, 0.0)
        return module

    network = nn.Sequential(
        layer(nn.Conv2d(4, 32, 8, stride=4)),
        nn.ReLU(),
        layer(nn.Conv2d(32, 64, 4, stride=2)),
        nn.ReLU(),
        layer(nn.Conv2d(64, 64, 3, stride=1)),
        nn.ReLU(),
        nn.Flatten(),
        layer(nn.Linear(64 * 7 * 7, 512)),
        nn.ReLU(),
    )
    actor, critic = layer(nn.Linear(512, envs.single_action_space.n), 0.01), layer(nn.Linear(512, 1), 1.0)
    parameters = [p for module in (network, actor, critic) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LR, eps=1e-5)

    def forward(obs: Any, action: Any = None) -> tuple[Any, ...]:
        hidden = network(obs / 255.0)
        distribution = torch.distributions.Categorical(logits=actor(hidden))
        action = distribution.sample() if action is None else action
        return action, distribution.log_prob(action), distribution.entropy(), critic(hidden)

    obs = torch.zeros((STEPS, ENVS, 4, 84, 84))
    actions, logps, rewards, dones, values = (torch.zeros((STEPS, ENVS)) for _ in range(5))
    first, _ = envs.reset(seed=0)
    now = {"obs": torch.Tensor(first), "done": torch.zeros(ENVS)}

    def rollout() -> tuple[Any, Any]:
        for step in range(STEPS):
            obs[step], dones[step] = now["obs"], now["done"]
            with torch.no_grad():
                action, logp, _, value = forward(now["obs"])
            actions[step], logps[step], values[step] = action, logp, value.flatten()
            next_obs, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards[step] = torch.tensor(reward).view(-1)
            now["obs"], now["done"] = torch.Tensor(next_obs), torch.Tensor(np.logical_or(terminated, truncated))
        advantages, last = torch.zeros((STEPS, ENVS)), 0
        with torch.no_grad():
            next_value = critic(network(now["obs"] / 255.0)).reshape(-1)
            for t in reversed(range(STEPS)):
                going_on = 1.0 - (now["done"] if t == STEPS - 1 else dones[t + 1])
                after = next_value if t == STEPS - 1 else values[t + 1]
                delta = rewards[t] + GAMMA * after * going_on - values[t]
                advantages[t] = last = delta + GAMMA * LAMBDA * going_on * last
        return advantages.reshape(-1), (advantages + values).reshape(-1)

    def update(advantages: Any, returns: Any) -> None:
        flat = obs.reshape((-1, 4, 84, 84)), actions.reshape(-1), logps.reshape(-1), values.reshape(-1)
        order = np.arange(BATCH)
        for _ in range(EPOCHS):
            np.random.shuffle(order)
            for start in range(0, BATCH, MINIBATCH):
                rows = order[start : start + MINIBATCH]
                frames, taken, old_logp, old_value = (column[rows] for column in flat)
                _, logp, entropy, value = forward(frames, taken.long())
                ratio, value = (logp - old_logp).exp(), value.view(-1)
                weight = advantages[rows]
                weight = (weight - weight.mean()) / (weight.std() + 1e-8)
                policy_loss = torch.max(-weight * ratio, -weight * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)).mean()
                clipped = old_value + torch.clamp(value - old_value, -CLIP, CLIP)
                errors = torch.max((value - returns[rows]) ** 2, (clipped - returns[rows]) ** 2)
                loss = policy_loss - ENTROPY * entropy.mean() + 0.5 * 0.5 * errors.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
                optimizer.step()

    def batch() -> int:
        update(*rollout())
        return BATCH

    serve(reports, timed(batch))


def cleanrl_envs() -> Any:
    """The environments of CleanRL's ppo_atari.py."""
    gym, wrappers = importlib.import_module("gymnasium"), importlib.import_module("gymnasium.wrappers")
    atari = importlib.import_module("stable_baselines3.common.atari_wrappers")
    importlib.import_module("ale_py")

    def make() -> Any:
        env = wrappers.RecordEpisodeStatistics(gym.make(GAME))
        env = atari.MaxAndSkipEnv(atari.NoopResetEnv(env, noop_max=30), skip=4)
        env = atari.ClipRewardEnv(atari.FireResetEnv(atari.EpisodicLifeEnv(env)))
        env = wrappers.GrayscaleObservation(wrappers.ResizeObservation(env, (84, 84)))
        return wrappers.FrameStackObservation(env, 4)

    return gym.vector.SyncVectorEnv([make for _ in range(ENVS)])


def timed(batch: Callable[[], int]) -> Callable[..., dict[str, Any]]:
    """Work for `serve`: train batches, and how many env steps a second they took."""

    def work(iterations: int) -> dict[str, Any]:
        started = time.perf_counter()
        steps = sum(batch() for _ in range(iterations))
        return {"steps_per_s": steps / (time.perf_counter() - started)}

    return work


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    contestants = {"jaxrl": jaxrl, "sb3": sb3, "cleanrl": cleanrl}
    parser.add_argument("library", choices=contestants)
    contestants[parser.parse_args().library](Reports())
