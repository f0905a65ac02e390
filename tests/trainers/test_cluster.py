"""Several nodes: Ray's test cluster on this machine. Workers go where the resources are, and survive a lost node."""

import time

import pytest
import ray
from ray.cluster_utils import Cluster

from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.trainers import resources
from jaxrl.types import ConfigError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:subprocess"),
]

CONFIG = {
    "env": "CartPole-v1",
    "num_workers": 2,
    "num_cpus_per_worker": 1,
    "custom_resources_per_worker": {"simulator": 1},
    "rollout_fragment_length": 10,
    "train_batch_size": 20,
    "sgd_minibatch_size": 10,
    "num_sgd_iter": 1,
    "model": {"fcnet_hiddens": [8]},
    "seed": 0,
}


def node_of(worker):
    del worker
    return ray.get_runtime_context().get_node_id()


def test_workers_run_where_their_resources_are_and_outlive_a_node():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        first = cluster.add_node(num_cpus=2, resources={"simulator": 2})
        assert resources.ensure_ray(cluster.address)
        with pytest.raises(ConfigError, match=r"4 simulator \(it has 2\)"):
            PPOTrainer(config={**CONFIG, "num_workers": 4, "train_batch_size": 40})
        with PPOTrainer(config=CONFIG) as trainer:
            assert set(trainer.workers.apply(node_of)) == {first.node_id}
            assert trainer.train()["timesteps_total"] == 20
            second = cluster.add_node(num_cpus=2, resources={"simulator": 2})
            cluster.remove_node(first, allow_graceful=False)
            deadline = time.monotonic() + 240
            while trainer.workers.num_restarts < 2:
                assert time.monotonic() < deadline
                trainer.train()
            assert trainer.train()["timesteps_total"] == 20 * trainer.iteration
            assert set(trainer.workers.apply(node_of)) == {second.node_id}
    finally:
        ray.shutdown()
        cluster.shutdown()
