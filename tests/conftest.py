"""What every test needs: JAX on the CPU, and jaxrl imported before JAX runs anything."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Ray: no dashboard metrics and no usage reports from tests, and warnings about them neither.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import jaxrl  # noqa: F401
