"""Classic control with several independent agents: `env_config={"num_agents": n}`."""

from jaxrl.envs.multi_agent import make_multi_agent

MultiAgentCartPole = make_multi_agent("CartPole-v1")
MultiAgentMountainCar = make_multi_agent("MountainCarContinuous-v0")
MultiAgentPendulum = make_multi_agent("Pendulum-v1")
