"""Ray: starting it when it is needed, and how much of the cluster a run asks for."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import tune
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from jaxrl import registry
from jaxrl.types import ConfigError, JaxrlError, WorkerError

logger = logging.getLogger("jaxrl.ray")

# Ray takes a moment to notice that an actor has ended.
FREE_CPUS_WITHIN_S = 20.0
REACHABLE_WITHIN_S = 10.0

_head: Any = None


def ensure_ray(address: str | None = None) -> bool:
    """Connects to Ray, or starts it on this machine; returns whether it was started here.

    Args:
        address: of a cluster; None: `RAY_ADDRESS` if set, else a local one.

    Raises:
        ConfigError: nothing answers at the address.
    """
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    check_reachable(address)
    global _head
    with warnings.catch_warnings(), _own_sigterm(), _started(address):
        # Ray's processes are forked and replaced by their own program at once, so that no thread of JAX's is missed.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        # Ray would say at length that actors of this run see its warnings; errors still come through.
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    ray_worker.print_to_stdstream = _into_the_log
    _head = ray_worker._global_node if address is None else None
    return True


@contextlib.contextmanager
def _started(address: str | None) -> Iterator[None]:
    try:
        yield
    except JaxrlError:
        raise
    except Exception as error:
        where = "on this machine" if address is None else f"from {address}"
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkerError(
            f"Ray could not be started {where}: {told[0]} [its logs: /tmp/ray/session_latest/logs]"
        ) from error


def lost_parts_of_ray() -> list[str]:
    """Of the Ray that `ensure_ray` started on this machine, the head (gcs_server) or node (raylet) that has ended."""
    return [] if _head is None else [kind for kind, _ in _head.dead_processes() if kind in ("gcs_server", "raylet")]


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps a handler of SIGTERM: Ray puts its own in its place as it starts, and none as it ends.

    Where the signal comes while Ray's is there, that calls the earlier one, but writes a page about it first.
    """
    if not callable(signal.getsignal(signal.SIGTERM)):
        yield
        return
    libc, ours, started = ctypes.CDLL(None), ctypes.create_string_buffer(1024), threading.Event()
    libc.sigaction(signal.SIGTERM, None, ours)

    def insist() -> None:
        while not started.wait(0.002):
            libc.sigaction(signal.SIGTERM, ours, None)

    rays = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    thread = threading.Thread(target=insist, daemon=True)
    thread.start()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        started.set()
        thread.join()
        libc.sigaction(signal.SIGTERM, ours, None)
        ray_utils.set_sigterm_handler = rays


