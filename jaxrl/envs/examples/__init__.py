"""Small environments for tests and examples; `jaxrl.envs.ENVS` names them."""
