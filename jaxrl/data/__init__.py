"""Batches of experience: SampleBatch, and MultiAgentBatch for several policies."""

from jaxrl.data.columns import UnknownColumnError
from jaxrl.data.multi_agent_batch import MultiAgentBatch, as_multi_agent, concat_batches
from jaxrl.data.sample_batch import SampleBatch

__all__ = ["MultiAgentBatch", "SampleBatch", "UnknownColumnError", "as_multi_agent", "concat_batches"]
