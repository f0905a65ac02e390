"""Configuration keys of mid-2020 RLlib that jaxrl retires: why, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping

_ONE_FRAMEWORK = "jaxrl has one framework, JAX, and compiles everything"
_NO_SESSIONS = "there are no TensorFlow sessions"
_ENV_VARS = "set JAX_PLATFORMS and XLA_FLAGS in the environment"

RETIRED: Mapping[str, tuple[str, str]] = {
    "framework": (_ONE_FRAMEWORK, "Remove it."),
    "use_pytorch": (_ONE_FRAMEWORK, "Remove it."),
    "eager": (_ONE_FRAMEWORK, "Remove it; jax.disable_jit() runs a policy step by step for debugging."),
    "eager_tracing": (_ONE_FRAMEWORK, "Remove it; jax.disable_jit() runs a policy step by step for debugging."),
    "no_eager_on_workers": (_ONE_FRAMEWORK, "Remove it."),
    "simple_optimizer": ("one learner serves one device and many", "Use num_learner_devices for more than one device."),
    "_fake_gpus": (
        "devices are JAX's",
        "Set XLA_FLAGS=--xla_force_host_platform_device_count=N and num_learner_devices=N.",
    ),
    "tf_session_args": (_NO_SESSIONS, f"Remove it; {_ENV_VARS}."),
    "local_tf_session_args": (_NO_SESSIONS, f"Remove it; {_ENV_VARS}."),
    "truncate_episodes": ("RLlib wrote it twice", 'Use batch_mode="truncate_episodes".'),
    "sample_batch_size": ("RLlib renamed it", "Use rollout_fragment_length."),
    "no_done_at_end": (
        "ends by time limit are truncations, which bootstrap, and never terminations",
        "Remove it; horizon truncates.",
    ),
    "monitor": ("videos come from rollouts", "Use `jaxrl rollout CHECKPOINT --video-dir DIR`."),
    "sample_async": (
        "an execution plan says what is asynchronous",
        'Use gather_async (ParallelRollouts mode="async").',
    ),
    "fake_sampler": ("policy.learn runs alone on any batch", "Call policy.learn on one batch to time the learner."),
    "_use_trajectory_view_api": ("a policy's loss and model say which columns exist", "Remove it."),
    "preprocessor_pref": (
        "models take observations as they are (Dict, Tuple, Discrete, images), and Atari ids get DeepMind's "
        "preprocessing",
        "Remove it; env_config={'preprocessing': None} gives an Atari game as it is.",
    ),
    "compress_observations": ("new_obs is derived, so that images travel once", "Remove it."),
    "remote_worker_envs": ("sub-environments step in processes, not in actors", 'Use env_stepping="async".'),
    "remote_env_batch_wait_ms": ("sub-environments step in processes, not in actors", 'Use env_stepping="async".'),
    "log_sys_usage": ("a result has no CPU or RAM readings", "Remove it; Ray's dashboard shows them."),
    "extra_python_environs_for_driver": ("the environment is the shell's", "Set the variables before starting Python."),
    "extra_python_environs_for_worker": (
        "rollout actors inherit the driver's environment",
        "Set the variables before starting Ray, or pass ray.init(runtime_env=...).",
    ),
    "memory": ("Ray manages its own memory", "Set it in ray.init or `ray start`."),
    "object_store_memory": ("Ray manages its own memory", "Set it in ray.init or `ray start`."),
    "object_store_memory_per_worker": ("Ray manages its own memory", "Set it in ray.init or `ray start`."),
    "in_evaluation": ("workers know it from their worker set", "Remove it."),
    "Q_model": (
        "networks of off-policy actor-critics have options of their own",
        "Use critic_hiddens and critic_hidden_activation.",
    ),
    "policy_model": (
        "networks of off-policy actor-critics have options of their own",
        "Use actor_hiddens and actor_hidden_activation.",
    ),
    "optimization": ("options are flat", "Use actor_lr, critic_lr and entropy_lr."),
    "_use_beta_distribution": ("a model's distribution has a name", 'Use model={"custom_action_dist": "beta"}.'),
    "_deterministic_loss": ("losses are pure functions of a key", "Remove it."),
    "opt_type": (
        "an optimiser has optax's name and arguments",
        'Use optimizer="adam", or optimizer={"type": "rmsprop", "decay": 0.99, "eps": 0.1}.',
    ),
    "decay": ("it is an argument of RMSProp", 'Use optimizer={"type": "rmsprop", "decay": 0.99}.'),
    "momentum": ("it is an argument of RMSProp", 'Use optimizer={"type": "rmsprop", "momentum": 0.9}.'),
    "epsilon": ("it is an argument of the optimiser", 'Use optimizer={"type": "rmsprop", "eps": 0.1}.'),
    "num_data_loader_buffers": ("the learner's thread takes batches from host memory", "Remove it."),
    "learner_queue_timeout": (
        "a learner's thread that fails ends the run with its own error, at once",
        "Remove it; sample_timeout_s is for workers.",
    ),
    "after_train_step": (
        "an update after each train batch is a pure function of the policy",
        "Use build_policy(update_fn=..., target_fn=...).",
    ),
    "logger_config": (
        "results go to one place, with or without Tune",
        "Remove it; Tune's storage_path or `jaxrl train --storage-path` says where.",
    ),
}
