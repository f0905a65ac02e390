"""Names of the built-in environments, each imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping

from jaxrl import registry

_EXAMPLES = "jaxrl.envs.examples"
_JAX = "jaxrl.envs.jax_native"

# Environments as pure functions that compile with the policy, each named after its original: `jax/CartPole-v1`.
JAX_ENVS: Mapping[str, str] = {
    "jax/CartPole-v1": f"{_JAX}.cart_pole_env:cart_pole",
    "jax/StatelessCartPole": f"{_JAX}.cart_pole_env:stateless_cart_pole",
    "jax/Pendulum-v1": f"{_JAX}.pendulum_env:pendulum",
    "jax/Acrobot-v1": f"{_JAX}.acrobot_env:acrobot",
    "jax/MountainCar-v0": f"{_JAX}.mountain_car_env:mountain_car",
    "jax/MountainCarContinuous-v0": f"{_JAX}.mountain_car_env:mountain_car_continuous",
    "jax/RepeatAfterMe": f"{_JAX}.memory:repeat_after_me",
    "jax/ValueProbe": f"{_JAX}.probes:value_probe",
    "jax/ObservationProbe": f"{_JAX}.probes:observation_probe",
    "jax/DiscountProbe": f"{_JAX}.probes:discount_probe",
    "jax/ActionProbe": f"{_JAX}.probes:action_probe",
    "jax/ObservationActionProbe": f"{_JAX}.probes:observation_action_probe",
}

ENVS: Mapping[str, str] = {
    "StatelessCartPole": f"{_EXAMPLES}.cartpoles:StatelessCartPole",
    "ParametricActionsCartPole": f"{_EXAMPLES}.cartpoles:ParametricActionsCartPole",
    "SparseRewardCartPole": f"{_EXAMPLES}.cartpoles:SparseRewardCartPole",
    "RepeatAfterMe": f"{_EXAMPLES}.memory:RepeatAfterMe",
    "RepeatInitialObs": f"{_EXAMPLES}.memory:RepeatInitialObs",
    "LookAndPush": f"{_EXAMPLES}.memory:LookAndPush",
    "SimpleCorridor": f"{_EXAMPLES}.simple:SimpleCorridor",
    "CorrelatedActions": f"{_EXAMPLES}.simple:CorrelatedActions",
    "NestedSpaceRepeatAfterMe": f"{_EXAMPLES}.simple:NestedSpaceRepeatAfterMe",
    "RandomEnv": f"{_EXAMPLES}.simple:RandomEnv",
    "DebugCounter": f"{_EXAMPLES}.simple:DebugCounter",
    "FastImageEnv": f"{_EXAMPLES}.simple:FastImageEnv",
    "TwoStepGame": f"{_EXAMPLES}.matrix_games:TwoStepGame",
    "RockPaperScissors": f"{_EXAMPLES}.matrix_games:RockPaperScissors",
    "WindyMaze": f"{_EXAMPLES}.windy_maze:WindyMaze",
    "HierarchicalWindyMaze": f"{_EXAMPLES}.windy_maze:HierarchicalWindyMaze",
    "MultiAgentCartPole": f"{_EXAMPLES}.multi_agent_copies:MultiAgentCartPole",
    "MultiAgentMountainCar": f"{_EXAMPLES}.multi_agent_copies:MultiAgentMountainCar",
    "MultiAgentPendulum": f"{_EXAMPLES}.multi_agent_copies:MultiAgentPendulum",
    **{
        name: f"jaxrl.envs.probes:{name}"
        for name in ("ValueProbe", "ObservationProbe", "DiscountProbe", "ActionProbe", "ObservationActionProbe")
    },
    **JAX_ENVS,
}


def jax_twin(name: str) -> str | None:
    """Returns the name of the same task as a JAX environment, or None.

    Example:
        >>> jax_twin("CartPole-v1"), jax_twin("ALE/Pong-v5")
        ('jax/CartPole-v1', None)
    """
    return f"jax/{name}" if f"jax/{name}" in JAX_ENVS else None


def register_built_in() -> None:
    """Enters `ENVS` into the registry; a name that the user has registered already stays the user's."""
    taken = set(registry.names("env"))
    for name, reference in ENVS.items():
        if name not in taken:
            registry.register("env", name, reference)
