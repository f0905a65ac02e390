"""What an all-reduced minibatch costs: DD-PPO's learn step alone, over our ring, and over JAX's runtime with gloo.

    python benchmarks/all_reduce.py [--workers 2] [--rounds 20]

Processes of one CPU thread each, as rollout workers are; each learns from 500 rows of its own: 10 epochs of minibatches
of 50, two 64x64 networks, Adam. They take turns through the ways to average, all in the same processes. Milliseconds a
minibatch, the median over rounds (least to most), and CPU seconds of all processes for 1,000 minibatches.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, cast

ROWS, MINIBATCH, EPOCHS = 500, 50, 10
STEPS = ROWS // MINIBATCH * EPOCHS


def child(rank: int, size: int, rounds: int, coordinator: str, scratch: pathlib.Path) -> None:
    os.environ["NPROC"] = "1"
    import jax

    from jaxrl.execution.all_reduce import Ring, listen, mean_by

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, size, rank, coordinator_bind_address=coordinator)

    import numpy as np
    from gymnasium import spaces
    from jax.flatten_util import ravel_pytree
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from jaxrl.algorithms.ppo import PPOPolicy
    from jaxrl.data import SampleBatch

    server = listen("127.0.0.1")
    ring = Ring.join(rank, server, exchanged(scratch, rank, size, server.getsockname()[:2]), b"benchmark")
    config = {
        "model": {"fcnet_hiddens": [64, 64], "vf_share_layers": False},
        "sgd_minibatch_size": MINIBATCH,
        "num_sgd_iter": EPOCHS,
    }
    policy = PPOPolicy(spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Discrete(2), config)
    rng = np.random.default_rng(rank)
    columns = {name: rng.normal(size=ROWS).astype(np.float32) for name in ("advantages", "value_targets", "vf_preds")}
    columns |= {
        "obs": rng.normal(size=(ROWS, 4)).astype(np.float32),
        "actions": rng.integers(0, 2, ROWS).astype("int32"),
    }
    columns |= {"action_dist_inputs": np.zeros((ROWS, 2), np.float32), "action_logp": np.full(ROWS, -0.69, np.float32)}
    batch = SampleBatch(columns, time_major=False)
    state = policy.init(jax.random.key(0))
    mesh = Mesh(np.array(jax.devices()), ("workers",))
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("workers"))

    def pmean(tree, rows):
        vector, restore = ravel_pytree(tree)
        return restore(jax.lax.pmean(vector, "workers"))

    def pmean_of_each(tree, rows):
        return jax.lax.pmean(tree, "workers")

    def over_mesh(average):
        learn, shard_map = policy.learn_averaged(average), cast("Any", jax.shard_map)

        def step(state, key_data, batch):  # typed keys cannot be put on devices of other processes
            after, out = learn(state.replace(key=jax.random.wrap_key_data(key_data)), batch)
            return after.params, out.metrics

        same, own = PartitionSpec(), PartitionSpec("workers")
        compiled = jax.jit(shard_map(step, mesh=mesh, in_specs=(same, same, own), out_specs=same, check_vma=False))
        shared = jax.device_put((state.replace(key=None), jax.random.key_data(state.key)), everywhere)
        rows = jax.tree.map(lambda x: jax.make_array_from_process_local_data(spread, x), batch)
        return lambda: compiled(*shared, rows)

    over_ring = policy.learn_averaged(mean_by(lambda vector: ring.sum(np.asarray(vector))))
    modes = {
        "alone": lambda: policy.learn(state, batch),
        "ring": lambda: over_ring(state, batch),
        "gloo": over_mesh(pmean),
        "gloo, each array": over_mesh(pmean_of_each),
    }
    for run in modes.values():
        jax.block_until_ready(run())
    vector = np.asarray(ravel_pytree(state.params)[0])

    def sums() -> None:
        for _ in range(STEPS):
            ring.sum(vector)

    modes["the ring's sum alone"] = sums
    taken: dict[str, list[list[float]]] = {name: [] for name in modes}
    for number in range(rounds):
        for name in list(modes)[:: 1 if number % 2 else -1]:
            if name == "gloo, each array" and number % 5:
                continue  # it takes so long
            ring.gather([0])  # all begin together
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(modes[name]())
            seconds = time.perf_counter() - wall, time.process_time() - cpu
            taken[name].append([1e3 * each / STEPS for each in seconds])
    (scratch / f"taken-{rank}").write_text(json.dumps(taken))


def exchanged(scratch: pathlib.Path, rank: int, size: int, address: tuple[str, int]) -> list[tuple[str, int]]:
    """The addresses of all processes, by way of files."""
    written = scratch / f".{rank}"
    written.write_text(json.dumps(address))
    written.rename(scratch / f"address-{rank}")
    paths = [scratch / f"address-{other}" for other in range(size)]
    while not all(path.exists() for path in paths):
        time.sleep(0.05)
    return [tuple(json.loads(path.read_text())) for path in paths]


def parent(workers: int, rounds: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--workers", str(workers), "--rounds", str(rounds), "--child"]
        children = [subprocess.Popen([*command, str(rank), coordinator, scratch]) for rank in range(workers)]
        codes = [process.wait() for process in children]
        if any(codes):
            sys.exit("a process failed")
        taken = [json.loads((pathlib.Path(scratch) / f"taken-{rank}").read_text()) for rank in range(workers)]
    print(f"{workers} processes, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in taken[0]:
        walls = sorted(wall for wall, _ in taken[0][name])
        cpu = sum(cpu for each in taken for _, cpu in each[name]) / len(walls)
        print(f"{name:22}{walls[len(walls) // 2]:8.2f} ms ({walls[0]:.2f} to {walls[-1]:.2f}){cpu:8.2f} s of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        rank, coordinator, scratch = args.child
        child(int(rank), args.workers, args.rounds, coordinator, pathlib.Path(scratch))
    else:
        parent(args.workers, args.rounds)


if __name__ == "__main__":
    main()
