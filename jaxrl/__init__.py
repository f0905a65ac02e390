"""jaxrl: reinforcement learning as pure functions in JAX.

Names are imported when they are first used, so that `import jaxrl` costs next to nothing. It does one thing: JAX's CPU
backend will dispatch synchronously, which makes acting several times cheaper (see `jaxrl.dispatch`).
`JAXRL_ASYNC_DISPATCH=1` leaves JAX as it is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxrl.dispatch import dispatch_synchronously

if TYPE_CHECKING:
    from jaxrl import losses
    from jaxrl.callbacks import Callbacks
    from jaxrl.data import MultiAgentBatch, SampleBatch
    from jaxrl.policies import build_policy
    from jaxrl.registry import (
        register_algorithm,
        register_distribution,
        register_env,
        register_exploration,
        register_model,
    )
    from jaxrl.trainers import build_trainer
    from jaxrl.trainers.evolution import PopulationBasedTraining
    from jaxrl.types import DEFAULT_POLICY_ID, ConfigError, JaxrlError, LearnOutput

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_POLICY_ID",
    "Callbacks",
    "ConfigError",
    "JaxrlError",
    "LearnOutput",
    "MultiAgentBatch",
    "PopulationBasedTraining",
    "SampleBatch",
    "__version__",
    "build_policy",
    "build_trainer",
    "losses",
    "register_algorithm",
    "register_distribution",
    "register_env",
    "register_exploration",
    "register_model",
]

# Where each name lives: "module:attr", or a module as it is.
_EXPORTS = {
    "DEFAULT_POLICY_ID": "jaxrl.types:DEFAULT_POLICY_ID",
    "Callbacks": "jaxrl.callbacks:Callbacks",
    "ConfigError": "jaxrl.types:ConfigError",
    "JaxrlError": "jaxrl.types:JaxrlError",
    "LearnOutput": "jaxrl.types:LearnOutput",
    "MultiAgentBatch": "jaxrl.data:MultiAgentBatch",
    "PopulationBasedTraining": "jaxrl.trainers.evolution:PopulationBasedTraining",
    "SampleBatch": "jaxrl.data:SampleBatch",
    "build_policy": "jaxrl.policies:build_policy",
    "build_trainer": "jaxrl.trainers:build_trainer",
    "losses": "jaxrl.losses",
    "register_algorithm": "jaxrl.registry:register_algorithm",
    "register_distribution": "jaxrl.registry:register_distribution",
    "register_env": "jaxrl.registry:register_env",
    "register_exploration": "jaxrl.registry:register_exploration",
    "register_model": "jaxrl.registry:register_model",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'jaxrl' has no attribute {name!r}; it has {', '.join(__all__)}")
    module_name, _, attr = _EXPORTS[name].partition(":")
    module = importlib.import_module(module_name)
    value = getattr(module, attr) if attr else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


dispatch_synchronously()
