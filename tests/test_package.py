"""`import jaxrl`: what it costs, what it offers, and how JAX dispatches afterwards."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaxrl
from jaxrl.dispatch import backends_exist

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, **env: str) -> str:
    """Runs code in a fresh interpreter and returns what it printed; warnings go to stderr and come after."""
    clean = {name: value for name, value in os.environ.items() if name != "JAXRL_ASYNC_DISPATCH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_importing_jaxrl_loads_no_heavy_package():
    heavy = ("jax", "flax", "optax", "ray", "gymnasium", "numpy")
    code = f"import jaxrl, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_registering_an_environment_loads_no_heavy_package():
    code = "import jaxrl, sys; jaxrl.register_env('x', print); print([m for m in ('jax', 'ray') if m in sys.modules])"
    assert run(code).strip() == "[]"


@pytest.mark.parametrize("name", jaxrl.__all__)
def test_every_export_resolves(name):
    assert getattr(jaxrl, name) is not None
    assert name in dir(jaxrl)


def test_an_unknown_attribute_says_what_there_is():
    name = "build_polices"
    with pytest.raises(AttributeError, match="no attribute 'build_polices'; it has .*build_policy"):
        getattr(jaxrl, name)


def test_the_version_is_the_distributions():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{jaxrl.__version__}"' in text


STATE = "print(jax.config.read('jax_cpu_enable_async_dispatch'), jax.config.jax_num_cpu_devices, len(jax.devices()))"


@pytest.mark.parametrize(
    "imports", ["import jaxrl, jax", "import jax, jaxrl", "import jaxrl\nfrom jax import numpy\nimport jax"]
)
def test_dispatch_is_synchronous_whoever_comes_first(imports):
    assert run(f"{imports}\njax.numpy.zeros(3) + 1\n{STATE}").strip() == "False -1 1"


def test_jax_is_left_alone_on_request():
    assert run(f"import jaxrl, jax\n{STATE}", JAXRL_ASYNC_DISPATCH="1").startswith("True")


def test_too_late_is_said_once():
    code = f"import jax\njax.numpy.zeros(3) + 1\nimport jaxrl\nimport importlib\nimport jaxrl.types\n{STATE}"
    printed = run(code)
    assert printed.startswith("True -1 1")
    assert printed.count("RuntimeWarning: JAX ran an operation before jaxrl was imported") == 1
    assert "RuntimeWarning" not in run(code, JAXRL_ASYNC_DISPATCH="1")


def test_jax_is_imported_as_it_would_be_without_jaxrl():
    code = (
        "import jaxrl, importlib.util, importlib.resources, inspect, sys\n"
        "importlib.util.find_spec('jax')\n"
        "import jax\n"
        "print(type(jax.__loader__).__name__, type(jax.__spec__.loader).__name__, len(inspect.getsource(jax)) > 0)\n"
        "print(importlib.resources.files('jax').is_dir(), [f for f in sys.meta_path if 'jaxrl' in repr(f)])\n"
        "print(jax.config.read('jax_cpu_enable_async_dispatch'))"
    )
    assert run(code).split("\n")[:3] == ["SourceFileLoader SourceFileLoader True", "True []", "False"]


def test_asking_for_backends_changes_nothing():
    code = (
        "import jax\nfrom jaxrl.dispatch import backends_exist\n"
        "print(backends_exist(jax.config), jax.config.jax_num_cpu_devices)\njax.devices()\n"
        "print(backends_exist(jax.config), jax.config.jax_num_cpu_devices, len(jax.devices()))"
    )
    assert run(code).split() == ["False", "-1", "True", "-1", "1"]
    jax = importlib.import_module("jax")
    jax.devices()
    assert backends_exist(jax.config)


def test_the_constraints_hold_versions_alone_and_what_pyproject_asks_for():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines == sorted(lines, key=str.upper)
    pinned = {}
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), line  # no addresses, paths, hashes
        name, version = line.split("==")
        pinned[canonicalize_name(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    extras = ["dev"]
    for extra in extras:
        asked += project["project"]["optional-dependencies"][extra]
        extras += [more for text in asked for more in Requirement(text).extras if Requirement(text).name == "jaxrl"]
        asked = [text for text in asked if Requirement(text).name != "jaxrl"]
    assert len(asked) > 30
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
