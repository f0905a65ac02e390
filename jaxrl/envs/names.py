"""Names of the built-in environments, each imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping

from jaxrl import registry

_EXAMPLES = "jaxrl.envs.examples"

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
}


def register_built_in() -> None:
    """Enters `ENVS` into the registry; a name that the user has registered already stays the user's."""
    taken = set(registry.names("env"))
    for name, reference in ENVS.items():
        if name not in taken:
            registry.register("env", name, reference)
