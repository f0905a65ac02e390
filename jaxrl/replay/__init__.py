"""Replay buffers: families of functions over arrays that hold past experience."""

from jaxrl.replay.jax_replay import JaxReplayState, jax_prioritized_replay, jax_twin, jax_uniform_replay
from jaxrl.replay.replay_buffer import ReplayBuffer, prioritized_replay, uniform_replay
from jaxrl.replay.saving import load, save
from jaxrl.replay.sequence_replay import SequenceSpec, SequenceState, sequence_priorities, sequence_replay
from jaxrl.replay.storage import ReplayError, ReplaySpec, ReplayState

__all__ = [
    "JaxReplayState",
    "ReplayBuffer",
    "ReplayError",
    "ReplaySpec",
    "ReplayState",
    "SequenceSpec",
    "SequenceState",
    "jax_prioritized_replay",
    "jax_twin",
    "jax_uniform_replay",
    "load",
    "prioritized_replay",
    "save",
    "sequence_priorities",
    "sequence_replay",
    "uniform_replay",
]
