"""The table of options: for each what changes where it has another value, or the test that shows it."""

from __future__ import annotations

from typing import Any

from jaxrl import registry

ALGORITHMS = tuple(sorted(registry.ALGORITHMS))

# The algorithms whose policies are those of another, and which therefore share what its policy shows.
POLICIES_OF = {"A3C": "A2C", "DDPPO": "PPO", "TD3": "DDPG", "APEX": "DQN", "APEX_DDPG": "DDPG"}

# Options of policies that are no coeffs: another value, and the options beside which it acts.
STATIC: dict[str, tuple[Any, dict[str, Any]]] = {
    "gamma": (0.5, {}),
    "lambda": (0.5, {}),
    "use_gae": (False, {"lambda": 0.5, "vtrace": False}),
    "use_critic": (False, {"vtrace": False}),
    "lr_schedule": ([[0, 1.0], [10, 0.0]], {}),
    "entropy_coeff_schedule": ([[0, 1.0], [10, 0.0]], {}),
    "optimizer": ("sgd", {}),
    "grad_clip": (0.5, {}),
    "num_sgd_iter": (3, {}),
    "sgd_minibatch_size": (2, {"num_sgd_iter": 1}),
    "shuffle_sequences": (False, {"sgd_minibatch_size": 2}),
    "exploration_config": ({"type": "Random"}, {}),
    "model": ({"fcnet_hiddens": [3]}, {}),
    # PPO, APPO, IMPALA
    "kl_target": (0.5, {"use_kl_loss": True, "target_update_frequency": 4}),
    "vf_share_layers": (True, {}),
    "vtrace": (None, {}),
    "standardize_advantages": (True, {}),
    "use_kl_loss": (True, {"target_update_frequency": 4}),
    "target_update_frequency": (7, {}),
    # the DQN family
    "hiddens": ((3,), {}),
    "dueling": (None, {}),
    "double_q": (None, {}),
    "noisy": (True, {}),
    "sigma0": (0.1, {"noisy": True}),
    "num_atoms": (3, {}),
    "v_min": (-3.0, {"num_atoms": 3}),
    "v_max": (3.0, {"num_atoms": 3}),
    "num_quantiles": (3, {}),
    "num_target_quantiles": (3, {}),
    "num_action_quantiles": (3, {}),
    "embedding_size": (3, {}),
    "huber_threshold": (0.5, {"use_huber": True}),
    "burn_in": (1, {}),
    "zero_init_states": (True, {}),
    "use_h_function": (False, {}),
    "h_function_epsilon": (0.5, {}),
    "n_step": (2, {}),
    "tau": (0.25, {"target_network_update_freq": 0}),
    # actor-critics
    "actor_hiddens": ((3,), {}),
    "critic_hiddens": ((3,), {}),
    "actor_hidden_activation": ("tanh", {}),
    "critic_hidden_activation": ("tanh", {}),
    "use_state_preprocessor": (True, {}),
    "twin_q": (None, {}),
    "initial_alpha": (0.5, {}),
    "target_entropy": (0.25, {}),
    "policy_delay": (3, {}),
    "smooth_target_policy": (None, {}),
    "target_noise": (0.5, {"smooth_target_policy": True}),
    "target_noise_clip": (0.25, {"smooth_target_policy": True}),
    "use_huber": (True, {}),
    "l2_reg": (0.5, {}),
}

# Coeffs that act beside other options alone.
BESIDE = {
    "vtrace_clip_rho_threshold": {"vtrace": True},
    "vtrace_clip_pg_rho_threshold": {"vtrace": True},
    "is_ratio_clip": {"vtrace": True},
    "kl_coeff": {"use_kl_loss": True, "target_update_frequency": 4},
}

# Options of replay memories: another value; what a buffer, or the plan, is then.
REPLAY: dict[str, Any] = {
    "gamma": 0.5,
    "n_step": 2,
    "buffer_size": 48,
    "prioritized_replay": None,
    "prioritized_replay_alpha": 0.25,
    "replay_frame_stack": 2,
}

# Options of sampling: another value, options beside which it acts.
SAMPLING: dict[str, tuple[Any, dict[str, Any]]] = {
    "env_config": ({"size": 3}, {}),
    "num_envs_per_worker": (3, {}),
    "rollout_fragment_length": (5, {}),
    "batch_mode": ("complete_episodes", {}),
    "horizon": (2, {}),
    "soft_horizon": (True, {"horizon": 2}),
    "clip_rewards": (0.25, {}),
    "clip_actions": (False, {}),
    "normalize_actions": (True, {}),
    "observation_filter": ("MeanStdFilter", {}),
    "callbacks": ("counting", {}),
    "seed": (8, {}),
    "explore": (False, {}),
}

