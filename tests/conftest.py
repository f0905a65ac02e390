"""What every test needs: JAX on the CPU, and jaxrl imported before JAX runs anything."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray says on every start that this will change, and warnings are errors.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import hypothesis

import jaxrl

# Examples that compile, or run beside other tests, take as long as they take; pytest-timeout ends what hangs.
hypothesis.settings.register_profile("jaxrl", deadline=None)
hypothesis.settings.load_profile("jaxrl")

assert jaxrl.__version__
