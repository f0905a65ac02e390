"""What every test needs: JAX on the CPU, and jaxrl imported before JAX runs anything."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray says on every start that this will change, and warnings are errors.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray's workers are nice to others by default: beside other tests, those that wait for them would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

# Most of the time went into XLA's optimisations of programs that run a few times. Set XLA_FLAGS to have others.
_FAST_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("XLA_FLAGS", " ".join(_FAST_TO_COMPILE))

import hypothesis
import jax
import pytest

import jaxrl

# Many tests compile the same small programs: each is compiled once, also across worker processes and subprocesses.
_compiled = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
_compiled.mkdir(parents=True, exist_ok=True, mode=0o700)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compiled))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Examples that compile, or run beside other tests, take as long as they take; pytest-timeout ends what hangs.
hypothesis.settings.register_profile("jaxrl", deadline=None)
hypothesis.settings.load_profile("jaxrl")

assert jaxrl.__version__

# Tracing makes millions of objects that stay: by default a fifth of the time goes into looking at them again.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="module", autouse=True)
def _programs_end_with_their_module():
    """Compiled programs are let go of: a process that kept those of every module would grow beyond 5 GB."""
    yield
    jax.clear_caches()
    gc.collect()
