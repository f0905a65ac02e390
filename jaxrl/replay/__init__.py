"""Replay buffers: families of functions over arrays that hold past experience."""

from jaxrl.replay.replay_buffer import ReplayBuffer, prioritized_replay, uniform_replay
from jaxrl.replay.storage import ReplayError, ReplaySpec, ReplayState

__all__ = ["ReplayBuffer", "ReplayError", "ReplaySpec", "ReplayState", "prioritized_replay", "uniform_replay"]