def _into_the_log(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
    """What Ray's daemon would print on the terminal, 600 characters for a worker that died: the run tells of that."""
    for line in data.get("lines", ()):
        logger.debug("%s", line)


def check_reachable(address: str | None) -> None:
    """Checks that something listens at a cluster's address: Ray itself would try for minutes, and not be stopped.

    Raises:
        ConfigError: nothing does.
    """
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # none, "auto" or "local": Ray finds it on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE_WITHIN_S).close()
    except OSError as error:
        raise ConfigError(
            f"Ray address {address!r}: nothing answers there ({error}). Check host and port (`ray start --head` prints "
            "them), or leave the address out to run on this machine."
        ) from error


def shutdown_ray() -> None:
    """Ends the Ray that `ensure_ray` started."""
    global _head
    _head = None  # its processes end on purpose now
    with _own_sigterm():
        ray.shutdown()


def worker_count(config: Any) -> int:
    """Actors that a run starts."""
    return config.num_workers + (config.evaluation_num_workers if config.evaluation_interval else 0)


def cpus_each(config: Any, available: float) -> tuple[float, float]:
    """CPUs of the driver and of each worker: the numbers given; 'auto' is 1 where that fits, else an equal share.

    Args:
        config: a CommonConfig.
        available: CPUs of the cluster.
    """
    workers = worker_count(config)
    fixed = 0.0 if config.num_cpus_for_driver == "auto" else config.num_cpus_for_driver
    fixed += 0.0 if config.num_cpus_per_worker == "auto" else config.num_cpus_per_worker * workers
    sharing = (config.num_cpus_for_driver == "auto") + (workers if config.num_cpus_per_worker == "auto" else 0)
    share = 1.0 if fixed + sharing <= available or not sharing else max(0.0, available - fixed) / sharing
    share = int(share * 100) / 100 if share < 1 else 1.0  # Ray counts in ten-thousandths; rounding up would not fit
    driver = share if config.num_cpus_for_driver == "auto" else config.num_cpus_for_driver
    worker = share if config.num_cpus_per_worker == "auto" else config.num_cpus_per_worker
    return driver, worker


def with_worker_cpus(config: Any) -> Any:
    """The config with numbers for the CPUs of workers that this process is about to start.

    Raises:
        ConfigError: the cluster cannot hold them.
    """
    group = ray.util.get_current_placement_group()
    if group is not None:  # under Tune, the trial's own bundles: the driver's, then one a worker
        worker = next((b.get("CPU", 0.0) for b in group.bundle_specs[1:]), 0.0)
        return dataclasses.replace(config, num_cpus_per_worker=worker)
    total = ray.cluster_resources()
    available = total.get("CPU", 0.0)
    check_other_resources(config, total)
    # Outside Tune the driver takes no slot of Ray's.
    _, worker = cpus_each(dataclasses.replace(config, num_cpus_for_driver=0.0), available)
    needed = worker * worker_count(config)
    if needed > available + 1e-6 or worker <= 0 < worker_count(config):
        raise ConfigError(
            f"num_cpus_per_worker={config.num_cpus_per_worker} x {worker_count(config)} workers asks for {needed:g} "
            "CPUs; Ray has "
            f"{available:g}. Lower one of them, or leave num_cpus_per_worker at 'auto'."
        )
    _wait_for_cpus(needed)
    return dataclasses.replace(config, num_cpus_per_worker=worker)


def check_other_resources(config: Any, total: Mapping[str, float], driver_gpus: float = 0.0) -> None:
    """Checks that a cluster has the GPUs and custom resources that the workers ask for.

    Args:
        config: a CommonConfig.
        total: the cluster's resources.
        driver_gpus: asked for beside those of workers.

    Raises:
        ConfigError: with what was asked for, what there is and what is missing.
    """
    workers = worker_count(config)
    asked = {"GPU": driver_gpus + config.num_gpus_per_worker * workers}
    asked |= {name: amount * workers for name, amount in config.custom_resources_per_worker.items()}
    missing = {name: amount for name, amount in asked.items() if amount > total.get(name, 0.0) + 1e-6}
    if missing:
        told = ", ".join(f"{amount:g} {name} (it has {total.get(name, 0.0):g})" for name, amount in missing.items())
        raise ConfigError(
            f"the run asks the cluster for {told}: num_gpus={driver_gpus:g}, {workers} workers with "
            f"num_gpus_per_worker={config.num_gpus_per_worker:g} and "
            f"custom_resources_per_worker={dict(config.custom_resources_per_worker)}. Lower them, or add nodes that "
            "have them (`ray start --resources=...`)."
        )


def _wait_for_cpus(needed: float) -> None:
    """Waits for CPUs that actors just ended give back; actors that others keep from starting would wait for ever."""
    end = time.monotonic() + FREE_CPUS_WITHIN_S
    while (free := ray.available_resources().get("CPU", 0.0)) < needed - 1e-6:
        if time.monotonic() > end:
            raise ConfigError(
                f"the workers ask for {needed:g} CPUs, and {free:g} of Ray's are free: other actors or tasks hold the "
                "rest (another "
                "trainer that was not stopped?). Stop them, lower num_workers, or set a smaller num_cpus_per_worker."
            )
        time.sleep(0.1)


def placement(config: Any) -> tune.PlacementGroupFactory:
    """What a trial asks of Tune.

    Raises:
        ConfigError: explicit numbers that the cluster cannot hold, with what was asked and what there is.
    """
    registry.publish_to_ray()
    total = ray.cluster_resources() if ray.is_initialized() else {"CPU": float(os.cpu_count() or 1)}
    available = total.get("CPU", 0.0)
    check_other_resources(config, total, config.num_gpus)
    driver, worker = cpus_each(config, available)
    workers = worker_count(config)
    asked = driver + worker * workers
    if asked > available + 1e-6:
        raise ConfigError(
            f"a trial asks for {asked:g} CPUs (driver {driver:g}, {workers} workers of {worker:g}); the cluster has "
            f"{available:g}. Lower num_workers or num_cpus_per_worker, or leave the CPUs at 'auto'."
        )
    own = {"CPU": driver, **({"GPU": config.num_gpus} if config.num_gpus else {})}
    each = {"CPU": worker, **({"GPU": config.num_gpus_per_worker} if config.num_gpus_per_worker else {})}
    each |= dict(config.custom_resources_per_worker)
    return tune.PlacementGroupFactory([own, *[dict(each) for _ in range(workers)]], strategy="PACK")


@contextlib.contextmanager
def quiet_tune() -> Iterator[None]:
    """Keeps Tune from advising, on every slow start, options that only Tune has."""
    logger = logging.getLogger("ray.tune.trainable.trainable")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