# Options of plans, by what the printed plan of an algorithm, or its resolved options, show: algorithm and value.
PLANS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "train_batch_size": ("A2C", 20, {}),
    "timesteps_per_iteration": ("A2C", 50, {}),
    "min_iter_time_s": ("A2C", 1.0, {}),
    "microbatch_size": ("A2C", 10, {"train_batch_size": 20}),
    "training_intensity": ("DQN", 8, {}),
    "target_network_update_freq": ("DQN", 7, {}),
    "replay_proportion": ("IMPALA", 0.5, {"replay_buffer_num_slots": 4}),
    "replay_buffer_num_slots": ("IMPALA", 5, {}),
}

# Options that a plan hands on: algorithm, value, module, function and its parameter.
CALLS: dict[str, tuple[str, Any, str, str, str]] = {
    "learner_queue_size": ("IMPALA", 3, "impala", "learn_in_thread", "queue_size"),
    "minibatch_buffer_size": ("IMPALA", 2, "impala", "learn_in_thread", "minibatch_buffer_size"),
    "broadcast_interval": ("IMPALA", 2, "impala", "learn_in_thread", "broadcast_interval"),
    "max_sample_requests_in_flight_per_worker": ("IMPALA", 3, "impala", "AggregatedRollouts", "num_async"),
    "prioritized_replay_eps": ("DQN", 0.25, "off_policy", "UpdatePriorities", "eps"),
    "prioritized_replay_beta": ("DQN", 0.25, "off_policy", "LinearSchedule", "initial_p"),
    "final_prioritized_replay_beta": ("DQN", 0.75, "off_policy", "LinearSchedule", "final_p"),
    "prioritized_replay_beta_annealing_timesteps": ("DQN", 9, "off_policy", "LinearSchedule", "schedule_timesteps"),
}

# Options whose effect a test elsewhere shows, which names the option.
ELSEWHERE: dict[str, str] = {
    "max_whole_episode_steps": "tests/rollout/test_odd_environments.py",
    "engine": "tests/execution/test_compiled_engine.py",
    "num_workers": "tests/trainers/test_resources.py",
    "synchronize_filters": "tests/trainers/test_resources.py",
    "recreate_failed_workers": "tests/trainers/test_faults.py",
    "ignore_worker_failures": "tests/trainers/test_faults.py",
    "max_worker_restarts": "tests/rollout/test_failures.py",
    "max_worker_restarts_per_minute": "tests/trainers/test_faults.py",
    "sample_timeout_s": "tests/trainers/test_faults.py",
    "multiagent": "tests/trainers/test_multi_agent.py",
    "metrics_smoothing_episodes": "tests/execution/test_metric_ops.py",
    "evaluation_interval": "tests/trainers/test_evaluation.py",
    "evaluation_num_episodes": "tests/trainers/test_evaluation.py",
    "evaluation_num_workers": "tests/options/test_run_options.py",
    "evaluation_config": "tests/trainers/test_evaluation.py",
    "custom_eval_function": "tests/trainers/test_evaluation.py",
    "num_cpus_per_worker": "tests/trainers/test_resources.py",
    "num_cpus_for_driver": "tests/trainers/test_resources.py",
    "num_gpus_per_worker": "tests/trainers/test_resources.py",
    "custom_resources_per_worker": "tests/trainers/test_resources.py",
    "num_gpus": "tests/trainers/test_resources.py",
    "num_learner_devices": "tests/execution/test_learner.py",
    "keep_checkpoints_num": "tests/trainers/test_checkpoint.py",
    "keep_best": "tests/trainers/test_results_directory.py",
    "on_full_disk": "tests/trainers/test_full_disk.py",
    "compile_cache": "tests/trainers/test_resources.py",
    "learning_starts": "tests/trainers/test_jax_envs.py",
    "replay_mode": "tests/execution/test_replay_ops.py",
    "store_buffer_in_checkpoints": "tests/algorithms/test_q_learning.py",
    "worker_side_prioritization": "tests/execution/test_worker_priorities.py",
    "num_replay_buffer_shards": "tests/algorithms/test_apex.py",
    "max_weight_sync_delay": "tests/algorithms/test_apex.py",
    "keep_local_weights_in_sync": "tests/algorithms/test_ddppo.py",
    "env_stepping": "tests/rollout/test_sampler.py",
    "restart_failed_sub_environments": "tests/rollout/test_restarts.py",
    "env": "tests/envs/test_creation.py",
    "priority_eta": "tests/options/test_run_options.py",
    "num_aggregation_workers": "tests/options/test_run_options.py",
}
